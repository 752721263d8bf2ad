//! A seat's part of its reactor's time: deficit round robin, in bytes.

use crate::limits::Weight;

/// What a request costs beside its bytes.
pub const REQUEST_BYTES: u64 = 4096;
/// The least that a turn brings.
const QUANTUM_MIN: u64 = REQUEST_BYTES;

/// What a request costs its seat.
#[inline]
#[must_use]
pub fn cost(len_bytes: u64) -> i64 {
    i64::try_from(len_bytes.saturating_add(REQUEST_BYTES)).unwrap_or(i64::MAX)
}

/// A seat may hand in while something is left, and owes what its last request took beyond that.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowance {
    left: i64,
    quantum: i64,
}

impl Allowance {
    /// A turn begins: `quantum_bytes` for the default weight, and for others in proportion. What was not used is not saved.
    #[inline]
    pub fn turn(&mut self, weight: Weight, quantum_bytes: u64) -> i64 {
        let quantum =
            quantum_bytes.saturating_mul(u64::from(weight.get())) / u64::from(Weight::default().get());
        self.quantum = i64::try_from(quantum.max(QUANTUM_MIN)).unwrap_or(i64::MAX);
        self.left = self.left.saturating_add(self.quantum).min(self.quantum);
        self.left
    }

    /// The seat is alone: it owes nobody.
    #[inline]
    pub fn alone(&mut self, bytes: u64) -> i64 {
        self.left = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.left
    }

    /// The turn ends: requests of that cost were handed in.
    #[inline]
    pub fn spend(&mut self, cost: i64) {
        self.left = self.left.saturating_sub(cost);
    }
}
