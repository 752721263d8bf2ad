//! The keeper with real sockets and real engine processes: a scripted double in the engine's place (`double`).
#![allow(unreachable_pub, reason = "modules of one test program")]

mod changes;
mod client;
mod clients;
mod crashes;
mod double;
mod harness;
mod manager;
mod restarts;
mod successions;
mod upgrades;
