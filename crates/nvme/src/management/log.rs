//! User data migration queues (Base 2.1, 5.1.4 and 8.1.6; NVM 1.2, 5.3): rings in the memory of the management controller's host, in which it is
//! told what the namespaces of a migratable controller lose and gain.
//!
//! All of a queue is in the region, so that a successor goes on with it: the completion queue of its number has its ring, since a management
//! controller has no I/O queues, and slot 0 of the submission queue of its number the entry that is being posted. What changed and was not posted is
//! not there: a successor says that all of each namespace changed ([`LOST`]).
//!
//! ```text
//!  entry -> slot 0 -> progress = position + 1 -> ring, phase last -> tail -> progress = 0
//! ```

use std::sync::atomic::Ordering;

use memory::{Fault, Hint, Iova, MemoryMap};
use spec::nvme::tracking::{ChangeInformation, EntrySequence, LbaMigrationEntry, Lbamqa};
use state::region::ControllerRegion;
use zerocopy::IntoBytes;

use super::Change;
use crate::limits::PAGE_BYTES;
use crate::store::{publish32, publish64, put32, put64};

/// Queues at once: MCUDMQ and MNSUDMQ.
pub(crate) const DATA_QUEUES_MAX: u16 = 4;
/// Entries that a queue can have: positions have 16 bits.
const ENTRIES_MAX: u32 = 1 << 16;
/// Pages of a queue in pieces: MCDQPC. One list has them all.
pub(crate) const PAGES_MAX: u16 = 512;
/// Bytes of an entry.
pub(crate) const ENTRY_BYTES: u32 = 32;

/// PRP entry 1 is a list.
const LIST: u32 = 1 << 1;
/// Changes are logged.
pub(crate) const LOGGING: u32 = 1 << 2;
/// The next entry is the first.
pub(crate) const FRESH: u32 = 1 << 3;
/// When all was posted, the last entry says that logging was stopped.
pub(crate) const STOPPING: u32 = 1 << 4;
/// When all was posted, the last entry says that the controller is suspended.
pub(crate) const SUSPENDING: u32 = 1 << 5;
/// It did: nothing is expected.
pub(crate) const SUSPENDED: u32 = 1 << 6;
/// What changed before is not known.
pub(crate) const LOST: u32 = 1 << 7;

/// A queue as the region has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DataQueue {
    pub(crate) cdqid: u16,
    pub(crate) cntlid: u16,
    pub(crate) flags: u32,
    pub(crate) entries: u32,
    pub(crate) head: u32,
    pub(crate) tail: u32,
    phase: bool,
    base: u64,
    /// The slot whose entry is told of.
    pub(crate) trigger: Option<u32>,
}

impl DataQueue {
    /// The queue of that identifier, if there is one.
    pub(crate) fn load(region: &ControllerRegion, cdqid: u16) -> Option<Self> {
        let record = region.cqs.get(usize::from(cdqid)).filter(|_| (1..=DATA_QUEUES_MAX).contains(&cdqid))?;
        let entries = record.size.load(Ordering::Acquire);
        let word = record.interrupt.load(Ordering::Acquire);
        let tail_phase = record.tail_phase.load(Ordering::Acquire);
        let [_, cntlid]: [u16; 2] = zerocopy::transmute!(word);
        let (tail, head) = (tail_phase & 0xffff, record.head.load(Ordering::Acquire));
        let sound = (2..=ENTRIES_MAX).contains(&entries) && tail < entries && head < entries;
        sound.then(|| Self {
            cdqid,
            cntlid,
            flags: word & 0xfffe,
            entries,
            head,
            tail,
            phase: tail_phase >> 16 & 1 == 1,
            base: record.base.load(Ordering::Acquire),
            trigger: record.tail_trigger.load(Ordering::Acquire).checked_sub(1),
        })
    }

    /// Those there are.
    pub(crate) fn all(region: &ControllerRegion) -> impl Iterator<Item = Self> + '_ {
        (1..=DATA_QUEUES_MAX).filter_map(|cdqid| Self::load(region, cdqid))
    }

    /// Makes one. `None`: there are as many as there can be.
    pub(crate) fn create(
        region: &ControllerRegion,
        cntlid: u16,
        base: u64,
        entries: u32,
        contiguous: bool,
    ) -> Option<u16> {
        let cdqid = (1..=DATA_QUEUES_MAX).find(|cdqid| Self::load(region, *cdqid).is_none())?;
        let (record, slot) = (region.cqs.get(usize::from(cdqid))?, slot_of(region, cdqid)?);
        put64(&slot.progress[0], 0);
        put64(&record.base, base);
        put32(&record.interrupt, u32::from(cntlid) << 16 | if contiguous { 0 } else { LIST });
        put32(&record.tail_phase, 1 << 16);
        put32(&record.head, 0);
        put32(&record.tail_trigger, 0);
        publish32(&record.size, entries);
        Some(cdqid)
    }

    /// Ends it.
    pub(crate) fn close(region: &ControllerRegion, cdqid: u16) {
        if let Some(record) = region.cqs.get(usize::from(cdqid)).filter(|_| cdqid != 0) {
            publish32(&record.size, 0);
        }
    }

    /// Whether a queue of so many entries there can be.
    pub(crate) fn fits(entries: u32) -> bool {
        (2..=ENTRIES_MAX).contains(&entries)
    }

    pub(crate) fn is(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Changes flags.
    pub(crate) fn set(&mut self, region: &ControllerRegion, on: u32, off: u32) {
        self.flags = self.flags & !off | on;
        if let Some(record) = region.cqs.get(usize::from(self.cdqid)) {
            publish32(&record.interrupt, u32::from(self.cntlid) << 16 | self.flags);
        }
    }

    /// Entries that are posted and not read.
    pub(crate) fn used(&self) -> u32 {
        if self.tail >= self.head { self.tail - self.head } else { self.tail + self.entries - self.head }
    }

    /// Entries that can be posted: one is always kept free.
    pub(crate) fn room(&self) -> u32 {
        self.entries - 1 - self.used()
    }

    /// The host has read up to this slot. `false`: there is no entry that it could have.
    pub(crate) fn set_head(&mut self, region: &ControllerRegion, head: u32) -> bool {
        let read = if head >= self.head {
            head - self.head
        } else {
            head.wrapping_add(self.entries).wrapping_sub(self.head)
        };
        let Some(record) = region.cqs.get(usize::from(self.cdqid)) else { return false };
        if head >= self.entries || read > self.used() {
            return false;
        }
        self.head = head;
        publish32(&record.head, head);
        true
    }

    /// The slot whose entry the host wants to be told of.
    pub(crate) fn set_trigger(&mut self, region: &ControllerRegion, trigger: Option<u32>) {
        self.trigger = trigger;
        if let Some(record) = region.cqs.get(usize::from(self.cdqid)) {
            publish32(&record.tail_trigger, trigger.map_or(0, |slot| slot + 1));
        }
    }

    /// Posts an entry; there is room for it. Returns its slot.
    ///
    /// # Errors
    /// Its place cannot be written now: [`DataQueue::settle`] does it later.
    pub(crate) fn post(
        &mut self,
        region: &ControllerRegion,
        map: &MemoryMap,
        entry: LbaMigrationEntry,
    ) -> Result<u32, Fault> {
        let slot = self.tail;
        if let Some(place) = slot_of(region, self.cdqid) {
            let mut bytes = [0; 32];
            let entry = LbaMigrationEntry { lbamqa: entry.lbamqa.with_cdqp(self.phase), ..entry };
            bytes.iter_mut().zip(entry.as_bytes()).for_each(|(to, from)| *to = *from);
            for (word, bytes) in place.command.iter().zip(bytes.chunks_exact(8)) {
                put64(word, bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)));
            }
            publish64(&place.progress[0], u64::from(slot) + 1);
        }
        self.settle(region, map)?;
        Ok(slot)
    }

    /// Ends what was begun, by this process or one before.
    ///
    /// # Errors
    /// Its place cannot be written now.
    pub(crate) fn settle(&mut self, region: &ControllerRegion, map: &MemoryMap) -> Result<(), Fault> {
        let (Some(place), Some(record)) =
            (slot_of(region, self.cdqid), region.cqs.get(usize::from(self.cdqid)))
        else {
            return Ok(());
        };
        let begun = place.progress[0].load(Ordering::Acquire);
        if begun == u64::from(self.tail) + 1 {
            let mut bytes = [0; 32];
            for (bytes, word) in bytes.chunks_exact_mut(8).zip(&place.command) {
                bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
            }
            self.write(map, &bytes)?;
            self.tail += 1;
            if self.tail == self.entries {
                (self.tail, self.phase) = (0, !self.phase);
            }
            publish32(&record.tail_phase, self.tail | u32::from(self.phase) << 16);
        }
        publish64(&place.progress[0], 0);
        Ok(())
    }

    /// The byte with the phase tag comes last (Base 2.1, 8.1.6).
    fn write(&self, map: &MemoryMap, bytes: &[u8; 32]) -> Result<(), Fault> {
        let at = self.place_of(map, self.tail)?;
        let (last, rest) = bytes.split_last().map_or((0, &[][..]), |(last, rest)| (*last, rest));
        map.write_bytes(Iova(at), rest)?;
        std::sync::atomic::fence(Ordering::Release);
        map.store_u8(&mut Hint::default(), Iova(at + 31), last)
    }

    fn place_of(&self, map: &MemoryMap, slot: u32) -> Result<u64, Fault> {
        let offset = u64::from(slot) * u64::from(ENTRY_BYTES);
        if !self.is(LIST) {
            return Ok(self.base.wrapping_add(offset));
        }
        let page = PAGE_BYTES as u64;
        let base: u64 = map.read(Iova(self.base.wrapping_add(offset / page * 8)))?;
        Ok((base & !(page - 1)).wrapping_add(offset % page))
    }
}

fn slot_of(region: &ControllerRegion, cdqid: u16) -> Option<&state::region::Slot> {
    region.slots.get(usize::from(cdqid))?.first()
}

/// An entry about a change.
pub(crate) fn entry(change: Change, esa: EntrySequence) -> LbaMigrationEntry {
    let (nsid, slba, nlb_z, lbacir) = match change {
        Change::Blocks { nsid, slba, nlb_z } => (nsid, slba, nlb_z, ChangeInformation::Range),
        Change::Namespace(nsid) => (nsid, 0, 0, ChangeInformation::Namespace),
        Change::Nothing => (0, 0, 0, ChangeInformation::Nothing),
    };
    let lbamqa = Lbamqa::new().with_esa(esa.0).with_lbacir(lbacir.0);
    LbaMigrationEntry { nsid, nlb_z, slba, reserved16: [0; 15], lbamqa }
}
