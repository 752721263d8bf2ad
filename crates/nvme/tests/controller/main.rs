//! `Controller` against Base 2.1 and NVM Command Set 1.1, section by section, and against its own promises.
#![expect(clippy::cast_possible_truncation, reason = "test patterns")]

mod commands;
mod growth;
mod lba_status;
mod life;
mod management;
mod memory;
mod namespaces;
mod profiles;
mod random;
mod reserved;
mod saved;
mod tracking;
mod world;
