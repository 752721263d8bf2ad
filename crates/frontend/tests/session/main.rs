//! The vfio-user server as clients see it: in order, out of order, and hostile.
#![forbid(unsafe_code)]
#![expect(unreachable_pub, reason = "the modules of one test program share their harness")]

mod clients;
mod commands;
mod harness;
mod hostile;
mod listener;
mod migration;
mod random;
mod redelivery;
mod remote;
