//! `QueueGroup` against NVM Command Set 1.1 and Base 2.1, and against its own promises.
#![expect(clippy::cast_possible_truncation, reason = "test patterns")]

mod commands;
mod control;
mod random;
mod reserved;
mod world;
