//! A controller that stands still, as a state that goes to another host, and back.
//!
//! ```text
//!  region at rest --save--> ControllerV1 -- carried --> check, tried on a scratch region, inspected
//!                                                         --> its record is kept --> load: the region of the same ssd elsewhere
//! ```
//! What comes out of another host's hands is checked as if a guest had written it: nothing of the region is touched before all of it was found
//! good, and its record is stable. The steps of [`Checked::load`] leave a sound region between any two stores, and may be done again from the
//! start until the last one, which says that it is loaded: the controller may have run since.
//!
//! Not carried: the time since the controller was made, counted in seconds with the next record.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::Now;
use memory::{DoorbellPage, SharedRegion};
use spec::nvme::log::ErrorInformation;
use spec::nvme::registers::{Cc, Csts};
use state::controller::{
    AdminV1, CompletionQueueV1, ControllerV1, ErrorV1, FeatureV1, IdentityV1, OutlineV1, PostingV1,
    QueueCountersV1, RegistersV1, SlotV1, SubmissionQueueV1, VectorV1,
};
use state::region::{
    ControllerRegion, LAYOUT_VERSION, MAGIC, QUEUES_MAX, SLOT_ACCEPTED, SLOT_FREE, SLOT_POSTING, SLOTS_MAX,
    Slot,
};
use state::ssd::{CountersV1, NamespaceV1, SsdV1};
use zerocopy::{FromBytes, IntoBytes};

use super::{Controller, check_record};
use crate::admin::is_stored_feature;
use crate::limits::{AERL_Z, ELPE_Z, NAMESPACE_ALIGN_BYTES, PAGE_BYTES};
use crate::namespace::Namespace;
use crate::pci;
use crate::profile::{Identity, Profile};
use crate::queue::{self, CqRecord, SqRecord, Unsound, cq_index, sq_index};
use crate::store::{change64, publish32, publish64, put_doorbell, put32, put64};

/// The sanitize operation of a record is under way.
const SANITIZING: u8 = 2;

/// Why a state is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is of another ssd, device model or size.
    #[error("the state is of another ssd: its {what} is {theirs}, this one's is {ours}")]
    Other {
        /// What differs.
        what: &'static str,
        /// In the state.
        theirs: String,
        /// Here.
        ours: String,
    },
    /// A field no controller can have.
    #[error("the state makes no sense: {0}")]
    Nonsense(&'static str),
    /// A queue, or something in it.
    #[error("the state makes no sense: {0}")]
    Queue(#[from] Unsound),
}

/// A stopped controller's memory, and what it is of.
pub struct Place<'a> {
    /// The region.
    pub region: &'a ControllerRegion,
    /// Its doorbells.
    pub doorbells: &'a DoorbellPage,
    /// Device model.
    pub profile: &'a Profile,
    /// Identity.
    pub identity: &'a Identity,
    /// The record of the ssd as it is here.
    pub record: &'a SsdV1,
    /// The drive's blocks.
    pub block_bytes: u32,
}

impl Controller {
    /// Whether a record is on its way to where it is stable.
    #[must_use]
    pub fn is_recording(&self) -> bool {
        self.persist.is_running()
    }

    /// The state of a controller that stands still: no group has its queues and nothing is at the drive.
    #[must_use]
    pub fn save(&self, now: Now) -> ControllerV1 {
        let region: &ControllerRegion = &self.region;
        let registers = &region.registers;
        let word32 = |word: &std::sync::atomic::AtomicU32| word.load(Ordering::Acquire);
        let record = self.record();
        ControllerV1 {
            identity: identity_of(&self.identity),
            record,
            registers: RegistersV1 {
                cc: word32(&registers.cc),
                csts: word32(&registers.csts),
                aqa: word32(&registers.aqa),
                interrupt_mask: word32(&registers.interrupt_mask),
                asq: registers.asq.load(Ordering::Acquire),
                acq: registers.acq.load(Ordering::Acquire),
            },
            config: pci::saved_config(&region.pci),
            vectors: pci::saved_vectors(&region.pci),
            admin: save_admin(region, self.timestamp_at(now)),
            completion_queues: (0..).zip(&region.cqs).filter_map(|(id, _)| self.save_cq(id)).collect(),
            submission_queues: (0..).zip(&region.sqs).filter_map(|(id, _)| self.save_sq(id)).collect(),
            counters: save_counters(region),
            errors: self.errors.iter().map(save_error).collect(),
        }
    }

    /// What [`Controller::save`] would give a state of. Of a controller that runs, too: it is so for the controller's life, but for its size.
    #[must_use]
    pub fn outline(&self) -> OutlineV1 {
        OutlineV1 {
            identity: identity_of(&self.identity),
            profile: self.profile.name.to_owned(),
            capacity_bytes: self.capacity_bytes,
        }
    }

    fn save_cq(&self, cqid: u16) -> Option<CompletionQueueV1> {
        let CqRecord { base, size, tail, phase, head, vector } = CqRecord::load(&self.region, cqid)?;
        let doorbell = self.doorbells.cq_head(cqid);
        Some(CompletionQueueV1 { cqid, base, size, vector, tail, phase, head, doorbell })
    }

    fn save_sq(&self, sqid: u16) -> Option<SubmissionQueueV1> {
        let SqRecord { base, size, cqid, head, seq } = SqRecord::load(&self.region, sqid)?;
        let slots = self.region.slots.get(usize::from(sqid))?;
        let slots = (0..).zip(slots).filter_map(|(slot, place)| save_slot(slot, place)).collect();
        let doorbell = self.doorbells.sq_tail(sqid);
        Some(SubmissionQueueV1 { sqid, base, size, cqid, head, seq, doorbell, slots })
    }

    /// Goes on with an error log that was saved, or that a controller before this one had.
    pub fn with_errors(mut self, errors: &[ErrorV1]) -> Self {
        let entries = errors.iter().filter_map(|error| ErrorInformation::read_from_bytes(&error.entry).ok());
        self.errors = entries.take(usize::from(ELPE_Z) + 1).collect();
        self
    }

    /// Before it goes on: the host was not silent while the controller stood still.
    pub fn restart_keep_alive(&self, now: Now) {
        publish64(&self.region.admin.keep_alive_ns, now.0);
    }

    /// A reset of a controller that stands still, as a function level reset: nothing of what was accepted is carried out, and whoever goes on
    /// with it finishes the reset. Its record counts what may have been carried out before.
    pub fn abandon(&self) {
        self.abandon_by(super::life::ResetKind::Function);
    }

    /// As [`Controller::abandon`], by a controller reset: what CC.EN going from 1 to 0 leaves alone stays.
    pub fn abandon_disabled(&self) {
        self.abandon_by(super::life::ResetKind::Controller);
    }

    fn abandon_by(&self, kind: super::life::ResetKind) {
        let registers = &self.region.registers;
        publish64(&registers.reset_kind, kind as u64);
        change64(&registers.reset_count, |count| count | 1);
        publish32(&registers.cc, 0);
        for qid in (0..QUEUES_MAX).filter_map(|qid| u16::try_from(qid).ok()) {
            queue::close_sq(&self.region, qid);
        }
        for qid in (0..QUEUES_MAX).filter_map(|qid| u16::try_from(qid).ok()) {
            queue::close_cq(&self.region, qid);
        }
    }
}

fn identity_of(identity: &Identity) -> IdentityV1 {
    let Identity { serial, nqn, uuid, eui64, nguid, initial_lba_shift: _ } = identity.clone();
    IdentityV1 { serial, nqn, uuid, eui64, nguid }
}

fn save_error(error: &ErrorInformation) -> ErrorV1 {
    let mut entry = [0; 64];
    entry.iter_mut().zip(error.as_bytes()).for_each(|(to, from)| *to = *from);
    ErrorV1 { entry }
}

fn save_slot(slot: u16, place: &Slot) -> Option<SlotV1> {
    let word = place.word.load(Ordering::Acquire);
    let state = queue::state_of(place);
    if state == SLOT_FREE {
        return None;
    }
    let mut entry = [0; 16];
    for (bytes, word) in entry.chunks_exact_mut(8).zip(&place.completion) {
        bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
    }
    let posting =
        (state == SLOT_POSTING).then_some(PostingV1 { phase: word & queue::WORD_PHASE != 0, entry });
    let mut command = [0; 64];
    for (bytes, word) in command.chunks_exact_mut(8).zip(&place.command) {
        bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
    }
    let progress = place.progress[0].load(Ordering::Relaxed);
    let (seq, position) = (queue::seq_of(word), queue::position_of(word));
    Some(SlotV1 { slot, seq, position, command, posting, progress })
}

fn save_counters(region: &ControllerRegion) -> Vec<QueueCountersV1> {
    let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
    let of = |(sqid, sq): (u16, &state::region::SubmissionQueue)| {
        let counters = CountersV1 {
            reads: load(&sq.reads),
            writes: load(&sq.writes),
            read_sectors: load(&sq.read_sectors),
            write_sectors: load(&sq.write_sectors),
            other_changes: load(&sq.other_changes),
        };
        (counters != CountersV1::default()).then_some(QueueCountersV1 { sqid, counters })
    };
    (0..).zip(&region.sqs).filter_map(of).collect()
}

fn save_admin(region: &ControllerRegion, timestamp_ms: u64) -> AdminV1 {
    let admin = &region.admin;
    let is_set = |words: &[AtomicU64], at: u16| {
        let word = words.get(usize::from(at / 64));
        word.is_some_and(|word| word.load(Ordering::Acquire) >> (at % 64) & 1 == 1)
    };
    let feature = |(fid, word): (u8, &std::sync::atomic::AtomicU32)| {
        let value = word.load(Ordering::Acquire);
        is_set(&admin.features_set, fid.into()).then_some(FeatureV1 { fid, value })
    };
    let mut host_identifier = [0; 16];
    for (bytes, word) in host_identifier.chunks_exact_mut(8).zip(&admin.host_identifier) {
        bytes.copy_from_slice(&word.load(Ordering::Acquire).to_le_bytes());
    }
    let parked = admin.parked_events.iter().filter_map(|e| e.load(Ordering::Acquire).checked_sub(1));
    let pending = admin.pending_events.iter().filter_map(|e| e.load(Ordering::Acquire).checked_sub(1));
    let vectors = 0..u16::try_from(QUEUES_MAX).unwrap_or(0);
    AdminV1 {
        features: (0..=u8::MAX).zip(&admin.features).filter_map(feature).collect(),
        coalescing_disabled: vectors.filter(|v| is_set(&admin.vector_coalescing_disabled, *v)).collect(),
        host_identifier,
        timestamp_ms,
        parked_events: parked.filter_map(|cid| u16::try_from(cid).ok()).collect(),
        pending_events: pending.collect(),
        masked_event_types: admin.masked_event_types.load(Ordering::Acquire),
        host_behavior: admin.host_behavior.load(Ordering::Acquire),
        shadow_doorbells: admin.shadow_doorbells.load(Ordering::Acquire),
        event_indices: admin.event_indices.load(Ordering::Acquire),
        changed_namespaces: admin.changed_namespaces.load(Ordering::Acquire),
        error_count: admin.error_count.load(Ordering::Acquire),
    }
}

/// A state that was found good for a place, which is as it was.
pub struct Checked<'a> {
    state: &'a ControllerV1,
    place: &'a Place<'a>,
    record: SsdV1,
}

/// Whether a state makes sense, and is of the ssd whose place it is.
///
/// # Errors
/// [`Refused`] names what differs, or what makes no sense.
pub fn check<'a>(state: &'a ControllerV1, place: &'a Place<'a>, now: Now) -> Result<Checked<'a>, Refused> {
    check_outline(&state.outline(), place)?;
    check_record_of(state, place)?;
    check_registers(state, place)?;
    check_queues(state, place)?;
    let scratch = Arc::new(SharedRegion::<ControllerRegion>::private());
    write(state, place.profile, &scratch, now)?;
    queue::inspect(&scratch)?;
    // The key is of the data as it lies here.
    let record = SsdV1 { key_check: place.record.key_check, ..state.record.clone() };
    Ok(Checked { state, place, record })
}

impl Checked<'_> {
    /// The ssd's record from the load on: it is to be stable before.
    #[must_use]
    pub fn record(&self) -> &SsdV1 {
        &self.record
    }

    /// Makes the place that of the state. `file` names where the state came from: not 0, and no other state's since the region was made.
    ///
    /// # Errors
    /// None: what could be refused was tried on a scratch region.
    pub fn load(self, file: u32, now: Now) -> Result<SsdV1, Refused> {
        let Self { state, place, record } = self;
        clear(place.region);
        write(state, place.profile, place.region, now)?;
        write_doorbells(state, place.doorbells);
        publish32(&place.region.header.loaded_file, file);
        Ok(record)
    }
}

/// Whether the state of that file was loaded. If it was, the controller may have run since, and the state is an old one.
#[must_use]
pub fn is_loaded(region: &ControllerRegion, file: u32) -> bool {
    region.header.loaded_file.load(Ordering::Acquire) == file
}

/// Who has a controller stand still, and lets it run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Whoever moves its guest.
    Mover,
    /// A management controller.
    Management,
}

/// Until whom a controller over this region is to stand still, whatever process has it.
#[must_use]
pub fn holder(region: &ControllerRegion) -> Option<Holder> {
    match region.header.held.load(Ordering::Acquire) {
        0 => None,
        2 => Some(Holder::Management),
        _ => Some(Holder::Mover),
    }
}

/// Says it. Of a controller that stands still.
pub fn set_holder(region: &ControllerRegion, holder: Option<Holder>) {
    let word = match holder {
        None => 0,
        Some(Holder::Mover) => 1,
        Some(Holder::Management) => 2,
    };
    publish32(&region.header.held, word);
}

fn same<T: PartialEq>(
    what: &'static str,
    theirs: &T,
    ours: &T,
    show: impl Fn(&T) -> String,
) -> Result<(), Refused> {
    if theirs == ours {
        return Ok(());
    }
    Err(Refused::Other { what, theirs: show(theirs), ours: show(ours) })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks that a state of which this was said would be of the ssd here. For a place that may be used: nothing of it is looked at but what it is of.
///
/// # Errors
/// [`Refused::Other`] names what differs.
pub fn check_outline(outline: &OutlineV1, place: &Place<'_>) -> Result<(), Refused> {
    let (theirs, ours) = (&outline.identity, identity_of(place.identity));
    let profile = place.profile.name.to_owned();
    same("profile", &outline.profile, &profile, |name| format!("{name:?}"))?;
    same("capacity", &outline.capacity_bytes, &place.record.capacity_bytes, |n| format!("{n} bytes"))?;
    same("serial number", &theirs.serial, &ours.serial, |serial| {
        format!("{:?}", String::from_utf8_lossy(serial).trim_end())
    })?;
    same("NQN", &theirs.nqn, &ours.nqn, |nqn| format!("{nqn:?}"))?;
    same("UUID", &theirs.uuid, &ours.uuid, |id| hex(id))?;
    same("EUI-64", &theirs.eui64, &ours.eui64, |id| hex(id))?;
    same("NGUID", &theirs.nguid, &ours.nguid, |id| hex(id))
}

fn check_record_of(state: &ControllerV1, place: &Place<'_>) -> Result<(), Refused> {
    let record = &state.record;
    let capacity_bytes = record.capacity_bytes & !0xfff;
    let sound = record.laid_out
        && check_record(record, capacity_bytes).is_ok()
        && record.sanitize.status != SANITIZING
        && record.self_tests.len() <= 20;
    let fits = |ns: &NamespaceV1| 1_u64 << ns.lba_shift >= u64::from(place.block_bytes);
    // A mark that a namespace leaves out would stay in the file all the same.
    let whole = |ns: &NamespaceV1| {
        Namespace::from_record(ns, capacity_bytes).is_some_and(|found| found.marks.record() == ns.marks)
    };
    if !sound {
        return Err(Refused::Nonsense("its namespaces, its sanitize operation or its self-tests"));
    }
    if !record.namespaces.iter().all(fits) {
        return Err(Refused::Nonsense("a namespace has smaller blocks than the drive here"));
    }
    if !record.namespaces.iter().all(whole) {
        return Err(Refused::Nonsense("marks of blocks: too many, outside their namespace or not apart"));
    }
    if !is_left_to_wipe(record, capacity_bytes) {
        return Err(Refused::Nonsense("what is to be wiped: no place of a deleted namespace, or in use"));
    }
    Ok(())
}

/// Whether `to_wipe` holds what deletions leave: places of namespaces that are gone, inside the ssd, apart from each other and from the
/// namespaces there are. They stand in the order of the deletions, which is any. Such a place ends anywhere where the capacity ended once.
fn is_left_to_wipe(record: &SsdV1, capacity_bytes: u64) -> bool {
    let place = |start: u64, len: u64| (start, start.saturating_add(len));
    let mut taken = Vec::new();
    for range in &record.to_wipe {
        let (start, end) = place(range.start_bytes, range.len_bytes);
        let laid_out = start.is_multiple_of(NAMESPACE_ALIGN_BYTES) && end.is_multiple_of(PAGE_BYTES as u64);
        if !laid_out || start >= end || end > capacity_bytes {
            return false;
        }
        taken.push((start, end));
    }
    taken.extend(record.namespaces.iter().map(|ns| place(ns.start_bytes, ns.reserved_bytes)));
    taken.sort_unstable();
    taken.windows(2).all(|two| two[0].1 <= two[1].0)
}

fn check_registers(state: &ControllerV1, place: &Place<'_>) -> Result<(), Refused> {
    let RegistersV1 { csts, aqa, asq, acq, .. } = state.registers;
    let known = Csts::new().with_rdy(true).with_cfs(true).with_shst(3).with_nssro(true).into_bits();
    let aligned = |at: u64| at.is_multiple_of(PAGE_BYTES as u64);
    if csts & !known != 0 || Csts::from_bits(csts).shst() > 2 || aqa & !0x0fff_0fff != 0 {
        return Err(Refused::Nonsense("registers"));
    }
    let cc = Cc::from_bits(state.registers.cc);
    let rdy = Csts::from_bits(csts).rdy();
    if rdy && !(aligned(asq) && aligned(acq) && cc.mps() == 0 && cc.ams() == 0) {
        return Err(Refused::Nonsense("registers of a controller that is ready"));
    }
    let admin = &state.admin;
    let features = admin.features.iter().all(|feature| is_stored_feature(feature.fid, feature.value))
        && rises(admin.features.iter().map(|feature| feature.fid.into()));
    // Requests that are parked came by the admin queue of a controller that is ready.
    let events = admin.parked_events.len() <= usize::from(AERL_Z) + 1
        && (rdy || admin.parked_events.is_empty())
        && admin.pending_events.len() <= 32
        && admin.pending_events.iter().all(|event| *event < u32::MAX);
    let shadows = aligned(admin.shadow_doorbells)
        && aligned(admin.event_indices)
        && (admin.shadow_doorbells == 0) == (admin.event_indices == 0);
    let vectors = admin.coalescing_disabled.iter().all(|vector| *vector < place.profile.vectors)
        && rises(admin.coalescing_disabled.iter().copied());
    if !(features && events && shadows && vectors && admin.host_behavior <= 1) {
        return Err(Refused::Nonsense("features or events"));
    }
    if !pci::is_config_of(place.profile, &state.config) {
        return Err(Refused::Nonsense("configuration space of another device"));
    }
    let row = |row: &VectorV1| row.vector < place.profile.vectors && row.address.is_multiple_of(4);
    let rows = state.vectors.iter().all(row) && rises(state.vectors.iter().map(|row| row.vector));
    if !rows || state.errors.len() > usize::from(ELPE_Z) + 1 {
        return Err(Refused::Nonsense("vectors or error log"));
    }
    Ok(())
}

/// What [`queue::inspect`] cannot see, since it looks at records that are in their places.
fn check_queues(state: &ControllerV1, place: &Place<'_>) -> Result<(), Refused> {
    let entries_max = |qid: u16| if qid == 0 { 4096 } else { u32::from(place.profile.mqes_z) + 1 };
    let page = |base: u64| base.is_multiple_of(PAGE_BYTES as u64);
    let io_queues = place.profile.io_queues;
    let (cqs, sqs) = (&state.completion_queues, &state.submission_queues);
    if !rises(cqs.iter().map(|cq| cq.cqid)) || !rises(sqs.iter().map(|sq| sq.sqid)) {
        return Err(Refused::Nonsense("a queue is there twice"));
    }
    // Whoever goes on would fetch from them for a controller that is disabled.
    let has_queues = !(cqs.is_empty() && sqs.is_empty());
    if has_queues && !Csts::from_bits(state.registers.csts).rdy() {
        return Err(Refused::Nonsense("queues of a controller that is not ready"));
    }
    for cq in cqs {
        let vector = cq.vector.is_none_or(|vector| vector < place.profile.vectors);
        let bounds = cq.cqid <= io_queues && cq.size <= entries_max(cq.cqid) && page(cq.base);
        let inside = cq.size >= 2 && cq.tail < cq.size && cq.head < cq.size;
        if !(vector && bounds && inside) {
            return Err(Unsound::CompletionQueue(cq.cqid).into());
        }
    }
    for sq in sqs {
        let cq = cqs.iter().find(|cq| cq.cqid == sq.cqid);
        let bounds = sq.sqid <= io_queues && sq.size <= entries_max(sq.sqid) && page(sq.base);
        let inside = sq.size >= 2 && sq.head < sq.size;
        let (true, Some(cq)) = (bounds && inside, cq) else {
            return Err(Unsound::SubmissionQueue(sq.sqid).into());
        };
        if !rises(sq.slots.iter().map(|slot| slot.slot)) {
            return Err(Unsound::SubmissionQueue(sq.sqid).into());
        }
        for slot in &sq.slots {
            let bound = if slot.posting.is_some() { cq.size } else { sq.size };
            // Accepted before the next one, and no longer ago than there are slots: none was answered behind its back.
            let age = sq.seq.wrapping_sub(slot.seq);
            let of_age = slot.posting.is_some() || (1..=1 << 31).contains(&age);
            if usize::from(slot.slot) >= SLOTS_MAX || slot.position >= bound || !of_age {
                return Err(Unsound::Slot { sqid: sq.sqid, slot: slot.slot }.into());
            }
        }
    }
    for cq in cqs.iter().filter(|cq| cq.cqid != 0) {
        let unread = if cq.tail >= cq.head { cq.tail - cq.head } else { cq.tail + cq.size - cq.head };
        let slots = sqs.iter().filter(|sq| sq.cqid == cq.cqid).flat_map(|sq| &sq.slots);
        let accepted = slots.filter(|slot| slot.posting.is_none()).count();
        // Each has an entry set aside for its answer.
        if u32::try_from(accepted).is_ok_and(|accepted| accepted > cq.size - 1 - unread) {
            return Err(Unsound::CompletionQueue(cq.cqid).into());
        }
    }
    let counted = state.counters.iter().all(|counted| usize::from(counted.sqid) < QUEUES_MAX)
        && rises(state.counters.iter().map(|counted| counted.sqid));
    if counted { Ok(()) } else { Err(Refused::Nonsense("counters of a queue that cannot be")) }
}

/// Each is greater than the one before.
fn rises(mut ids: impl Iterator<Item = u16>) -> bool {
    let mut last = None;
    ids.all(|id| last.replace(id).is_none_or(|last| last < id))
}

/// No queues, and not ready: sound at each store.
fn clear(region: &ControllerRegion) {
    publish32(&region.registers.csts, 0);
    for sq in &region.sqs {
        publish32(&sq.size, 0);
    }
    for cq in &region.cqs {
        publish32(&cq.size, 0);
    }
    for slot in region.slots.iter().flatten() {
        if slot.word.load(Ordering::Relaxed) != SLOT_FREE {
            publish64(&slot.word, SLOT_FREE);
        }
    }
}

/// Over a cleared region: completion queues before what posts to them, and "ready" last.
fn write(
    state: &ControllerV1,
    profile: &Profile,
    region: &ControllerRegion,
    now: Now,
) -> Result<(), Refused> {
    let header = &region.header;
    put32(&header.layout_version, LAYOUT_VERSION);
    put64(&header.size_bytes, size_of::<ControllerRegion>() as u64);
    let [cycle, _]: [u32; 2] = zerocopy::transmute!(state.record.totals.power_cycles);
    put32(&header.power_cycle, cycle);
    publish64(&header.magic, MAGIC);
    pci::restore(&region.pci, profile, &state.config, &state.vectors);
    write_admin(&state.admin, region, now);
    for (sqid, sq) in (0_u16..).zip(&region.sqs) {
        let counted = state.counters.iter().find(|counted| counted.sqid == sqid);
        let counters = counted.map_or_else(CountersV1::default, |counted| counted.counters);
        put64(&sq.reads, counters.reads);
        put64(&sq.writes, counters.writes);
        put64(&sq.read_sectors, counters.read_sectors);
        put64(&sq.write_sectors, counters.write_sectors);
        put64(&sq.other_changes, counters.other_changes);
    }
    for cq in &state.completion_queues {
        queue::restore_cq(region, cq);
    }
    for sq in &state.submission_queues {
        let slots = region.slots.get(usize::from(sq.sqid)).ok_or(Unsound::SubmissionQueue(sq.sqid))?;
        for saved in &sq.slots {
            let unsound = Unsound::Slot { sqid: sq.sqid, slot: saved.slot };
            write_slot(saved, slots.get(usize::from(saved.slot)).ok_or(unsound)?);
        }
        queue::restore_sq(region, sq);
    }
    let registers = &region.registers;
    put32(&registers.aqa, state.registers.aqa);
    put32(&registers.interrupt_mask, state.registers.interrupt_mask);
    put64(&registers.asq, state.registers.asq);
    put64(&registers.acq, state.registers.acq);
    publish32(&registers.cc, state.registers.cc);
    publish32(&registers.csts, state.registers.csts);
    Ok(())
}

fn write_slot(saved: &SlotV1, place: &Slot) {
    let word = |bytes: &[u8]| bytes.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    for (place, bytes) in place.command.iter().zip(saved.command.chunks_exact(8)) {
        put64(place, word(bytes));
    }
    put64(&place.progress[0], saved.progress);
    let mut says = queue::slot_word(saved.seq, saved.position, SLOT_ACCEPTED);
    if let Some(posting) = &saved.posting {
        for (place, bytes) in place.completion.iter().zip(posting.entry.chunks_exact(8)) {
            put64(place, word(bytes));
        }
        let phase = if posting.phase { queue::WORD_PHASE } else { 0 };
        says = queue::slot_word(saved.seq, saved.position, SLOT_POSTING) | phase;
    }
    publish64(&place.word, says);
}

fn write_admin(saved: &AdminV1, region: &ControllerRegion, now: Now) {
    let admin = &region.admin;
    let bits = |words: &[AtomicU64], set: &[u16]| {
        for (at, word) in words.iter().enumerate() {
            let here = set.iter().filter(|bit| usize::from(**bit) / 64 == at);
            put64(word, here.fold(0, |bits, bit| bits | 1 << (bit % 64)));
        }
    };
    for (fid, word) in (0..=u8::MAX).zip(&admin.features) {
        let found = saved.features.iter().find(|feature| feature.fid == fid);
        put32(word, found.map_or(0, |feature| feature.value));
    }
    bits(&admin.features_set, &saved.features.iter().map(|feature| feature.fid.into()).collect::<Vec<_>>());
    bits(&admin.vector_coalescing_disabled, &saved.coalescing_disabled);
    for (word, bytes) in admin.host_identifier.iter().zip(saved.host_identifier.chunks_exact(8)) {
        put64(word, bytes.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes)));
    }
    put64(&admin.timestamp[0], saved.timestamp_ms);
    put64(&admin.timestamp[1], now.0);
    let mut parked = saved.parked_events.iter().map(|cid| u32::from(*cid) + 1);
    admin.parked_events.iter().for_each(|place| put32(place, parked.next().unwrap_or(0)));
    let mut pending = saved.pending_events.iter().map(|event| event.saturating_add(1));
    admin.pending_events.iter().for_each(|place| put32(place, pending.next().unwrap_or(0)));
    put32(&admin.masked_event_types, saved.masked_event_types);
    put32(&admin.host_behavior, saved.host_behavior);
    put64(&admin.shadow_doorbells, saved.shadow_doorbells);
    put64(&admin.event_indices, saved.event_indices);
    put64(&admin.changed_namespaces, saved.changed_namespaces);
    put64(&admin.error_count, saved.error_count);
    put64(&admin.keep_alive_ns, now.0);
}

fn write_doorbells(state: &ControllerV1, page: &DoorbellPage) {
    (0..1024).for_each(|index| put_doorbell(page, index, 0));
    state.completion_queues.iter().for_each(|cq| put_doorbell(page, cq_index(cq.cqid), cq.doorbell));
    state.submission_queues.iter().for_each(|sq| put_doorbell(page, sq_index(sq.sqid), sq.doorbell));
}
