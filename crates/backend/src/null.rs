//! The drive without data: every request ends at once and touches no memory, as SPDK's null bdev does.
//!
//! A read leaves the guest's memory exactly as it was. This measures everything that is not the drive; it is no place to
//! keep a file system, and it does not keep the promise that never-written bytes read as zeros.
#![expect(unsafe_code, reason = "implements Backend::submit, which is an unsafe method")]
// UNSAFETY: none beyond the method's own name: no memory is touched.

use crate::{SEGMENTS_MAX, checked};
use block::{Backend, Completion, Limits, Outcome, Request, Submitted};

/// See the module.
#[derive(Debug)]
pub struct Null {
    limits: Limits,
}

impl Null {
    /// A door with these limits.
    #[must_use]
    pub fn new(limits: Limits) -> Null {
        Null { limits }
    }
}

/// A null drive's limits.
pub(crate) fn limits(capacity_bytes: u64) -> Limits {
    Limits { capacity_bytes, block_bytes: 512, segments_max: SEGMENTS_MAX, discard: true }
}

impl Backend for Null {
    fn limits(&self) -> Limits {
        self.limits
    }

    unsafe fn submit(&mut self, request: &Request<'_>) -> Submitted {
        Submitted::Ended(checked(request, &self.limits).err().unwrap_or(Outcome::Done))
    }

    fn kick(&mut self) {}

    fn poll(&mut self, _done: &mut Vec<Completion>) {}

    fn in_flight(&self) -> usize {
        0
    }
}
