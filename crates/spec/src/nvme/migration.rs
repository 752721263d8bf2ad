//! Host managed live migration (Base 2.1, 5.1.16, 5.1.17 and 8.1.12): command fields, and the controller state that goes from one
//! controller to another.

use core::mem::offset_of;

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::little_endian::U128;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Migration Send: what is done (Base 2.1, 5.1.17, SEL).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MigrationSendSelect {
    /// Suspend.
    Suspend = 0,
    /// Resume.
    Resume = 1,
    /// Set Controller State.
    SetControllerState = 2,
}

/// Migration Receive: what is asked for (Base 2.1, 5.1.16, SEL).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MigrationReceiveSelect {
    /// Get Controller State.
    GetControllerState = 0,
}

/// Migration Send, command dword 10 (Base 2.1, 5.1.17).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MigrationSendCdw10 {
    /// Select: see [`MigrationSendSelect`].
    pub sel: u8,
    __: u8,
    /// Set Controller State: where the command stands in its sequence. See [`SequenceIndicator`].
    #[bits(2)]
    pub seqind: u8,
    #[bits(14)]
    __: u16,
}

/// Where a Set Controller State command stands in its sequence (Base 2.1, 5.1.17.1.3, SEQIND).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SequenceIndicator {
    /// Neither first nor last.
    Middle = 0b00,
    /// First of two or more.
    First = 0b01,
    /// Last of two or more.
    Last = 0b10,
    /// First and last.
    Only = 0b11,
}

/// Migration Send Suspend and Resume, command dword 11 (Base 2.1, 5.1.17.1.1 and 5.1.17.1.2). Resume has the identifier alone.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SuspendCdw11 {
    /// Controller identifier.
    pub cntlid: u16,
    /// Suspend type: see [`SuspendType`].
    pub stype: u8,
    #[bits(7)]
    __: u8,
    /// Delete the user data migration queue.
    pub dudmq: bool,
}

/// Suspend type (Base 2.1, 5.1.17.1.1, STYPE).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SuspendType {
    /// The controller is about to be suspended.
    Notification = 0,
    /// The controller is suspended.
    Suspend = 1,
}

/// Migration Send Set Controller State, command dword 11 (Base 2.1, 5.1.17.1.3). Dwords 12 and 13 are the offset in bytes (CSO), dword 15
/// is the number of dwords, which is not 0's based.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetControllerStateCdw11 {
    /// Controller identifier.
    pub cntlid: u16,
    /// Controller state version index, from 1; 0 = there is no NVMe controller state.
    pub csvi: u8,
    /// Controller state UUID index, from 1; 0 = there is no vendor specific data.
    pub csuuidi: u8,
}

/// Migration Receive, command dword 10 (Base 2.1, 5.1.16).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MigrationReceiveCdw10 {
    /// Select: see [`MigrationReceiveSelect`].
    pub sel: u8,
    __: u8,
    /// Get Controller State: controller state version index, from 1; 0 = no NVMe controller state is asked for.
    pub csvi: u8,
    __: u8,
}

/// Migration Receive Get Controller State, command dword 11 (Base 2.1, 5.1.16.1.1). Dwords 12 and 13 are the offset in bytes, dword 15 is
/// the number of dwords, 0's based (NUMDL).
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GetControllerStateCdw11 {
    /// Controller identifier.
    pub cntlid: u16,
    /// Controller state UUID index, from 1; 0 = no vendor specific data is asked for.
    pub csuuidi: u8,
    /// A parameter of the vendor's to that UUID.
    pub csuidxp: u8,
}

/// Get Controller State, completion dword 0: the controller was suspended while the command was processed (CSUP).
pub const CSUP: u32 = 1;

/// First bytes of a controller state (Base 2.1, 5.1.16.1.1). The NVMe controller state follows, then what is the vendor's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ControllerStateHeader {
    /// Version of this structure: 0.
    pub ver: u16,
    /// Controller state attributes.
    pub csattr: Csattr,
    /// Reserved.
    pub reserved3: [u8; 13],
    /// Dwords of the NVMe controller state (NVMECSS).
    pub nvmecss: U128,
    /// Dwords of the vendor specific data (VSS).
    pub vss: U128,
}

const _: () = assert!(size_of::<ControllerStateHeader>() == 48);
const _: () = assert!(offset_of!(ControllerStateHeader, nvmecss) == 16);
const _: () = assert!(offset_of!(ControllerStateHeader, vss) == 32);

/// Controller state attributes (CSATTR).
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Csattr {
    /// The controller was suspended while its state was taken.
    pub csup: bool,
    #[bits(7)]
    __: u8,
}

/// First bytes of an NVMe controller state, version 0 (Base 2.1, 5.1.16.1.1): the states of the I/O submission queues follow, and then
/// those of the I/O completion queues, each by ascending identifier.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NvmeControllerStateHeader {
    /// Version: 0.
    pub ver: u16,
    /// I/O submission queues.
    pub niosq: u16,
    /// I/O completion queues.
    pub niocq: u16,
    /// Reserved.
    pub reserved6: [u8; 2],
}

const _: () = assert!(size_of::<NvmeControllerStateHeader>() == 8);

/// An I/O submission queue (Base 2.1, 5.1.16.1.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoSubmissionQueueState {
    /// PRP entry 1 of its creation.
    pub prp1: u64,
    /// Entries, 0's based.
    pub qsize_z: u16,
    /// Identifier.
    pub qid: u16,
    /// Completion queue.
    pub cqid: u16,
    /// Attributes.
    pub attributes: IoSubmissionQueueAttributes,
    /// Head pointer.
    pub head: u16,
    /// Tail pointer.
    pub tail: u16,
    /// Reserved.
    pub reserved20: [u8; 4],
}

const _: () = assert!(size_of::<IoSubmissionQueueState>() == 24);
const _: () = assert!(offset_of!(IoSubmissionQueueState, attributes) == 14);

/// Attributes of an [`IoSubmissionQueueState`].
#[bitfield(u16)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoSubmissionQueueAttributes {
    /// Physically contiguous.
    pub pc: bool,
    /// Priority.
    #[bits(2)]
    pub qprio: u8,
    #[bits(13)]
    __: u16,
}

/// An I/O completion queue (Base 2.1, 5.1.16.1.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoCompletionQueueState {
    /// PRP entry 1 of its creation.
    pub prp1: u64,
    /// Entries, 0's based.
    pub qsize_z: u16,
    /// Identifier.
    pub qid: u16,
    /// Head pointer.
    pub head: u16,
    /// Tail pointer.
    pub tail: u16,
    /// Attributes.
    pub attributes: IoCompletionQueueAttributes,
    /// Reserved.
    pub reserved20: [u8; 4],
}

const _: () = assert!(size_of::<IoCompletionQueueState>() == 24);
const _: () = assert!(offset_of!(IoCompletionQueueState, attributes) == 16);

/// Attributes of an [`IoCompletionQueueState`].
#[bitfield(u32)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoCompletionQueueAttributes {
    /// Physically contiguous.
    pub pc: bool,
    /// Interrupts enabled.
    pub ien: bool,
    /// Phase tag of the entry in slot 0.
    pub s0pt: bool,
    #[bits(13)]
    __: u16,
    /// Interrupt vector.
    pub iv: u16,
}
