//! I/O queue creation and deletion (Base 2.1, 5.2.1 to 5.2.4).

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Create I/O Completion Queue and Create I/O Submission Queue, command dword 10 (Base 2.1, 5.2.1 and 5.2.2).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CreateQueueCdw10 {
    /// Queue identifier.
    pub qid: u16,
    /// Queue size in entries, 0's based.
    pub qsize_z: u16,
}

/// Create I/O Completion Queue, command dword 11 (Base 2.1, 5.2.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CreateCqCdw11 {
    /// Physically contiguous: PRP1 is the queue, else a PRP list.
    pub pc: bool,
    /// Interrupts enabled.
    pub ien: bool,
    #[bits(14)]
    __: u16,
    /// Interrupt vector.
    pub iv: u16,
}

/// Create I/O Submission Queue, command dword 11 (Base 2.1, 5.2.2).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CreateSqCdw11 {
    /// Physically contiguous: PRP1 is the queue, else a PRP list.
    pub pc: bool,
    /// Queue priority: see [`QueuePriority`]. Ignored under round robin.
    #[bits(2)]
    pub qprio: u8,
    #[bits(13)]
    __: u16,
    /// Completion queue identifier.
    pub cqid: u16,
}

/// Create I/O Submission Queue, command dword 12 (Base 2.1, 5.2.2).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CreateSqCdw12 {
    /// NVM set identifier.
    pub nvmsetid: u16,
    __: u16,
}

/// Submission queue priority (Base 2.1, 5.2.2).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum QueuePriority {
    /// Urgent.
    Urgent = 0,
    /// High.
    High = 1,
    /// Medium.
    Medium = 2,
    /// Low.
    Low = 3,
}

/// Delete I/O Submission Queue and Delete I/O Completion Queue, command dword 10 (Base 2.1, 5.2.3 and 5.2.4).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeleteQueueCdw10 {
    /// Queue identifier.
    pub qid: u16,
    __: u16,
}
