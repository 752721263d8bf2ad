//! Features and configuration space of the device.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use block::Limits;
use spec::virtio_blk as blk;
use zerocopy::IntoBytes;

/// Bytes of the configuration space that clients may ask for: what follows [`blk::Config`] reads as zeros.
pub const CONFIG_BYTES: usize = 256;
/// The most data segments of a request.
const SEGMENTS_MAX: usize = 126;
/// Segments kept for data that lies across two regions of guest memory.
const SEGMENTS_SPARE: usize = 2;
/// The most bytes of one DISCARD or WRITE_ZEROES.
const RANGE_BYTES_MAX: u32 = 1 << 30;

/// How large a device is. All that serve it share this, and it may grow while they do.
#[derive(Clone, Debug)]
pub struct Capacity(Arc<AtomicU64>);

impl Capacity {
    /// So large.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self(Arc::new(AtomicU64::new(bytes)))
    }

    /// How large now.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// At least so large from now on. The drive behind it is already.
    pub fn grow(&self, bytes: u64) {
        self.0.fetch_max(bytes, Ordering::Relaxed);
    }
}

/// What the device is; but for its capacity constant while a client is connected.
#[derive(Clone, Debug)]
pub struct Device {
    /// Bytes the guest sees.
    pub capacity: Capacity,
    /// Refuse what changes data.
    pub read_only: bool,
    /// Serial number, padded with zeros.
    pub serial: [u8; blk::ID_BYTES],
    /// Rings.
    pub num_queues: u16,
    /// Of the drive behind it.
    pub limits: Limits,
}

impl Device {
    /// What may be negotiated. Without those of vhost-user.
    #[must_use]
    pub fn features(&self) -> u64 {
        let rings = blk::F_VERSION_1
            | blk::F_RING_PACKED
            | blk::F_EVENT_IDX
            | blk::F_INDIRECT_DESC
            | blk::F_ANY_LAYOUT;
        let always = blk::F_SEG_MAX | blk::F_BLK_SIZE | blk::F_TOPOLOGY | blk::F_FLUSH | blk::F_CONFIG_WCE;
        let mut features = rings | always | blk::F_MQ;
        if self.read_only {
            features |= blk::F_RO;
        } else {
            features |= blk::F_WRITE_ZEROES;
            if self.limits.discard {
                features |= blk::F_DISCARD;
            }
        }
        features
    }

    /// The configuration space, zero-padded to what any client asks for.
    #[must_use]
    pub fn config(&self, writeback: bool) -> [u8; CONFIG_BYTES] {
        let segments = self.limits.segments_max.saturating_sub(SEGMENTS_SPARE).clamp(1, SEGMENTS_MAX);
        let sectors = RANGE_BYTES_MAX / 512;
        let block_sectors = (self.limits.block_bytes / 512).max(1);
        let exponent = (4096 / self.limits.block_bytes.clamp(512, 4096)).trailing_zeros();
        let config = blk::Config {
            capacity: self.capacity.bytes() / blk::SECTOR_BYTES,
            seg_max: u32::try_from(segments).unwrap_or(1),
            blk_size: self.limits.block_bytes,
            physical_block_exp: u8::try_from(exponent).unwrap_or(0),
            min_io_size: 1,
            writeback: u8::from(writeback),
            num_queues: self.num_queues,
            max_discard_sectors: sectors,
            max_discard_seg: 1,
            discard_sector_alignment: block_sectors,
            max_write_zeroes_sectors: sectors,
            max_write_zeroes_seg: 1,
            write_zeroes_may_unmap: 1,
            ..blk::Config::default()
        };
        let mut bytes = [0; CONFIG_BYTES];
        for (to, from) in bytes.iter_mut().zip(config.as_bytes()) {
            *to = *from;
        }
        bytes
    }
}
