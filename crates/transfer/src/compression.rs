//! Whether to compress: tried on samples, and kept up while it saves more time on the wire than it costs.

use std::time::Duration;

use crate::control::Clock;

/// Most pieces between two samples.
const PAUSE_MAX: u32 = 64;
/// What was measured longer ago counts half.
const HALF_BYTES: u64 = 64 << 20;

/// See the module. Of one stream.
#[derive(Debug)]
pub(crate) struct Compression {
    packed: Vec<u8>,
    /// Pieces to send as they are before the next sample.
    skip: u32,
    /// How many that were the last time.
    pause: u32,
    sent_bytes: u64,
    sent_ns: u64,
}

impl Compression {
    pub(crate) fn new() -> Self {
        Self { packed: Vec::new(), skip: 0, pause: 0, sent_bytes: 0, sent_ns: 0 }
    }

    /// Sending took so long, waits and pacing included.
    pub(crate) fn sent(&mut self, bytes: u64, time: Duration) {
        self.sent_bytes += bytes;
        self.sent_ns = self.sent_ns.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        if self.sent_bytes > HALF_BYTES {
            (self.sent_bytes, self.sent_ns) = (self.sent_bytes / 2, self.sent_ns / 2);
        }
    }

    /// The compressed form; `None`: send it as it is.
    pub(crate) fn pack(&mut self, plain: &[u8], clock: &dyn Clock) -> Option<&[u8]> {
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        let started = clock.now();
        self.packed.resize(lz4_flex::block::get_maximum_output_size(plain.len()), 0);
        let found = lz4_flex::block::compress_into(plain, &mut self.packed);
        let cost = clock.now().saturating_sub(started).as_nanos();
        let len = found.unwrap_or(plain.len());
        let smaller = len <= plain.len() / 8 * 7;
        let saved = u128::from(self.sent_ns) * (plain.len().saturating_sub(len)) as u128;
        let pays = self.sent_bytes == 0 || saved >= cost * u128::from(self.sent_bytes);
        if smaller && pays {
            self.pause = 0;
        } else {
            self.pause = (self.pause * 2).clamp(1, PAUSE_MAX);
            self.skip = self.pause;
        }
        if smaller { self.packed.get(..len) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    /// Each look at it takes a time of its own.
    struct Slow(AtomicU64, u64);

    impl Clock for Slow {
        fn now(&self) -> Duration {
            Duration::from_nanos(self.0.fetch_add(self.1, Relaxed))
        }

        fn sleep(&self, _: Duration) {}
    }

    fn packed(compression: &mut Compression, plain: &[u8], cost_ns: u64) -> usize {
        let clock = Slow(AtomicU64::new(0), cost_ns);
        (0..1000).filter(|_| compression.pack(plain, &clock).is_some()).count()
    }

    #[test]
    fn what_does_not_shrink_is_sampled_ever_more_rarely_and_what_does_is_packed() {
        let mut word = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            word.to_le_bytes()[3]
        })
        .take(4096)
        .collect();
        let mut compression = Compression::new();
        assert_eq!(packed(&mut compression, &noise, 1), 0);
        assert_eq!(compression.pause, PAUSE_MAX);
        compression.skip = 0;
        assert_eq!(packed(&mut compression, &[7; 4096], 1), 1000);
    }

    #[test]
    fn it_is_left_off_where_the_wire_is_quicker() {
        let mut compression = Compression::new();
        // A nanosecond a byte on the wire, and packing a page costs more than a page of it.
        compression.sent(1_000_000, Duration::from_millis(1));
        assert!(packed(&mut compression, &[7; 4096], 5000) < 50);
        compression.sent(60_000_000, Duration::from_secs(60));
        compression.skip = 0;
        assert_eq!(packed(&mut compression, &[7; 4096], 5000), 1000);
    }
}
