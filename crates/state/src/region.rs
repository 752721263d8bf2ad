//! The shared-memory region of one NVMe controller: everything a successor process needs to go on.
//!
//! Layout, store order and the argument for each boundary: `docs/formats/controller-region.md`. Each field has one writer
//! (the reactor that owns it) and is atomic, so that any other process may read at any time. Zero is the initial
//! value of every field: a fresh memfd is a valid region of a controller that was never enabled.
//!
//! ```text
//!  ControllerRegion
//!  +- header        magic, layout version, size
//!  +- registers     CC, CSTS, AQA, ASQ, ACQ, INTMS, ...        writer: home reactor
//!  +- pci           4 KiB of configuration space + MSI-X table  writer: home reactor
//!  +- admin         features, AER cids, shadow doorbells, ...   writer: home reactor
//!  +- cqs[129]      base, size, head, tail, phase, vector       writer: the reactor that owns the queue
//!  +- sqs[129]      base, size, head, cqid, seq                 writer: the reactor that owns the queue
//!  +- slots[129][256]  in-flight commands with private copies   writer: the reactor that owns the queue
//! ```

use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64};
use zerocopy::FromBytes;

/// Queues of each kind: the admin queue and 128 I/O queues.
pub const QUEUES_MAX: usize = 129;
/// Commands of one submission queue that can be accepted and unanswered at once.
pub const SLOTS_MAX: usize = 256;
/// First word of a region that was initialised.
pub const MAGIC: u64 = u64::from_le_bytes(*b"GODWTCR1");
/// Layout version of this build.
pub const LAYOUT_VERSION: u32 = 1;

/// See the module.
#[derive(FromBytes)]
#[repr(C)]
pub struct ControllerRegion {
    /// Identity of the layout.
    pub header: Header,
    /// NVMe controller properties that hold state (Base 2.1, 3.1.4).
    pub registers: Registers,
    /// PCI configuration space and MSI-X table.
    pub pci: Pci,
    /// State set by admin commands.
    pub admin: Admin,
    /// Completion queues by identifier; 0 is the admin completion queue.
    pub cqs: [CompletionQueue; QUEUES_MAX],
    /// Submission queues by identifier; 0 is the admin submission queue.
    pub sqs: [SubmissionQueue; QUEUES_MAX],
    /// In-flight slots by submission queue identifier.
    pub slots: [[Slot; SLOTS_MAX]; QUEUES_MAX],
}

/// Identity of the layout.
#[derive(FromBytes)]
#[repr(C, align(64))]
pub struct Header {
    /// [`MAGIC`], stored last when a region is initialised.
    pub magic: AtomicU64,
    /// [`LAYOUT_VERSION`].
    pub layout_version: AtomicU32,
    /// The power cycle this region is of, as the record counts them (modulo 2^32): a record with one less was written before
    /// the region was made. 0: made by a build that did not say.
    pub power_cycle: AtomicU32,
    /// Size of [`ControllerRegion`] in bytes.
    pub size_bytes: AtomicU64,
    /// The file whose state was loaded into this region last, by its id in the client's session; 0: none. Stored when all of the state is in
    /// its place. In what was padding; a build that does not know it leaves it as it is.
    pub loaded_file: AtomicU32,
    /// Not 0: a successor leaves the device standing. 1: whoever moves the guest has loaded a state and not let it run yet. 2: a management controller
    /// has suspended it. In what was padding;
    /// a build that does not know it would let the device run.
    pub held: AtomicU32,
    /// To the end of the cache line.
    pub reserved: [AtomicU32; 8],
}

/// Properties that hold state.
#[derive(FromBytes)]
#[repr(C, align(64))]
pub struct Registers {
    /// Controller Configuration as last written.
    pub cc: AtomicU32,
    /// Controller Status.
    pub csts: AtomicU32,
    /// Admin Queue Attributes.
    pub aqa: AtomicU32,
    /// Interrupt mask (INTMS/INTMC).
    pub interrupt_mask: AtomicU32,
    /// Admin Submission Queue Base Address.
    pub asq: AtomicU64,
    /// Admin Completion Queue Base Address.
    pub acq: AtomicU64,
    /// Counts controller level resets; odd while one is under way.
    pub reset_count: AtomicU64,
    /// How far the reset under way goes: 0 controller, 1 subsystem, 2 function. 0 while none is.
    pub reset_kind: AtomicU64,
}

/// PCI configuration space and MSI-X table, as 32-bit little-endian words.
#[derive(FromBytes)]
#[repr(C, align(64))]
pub struct Pci {
    /// Configuration space, 4 KiB.
    pub config: [AtomicU32; 1024],
    /// MSI-X table: four words a vector.
    pub msix_table: [[AtomicU32; 4]; QUEUES_MAX],
    /// MSI-X pending bits.
    pub msix_pending: [AtomicU32; 5],
    /// Word alignment.
    pub reserved: [AtomicU32; 3],
}

/// State set by admin commands.
#[derive(FromBytes)]
#[repr(C, align(64))]
pub struct Admin {
    /// Current feature values (CDW11) by feature identifier, for the identifiers below 256 that hold one dword.
    pub features: [AtomicU32; 256],
    /// Bit set: that feature was set since the last reset (else the default holds).
    pub features_set: [AtomicU64; 4],
    /// Interrupt Vector Configuration by vector: the CD bit.
    pub vector_coalescing_disabled: [AtomicU64; 3],
    /// Host identifier, 16 bytes.
    pub host_identifier: [AtomicU64; 2],
    /// Timestamp: milliseconds as set, and the engine's clock when it was set.
    pub timestamp: [AtomicU64; 2],
    /// Asynchronous Event Requests that are parked: command identifier + 1, or 0.
    pub parked_events: [AtomicU32; 16],
    /// Events not yet reported: DW0 of the completion + 1, or 0.
    pub pending_events: [AtomicU32; 32],
    /// Event types masked until their log page is read: a bit a type.
    pub masked_event_types: AtomicU32,
    /// Host behaviour support: bit 0 ACRE, bit 2 LBAFEE.
    pub host_behavior: AtomicU32,
    /// Shadow doorbell page (Doorbell Buffer Config PRP1), or 0.
    pub shadow_doorbells: AtomicU64,
    /// EventIdx page (PRP2), or 0.
    pub event_indices: AtomicU64,
    /// Changed namespaces not yet read through log page 04h: a bit an nsid (nsid 1 is bit 0).
    pub changed_namespaces: AtomicU64,
    /// Keep alive: when the timer was last restarted (engine's clock, ns).
    pub keep_alive_ns: AtomicU64,
    /// Errors reported so far (the error log's count).
    pub error_count: AtomicU64,
}

/// A completion queue. Position arithmetic is modulo `size`.
#[derive(FromBytes)]
#[repr(C, align(64))]
pub struct CompletionQueue {
    /// Guest address of entry 0.
    pub base: AtomicU64,
    /// Entries; 0 = the queue does not exist.
    pub size: AtomicU32,
    /// Bit 0: interrupts enabled. Bits 31:16: vector.
    pub interrupt: AtomicU32,
    /// Next position to post at, in bits 15:0; the phase tag to post with in bit 16. One word: they change together.
    pub tail_phase: AtomicU32,
    /// Head as last taken from the doorbell.
    pub head: AtomicU32,
    /// Of a controller data queue: the slot whose entry its host wants to be told of, + 1, or 0. In what was padding; a build that does not know it
    /// has no such queues.
    pub tail_trigger: AtomicU32,
}

/// A submission queue.
#[derive(FromBytes)]
#[repr(C, align(64))]
pub struct SubmissionQueue {
    /// Guest address of entry 0.
    pub base: AtomicU64,
    /// Entries; 0 = the queue does not exist.
    pub size: AtomicU32,
    /// Completion queue, and the priority in bits 17:16.
    pub cqid: AtomicU32,
    /// Next entry to accept, in bits 31:0; the accept sequence number of that entry in bits 63:32. One word.
    pub head_seq: AtomicU64,
    /// Counters for log page 02h and for the bench; never reset but with the ssd.
    pub reads: AtomicU64,
    /// Write commands.
    pub writes: AtomicU64,
    /// Bytes read, in 512-byte units.
    pub read_sectors: AtomicU64,
    /// Bytes written, in 512-byte units.
    pub write_sectors: AtomicU64,
    /// Commands that may have changed data and are not among `writes`: Write Zeroes, those that failed, those nobody answered.
    pub other_changes: AtomicU64,
}

/// Where an accepted command is between being taken and being answered. `word` is stored last in each step.
///
/// ```text
/// word: bits 63:32 accept sequence number | 31:16 position (SQ index when ACCEPTED, CQ position when POSTING)
///       | 8 phase to post with (POSTING) | 1:0 state (0 FREE, 1 ACCEPTED, 2 POSTING)
/// ```
#[derive(FromBytes)]
#[repr(C, align(64))]
pub struct Slot {
    /// Private copy of the 64-byte submission queue entry.
    pub command: [AtomicU64; 8],
    /// State, sequence and position.
    pub word: AtomicU64,
    /// The 16-byte completion as it is (to be) posted, without the phase tag. Valid when POSTING.
    pub completion: [AtomicU64; 2],
    /// How far a command of several steps has come; meaning by opcode, see `docs/formats/controller-region.md`.
    pub progress: [AtomicU64; 2],
    /// Reserved; keeps a slot at two cache lines.
    pub reserved: [AtomicU64; 3],
}

/// The command is unused.
pub const SLOT_FREE: u64 = 0;
/// Taken from the submission queue and not answered.
pub const SLOT_ACCEPTED: u64 = 1;
/// Its completion is being written at the position in the word.
pub const SLOT_POSTING: u64 = 2;

const _: () = assert!(size_of::<Header>() == 64);
const _: () = assert!(offset_of!(Header, loaded_file) == 24);
const _: () = assert!(offset_of!(Header, held) == 28);
const _: () = assert!(size_of::<Slot>() == 128);
const _: () = assert!(size_of::<SubmissionQueue>() == 64);
const _: () = assert!(size_of::<CompletionQueue>() == 64);
const _: () = assert!(size_of::<ControllerRegion>().is_multiple_of(64));
