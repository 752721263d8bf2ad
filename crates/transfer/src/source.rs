//! What is moved, and where it arrives: pages of 4 KiB on both sides.

use std::io;

use dirty::{Map, PAGES_MAX};

/// A run of pages that is known to lie inside what is moved, and is not empty.
/// The only way in is checked: an unchecked run has no type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    first: u64,
    pages: u32,
}

impl Run {
    /// `total`: the pages of all that is moved.
    #[must_use]
    pub fn checked(first: u64, pages: u32, total: u64) -> Option<Self> {
        let end = first.checked_add(pages.into())?;
        (pages > 0 && end <= total && total <= PAGES_MAX).then_some(Self { first, pages })
    }

    /// Its first page.
    #[must_use]
    pub fn first(self) -> u64 {
        self.first
    }

    /// How many.
    #[must_use]
    pub fn pages(self) -> u32 {
        self.pages
    }

    /// The page behind its last.
    #[must_use]
    pub fn end(self) -> u64 {
        self.first + u64::from(self.pages)
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.pages) * dirty::PAGE_BYTES
    }
}

/// What a source has for a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes, which were put where the reader asked for them.
    Bytes,
    /// Nothing: the whole run reads as zeros and takes no space. What the reader gave was left as it was.
    Hole,
}

/// Pages that are copied while somebody writes them. Several threads read at once; one harvests.
pub trait Source: Sync {
    /// Pages it has; never changes.
    fn pages(&self) -> u64;

    /// From here on each write is noted. Called once, before anything else, and again after a copy that was given up.
    ///
    /// # Errors
    /// As the source has them; the copy ends with it.
    fn arm(&self) -> io::Result<()>;

    /// Calls `each` with the first page and the number of pages of each run that is allocated, in order. What is written elsewhere later is
    /// noted by the tracking, which is armed already.
    ///
    /// # Errors
    /// As the source has them.
    fn allocated(&self, each: &mut dyn FnMut(u64, u64)) -> io::Result<()>;

    /// Moves what was written since the last harvest into `into`, and goes on noting. A write is in this harvest or in the next, and its bytes can
    /// be read once it was harvested.
    ///
    /// # Errors
    /// As the source has them; nothing that was harvested may then be missing in the next.
    fn harvest(&self, into: &Map) -> io::Result<()>;

    /// Reads a run. `out` has the run's length. A page that is written meanwhile may be torn: it is harvested later.
    ///
    /// # Errors
    /// As the source has them; the copy ends with it.
    fn read(&self, run: Run, out: &mut [u8]) -> io::Result<Content>;
}

/// Where pages arrive; it reads as zeros where none did. Runs of different streams come from different threads, and never name the same page.
pub trait Sink: Sync {
    /// Writes a run; `bytes` has its length.
    ///
    /// # Errors
    /// As the sink has them; the migration ends with it, at this side.
    fn write(&self, run: Run, bytes: &[u8]) -> io::Result<()>;

    /// The run reads as zeros from here on. `hole`: and needs no space.
    ///
    /// # Errors
    /// As for [`Sink::write`].
    fn zero(&self, run: Run, hole: bool) -> io::Result<()>;

    /// What was written before is durable when this returns.
    ///
    /// # Errors
    /// As for [`Sink::write`].
    fn flush(&self) -> io::Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_lies_inside_what_is_moved() {
        for (first, pages, total, inside) in [
            (0, 1, 1, true),
            (0, 0, 1, false),
            (0, 2, 1, false),
            (1, 1, 1, false),
            (PAGES_MAX - 1, 1, PAGES_MAX, true),
            (PAGES_MAX, 1, PAGES_MAX + 1, false),
            (u64::MAX, 1, u64::MAX, false),
            (u64::MAX, u32::MAX, PAGES_MAX, false),
        ] {
            assert_eq!(Run::checked(first, pages, total).is_some(), inside, "{first} {pages} {total}");
        }
    }
}
