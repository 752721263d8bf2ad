//! Device features and migration (vfio-user.rst, "Device Features"; `<linux/vfio.h>`, migration protocol v2 and DMA logging).

use bitflags::bitflags;
use core::mem::offset_of;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// DEVICE_FEATURE, both ways; data specific to the feature follows (`struct vfio_device_feature`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct DeviceFeature {
    /// Request: the largest reply payload expected. Reply: the size of the whole payload.
    pub argsz: u32,
    /// Feature index in bits 15:0, and the method.
    pub flags: DeviceFeatureFlags,
}

const _: () = assert!(size_of::<DeviceFeature>() == 8);

wire_flags! {
    /// [`DeviceFeature::flags`]. Bits 15:0 are the feature: [`DeviceFeatureFlags::feature`].
    DeviceFeatureFlags: u32 {
        /// Get.
        GET = 1 << 16;
        /// Set.
        SET = 1 << 17;
        /// Probe whether the other methods given are supported.
        PROBE = 1 << 18;
    }
}

impl DeviceFeatureFlags {
    /// The bits that are the feature index.
    pub const FEATURE_MASK: u32 = 0xffff;

    /// The feature.
    pub const fn feature(self) -> FeatureIndex {
        FeatureIndex(self.bits() & Self::FEATURE_MASK)
    }
}

/// Device features (vfio-user.rst, "Device Features").
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum FeatureIndex {
    /// Migration is supported.
    Migration = 1,
    /// Migration state of the device.
    MigDeviceState = 2,
    /// Start logging DMA writes.
    DmaLoggingStart = 6,
    /// Stop logging DMA writes.
    DmaLoggingStop = 7,
    /// Report the logged DMA writes.
    DmaLoggingReport = 8,
}

/// The head of MIG_DATA_READ and MIG_DATA_WRITE; data follows in a read's reply and a write's request.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct MigData {
    /// The largest reply payload expected, or the size of this payload.
    pub argsz: u32,
    /// Bytes of data.
    pub size: u32,
}

const _: () = assert!(size_of::<MigData>() == 8);

wire_flags! {
    /// GET of [`FeatureIndex::Migration`]: which states there are beside RUNNING and ERROR.
    MigrationFlags: u64 {
        /// STOP, STOP_COPY and RESUMING.
        STOP_COPY = 1 << 0;
        /// RUNNING_P2P (not used in vfio-user).
        P2P = 1 << 1;
        /// PRE_COPY.
        PRE_COPY = 1 << 2;
    }
}

/// Migration states of a device (`enum vfio_device_mig_state`).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum MigState {
    /// It has failed and must be reset.
    Error = 0,
    /// It changes neither its own state nor anything else.
    Stop = 1,
    /// It runs.
    Running = 2,
    /// As STOP, and its state can be read.
    StopCopy = 3,
    /// As STOP, and takes a state.
    Resuming = 4,
    /// Not used in vfio-user.
    RunningP2p = 5,
    /// It runs, and state can be read already.
    PreCopy = 6,
    /// Not used in vfio-user.
    PreCopyP2p = 7,
}

/// GET and SET of [`FeatureIndex::MigDeviceState`] (`struct vfio_device_feature_mig_state`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct MigDeviceState {
    /// See [`MigState`].
    pub device_state: u32,
    /// Not used in vfio-user.
    pub data_fd: i32,
}

const _: () = assert!(size_of::<MigDeviceState>() == 8);

/// SET of [`FeatureIndex::DmaLoggingStart`]; `num_ranges` times [`DmaLoggingRange`] follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct DmaLoggingControl {
    /// Request: the grain wished for. Reply: the grain there is.
    pub page_size: u64,
    /// Number of ranges; 0 = everything.
    pub num_ranges: u32,
    /// Reserved.
    pub reserved: u32,
}

const _: () = assert!(size_of::<DmaLoggingControl>() == 16);
const _: () = assert!(offset_of!(DmaLoggingControl, num_ranges) == 8);

/// A range whose writes are logged.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct DmaLoggingRange {
    /// First DMA address.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
}

const _: () = assert!(size_of::<DmaLoggingRange>() == 16);

/// GET of [`FeatureIndex::DmaLoggingReport`], both ways; in the reply the bitmap follows, one bit for `page_size` bytes, in words of 64
/// bits (`struct vfio_device_feature_dma_logging_report`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct DmaLoggingReport {
    /// First DMA address.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes a bit stands for: a power of two.
    pub page_size: u64,
}

const _: () = assert!(size_of::<DmaLoggingReport>() == 24);
const _: () = assert!(offset_of!(DmaLoggingReport, page_size) == 16);
