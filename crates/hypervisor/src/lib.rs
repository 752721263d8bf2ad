//! What Godwit asks of a stock QEMU when a guest moves, over QMP (QEMU's machine protocol).
//!
//! ```text
//!   Source                                             Destination
//!   check, devices                                     check, devices
//!                                                      expect(fd)
//!   begin(fd) ======= the guest's memory =============>  Coming
//!   Pass.., Stopped, PreSwitchover                                    (storage: the last pass; ready)
//!   vectors =======================================================>  (a record of the storage's)
//!   go_on ============ the rest, device states ========>
//!   Completed                                          Completed      (storage: granted, owned)
//!                                                      restore_pci
//!   quit                                               run
//! ```
//! Until `Completed` the source runs the guest again by itself on any failure; from then on nobody runs it before he is told to.
//!
//! Plain threads: every call has an end, however the other side behaves, and bounded memory. QEMU is not trusted more than any other client:
//! what it says is a value or an [`Error`].
//!
//! What this crate does *not* do: it starts no QEMU, carries no memory (that goes through the socket that QEMU is handed), and knows no hypervisor but QEMU.
#![forbid(unsafe_code)]

pub mod destination;
pub mod device;
mod error;
mod gdb;
mod human;
pub mod migration;
pub mod pci;
#[cfg(test)]
mod peer;
pub mod qmp;
pub mod source;

pub use destination::{Destination, DestinationNow, DestinationWord};
pub use device::{Device, Interface, PciAddress, Server};
pub use error::{Error, Fault};
pub use migration::Status;
pub use pci::{CONFIG_BYTES, PciState, Vector};
pub use qmp::Qmp;
pub use source::{Progress, Source, SourceNow, SourceWord, Terms};
