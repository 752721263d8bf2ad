//! Encryption at rest: a decorator that keeps an ssd's data as AES-256-XTS on its drive.
//!
//! ```text
//!  guest pages --copy--> bounce buffer --encrypt--> drive        drive --> bounce buffer --decrypt, copy--> guest pages
//! ```
//! Each 512-byte sector is one data unit (IEEE 1619), numbered from the ssd's first: the same bytes at two places, or in two ssds, are
//! different bytes on the drive. What was never written, discarded or zeroed reads as zeros: a sector whose bytes on the drive are all
//! zeros stands for zeros. So whoever holds the drive sees which sectors are in use, and nothing of what is in them.
//!
//! The guest's memory is never encrypted in place: another processor could change it meanwhile.
//!
//! Not done here: no authentication (a changed sector decrypts to noise, and is not noticed), no key management beyond reading one, no change of
//! a key in use.
#![deny(unsafe_op_in_unsafe_fn)]

mod door;
mod key;
mod xts;

pub use door::Crypt;
pub use key::{KEY_BYTES, Key, KeyError};
pub use xts::SECTOR_BYTES;
