//! A log-linear histogram: 64 buckets an octave (1.6 % error), one addition a sample.

const SUB_BITS: u32 = 6;
const SUB: u64 = 1 << SUB_BITS;
const BUCKETS: usize = (64 - SUB_BITS as usize + 1) << SUB_BITS;

/// Counts of values of any size.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    sum: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: vec![0; BUCKETS], total: 0, sum: 0, max: 0 }
    }
}

impl Histogram {
    /// Counts one value.
    #[inline]
    pub fn record(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.total += 1;
        self.sum = self.sum.wrapping_add(value);
        self.max = self.max.max(value);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        (self.total, self.sum, self.max) = (0, 0, 0);
    }

    /// Values counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The exact mean; 0 when empty.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "sums of a bench are far below 2^53")]
    pub fn mean(&self) -> f64 {
        self.sum as f64 / self.total.max(1) as f64
    }

    /// The exact largest value.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The middle of the bucket that holds the value `per_mille` of all values are not above.
    #[must_use]
    pub fn quantile(&self, per_mille: u64) -> u64 {
        let rank = (u128::from(self.total) * u128::from(per_mille)).div_ceil(1000).max(1);
        let mut seen = 0_u128;
        for (index, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= rank {
                return middle(index as u64).min(self.max);
            }
        }
        self.max
    }
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "a bucket index is below BUCKETS")]
fn bucket(value: u64) -> usize {
    // Values below 64 have a bucket each; then 64 buckets for each power of two.
    let shift = (63 - (value | SUB).leading_zeros()).saturating_sub(SUB_BITS);
    let base = u64::from(shift) << SUB_BITS;
    (base + (value >> shift)) as usize
}

fn middle(index: u64) -> u64 {
    if index < 2 * SUB {
        return index;
    }
    let shift = (index >> SUB_BITS) - 1;
    let low = (index - (shift << SUB_BITS)) << shift;
    low + (1 << shift) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_within_its_bucket() {
        for bits in 0..64 {
            for value in [1_u64 << bits, (1_u64 << bits) + ((1_u64 << bits) / 3), u64::MAX >> (63 - bits)] {
                let error = middle(bucket(value) as u64).abs_diff(value);
                assert!(error <= value / 64, "{value}: off by {error}");
            }
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn quantiles_of_one_to_a_thousand() {
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|value| histogram.record(value));
        assert!((histogram.mean() - 500.5).abs() < 1e-9);
        assert!(histogram.quantile(500).abs_diff(500) <= 8);
        assert!(histogram.quantile(990).abs_diff(990) <= 16);
        assert_eq!(histogram.quantile(1000), 1000);
    }

    #[test]
    fn an_empty_histogram_says_zero() {
        assert_eq!(Histogram::default().quantile(999), 0);
        assert!(Histogram::default().mean().abs() < f64::EPSILON);
    }
}
