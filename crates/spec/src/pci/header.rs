//! The type 0 configuration header (PCIe Base 6.0, 7.5.1).

use core::mem::offset_of;

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The type 0 header: the first 64 bytes of configuration space (PCIe Base 6.0, 7.5.1.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    /// Vendor ID.
    pub vendor_id: u16,
    /// Device ID.
    pub device_id: u16,
    /// Command.
    pub command: Command,
    /// Status.
    pub status: DeviceStatus,
    /// Revision ID.
    pub revision_id: u8,
    /// Class code: programming interface, sub-class, base class.
    pub class_code: [u8; 3],
    /// Cache line size.
    pub cache_line_size: u8,
    /// Latency timer.
    pub latency_timer: u8,
    /// Header type in bits 6:0, multi-function in bit 7.
    pub header_type: u8,
    /// Built-in self test.
    pub bist: u8,
    /// Base address registers.
    pub bars: [u32; 6],
    /// CardBus CIS pointer.
    pub cardbus_cis: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor_id: u16,
    /// Subsystem ID.
    pub subsystem_id: u16,
    /// Expansion ROM base address.
    pub rom: u32,
    /// Offset of the first capability.
    pub capabilities: u8,
    /// Reserved.
    pub reserved53: [u8; 7],
    /// Interrupt line: the guest's scratch.
    pub interrupt_line: u8,
    /// Interrupt pin: 0 none, 1 INTA.
    pub interrupt_pin: u8,
    /// Min_Gnt; 0.
    pub min_gnt: u8,
    /// Max_Lat; 0.
    pub max_lat: u8,
}

const _: () = assert!(size_of::<Header>() == 64);
const _: () = assert!(offset_of!(Header, device_id) == 2);
const _: () = assert!(offset_of!(Header, command) == 4);
const _: () = assert!(offset_of!(Header, status) == 6);
const _: () = assert!(offset_of!(Header, revision_id) == 8);
const _: () = assert!(offset_of!(Header, class_code) == 9);
const _: () = assert!(offset_of!(Header, cache_line_size) == 12);
const _: () = assert!(offset_of!(Header, latency_timer) == 13);
const _: () = assert!(offset_of!(Header, header_type) == 14);
const _: () = assert!(offset_of!(Header, bist) == 15);
const _: () = assert!(offset_of!(Header, bars) == 16);
const _: () = assert!(offset_of!(Header, cardbus_cis) == 40);
const _: () = assert!(offset_of!(Header, subsystem_vendor_id) == 44);
const _: () = assert!(offset_of!(Header, subsystem_id) == 46);
const _: () = assert!(offset_of!(Header, rom) == 48);
const _: () = assert!(offset_of!(Header, capabilities) == 52);
const _: () = assert!(offset_of!(Header, interrupt_line) == 60);
const _: () = assert!(offset_of!(Header, interrupt_pin) == 61);
const _: () = assert!(offset_of!(Header, min_gnt) == 62);
const _: () = assert!(offset_of!(Header, max_lat) == 63);

/// Command register (PCIe Base 6.0, 7.5.1.1.3).
#[bitfield(u16)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Command {
    /// I/O space enable.
    pub io: bool,
    /// Memory space enable.
    pub memory: bool,
    /// Bus master enable: the function may access memory and send MSI-X messages.
    pub bus_master: bool,
    /// Special cycle enable; 0.
    pub special_cycle: bool,
    /// Memory write and invalidate; 0.
    pub write_invalidate: bool,
    /// VGA palette snoop; 0.
    pub vga_snoop: bool,
    /// Parity error response.
    pub parity: bool,
    #[bits(1)]
    __: u8,
    /// SERR# enable.
    pub serr: bool,
    /// Fast back-to-back enable; 0.
    pub fast_back_to_back: bool,
    /// INTx is disabled.
    pub interrupt_disable: bool,
    #[bits(5)]
    __: u8,
}

/// Status register (PCIe Base 6.0, 7.5.1.1.4).
#[bitfield(u16)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeviceStatus {
    /// Immediate readiness.
    pub immediate_readiness: bool,
    #[bits(2)]
    __: u8,
    /// An INTx interrupt is pending.
    pub interrupt: bool,
    /// There is a capability list; 1.
    pub capabilities: bool,
    #[bits(3)]
    __: u8,
    /// Master data parity error (write 1 to clear).
    pub master_parity: bool,
    #[bits(2)]
    __: u8,
    /// Signaled target abort (write 1 to clear).
    pub signaled_target_abort: bool,
    /// Received target abort (write 1 to clear).
    pub received_target_abort: bool,
    /// Received master abort (write 1 to clear).
    pub received_master_abort: bool,
    /// Signaled system error (write 1 to clear).
    pub signaled_system_error: bool,
    /// Detected parity error (write 1 to clear).
    pub parity_error: bool,
}

/// Offset of the Command register.
pub const COMMAND_OFFSET: usize = 0x04;
/// Offset of base address register 0.
pub const BAR0_OFFSET: usize = 0x10;

/// BAR: I/O space.
pub const BAR_IO: u32 = 1 << 0;
/// BAR: 64-bit memory; the next register is the upper half.
pub const BAR_MEMORY_64: u32 = 0b10 << 1;
/// BAR: prefetchable memory.
pub const BAR_PREFETCHABLE: u32 = 1 << 3;
/// Memory BAR: the bits that are not address.
pub const BAR_MEMORY_ATTRIBUTES: u32 = 0xf;

/// Class code of an NVMe I/O controller, 010802h, as [`Header::class_code`] holds it.
pub const CLASS_CODE_NVME: [u8; 3] = [PROG_IF_NVME_IO, SUBCLASS_NVM, BASE_CLASS_MASS_STORAGE];
/// Base class: mass storage controller.
pub const BASE_CLASS_MASS_STORAGE: u8 = 0x01;
/// Sub-class: non-volatile memory controller.
pub const SUBCLASS_NVM: u8 = 0x08;
/// Programming interface: NVM Express I/O controller.
pub const PROG_IF_NVME_IO: u8 = 0x02;
/// Programming interface: NVM Express administrative controller.
pub const PROG_IF_NVME_ADMIN: u8 = 0x03;
