//! Drives: where the bytes of an ssd are.
//!
//! ```text
//!  Config --Drive::open, once per ssd--> Drive (holds the file or memory; shared)
//!                                          +-- door(&its rings), on reactor 0's thread --> Box<dyn Backend>
//!                                          +-- door(&its rings), on reactor 1's thread --> Box<dyn Backend>
//! ```
//!
//! - [`uring`]: a file or block device through io_uring, without a copy.
//! - [`ram`]: memory of this process (a memfd).
//! - [`null`]: no data at all, for measuring everything else.
//! - [`faulty`]: a decorator that fails, delays, reorders and refuses by a seeded plan.
//!
//! Not done here: no layout on the drive, no NVMe passthrough, no limits or fairness between ssds.

mod drive;
pub mod faulty;
pub mod null;
pub mod ram;
pub mod uring;

pub use drive::{Config, Drive, Error, RingHolder};

use block::{Fault, Limits, Op, Outcome, Request};

/// Data segments of a request, for every backend here: a 1 MiB transfer by 4 KiB PRPs takes at most 257.
pub const SEGMENTS_MAX: usize = 512;

/// What every backend checks before it begins: whole blocks, inside the drive, data as long as the range.
///
/// # Errors
/// The outcome to end the request with.
fn checked(request: &Request<'_>, limits: &Limits) -> Result<(), Outcome> {
    if request.op == Op::Flush {
        return Ok(());
    }
    let range = request.range;
    let block = u64::from(limits.block_bytes);
    let inside = range.end_bytes().is_some_and(|end| end <= limits.capacity_bytes);
    if !inside || !range.start_bytes.is_multiple_of(block) || !range.len_bytes.is_multiple_of(block) {
        return Err(Outcome::Failed(Fault::OutOfRange));
    }
    if matches!(request.op, Op::Read | Op::Write { .. }) {
        let total = request.data.iter().try_fold(0_u64, |sum, segment| sum.checked_add(segment.len() as u64));
        if request.data.len() > limits.segments_max || total != Some(range.len_bytes) {
            return Err(Outcome::Failed(Fault::Memory));
        }
    }
    Ok(())
}
