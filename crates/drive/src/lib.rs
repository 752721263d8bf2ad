//! The drives of a host: which there are, what is on them, how they are, and how they are wiped.
//!
//! - [`discovery`]: the kernel's block devices, from sysfs, and who uses them.
//! - [`survey`]: both together, with health, for `godwit drive list`; and [`claim`]: who may be written over.
//! - [`nvme`]: admin commands to a drive, its capabilities, its health.
//! - [`wipe`]: the wipe ladder, recorded, resumable, with a certificate.
//! - [`content`]: signatures of partition tables, file systems, volume managers, RAID and encryption.

pub mod claim;
pub mod content;
pub mod discovery;
pub mod nvme;
pub mod source;
pub mod survey;
mod text;
pub mod wipe;
