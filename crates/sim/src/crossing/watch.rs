//! What is written to a drive, noted while the ssd is copied elsewhere: the rules of the engine's watched doors (`engine/src/watch.rs`).
//!
//! A write is noted when it ended and before it is answered. What was at the drive before the watch came has to end before the copy begins.

use std::sync::Arc;

use block::{Op, Range, Request, Submitted, Token};
use dirty::{Map, PAGE_BYTES};

struct Flight {
    door: usize,
    token: Token,
    era: u64,
    /// What it writes.
    written: Option<Range>,
}

/// See the module.
#[derive(Default)]
pub struct Watch {
    map: Option<Arc<Map>>,
    flights: Vec<Flight>,
    era: u64,
    /// Broken on purpose: a write is noted when it begins.
    early: bool,
}

impl Watch {
    pub(super) fn new(early: bool) -> Self {
        Self { early, ..Self::default() }
    }

    /// From here on writes are noted in this map, or in none. Returns the era that all before it belong to.
    pub(super) fn set(&mut self, map: Option<Arc<Map>>) -> u64 {
        self.map = map;
        self.era += 1;
        self.era
    }

    /// All that was at the drive before this era has ended.
    pub(super) fn has_ended(&self, era: u64) -> bool {
        self.flights.iter().all(|flight| flight.era >= era)
    }

    /// The process that waits for them is gone.
    pub(super) fn forget(&mut self) {
        self.flights.clear();
        self.map = None;
    }

    pub(crate) fn submitted(&mut self, door: usize, request: &Request<'_>, submitted: Submitted) {
        let written = match request.op {
            Op::Write { .. } | Op::WriteZeroes { .. } | Op::Discard => Some(request.range),
            Op::Read | Op::Flush => None,
        };
        match submitted {
            Submitted::Ended(_) => self.note(written),
            Submitted::Queued => {
                if self.early {
                    self.note(written);
                }
                let written = written.filter(|_| !self.early);
                self.flights.push(Flight { door, token: request.token, era: self.era, written });
            }
            Submitted::Full => {}
        }
    }

    pub(crate) fn ended(&mut self, door: usize, token: Token) {
        let is_it = |flight: &Flight| flight.door == door && flight.token == token;
        if let Some(at) = self.flights.iter().position(is_it) {
            let written = self.flights.swap_remove(at).written;
            self.note(written);
        }
    }

    fn note(&self, written: Option<Range>) {
        if let (Some(range), Some(map)) = (written, &self.map) {
            let first = range.start_bytes / PAGE_BYTES;
            let end = range.start_bytes.saturating_add(range.len_bytes).div_ceil(PAGE_BYTES);
            map.mark(first, end.saturating_sub(first));
        }
    }
}
