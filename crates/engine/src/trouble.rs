//! Troubles that somebody outside can make come again and again: one line in the log says it.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether there is such a trouble now.
#[derive(Debug, Default)]
pub(crate) struct Trouble(AtomicBool);

impl Trouble {
    /// There is. Whether there was none before: then it is worth a line.
    pub(crate) fn begins(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }

    /// It is over: the next one is worth a line again.
    pub(crate) fn ends(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_begins_once_until_it_ends() {
        let trouble = Trouble::default();
        assert_eq!([trouble.begins(), trouble.begins(), trouble.begins()], [true, false, false]);
        trouble.ends();
        assert_eq!([trouble.begins(), trouble.begins()], [true, false]);
    }
}
