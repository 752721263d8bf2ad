//! What Godwit asks of a stock QEMU when a guest moves, over QMP (QEMU's machine protocol).
//!
//! Plain threads: every call has an end, however the other side behaves, and bounded memory. QEMU is not trusted more than any other client:
//! what it says is a value or an [`Error`].
//!
//! What this crate does *not* do: it starts no QEMU, and knows no hypervisor but QEMU.
#![forbid(unsafe_code)]

mod error;
pub mod qmp;

pub use error::{Error, Fault};
pub use qmp::Qmp;
