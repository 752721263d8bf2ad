//! The page: what is where. `docs/formats/ssd-metrics.md` has it in words.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use zerocopy::FromBytes;

use crate::bucket::BUCKETS;

/// Begins a page. Another layout gets another number: counting then begins anew.
pub const MAGIC: u64 = u64::from_le_bytes(*b"GDWSSD01");
/// The lane of an ssd's private reactor; shared reactors have those before it, by their index.
pub const PRIVATE_LANE: usize = 64;
/// Writers of a page at most, each with a lane of its own.
pub const LANES: usize = PRIVATE_LANE + 1;
/// The longest serial number.
pub(crate) const SERIAL_BYTES: usize = 32;
/// What is kept of the name of a drive: its end.
pub(crate) const DEVICE_BYTES: usize = 512;

/// What an I/O does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read.
    Read = 0,
    /// Write.
    Write = 1,
    /// Flush, write zeroes, discard.
    Other = 2,
}

impl Op {
    /// All, in the order of the page.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Other];

    /// As metrics spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        ["read", "write", "other"][self as usize]
    }
}

/// Where the time of an I/O goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// From the last look that did not find it until it was handed to the drive, throttling left out.
    Queue = 0,
    /// Held back by a limit or for the sake of other ssds. Only I/Os that were are counted.
    Throttle = 1,
    /// At the drive. Each I/O is counted here, once, when it ends; one that ends at once took no time.
    Drive = 2,
}

impl Part {
    /// All, in the order of the page.
    pub const ALL: [Self; 3] = [Self::Queue, Self::Throttle, Self::Drive];

    /// As metrics spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        ["queue", "throttle", "drive"][self as usize]
    }
}

/// All of one ssd.
#[derive(FromBytes)]
#[repr(C)]
pub struct Page {
    magic: AtomicU64,
    /// Serves as a check: [`LANES`].
    lanes_count: AtomicU64,
    /// By lane: 1 once it was written to.
    pub(crate) used: [AtomicU64; LANES],
    serial: [AtomicU8; SERIAL_BYTES],
    device: [AtomicU8; DEVICE_BYTES],
    /// The namespaces there are: 0 of a disk that has none.
    namespaces: AtomicU64,
    reserved: [AtomicU64; (HEAD_BYTES - HEAD_USED_BYTES) / 8],
    lanes: [Lane; LANES],
}

/// Where the lanes begin.
pub(crate) const HEAD_BYTES: usize = 4096;
const HEAD_USED_BYTES: usize = 16 + 8 * LANES + SERIAL_BYTES + DEVICE_BYTES + 8;
const _: () = assert!(size_of::<Page>() == HEAD_BYTES + LANES * LANE_BYTES);
pub(crate) const LANE_BYTES: usize = size_of::<Lane>();
const _: () = assert!(LANE_BYTES == 16384);
pub(crate) const CLASS_BYTES: usize = size_of::<Class>();
/// Where the histograms of a class begin.
pub(crate) const TIMES_AT: usize = core::mem::offset_of!(Class, times);
pub(crate) const SERIAL_AT: usize = core::mem::offset_of!(Page, serial);
pub(crate) const DEVICE_AT: usize = core::mem::offset_of!(Page, device);
pub(crate) const NAMESPACES_AT: usize = core::mem::offset_of!(Page, namespaces);
pub(crate) const USED_AT: usize = core::mem::offset_of!(Page, used);

/// What one reactor did for the ssd.
#[derive(FromBytes)]
#[repr(C)]
pub struct Lane {
    /// By [`Op`].
    classes: [Class; 3],
    reserved: [AtomicU64; 8],
}

/// I/Os of one kind.
#[derive(FromBytes)]
#[repr(C)]
pub struct Class {
    bytes: AtomicU64,
    errors: AtomicU64,
    reserved: [AtomicU64; 6],
    /// By [`Part`].
    times: [[AtomicU64; BUCKETS]; 3],
}

/// What a page says of its ssd besides counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Serial number.
    pub serial: String,
    /// The file or device, or the kind of drive.
    pub device: String,
    /// It has NVMe namespaces.
    pub namespaces: bool,
}

impl Page {
    /// Whether this is a page of this layout.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.magic.load(Ordering::Relaxed) == MAGIC
            && self.lanes_count.load(Ordering::Relaxed) == LANES as u64
    }

    /// Says whose page it is. Counts stay as they are.
    pub fn begin(&self, facts: &Facts) {
        put(&self.serial, &facts.serial);
        put(&self.device, &facts.device);
        self.namespaces.store(u64::from(facts.namespaces), Ordering::Relaxed);
        self.lanes_count.store(LANES as u64, Ordering::Relaxed);
        self.magic.store(MAGIC, Ordering::Relaxed);
    }

    /// The lane of one writer.
    #[must_use]
    pub fn lane(&self, lane: usize) -> &Lane {
        &self.lanes[lane.min(PRIVATE_LANE)]
    }

    /// Says that a lane is written to.
    pub fn open_lane(&self, lane: usize) {
        self.used[lane.min(PRIVATE_LANE)].store(1, Ordering::Relaxed);
    }
}

impl Lane {
    /// I/Os of one kind.
    #[inline]
    #[must_use]
    pub fn class(&self, op: Op) -> &Class {
        &self.classes[op as usize]
    }
}

impl Class {
    /// Counts one time.
    #[inline]
    pub fn time(&self, part: Part, bucket: usize) {
        if let Some(count) = self.times[part as usize].get(bucket) {
            add(count, 1);
        }
    }

    /// Counts data.
    #[inline]
    pub fn moved(&self, bytes: u64) {
        add(&self.bytes, bytes);
    }

    /// Counts a failure.
    #[cold]
    pub fn failed(&self) {
        add(&self.errors, 1);
    }
}

/// Adds to a counter that has one writer: a plain store, no locked instruction.
#[inline]
fn add(counter: &AtomicU64, value: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(value), Ordering::Relaxed);
}

/// Text, cut off at its beginning where it is too long.
fn put(place: &[AtomicU8], text: &str) {
    let bytes = text.as_bytes();
    let tail = bytes.get(bytes.len().saturating_sub(place.len())..).unwrap_or(&[]);
    let padded = tail.iter().chain(std::iter::repeat(&0));
    place.iter().zip(padded).for_each(|(place, byte)| place.store(*byte, Ordering::Relaxed));
}
