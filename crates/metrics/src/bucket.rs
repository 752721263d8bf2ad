//! Log-linear buckets of time: eight an octave, from 64 ns on. A time is known to an eighth of itself.

/// Buckets of a histogram.
pub const BUCKETS: usize = 224;
/// Times below are not told apart.
const UNIT_BITS: u32 = 6;
/// Each octave has so many buckets, as a power of two.
const PART_BITS: u32 = 3;
const PARTS: u64 = 1 << PART_BITS;
/// The first unit count with no bucket of its own: times from about 68 s on are in the last bucket.
const UNITS_END: u64 = 1 << 30;

/// The bucket of a time.
#[inline]
#[must_use]
pub fn bucket_of(ns: u64) -> usize {
    let units = (ns >> UNIT_BITS).min(UNITS_END - 1);
    if units < PARTS {
        return index(units);
    }
    let octave = units.ilog2() - PART_BITS;
    index(u64::from(octave) * PARTS + (units >> octave))
}

#[inline]
fn index(at: u64) -> usize {
    usize::try_from(at).map_or(BUCKETS - 1, |at| at.min(BUCKETS - 1))
}

/// The shortest time in a bucket. That of the bucket behind the last is where the last one ends, by name only.
#[must_use]
pub fn floor_ns(bucket: usize) -> u64 {
    let at = bucket.min(BUCKETS) as u64;
    if at < PARTS {
        return at << UNIT_BITS;
    }
    let octave = at / PARTS - 1;
    (PARTS + at % PARTS) << octave << UNIT_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_begins_where_the_one_before_ends() {
        for bucket in 0..BUCKETS {
            let (floor, next) = (floor_ns(bucket), floor_ns(bucket + 1));
            assert!(floor < next, "{bucket}");
            assert_eq!(bucket_of(floor), bucket, "its first");
            assert_eq!(bucket_of(next - 1), bucket, "its last");
        }
        assert_eq!(bucket_of(0), 0);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(floor_ns(BUCKETS), 1 << 36, "about 68 s");
    }

    #[test]
    fn a_time_is_known_to_an_eighth_of_itself() {
        for ns in (0..60).map(|shift| 1000_u64 << (shift / 2)).filter(|ns| *ns < 1 << 36) {
            let bucket = bucket_of(ns);
            let width = floor_ns(bucket + 1) - floor_ns(bucket);
            assert!(width <= 64.max(ns / 8), "{ns} ns is in a bucket of {width} ns");
        }
    }
}
