//! The vhost-user back-end as clients see it: in order, out of order, restored, and hostile.
#![forbid(unsafe_code)]
#![expect(unreachable_pub, reason = "the modules of one test program share their harness")]

mod guest;
mod harness;
mod hostile;
mod messages;
mod orders;
mod random;
mod restored;
mod socket;
