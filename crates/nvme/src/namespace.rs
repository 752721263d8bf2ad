//! Namespaces: which logical blocks there are, and where they lie on the backend.
//!
//! A [`NamespaceTable`] is an immutable snapshot; a change makes a new one, which every queue group adopts. What may change
//! under a live table is only [`Marks`], which all snapshots of one namespace share.
//!
//! ```text
//!  backend  |0 ........ 1 MiB-aligned ........................ capacity|
//!           [ nsid 1: start, blocks << lba_shift ]   [ nsid 2 ]   free
//! ```

use std::sync::Arc;

use spec::nvme::log::SanitizeOutcome;
use spec::nvme::{NSID_BROADCAST, Status};
use state::ssd::{NamespaceV1, SanitizeV1};

use crate::limits::NAMESPACES_MAX;
pub use crate::marks::{Marks, MarksFull};

/// A logical block size. Index 0 of Identify Namespace is 512 bytes, index 1 is 4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LbaFormat {
    /// 512 bytes.
    B512,
    /// 4096 bytes.
    B4096,
}

impl LbaFormat {
    /// Every format, in the order of Identify Namespace.
    pub const ALL: [Self; 2] = [Self::B512, Self::B4096];

    /// The format with this index (FLBAS, LBAF).
    #[must_use]
    pub fn from_index(index: u8) -> Option<Self> {
        Self::ALL.get(usize::from(index)).copied()
    }

    /// The format with blocks of `1 << shift` bytes.
    #[must_use]
    pub fn from_shift(shift: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.shift() == shift)
    }

    /// Its index.
    #[must_use]
    pub const fn index(self) -> u8 {
        match self {
            Self::B512 => 0,
            Self::B4096 => 1,
        }
    }

    /// Block size as a power of two (LBADS).
    #[must_use]
    pub const fn shift(self) -> u8 {
        match self {
            Self::B512 => 9,
            Self::B4096 => 12,
        }
    }

    /// Block size.
    #[must_use]
    pub const fn block_bytes(self) -> u32 {
        1 << self.shift()
    }
}

/// A half-open run of logical blocks known to lie inside its namespace. The only ways to one are
/// [`Namespace::blocks_at`] and [`Namespace::run_at`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    start: u64,
    count: u32,
}

impl BlockRange {
    /// First block.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// Number of blocks; 1 or more.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.count
    }

    /// One past the last block.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start + self.count as u64
    }
}

/// What keeps a namespace from serving I/O for now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    /// Nothing.
    #[default]
    Open,
    /// A Format NVM command works on it: Format In Progress.
    Formatting,
}

/// The same for the whole subsystem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SubsystemGate {
    /// Nothing.
    #[default]
    Open,
    /// Sanitize In Progress.
    Sanitizing,
    /// Sanitize Failed, until a successful sanitize or Exit Failure Mode.
    SanitizeFailed,
}

impl SubsystemGate {
    /// What the most recent sanitize operation forbids.
    pub(crate) fn of(sanitize: &SanitizeV1) -> Self {
        match SanitizeOutcome(sanitize.status) {
            SanitizeOutcome::InProgress => Self::Sanitizing,
            SanitizeOutcome::Failed if !sanitize.left => Self::SanitizeFailed,
            _ => Self::Open,
        }
    }
}

/// One namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Namespace identifier.
    pub nsid: u32,
    /// First byte on the backend.
    pub start_bytes: u64,
    /// Bytes it owns on the backend from there; at least its blocks.
    pub reserved_bytes: u64,
    /// Size and capacity in logical blocks (NSZE = NCAP).
    pub blocks: u64,
    /// Logical block size.
    pub format: LbaFormat,
    /// Attached to the controller.
    pub attached: bool,
    /// NMIC bit 0 as given at creation.
    pub shared: bool,
    /// IEEE extended unique identifier.
    pub eui64: [u8; 8],
    /// Namespace globally unique identifier.
    pub nguid: [u8; 16],
    /// UUID.
    pub uuid: [u8; 16],
    /// Whether it serves I/O.
    pub gate: Gate,
    /// Blocks that read as uncorrectable. Shared by all snapshots of this namespace.
    pub marks: Arc<Marks>,
}

impl Namespace {
    /// The run of `nlb_z + 1` blocks at `slba`, if it lies inside (NVM 1.1, LBA Out of Range otherwise).
    #[inline]
    #[must_use]
    pub fn blocks_at(&self, slba: u64, nlb_z: u16) -> Option<BlockRange> {
        self.run_at(slba, u32::from(nlb_z) + 1)
    }

    /// The run of `count` blocks at `slba`, if it is not empty and lies inside (for Dataset Management, Copy).
    #[inline]
    #[must_use]
    pub fn run_at(&self, slba: u64, count: u32) -> Option<BlockRange> {
        let end = slba.checked_add(u64::from(count))?;
        (count > 0 && end <= self.blocks).then_some(BlockRange { start: slba, count })
    }

    /// Where a run lies on the backend.
    #[inline]
    #[must_use]
    pub fn bytes_of(&self, blocks: BlockRange) -> block::Range {
        let shift = self.format.shift();
        block::Range {
            start_bytes: self.start_bytes + (blocks.start << shift),
            len_bytes: u64::from(blocks.count) << shift,
        }
    }

    /// Everything it owns on the backend.
    #[must_use]
    pub const fn reserved(&self) -> block::Range {
        block::Range { start_bytes: self.start_bytes, len_bytes: self.reserved_bytes }
    }

    /// The namespace at rest.
    #[must_use]
    pub fn record(&self) -> NamespaceV1 {
        NamespaceV1 {
            nsid: self.nsid,
            start_bytes: self.start_bytes,
            reserved_bytes: self.reserved_bytes,
            blocks: self.blocks,
            lba_shift: self.format.shift(),
            attached: self.attached,
            eui64: self.eui64,
            nguid: self.nguid,
            uuid: self.uuid,
            marks: self.marks.record(),
            shared: self.shared,
        }
    }

    /// The namespace of a record, if it fits `capacity_bytes` and this build's formats.
    #[must_use]
    pub fn from_record(record: &NamespaceV1, capacity_bytes: u64) -> Option<Self> {
        let format = LbaFormat::from_shift(record.lba_shift)?;
        let used_bytes = record.blocks.checked_mul(u64::from(format.block_bytes()))?;
        let end_bytes = record.start_bytes.checked_add(record.reserved_bytes)?;
        let aligned = record.start_bytes.is_multiple_of(u64::from(format.block_bytes()));
        let valid_id = (1..=NAMESPACES_MAX).contains(&record.nsid);
        if !valid_id || !aligned || used_bytes > record.reserved_bytes || end_bytes > capacity_bytes {
            return None;
        }
        Some(Self {
            nsid: record.nsid,
            start_bytes: record.start_bytes,
            reserved_bytes: record.reserved_bytes,
            blocks: record.blocks,
            format,
            attached: record.attached,
            shared: record.shared,
            eui64: record.eui64,
            nguid: record.nguid,
            uuid: record.uuid,
            gate: Gate::Open,
            marks: Arc::new(Marks::from_record(&record.marks, record.blocks)),
        })
    }
}

/// All namespaces of an ssd, by identifier. Immutable; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct NamespaceTable {
    entries: Vec<Option<Arc<Namespace>>>,
    gate: SubsystemGate,
}

impl NamespaceTable {
    /// A table of these. Namespaces with an identifier out of range are left out.
    #[must_use]
    pub fn new(namespaces: impl IntoIterator<Item = Namespace>) -> Self {
        let mut table = Self { entries: vec![None; NAMESPACES_MAX as usize], gate: SubsystemGate::Open };
        for namespace in namespaces {
            table.put(Arc::new(namespace));
        }
        table
    }

    /// The namespace an I/O command names, or the status it deserves (Base 2.1, 3.2.1.2 to 3.2.1.5): Invalid Namespace or
    /// Format for 0, the broadcast value and anything above NN; Invalid Field for one that is not attached; then
    /// Sanitize In Progress, Sanitize Failed and Format In Progress.
    ///
    /// # Errors
    /// The status to answer with, DNR not set.
    #[inline]
    pub fn for_io(&self, nsid: u32) -> Result<&Namespace, Status> {
        let namespace = self.attached(nsid)?;
        match (self.gate, namespace.gate) {
            (SubsystemGate::Open, Gate::Open) => Ok(namespace),
            (SubsystemGate::Sanitizing, _) => Err(Status::SANITIZE_IN_PROGRESS),
            (SubsystemGate::SanitizeFailed, _) => Err(Status::SANITIZE_FAILED),
            (SubsystemGate::Open, Gate::Formatting) => Err(Status::FORMAT_IN_PROGRESS),
        }
    }

    /// As [`Self::for_io`], but whatever operation is going on (Flush is allowed during a sanitize, Base 2.1, 8.1.24).
    ///
    /// # Errors
    /// The status to answer with, DNR not set.
    #[inline]
    pub fn attached(&self, nsid: u32) -> Result<&Namespace, Status> {
        if nsid == 0 || nsid > NAMESPACES_MAX || nsid == NSID_BROADCAST {
            return Err(Status::INVALID_NAMESPACE_OR_FORMAT);
        }
        match self.get(nsid) {
            Some(namespace) if namespace.attached => Ok(namespace),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    /// The namespace with this identifier, attached or not.
    #[inline]
    #[must_use]
    pub fn get(&self, nsid: u32) -> Option<&Arc<Namespace>> {
        let index = usize::try_from(nsid.checked_sub(1)?).ok()?;
        self.entries.get(index)?.as_ref()
    }

    /// All of them, by ascending identifier.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Namespace>> {
        self.entries.iter().flatten()
    }

    /// What keeps the subsystem from serving I/O.
    #[must_use]
    pub fn gate(&self) -> SubsystemGate {
        self.gate
    }

    /// This table with one namespace added or replaced.
    #[must_use]
    pub fn with(&self, namespace: Namespace) -> Self {
        let mut table = self.clone();
        table.put(Arc::new(namespace));
        table
    }

    /// This table without a namespace.
    #[must_use]
    pub fn without(&self, nsid: u32) -> Self {
        let mut table = self.clone();
        if let Some(entry) = nsid.checked_sub(1).and_then(|i| table.entries.get_mut(usize::try_from(i).ok()?))
        {
            *entry = None;
        }
        table
    }

    /// This table with another subsystem gate.
    #[must_use]
    pub fn gated(&self, gate: SubsystemGate) -> Self {
        Self { gate, ..self.clone() }
    }

    fn put(&mut self, namespace: Arc<Namespace>) {
        let index = namespace.nsid.checked_sub(1).and_then(|i| usize::try_from(i).ok());
        if let Some(entry) = index.and_then(|i| self.entries.get_mut(i)) {
            *entry = Some(namespace);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn namespace(nsid: u32, blocks: u64) -> Namespace {
        Namespace {
            nsid,
            start_bytes: 1 << 20,
            reserved_bytes: blocks << 9,
            blocks,
            format: LbaFormat::B512,
            attached: true,
            shared: false,
            eui64: [1; 8],
            nguid: [2; 16],
            uuid: [3; 16],
            gate: Gate::Open,
            marks: Arc::new(Marks::default()),
        }
    }

    #[test]
    fn a_run_that_leaves_its_namespace_has_no_block_range() {
        let ns = namespace(1, 100);
        assert!(ns.blocks_at(0, 99).is_some());
        assert!(ns.blocks_at(0, 100).is_none());
        assert!(ns.blocks_at(99, 0).is_some());
        assert!(ns.blocks_at(100, 0).is_none());
        assert!(ns.blocks_at(u64::MAX, 0).is_none());
        assert!(ns.blocks_at(u64::MAX, u16::MAX).is_none());
        assert!(ns.run_at(5, 0).is_none());
    }

    #[test]
    fn block_ranges_translate_into_the_namespaces_own_bytes() {
        let ns = namespace(1, 100);
        let range = ns.blocks_at(99, 0).map(|b| ns.bytes_of(b));
        assert_eq!(range, Some(block::Range { start_bytes: (1 << 20) + 99 * 512, len_bytes: 512 }));
    }

    #[test]
    fn an_io_command_naming_no_attached_namespace_gets_the_status_of_base_3_2_1() {
        let detached = Namespace { attached: false, ..namespace(2, 8) };
        let table = NamespaceTable::new([namespace(1, 8), detached]);
        assert!(table.for_io(1).is_ok());
        for nsid in [0, NAMESPACES_MAX + 1, NSID_BROADCAST, NSID_BROADCAST - 1] {
            assert_eq!(table.for_io(nsid).err(), Some(Status::INVALID_NAMESPACE_OR_FORMAT), "{nsid}");
        }
        for nsid in [2, 3, NAMESPACES_MAX] {
            assert_eq!(table.for_io(nsid).err(), Some(Status::INVALID_FIELD), "{nsid}");
        }
        let sanitizing = table.gated(SubsystemGate::Sanitizing);
        assert_eq!(sanitizing.for_io(1).err(), Some(Status::SANITIZE_IN_PROGRESS));
        assert!(sanitizing.attached(1).is_ok());
    }

    #[test]
    fn a_record_that_does_not_fit_is_no_namespace() {
        let good = namespace(1, 8).record();
        let capacity = (1 << 20) + 8 * 512;
        assert!(Namespace::from_record(&good, capacity).is_some());
        assert!(Namespace::from_record(&good, capacity - 1).is_none());
        assert!(Namespace::from_record(&NamespaceV1 { nsid: 0, ..good.clone() }, capacity).is_none());
        assert!(Namespace::from_record(&NamespaceV1 { lba_shift: 10, ..good.clone() }, capacity).is_none());
        assert!(
            Namespace::from_record(&NamespaceV1 { blocks: u64::MAX, ..good.clone() }, capacity).is_none()
        );
        assert!(Namespace::from_record(&NamespaceV1 { start_bytes: u64::MAX, ..good }, capacity).is_none());
    }
}
