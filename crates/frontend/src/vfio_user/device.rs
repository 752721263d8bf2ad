//! What a device gives to the session and gets from it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

pub use super::capabilities::Negotiated;
use super::migration::Migration;

pub use rustix::io::Errno;

use spec::vfio_user::{IrqIndex, RegionIndex};
pub use spec::vfio_user::{PCI_IRQS, PCI_REGIONS};

/// Region index of the configuration space.
pub const PCI_CONFIG_REGION: u32 = RegionIndex::Config.0;
/// Interrupt index of INTx.
pub const PCI_INTX_IRQ: u32 = IrqIndex::Intx.0;
/// Interrupt index of MSI.
pub const PCI_MSI_IRQ: u32 = IrqIndex::Msi.0;
/// Interrupt index of MSI-X.
pub const PCI_MSIX_IRQ: u32 = IrqIndex::Msix.0;
/// Interrupt index of the error event.
pub const PCI_ERR_IRQ: u32 = IrqIndex::Err.0;
/// Interrupt index of the unplug request.
pub const PCI_REQ_IRQ: u32 = IrqIndex::Req.0;

/// The device behind a session: the engine implements it.
///
/// The session's duty: every region access lies inside a region of [`Device::info`] and is allowed by its flags (it has
/// at least one byte, and any size and alignment); every interrupt range lies inside its index; DMA maps never wrap and
/// never overlap, and an unmap names exactly one of them or all. The device's duty: a call may block, and must end within
/// the time a client waits (QEMU: 5 s). Calls of one session come one at a time, in the order of the client's messages.
/// When a session ends, the device hears nothing: whoever called [`super::serve`] then unmaps and drops interrupts.
pub trait Device {
    /// What the client may know of the device. Asked before each command; must not change during a session.
    fn info(&self) -> &DeviceInfo;
    /// Reads `data.len()` bytes of a region.
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno>;
    /// Writes `data` to a region.
    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno>;
    /// Client memory becomes reachable.
    fn dma_map(&mut self, map: DmaMap) -> Result<(), Errno>;
    /// Client memory goes: the device returns only once nothing touches it any more (vfio-user.rst, DMA_UNMAP).
    fn dma_unmap(&mut self, unmap: DmaUnmap) -> Result<(), Errno>;
    /// Configures, masks, unmasks or fires interrupts.
    fn set_irqs(&mut self, set: SetIrqs) -> Result<(), Errno>;
    /// Resets the device, as a function-level reset does.
    fn reset(&mut self) -> Result<(), Errno>;
    /// Of several writes to this place in one message only the last one counts (a doorbell): the others are left out, so
    /// that a message that is delivered a second time never takes the place back to an older value.
    fn last_write_counts(&self, _region: u32, _offset: u64) -> bool {
        false
    }
    /// How it migrates; `None`: it does not. The same during a session.
    fn migration(&mut self) -> Option<&mut dyn Migration> {
        None
    }
    /// Somebody in this process wants the session's thread ([`super::Nudge`]); no command of the client is under way. What it changes is deposited with
    /// the next command's answer.
    fn nudged(&mut self) {}
    /// After each command: what a successor of this process must know of the session, if that has changed. It takes effect
    /// together with the command's answer.
    fn deposit(&mut self, _negotiated: Option<&Negotiated>) -> Option<Deposit> {
        None
    }
}

/// What a successor of this process must know of a session.
#[derive(Debug, Clone, Default)]
pub struct Deposit {
    /// Opaque to whoever keeps it.
    pub bytes: Vec<u8>,
    /// The descriptors it refers to.
    pub keep: Vec<u32>,
    /// Those among them that are not the client's, and are new: names from 2^31, counting up.
    pub made: Vec<MadeFd>,
}

/// A descriptor of the device's own that a successor needs.
#[derive(Debug, Clone)]
pub struct MadeFd {
    /// Its name in the session.
    pub id: u32,
    /// The descriptor.
    pub fd: Arc<OwnedFd>,
}

/// A descriptor that came from the client.
#[derive(Debug)]
pub struct ClientFd {
    /// Its name in the session.
    pub id: u32,
    /// The descriptor.
    pub fd: OwnedFd,
}

/// What DEVICE_GET_INFO, GET_REGION_INFO and GET_IRQ_INFO tell.
#[derive(Debug, Clone, Default)]
pub struct DeviceInfo {
    /// The device supports DEVICE_RESET.
    pub resettable: bool,
    /// By region index; a PCI device has [`PCI_REGIONS`]. A region of size 0 is absent.
    pub regions: Vec<RegionInfo>,
    /// By interrupt index; a PCI device has [`PCI_IRQS`].
    pub irqs: Vec<IrqInfo>,
}

/// One region.
#[derive(Debug, Clone, Default)]
pub struct RegionInfo {
    /// Its size; 0 means the region is absent.
    pub size: u64,
    /// The client may read it.
    pub readable: bool,
    /// The client may write it.
    pub writable: bool,
    /// What of it the client may map.
    pub mmap: Option<RegionMmap>,
}

/// The part of a region the client may map.
#[derive(Debug, Clone)]
pub struct RegionMmap {
    /// The memory, sent to the client with each region info.
    pub fd: Arc<OwnedFd>,
    /// Where the region's byte 0 would be in the file.
    pub offset: u64,
    /// The mappable areas; empty means the whole region.
    pub areas: Vec<MmapArea>,
}

/// A mappable area, in bytes from the start of the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmapArea {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub size: u64,
}

/// One kind of interrupt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IrqInfo {
    /// How many interrupts of this kind there are.
    pub count: u32,
    /// They can signal an eventfd.
    pub eventfd: bool,
    /// They can be masked and unmasked.
    pub maskable: bool,
    /// They mask themselves when fired.
    pub automasked: bool,
    /// They are set up as a whole.
    pub noresize: bool,
}

/// What the device may do with mapped memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// The device may read it.
    pub read: bool,
    /// The device may write it.
    pub write: bool,
}

/// Client memory that becomes reachable: `size > 0`, no wrap, no overlap with another of this session.
#[derive(Debug)]
pub struct DmaMap {
    /// Its first address, as the guest names it.
    pub iova: u64,
    /// Its length in bytes.
    pub size: u64,
    /// What the device may do with it.
    pub access: Access,
    /// The file and the offset of the first byte in it; `offset + size` does not wrap, but the file may be shorter, may
    /// shrink later, or be no file at all. `None`: reachable only through [`super::RemoteMemory`].
    pub backing: Option<(ClientFd, u64)>,
}

/// Client memory that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmaUnmap {
    /// Exactly one earlier map.
    Range {
        /// Its first address.
        iova: u64,
        /// Its length in bytes.
        size: u64,
    },
    /// Everything mapped.
    All,
}

/// A SET_IRQS that fits the device: `start + count` is at most the index's count.
#[derive(Debug)]
pub struct SetIrqs {
    /// Which kind of interrupt.
    pub index: u32,
    /// The first one meant.
    pub start: u32,
    /// How many are meant. 0 only with `start` 0, [`IrqData::None`] and [`IrqAction::Trigger`]: disable them all.
    pub count: u32,
    /// What to do.
    pub action: IrqAction,
    /// To which of them, or with which eventfds.
    pub data: IrqData,
}

/// What SET_IRQS does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IrqAction {
    /// Mask, or say which eventfd tells of a mask.
    Mask,
    /// Unmask, or say which eventfd tells of an unmask.
    Unmask,
    /// Fire, or say which eventfd to signal when the device fires.
    Trigger,
}

/// What came with a SET_IRQS.
#[derive(Debug)]
pub enum IrqData {
    /// Nothing: the action is for each interrupt of the range.
    None,
    /// One for each: whether the action is for it.
    Bool(Vec<bool>),
    /// One for each: the eventfd to use, or none from now on.
    Eventfd(Vec<Option<ClientFd>>),
}
