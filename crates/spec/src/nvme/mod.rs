//! NVM Express: Base 2.1, NVM Command Set 1.1.

pub mod admin;
pub mod command;
pub mod completion;
pub mod feature;
pub mod identify;
pub mod log;
pub mod migration;
pub mod nvm;
pub mod opcode;
pub mod prp_sgl;
pub mod queue;
pub mod registers;
pub mod status;
pub mod tracking;

pub use command::{Cdw0, Command, Fuse, Psdt};
pub use completion::Completion;
pub use opcode::{AdminOpcode, NvmOpcode};
pub use status::{Status, StatusCodeType};

/// The NSID that stands for every namespace (Base 2.1, 3.2.1.2).
pub const NSID_BROADCAST: u32 = 0xffff_ffff;
