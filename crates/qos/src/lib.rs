//! Who may go now: an ssd's limits, and its share of a drive and of a reactor. Pure: time comes in, nothing is read or waited for.
//!
//! ```text
//!  limits:  seat's Gate (its purses) --slices--> Throttle of the ssd (one Bucket a limit, shared by all reactors)
//!  weights: seat's Member (what it may hand in this turn) --> Drive (in flight, weights, window; shared by all reactors)
//!           seat's Allowance (deficit round robin on one reactor)
//! ```
//!
//! Duties of the caller: [`gate::Gate::turn`], [`drive::Member::turn`] and [`allowance::Allowance::turn`] at the beginning of each turn of a seat;
//! a request that was refused asks again later, the oldest first; a seat whose gate is shut sleeps until it opens.
//!
//! What this crate does *not* do: it does not queue, so a read that waits for its limit holds back the writes behind it in the
//! same seat; it limits neither flushes nor what a controller does by itself (format, sanitize); and a drive's window knows only this
//! process.
#![forbid(unsafe_code)]

pub mod allowance;
pub mod bucket;
pub mod drive;
pub mod gate;
pub mod limits;
pub mod throttle;

pub use allowance::Allowance;
pub use drive::{Drive, Member};
pub use gate::Gate;
pub use limits::{Limits, Rate, Weight};
pub use throttle::Throttle;
