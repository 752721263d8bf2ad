//! The drives of a host: which there are, what is on them, how they are, and how they are wiped.
//!
//! - [`discovery`]: the kernel's block devices, from sysfs, and who uses them.
//! - [`content`]: signatures of partition tables, file systems, volume managers, RAID and encryption.
//! - [`survey`]: both together, with health, for `godwit drive list`; and [`claim`]: who may be written over.
//! - [`nvme`]: admin commands to a drive, its capabilities, its health.
//! - [`wipe`]: the wipe ladder, recorded, resumable, with a certificate.
//! - [`grant`]: a namespace or a whole drive for an ssd: made, attached, given, taken back, in recorded steps.
//!
//! Not done: NVMe character devices (`/dev/ng0n1`) as drives, SMART of SATA and SAS drives, wiping through a SATA or SAS drive's own commands
//! (they get write zeroes, deallocate, overwrite), and a store of keys: [`wipe::Keys`] is what one must be. A survey may be old by the time it is used; [`claim::Cleared::open`] looks again.

pub mod claim;
pub mod content;
pub mod discovery;
pub mod grant;
pub mod nvme;
pub mod source;
pub mod survey;
mod text;
pub mod wipe;
