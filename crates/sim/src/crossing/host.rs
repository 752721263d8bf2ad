//! One host: what outlives its engine, the engine's process, and the journal.

use std::collections::VecDeque;
use std::sync::Arc;

use dirty::Map;
use memory::{DoorbellPage, MemoryMap, SharedRegion};
use nvme::profile::Identity;
use state::SsdV1;
use state::region::ControllerRegion;
use transfer::commit::{
    Destination, DestinationEffect, DestinationEvent, DestinationStep, Parties, Record, Source, SourceEffect,
    SourceEvent, SourceStep,
};
use transfer::control::Control;
use transfer::receive::Arrived;

use super::watch::Watch;
use crate::disk::{Disk, Manners};
use crate::engine::{Engine, Outside};
use crate::rng::Rng;

/// The journal of an ssd at a host: one record, replaced whole.
#[derive(Default)]
pub(super) struct Journal {
    durable: Option<Vec<u8>>,
    writing: Option<Vec<u8>>,
    /// Whether the durable record says that the ssd is owned here.
    owns: Option<bool>,
    /// The record under way is a note: no machine waits for it.
    pub(super) is_note: bool,
}

impl Journal {
    /// # Panics
    /// What the product wrote it cannot read.
    pub(super) fn read(&self) -> Option<(Parties, Record)> {
        let bytes = self.durable.as_deref()?;
        let Ok(read) = Record::from_bytes(bytes) else { panic!("a journal that cannot be read") };
        Some(read)
    }

    pub(super) fn begin(&mut self, record: Record, closed: bool, is_note: bool) {
        let parties = Parties {
            ssd: [1; 16],
            peer: "peer".to_owned(),
            keep: false,
            closed,
            wiped: false,
            hypervisor: Some("/qmp".to_owned()),
            limits: None,
        };
        assert!(self.writing.is_none() || self.is_note, "one record is written at a time");
        let Ok(bytes) = record.to_bytes(&parties) else { panic!("a record that cannot be saved") };
        (self.writing, self.is_note) = (Some(bytes), is_note);
    }

    pub(super) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// The write ends: the new record or the old one. Whether there was one under way.
    pub(super) fn settle(&mut self, written: bool) -> bool {
        let writing = self.writing.take();
        let was = writing.is_some();
        if let Some(bytes) = writing.filter(|_| written) {
            self.durable = Some(bytes);
            self.owns = self.read().map(|(_, record)| owns(record));
        }
        was
    }

    /// Whether the ssd is owned here by what is durable; `first`: it is without a record.
    pub(super) fn owner(&self, first: bool) -> bool {
        self.owns.unwrap_or(first)
    }
}

/// As `engine/src/passage` has it.
pub(super) fn owns(record: Record) -> bool {
    match record {
        Record::Source(record) => {
            !matches!(record.step, SourceStep::Granted | SourceStep::Gone | SourceStep::Superseded)
        }
        Record::Destination(record) => {
            matches!(record.step, DestinationStep::Owned | DestinationStep::Forced)
        }
    }
}

/// A copy that is under way.
pub(super) struct Copying {
    pub(super) control: Arc<Control>,
    pub(super) map: Arc<Map>,
    /// The era of the watch that the copy waits for.
    pub(super) era: Option<u64>,
    pub(super) near: bool,
    pub(super) rested: bool,
}

/// Who drives the source's machine (`engine/src/migration/sending.rs`).
pub(super) struct Sending {
    pub(super) machine: Source,
    pub(super) todo: VecDeque<SourceEffect>,
    pub(super) inbox: VecDeque<SourceEvent>,
    pub(super) copying: Option<Copying>,
    /// The copy is given up, and is waited for.
    pub(super) ending: bool,
    pub(super) frozen_at: Option<u64>,
    /// The round that the hypervisor was let go on in, and when.
    pub(super) went_on: Option<(u32, u64)>,
    pub(super) step: Option<SourceStep>,
    pub(super) alarmed: bool,
    pub(super) asked_at: u64,
}

impl Sending {
    pub(super) fn new(machine: Source, effects: Vec<SourceEffect>, step: Option<SourceStep>) -> Self {
        Self {
            machine,
            todo: effects.into(),
            inbox: VecDeque::new(),
            copying: None,
            ending: false,
            frozen_at: None,
            went_on: None,
            step,
            alarmed: false,
            asked_at: 0,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        use SourceStep::{Cancelled, Gone, Superseded, TakenBack, TakenBackHeard};
        let ended = [Cancelled, Gone, Superseded, TakenBack, TakenBackHeard];
        self.todo.is_empty() && self.inbox.is_empty() && self.step.is_some_and(|step| ended.contains(&step))
    }
}

impl Sending {
    /// Nothing but the other host's word is missing.
    pub(super) fn is_at_rest(&self) -> bool {
        let waits = self.step == Some(SourceStep::Cancelling) || self.alarmed;
        self.todo.is_empty() && self.inbox.is_empty() && waits
    }
}

/// Who drives the destination's machine (`engine/src/migration/arrival.rs`).
pub(super) struct Arriving {
    pub(super) machine: Destination,
    pub(super) todo: VecDeque<DestinationEffect>,
    pub(super) inbox: VecDeque<DestinationEvent>,
    pub(super) step: Option<DestinationStep>,
    pub(super) arrived: Option<Box<Arrived>>,
    /// The round in which the source says that all was sent, and since when that is waited for.
    pub(super) settling: Option<(u32, u64)>,
    /// It was noted that the source knows how it ended.
    pub(super) noted: bool,
    pub(super) alarmed: bool,
    pub(super) asked_at: u64,
}

impl Arriving {
    pub(super) fn new(
        machine: Destination,
        effects: Vec<DestinationEffect>,
        step: Option<DestinationStep>,
    ) -> Self {
        Self {
            machine,
            todo: effects.into(),
            inbox: VecDeque::new(),
            step,
            arrived: None,
            settling: None,
            noted: false,
            alarmed: false,
            asked_at: 0,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        let ended = !matches!(self.step, None | Some(DestinationStep::Incoming | DestinationStep::Ready));
        self.todo.is_empty() && self.inbox.is_empty() && ended
    }
}

/// The engine's process.
#[derive(Default)]
pub(super) struct Process {
    /// It has opened the ssd.
    pub(super) engine: Option<Engine>,
    /// Nothing of the guest's is to begin.
    pub(super) frozen: bool,
    pub(super) sending: Option<Sending>,
    pub(super) arriving: Option<Arriving>,
}

/// See the module.
pub(super) struct Host {
    pub(super) outside: Outside,
    /// The guest's memory here, as it would be found.
    pub(super) ram: Arc<MemoryMap>,
    /// The guest's memory here is the guest's: it runs here, stood still here, or came whole.
    pub(super) has_memory: bool,
    pub(super) process: Option<Process>,
    pub(super) journal: Journal,
    /// Without a journal the ssd is owned here.
    pub(super) is_first: bool,
    /// Points that the next or present process lives.
    pub(super) fuel: u64,
    pub(super) off_until: u64,
    /// It loses power then.
    pub(super) doom_at: Option<u64>,
    /// It does not come back.
    pub(super) lost: bool,
}

impl Host {
    pub(super) fn new(
        is_first: bool,
        capacity: usize,
        manners: Manners,
        record: &SsdV1,
        identity: &Identity,
        rng: Rng,
        watch: Watch,
    ) -> Self {
        let (ram, place) = crate::world::guest_memory();
        let outside = Outside {
            region: Arc::new(SharedRegion::<ControllerRegion>::private()),
            doorbells: Arc::new(SharedRegion::<DoorbellPage>::private()),
            disk: Disk::new(capacity, manners, place, rng),
            record: record.clone(),
            writing: None,
            interrupts: vec![false; 129],
            map: Arc::clone(&ram),
            identity: identity.clone(),
            watch: Some(watch),
        };
        Self {
            outside,
            ram,
            has_memory: is_first,
            process: None,
            journal: Journal::default(),
            is_first,
            fuel: u64::MAX,
            off_until: 0,
            doom_at: None,
            lost: false,
        }
    }

    /// Whether it owns the ssd by what is durable here.
    pub(super) fn owns(&self) -> bool {
        self.journal.owner(self.is_first)
    }

    /// Whether commands of a guest are carried out here.
    pub(super) fn serves(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.engine.is_some() && !process.frozen)
    }

    /// What the keeper holds of the controller is gone, or nobody's.
    pub(super) fn power_off_controller(&mut self) {
        self.outside.region = Arc::new(SharedRegion::private());
        self.outside.doorbells = Arc::new(SharedRegion::private());
        self.outside.interrupts.fill(false);
    }

    /// Nothing of an owner is left on the drive.
    pub(super) fn wipe(&mut self) {
        let len = self.outside.disk.limits().capacity_bytes;
        self.outside.disk.write_now(0, len, None);
        self.outside.disk.flush_now();
    }
}
