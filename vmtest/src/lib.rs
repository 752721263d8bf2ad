//! Real guests: a stock Debian kernel in stock QEMU, driven from Rust.
//!
//! [`image::Image`] builds, once, a folder with QEMU 11, a kernel and the tools a guest test needs; [`vm::Vm`] boots it, runs
//! commands in the guest and speaks QMP; [`daemon::Daemon`] runs `godwitd` beside it; [`bed::Bed`] puts the three together
//! for a test and checks at its end that the guest's kernel log holds no NVMe complaint.
//!
//! Not here: hosts other than Debian-like x86-64 ones with root rights, guests other than Linux, and networks.
#![forbid(unsafe_code)]

pub mod agent;
pub mod bed;
mod cpio;
pub mod daemon;
mod debian;
pub mod fio;
pub mod hosts;
pub mod image;
pub mod kernel_log;
pub mod load;
pub mod migration;
pub mod mirror;
pub mod vm;
