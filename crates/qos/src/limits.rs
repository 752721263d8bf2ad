//! What an ssd is limited to, as it is written down.

/// So much a second, after a pause so much more at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests or bytes; 0 counts as 1.
    pub per_second: u64,
    /// What may come at once after a pause, however short the pause between two of them. `None`: [`BURST_NS`] of the rate.
    pub burst: Option<u64>,
}

impl Rate {
    /// A rate with the least burst.
    #[must_use]
    pub fn per_second(per_second: u64) -> Self {
        Self { per_second, burst: None }
    }
}

/// A bucket without a burst holds this much time of its rate: a reactor that comes later than that loses what it was late.
pub const BURST_NS: u64 = 10_000_000;

/// An ssd's limits; each holds by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests of either kind.
    pub iops: Option<Rate>,
    /// Reads.
    pub read_iops: Option<Rate>,
    /// Writes, write zeroes and discards.
    pub write_iops: Option<Rate>,
    /// Bytes read and written.
    pub bandwidth: Option<Rate>,
    /// Bytes read.
    pub read_bandwidth: Option<Rate>,
    /// Bytes written, also as zeros.
    pub write_bandwidth: Option<Rate>,
}

impl Limits {
    /// Nothing is limited.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// An ssd's share of what it has to share, relative to the others': 1 to 10,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(u16);

impl Weight {
    /// The most.
    pub const MAX: Weight = Weight(10_000);

    /// `None`: 0, or too much.
    #[must_use]
    pub fn new(weight: u16) -> Option<Self> {
        (1..=Self::MAX.0).contains(&weight).then_some(Self(weight))
    }

    /// As a number.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self(100)
    }
}
