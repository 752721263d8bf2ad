//! Any bytes, and a good state with anything changed, as the state of a controller from another host: refused with nothing touched, or loaded
//! once into a sound region, whose controller says the same of itself, goes on, and can be reset.
#![no_main]

use std::sync::{Arc, OnceLock};

use arbitrary::Arbitrary;
use block::Now;
use godwit_fuzz::edge::Edge;
use godwit_fuzz::{guest, region, rig};
use libfuzzer_sys::fuzz_target;
use memory::{DoorbellPage, SharedRegion};
use nvme::controller::saved::{Place, check, is_loaded};
use nvme::profile::GODWIT_1;
use nvme::queue::{create_cq, create_sq, inspect};
use state::controller::{
    CompletionQueueV1, ControllerV1, FeatureV1, MAGIC, PostingV1, SlotV1, SubmissionQueueV1, VERSION,
    VectorV1, WordV1,
};
use state::ssd::{MarkV1, RangeV1};
use state::{SsdV1, envelope};

const FILE: u32 = 1 << 31;
const NOW: Now = Now(5_000_000_000);

#[derive(Arbitrary, Debug)]
enum Input {
    Bytes { sealed: bool, bytes: Vec<u8> },
    Changes { shape: u8, changes: Vec<Change> },
}

#[derive(Arbitrary, Debug)]
enum Change {
    Register(u8, Edge),
    Config { at: u8, offset: Edge, value: Edge, more: bool },
    Vector { vector: Edge, address: Edge, masked: bool },
    Feature { fid: u8, value: Edge },
    Events { parked: Vec<u16>, pending: Vec<u32> },
    Admin(u8, Edge),
    Cq { at: u8, more: bool, field: u8, value: Edge },
    Sq { at: u8, more: bool, field: u8, value: Edge },
    Slot { sq: u8, slot: u16, seq: Edge, position: Edge, opcode: u8, fuse: u8, posting: bool },
    Namespace { field: u8, value: Edge },
    Mark { start: Edge, blocks: Edge },
    ToWipe { start: Edge, len: Edge },
    Record { field: u8, value: Edge },
}

/// A controller that is ready, with two queue pairs.
fn good() -> &'static ControllerV1 {
    static GOOD: OnceLock<ControllerV1> = OnceLock::new();
    GOOD.get_or_init(|| {
        let mut rig = rig::Rig::new(&SsdV1::default(), 16);
        rig.enable();
        for qid in [1, 2] {
            let base = guest::RINGS + 0x2000 * u64::from(qid);
            create_cq(&rig.region, qid, base, 32, Some(qid));
            create_sq(&rig.region, qid, base + 0x1000, 32, qid);
        }
        rig.controller.save(NOW)
    })
}

fn change(state: &mut ControllerV1, change: Change) {
    match change {
        Change::Register(which, value) => {
            let registers = &mut state.registers;
            match which % 6 {
                0 => registers.cc = value.u32(),
                1 => registers.csts = value.u32(),
                2 => registers.aqa = value.u32(),
                3 => registers.interrupt_mask = value.u32(),
                4 => registers.asq = value.0,
                _ => registers.acq = value.0,
            }
        }
        Change::Config { at, offset, value, more } => {
            let word = WordV1 { offset: offset.u16(), value: value.u32() };
            match state.config.get_mut(usize::from(at)).filter(|_| !more) {
                Some(there) => there.value = word.value,
                None => state.config.push(word),
            }
        }
        Change::Vector { vector, address, masked } => {
            state.vectors.push(VectorV1 { vector: vector.u16(), address: address.0, data: 7, masked });
        }
        Change::Feature { fid, value } => {
            state.admin.features.retain(|feature| feature.fid != fid);
            state.admin.features.push(FeatureV1 { fid, value: value.u32() });
            state.admin.features.sort_by_key(|feature| feature.fid);
        }
        Change::Events { parked, pending } => {
            (state.admin.parked_events, state.admin.pending_events) = (parked, pending);
        }
        Change::Admin(which, value) => {
            let admin = &mut state.admin;
            match which % 8 {
                0 => admin.timestamp_ms = value.0,
                1 => admin.masked_event_types = value.u32(),
                2 => admin.host_behavior = value.u32(),
                3 => admin.shadow_doorbells = value.0,
                4 => admin.event_indices = value.0,
                5 => admin.changed_namespaces = value.0,
                6 => admin.coalescing_disabled.push(value.u16()),
                _ => admin.error_count = value.0,
            }
        }
        Change::Cq { at, more, field, value } => {
            if more {
                state.completion_queues.push(CompletionQueueV1::default());
            }
            let count = state.completion_queues.len().max(1);
            let Some(cq) = state.completion_queues.get_mut(usize::from(at) % count) else { return };
            match field % 8 {
                0 => cq.cqid = value.u16(),
                1 => cq.base = value.0,
                2 => cq.size = value.u32(),
                3 => cq.vector = Some(value.u16()),
                4 => cq.tail = value.u32(),
                5 => cq.phase = value.0 & 1 == 1,
                6 => cq.head = value.u32(),
                _ => cq.doorbell = value.u32(),
            }
        }
        Change::Sq { at, more, field, value } => {
            if more {
                state.submission_queues.push(SubmissionQueueV1::default());
            }
            let count = state.submission_queues.len().max(1);
            let Some(sq) = state.submission_queues.get_mut(usize::from(at) % count) else { return };
            match field % 7 {
                0 => sq.sqid = value.u16(),
                1 => sq.base = value.0,
                2 => sq.size = value.u32(),
                3 => sq.cqid = value.u16(),
                4 => sq.head = value.u32(),
                5 => sq.seq = value.u32(),
                _ => sq.doorbell = value.u32(),
            }
        }
        Change::Slot { sq, slot, seq, position, opcode, fuse, posting } => {
            let count = state.submission_queues.len().max(1);
            let Some(sq) = state.submission_queues.get_mut(usize::from(sq) % count) else { return };
            let mut command = [0; 64];
            (command[0], command[1], command[2]) = (opcode, fuse & 3, (slot & 0xff) as u8);
            let posting = posting.then_some(PostingV1 { phase: fuse & 4 == 4, entry: [1; 16] });
            let (seq, position) = (sq.seq.wrapping_sub(seq.u32()), position.u32());
            sq.slots.retain(|other| other.slot != slot);
            sq.slots.push(SlotV1 { slot, seq, position, command, posting, progress: 0 });
            sq.slots.sort_by_key(|slot| slot.slot);
        }
        Change::Namespace { field, value } => {
            let Some(ns) = state.record.namespaces.last_mut() else { return };
            match field % 8 {
                0 => ns.nsid = value.u32(),
                1 => ns.start_bytes = value.0,
                2 => ns.reserved_bytes = value.0,
                3 => ns.blocks = value.0,
                4 => ns.lba_shift = (value.0 & 0xff) as u8,
                5 => ns.attached = value.0 & 1 == 1,
                6 => ns.shared = value.0 & 1 == 1,
                _ => {
                    let more = ns.clone();
                    state.record.namespaces.push(more);
                }
            }
        }
        Change::Mark { start, blocks } => {
            let Some(ns) = state.record.namespaces.first_mut() else { return };
            ns.marks.push(MarkV1 { start_block: start.0, blocks: blocks.0 });
        }
        Change::ToWipe { start, len } => {
            state.record.to_wipe.push(RangeV1 { start_bytes: start.0, len_bytes: len.0 });
        }
        Change::Record { field, value } => {
            let record = &mut state.record;
            match field % 6 {
                0 => record.capacity_bytes = value.0,
                1 => record.sanitize.status = (value.0 & 0xff) as u8,
                2 => record.totals.power_cycles = value.0,
                3 => record.clean = value.0 & 1 == 1,
                4 => record.created = value.0,
                _ => record.laid_out = value.0 & 1 == 1,
            }
        }
    }
}

fn load(state: &ControllerV1, shape: u8) {
    let here = good().record.clone();
    let (region, page) = (region::fresh(), Arc::new(SharedRegion::<DoorbellPage>::private()));
    let ours = rig::controller(&region, &page, &here, 0);
    let (before, identity) = (ours.save(NOW), rig::identity());
    let place = Place {
        region: &region,
        doorbells: &page,
        profile: &GODWIT_1,
        identity: &identity,
        record: &here,
        block_bytes: 512,
    };
    let Ok(checked) = check(state, &place, NOW) else {
        assert!(ours.save(NOW) == before && !is_loaded(&region, FILE), "refused, and changed something");
        return;
    };
    assert!(ours.save(NOW) == before, "only looked at, and changed something");
    let record = checked.load(FILE, NOW).expect("what was tried on a scratch region");
    assert!(is_loaded(&region, FILE));
    assert_eq!(inspect(&region), Ok(()));
    drop(ours);
    let again = rig::controller(&region, &page, &record, NOW.0).with_errors(&state.errors).save(NOW);
    if again.registers == state.registers {
        assert_eq!(again.completion_queues, state.completion_queues);
        assert_eq!(again.submission_queues, state.submission_queues);
        assert_eq!(again.admin.features, state.admin.features);
    }
    guest::clear();
    let mut rig = rig::Rig::over(region, page, &record, shape);
    rig.lied = true;
    // As a process that finds it: the queues are opened, and what is unanswered is carried out.
    rig.crash(false);
    rig.settle();
    rig.device_reset();
    rig.settle();
    // The next guest has memory for its rings, whatever this one had.
    rig.memory(16);
    rig.enable();
    rig.end();
    assert_eq!(rig.csts() & 3, 1, "ready, and not failed");
}

fuzz_target!(|input: Input| {
    let (bytes, shape) = match input {
        Input::Bytes { sealed: true, bytes } => (envelope::seal(MAGIC, VERSION, &bytes).expect("short"), 16),
        Input::Bytes { sealed: false, bytes } => (bytes, 16),
        Input::Changes { shape, changes } => {
            let mut state = good().clone();
            changes.into_iter().take(64).for_each(|one| change(&mut state, one));
            (state.to_bytes().expect("short"), shape)
        }
    };
    if let Ok(state) = ControllerV1::from_bytes(&bytes) {
        let again = ControllerV1::from_bytes(&state.to_bytes().expect("it was short enough"));
        assert_eq!(again.expect("our own bytes"), state);
        load(&state, shape);
    }
});
