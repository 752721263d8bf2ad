//! Every limit of the device model, in one place: what Identify reports and what the parsers enforce are the same constant.

/// I/O queue pairs.
pub const IO_QUEUES_MAX: u16 = 128;
/// Entries in an I/O queue, 0's based (CAP.MQES).
pub const MQES_Z: u16 = 4095;
/// Entries in an admin queue (AQA is a 12-bit 0's based field).
pub const ADMIN_QUEUE_ENTRIES_MAX: u32 = 4096;
/// Memory page: CC.MPS is fixed at 0 (CAP.MPSMIN = CAP.MPSMAX = 0).
pub const PAGE_BYTES: usize = 4096;
/// Maximum data transfer size as a power of two of the page (MDTS): 1 MiB.
pub const MDTS: u8 = 8;
/// Maximum data transfer size in bytes.
pub const MDTS_BYTES: u32 = 4096 << MDTS;
/// Namespaces an ssd can have; also NN, and so the highest valid NSID.
pub const NAMESPACES_MAX: u32 = 32;
/// Namespaces start at multiples of this on the backend, and reserve multiples of it.
pub const NAMESPACE_ALIGN_BYTES: u64 = 1 << 20;
/// Interrupt vectors: one for the admin queue and one for each I/O queue.
pub const VECTORS_MAX: u16 = 129;

/// Outstanding Abort commands, 0's based (ACL).
pub const ACL_Z: u8 = 3;
/// Outstanding Asynchronous Event Requests, 0's based (AERL). The region has room for 16.
pub const AERL_Z: u8 = 15;
/// Entries in the error log, 0's based (ELPE).
pub const ELPE_Z: u8 = 63;
/// Keep alive granularity in units of 100 ms (KAS).
pub const KAS: u16 = 10;

/// Copy: source ranges in a command, 0's based (MSRC).
pub const MSRC_Z: u8 = 127;
/// Copy: blocks in a source range (MSSRL).
pub const MSSRL: u16 = 2048;
/// Copy: blocks in a command (MCL).
pub const MCL: u32 = 16384;
/// Dataset Management: ranges in a command (DMRL). No limit is reported: all 256 that the command can name are taken.
pub const DMRL: u8 = 0;
/// Runs of blocks one namespace can have marked uncorrectable: bounds the record and the search.
pub const MARKS_MAX: usize = 1024;
/// Copy descriptor formats, one bit each (CDFS): format 0 alone.
pub const CDFS: u16 = 1;

/// Ranges of host memory that a management controller tracks at once, of all controllers (CMMRTD, NMMRTD).
pub const MEMORY_RANGES_MAX: u16 = 1024;
/// Coarsest granularity at which it does (MAXMRTG), as a power of two of 4 KiB: 1 GiB.
pub const MEMORY_GRANULARITY_MAX: u8 = 18;
