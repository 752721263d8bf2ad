//! The one contract between the programs of Godwit: configuration, and what is said on the control socket.
//!
//! Everything a person writes is checked here, in one place, and an error names the file, the line, the reason and what
//! to write instead.
#![forbid(unsafe_code)]

pub mod change;
pub mod config;
pub mod control;
pub mod identity;
pub mod rest;
pub mod size;
