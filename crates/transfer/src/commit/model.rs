//! Every course that the two machines can take, searched through: lost, repeated and reordered messages, crashes at every step,
//! operators who force.
//!
//! The machines are those of the product, not copies of them. Around them: a journal and an engine on each side, what is in the data, a network
//! that keeps every message that was ever sent and may deliver it at any time, again and again or never, and a hypervisor.
//! An orchestrator that vanishes is one whose asks never come; a link that is cut is one that delivers nothing.

use std::collections::BTreeSet;

use stateright::{Model, Property};

use super::*;

/// The epoch that the source owns by, and that of a migration before, whose messages are still on the wire.
const HELD: u64 = 4;
const FORMER: Pledge = Pledge { migration: [1; 16], epoch: 3 };
const PLEDGE: Pledge = Pledge { migration: [2; 16], epoch: HELD + 1 };

const OLD_TO_SOURCE: [Message<ToSource>; 4] = [
    Message { pledge: FORMER, word: ToSource::Opened { round: 1 } },
    Message { pledge: FORMER, word: ToSource::Ready { round: 1 } },
    Message { pledge: FORMER, word: ToSource::Owned },
    Message { pledge: FORMER, word: ToSource::Dropped },
];
const OLD_TO_DESTINATION: [Message<ToDestination>; 4] = [
    Message { pledge: FORMER, word: ToDestination::Open { round: 1 } },
    Message { pledge: FORMER, word: ToDestination::Grant { round: 1 } },
    Message { pledge: FORMER, word: ToDestination::Cancel },
    Message { pledge: FORMER, word: ToDestination::Fenced { epoch: HELD } },
];

// The promises, by name.
pub(super) const TWO_OWNERS: &str = "never two owners, unless an operator forced one";
pub(super) const ONE_EPOCH: &str = "no two owners by one epoch";
pub(super) const LOST_WRITES: &str = "the owner has every acknowledged write";
pub(super) const HALF_A_GUEST: &str = "the guest runs at the destination only if it was whole";
pub(super) const ONE_OWNER: &str = "both live and talk: one owner";

/// What is searched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) rules: Rules,
    /// Crashes of either side.
    pub(super) source_crashes: u8,
    pub(super) destination_crashes: u8,
    /// Writes of the guest.
    pub(super) writes: u8,
    /// Freezes.
    pub(super) rounds: u32,
    /// An operator may take the ssd by force on either side, once each.
    pub(super) force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Engine {
    /// Serves nobody: holds the queue or is not there.
    Held,
    Serves {
        epoch: u64,
    },
}

/// What a copy holds: the last acknowledged write, or a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Data {
    Mixed,
    Upto(u8),
}

/// What travels to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Parcel {
    /// A message, and the data that it stands behind.
    Word(ToDestination, u8),
    /// Some blocks, as the guest goes on writing.
    Block { round: u32 },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    source: Option<Source>,
    source_journal: Option<SourceRecord>,
    source_writing: Option<SourceRecord>,
    source_engine: Engine,
    source_data: u8,
    draining: bool,
    source_alarm: bool,

    destination: Option<Destination>,
    destination_journal: Option<DestinationRecord>,
    destination_writing: Option<DestinationRecord>,
    destination_engine: Engine,
    /// What is in its memory, and what a crash of it leaves.
    cached: Data,
    durable: Data,
    settling: Option<u32>,
    destination_alarm: bool,

    /// All of this migration that was ever sent.
    to_source: BTreeSet<ToSource>,
    to_destination: BTreeSet<Parcel>,
    /// Rounds in which the hypervisor was held, let go on, and completed.
    vm_held: Rounds,
    vm_went_on: Rounds,
    vm_completed: Rounds,
    /// Those after whose hold the guest has run at the source.
    vm_ran: Rounds,

    acknowledged: u8,
    source_crashes: u8,
    destination_crashes: u8,
    source_forced: bool,
    destination_forced: bool,
    /// What was sent since it was last looked at; only while mending.
    fresh: Option<(Vec<ToSource>, Vec<Parcel>)>,
}

/// A set of small numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Rounds(u32);

impl Rounds {
    fn insert(&mut self, round: u32) {
        self.0 |= 1 << round;
    }

    fn has(self, round: u32) -> bool {
        self.0 >> round & 1 == 1
    }

    fn iter(self) -> impl Iterator<Item = u32> {
        (0..32).filter(move |round| self.has(*round))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    GuestWritesAtSource,
    GuestWritesAtDestination,
    Source(SourceEvent),
    Destination(DestinationEvent),
    Block {
        round: u32,
    },
    Deliver(Message<ToDestination>, u8),
    /// The record that was being written is there after it, or is not; the engine beside it goes on as it was, or is gone too.
    SourceCrashes {
        landed: bool,
        with_engine: bool,
        /// The next one finds the hypervisor completed, and another of the guest's ssds gone.
        follows: bool,
    },
    DestinationCrashes {
        landed: bool,
        with_engine: bool,
    },
}

impl World {
    fn new(rules: Rules) -> Self {
        let former = SourceRecord { pledge: FORMER, held: HELD, round: 1, step: SourceStep::TakenBackHeard };
        let (source, effects) =
            Source::begin(PLEDGE.migration, HELD, Some(Former::From(&former))).expect("epochs are left");
        let mut world = Self {
            source: Some(source.breaking(rules)),
            source_journal: None,
            source_writing: None,
            source_engine: Engine::Serves { epoch: HELD },
            source_data: 0,
            draining: false,
            source_alarm: false,
            destination: None,
            destination_journal: None,
            destination_writing: None,
            destination_engine: Engine::Held,
            cached: Data::Mixed,
            durable: Data::Mixed,
            settling: None,
            destination_alarm: false,
            to_source: BTreeSet::new(),
            to_destination: BTreeSet::new(),
            vm_held: Rounds::default(),
            vm_went_on: Rounds::default(),
            vm_completed: Rounds::default(),
            vm_ran: Rounds::default(),
            acknowledged: 0,
            source_crashes: 0,
            destination_crashes: 0,
            source_forced: false,
            destination_forced: false,
            fresh: None,
        };
        world.source_does(effects);
        world
    }

    fn source_does(&mut self, effects: Vec<SourceEffect>) {
        let mut wrote = false;
        for effect in effects {
            assert!(!wrote, "a record is the last effect of its step");
            wrote = matches!(effect, SourceEffect::Write(_));
            match effect {
                SourceEffect::Write(record) => self.source_writing = Some(record),
                SourceEffect::Send(message) => {
                    // Only a seal stands for data.
                    let is_seal = matches!(message.word, ToDestination::Seal { .. });
                    self.post(Parcel::Word(message.word, if is_seal { self.source_data } else { 0 }));
                }
                SourceEffect::Copy { round } => self.post(Parcel::Block { round }),
                SourceEffect::Freeze => {
                    self.source_engine = Engine::Held;
                    self.draining = true;
                    if let Some(source) = &self.source {
                        self.vm_held.insert(source.round());
                    }
                }
                SourceEffect::ContinueVm { round } => self.vm_went_on.insert(round),
                SourceEffect::Thaw { epoch } => {
                    self.source_engine = Engine::Serves { epoch };
                    self.draining = false;
                }
                SourceEffect::Stop => self.source_engine = Engine::Held,
                SourceEffect::Raise(_) => self.source_alarm = true,
                SourceEffect::Wipe | SourceEffect::Refuse(_) => {}
            }
        }
    }

    fn post(&mut self, parcel: Parcel) {
        if let Some((_, parcels)) = &mut self.fresh {
            parcels.push(parcel);
        }
        self.to_destination.insert(parcel);
    }

    fn destination_does(&mut self, effects: Vec<DestinationEffect>) {
        let mut wrote = false;
        for effect in effects {
            assert!(!wrote, "a record is the last effect of its step");
            wrote = matches!(effect, DestinationEffect::Write(_));
            match effect {
                DestinationEffect::Write(record) => self.destination_writing = Some(record),
                DestinationEffect::Send(message) => {
                    if let Some((messages, _)) = &mut self.fresh {
                        messages.push(message.word);
                    }
                    self.to_source.insert(message.word);
                }
                DestinationEffect::Settle { round } => self.settling = Some(round),
                DestinationEffect::Serve { epoch } => self.destination_engine = Engine::Serves { epoch },
                DestinationEffect::Stop => self.destination_engine = Engine::Held,
                DestinationEffect::Raise(_) => self.destination_alarm = true,
                DestinationEffect::Wipe | DestinationEffect::Refuse(_) => {}
            }
        }
    }

    fn source_hears(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Written => {
                self.source_journal = self.source_writing.take().or(self.source_journal);
            }
            SourceEvent::Frozen => self.draining = false,
            SourceEvent::Vm { round, word: VmWord::Completed } => {
                self.vm_completed.insert(round);
            }
            SourceEvent::Force => self.source_forced = true,
            _ => {}
        }
        if let Some(mut source) = self.source.take() {
            let effects = source.handle(event);
            self.source = Some(source);
            self.source_does(effects);
        }
    }

    fn destination_hears(&mut self, event: DestinationEvent) {
        match event {
            DestinationEvent::Written => {
                self.destination_journal = self.destination_writing.take().or(self.destination_journal);
            }
            DestinationEvent::Settled { .. } => {
                self.settling = None;
                self.durable = self.cached;
            }
            DestinationEvent::Force => self.destination_forced = true,
            _ => {}
        }
        if let Some(mut destination) = self.destination.take() {
            let effects = destination.handle(event);
            self.destination = Some(destination);
            self.destination_does(effects);
        }
    }

    fn takes(&self, round: u32) -> bool {
        self.destination.as_ref().is_some_and(|destination| destination.takes(round))
    }

    fn block_comes(&mut self, round: u32) {
        if self.takes(round) {
            (self.cached, self.durable) = (Data::Mixed, Data::Mixed);
        }
    }

    fn word_comes(&mut self, message: Message<ToDestination>, upto: u8, rules: Rules) {
        match (message.word, &self.destination) {
            (ToDestination::Open { round }, None) => {
                if let Ok((destination, effects)) =
                    Destination::begin(message.pledge, round, Some(FORMER.epoch))
                {
                    self.destination = Some(destination.breaking(rules));
                    self.destination_does(effects);
                }
                return;
            }
            (ToDestination::Seal { round }, Some(_)) if self.takes(round) => self.cached = Data::Upto(upto),
            _ => {}
        }
        self.destination_hears(DestinationEvent::Message(message));
    }

    /// Whether the hypervisor has completed in the round that the journal would say, and the guest has rested since.
    fn rests(&self, landed: bool, rules: Rules) -> bool {
        let record = self.source_writing.filter(|_| landed).or(self.source_journal);
        let ran = |round| self.vm_ran.has(round) && rules.keeps(Rule::OnlyWhileItRests);
        record.is_some_and(|record| {
            record.step == SourceStep::Offered && self.vm_completed.has(record.round) && !ran(record.round)
        })
    }

    fn source_crashes(&mut self, landed: bool, with_engine: bool, follows: bool, rules: Rules) {
        self.source_crashes += 1;
        let writing = self.source_writing.take().filter(|_| landed);
        self.source_journal = writing.or(self.source_journal);
        self.draining = false;
        if with_engine && self.source_journal.is_some() {
            self.source_engine = Engine::Held;
        }
        self.source = None;
        if let Some(record) = self.source_journal.map(read_back_source) {
            let recover = if follows { Source::recover_completed_by } else { Source::recover_by };
            let (source, effects) = recover(record, rules);
            self.source = Some(source);
            self.source_does(effects);
            self.draining = false;
        }
    }

    fn destination_crashes(&mut self, landed: bool, with_engine: bool, rules: Rules) {
        self.destination_crashes += 1;
        let writing = self.destination_writing.take().filter(|_| landed);
        self.destination_journal = writing.or(self.destination_journal);
        self.settling = None;
        self.cached = self.durable;
        if with_engine {
            self.destination_engine = Engine::Held;
        }
        self.destination = None;
        if let Some(record) = self.destination_journal.map(read_back_destination) {
            let (destination, effects) = Destination::recover_by(record, rules);
            self.destination = Some(destination);
            self.destination_does(effects);
        }
    }

    fn source_serves(&self) -> bool {
        self.source_engine != Engine::Held
    }

    fn destination_serves(&self) -> bool {
        self.destination_engine != Engine::Held
    }

    /// What each side does by itself, hearing nothing from the other: ends its writes, and the time for its stun runs out.
    fn left_alone(&self) -> Self {
        let mut world = self.without_wire();
        for _ in 0..2 {
            world.end_writes();
            world.source_hears(SourceEvent::Expired);
            world.source_hears(SourceEvent::Retry);
            world.destination_hears(DestinationEvent::Retry);
        }
        world
    }

    /// All that is on the wire is lost.
    fn without_wire(&self) -> Self {
        Self {
            source: self.source.clone(),
            destination: self.destination.clone(),
            to_source: BTreeSet::new(),
            to_destination: BTreeSet::new(),
            fresh: None,
            ..*self
        }
    }

    fn end_writes(&mut self) {
        while self.source_writing.is_some() {
            self.source_hears(SourceEvent::Written);
        }
        while self.destination_writing.is_some() {
            self.destination_hears(DestinationEvent::Written);
        }
        if let Some(round) = self.settling {
            self.destination_hears(DestinationEvent::Settled { round });
            while self.destination_writing.is_some() {
                self.destination_hears(DestinationEvent::Written);
            }
        }
    }

    /// Both live and talk, nobody asks for anything: what it comes to.
    fn mended(&self, rules: Rules) -> Self {
        let mut world = self.without_wire();
        world.fresh = Some((Vec::new(), Vec::new()));
        for _ in 0..8 {
            world.end_writes();
            world.source_hears(SourceEvent::Expired);
            world.end_writes();
            world.source_hears(SourceEvent::Retry);
            world.destination_hears(DestinationEvent::Retry);
            let (messages, parcels) = world.fresh.replace((Vec::new(), Vec::new())).unwrap_or_default();
            if messages.is_empty() && parcels.is_empty() {
                break;
            }
            for word in messages {
                world.source_hears(SourceEvent::Message(Message { pledge: PLEDGE, word }));
                world.end_writes();
            }
            for parcel in parcels {
                match parcel {
                    Parcel::Block { round } => world.block_comes(round),
                    Parcel::Word(word, upto) => {
                        world.word_comes(Message { pledge: PLEDGE, word }, upto, rules);
                    }
                }
                world.end_writes();
            }
        }
        world
    }

    /// Exactly one side serves, and has what it must.
    fn has_one_owner(&self) -> bool {
        match (self.source_serves(), self.destination_serves()) {
            (true, false) => self.was_forced() || self.source_data == self.acknowledged,
            (false, true) => match self.durable {
                Data::Upto(upto) => self.was_forced() || upto == self.acknowledged,
                Data::Mixed => false,
            },
            _ => false,
        }
    }

    /// It is granted, and nobody gives it back or takes it.
    fn must_arrive(&self) -> bool {
        let is_granted = self.source_journal.is_some_and(|record| record.step == SourceStep::Granted);
        let gives_back = [self.destination_journal, self.destination_writing]
            .into_iter()
            .flatten()
            .any(|record| record.step == DestinationStep::Dropped);
        is_granted && !gives_back && !self.was_forced()
    }

    fn was_forced(&self) -> bool {
        self.source_forced || self.destination_forced
    }

    /// Whoever is stopped without the other's word serves by itself, or says what to do, and that works; or has nothing.
    fn has_ways_on(&self) -> bool {
        let alone = self.left_alone();
        let source_step = alone.source_journal.map(|record| record.step);
        let source = alone.source_serves()
            || match source_step {
                Some(SourceStep::Gone) => true,
                Some(SourceStep::Granted) => {
                    let mut forced = alone.without_wire();
                    forced.source_hears(SourceEvent::Force);
                    forced.end_writes();
                    alone.source_alarm && forced.source_serves()
                }
                _ => alone.source_alarm,
            };
        let destination_step = alone.destination_journal.map(|record| record.step);
        let destination = alone.destination_serves()
            || match destination_step {
                None | Some(DestinationStep::Incoming | DestinationStep::Dropped) => true,
                Some(DestinationStep::Ready) => {
                    let mut forced = alone.without_wire();
                    forced.destination_hears(DestinationEvent::Force);
                    forced.end_writes();
                    alone.destination_alarm && forced.destination_serves()
                }
                _ => alone.destination_alarm,
            };
        source && destination
    }

    /// A side that serves has all that was acknowledged; nobody ever serves a mixture.
    fn serves_what_was_acknowledged(&self) -> bool {
        let source = !self.source_serves() || self.source_data == self.acknowledged;
        let destination = !self.destination_serves() || self.cached == Data::Upto(self.acknowledged);
        let mixed = self.destination_serves() && self.cached == Data::Mixed;
        (self.was_forced() || source && destination) && !mixed
    }
}

impl Model for Bounds {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.rules)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.acknowledged < self.writes {
            if world.source_serves() {
                steps.push(Step::GuestWritesAtSource);
            }
            if world.destination_serves() {
                steps.push(Step::GuestWritesAtDestination);
            }
        }
        if let Some(source) = &world.source {
            self.source_steps(world, source, steps);
        }
        if world.destination.is_some() {
            self.destination_steps(world, steps);
        }
        steps.extend(OLD_TO_DESTINATION.map(|message| Step::Deliver(message, 0)));
        steps.extend(world.to_destination.iter().map(|parcel| match *parcel {
            Parcel::Word(word, upto) => Step::Deliver(Message { pledge: PLEDGE, word }, upto),
            Parcel::Block { round } => Step::Block { round },
        }));
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        match step {
            Step::GuestWritesAtSource => {
                next.acknowledged += 1;
                next.source_data = next.acknowledged;
                next.vm_ran = next.vm_held;
            }
            Step::GuestWritesAtDestination => {
                next.acknowledged += 1;
                (next.cached, next.durable) = (Data::Upto(next.acknowledged), Data::Upto(next.acknowledged));
            }
            Step::Source(event) => next.source_hears(event),
            Step::Destination(event) => next.destination_hears(event),
            Step::Block { round } => next.block_comes(round),
            Step::Deliver(message, upto) => next.word_comes(message, upto, self.rules),
            Step::SourceCrashes { landed, with_engine, follows } => {
                next.source_crashes(landed, with_engine, follows, self.rules);
            }
            Step::DestinationCrashes { landed, with_engine } => {
                next.destination_crashes(landed, with_engine, self.rules);
            }
        }
        // Alarms are looked at where they must be, not remembered.
        next.source_alarm = false;
        next.destination_alarm = false;
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(TWO_OWNERS, |_, world: &World| {
                !(world.source_serves() && world.destination_serves()) || world.was_forced()
            }),
            Property::always(ONE_EPOCH, |_, world: &World| {
                world.source_engine != world.destination_engine || !world.source_serves()
            }),
            Property::always(LOST_WRITES, |_, world: &World| world.serves_what_was_acknowledged()),
            Property::always(HALF_A_GUEST, |_, world: &World| {
                let round = world.destination_journal.map(|record| record.round);
                !world.destination_serves()
                    || world.was_forced()
                    || round.is_some_and(|round| world.vm_completed.has(round))
            }),
            Property::always(ONE_OWNER, |bounds: &Bounds, world: &World| {
                let mended = world.mended(bounds.rules);
                mended.has_one_owner() && (!world.must_arrive() || mended.destination_serves())
            }),
            Property::always("whoever is stopped says what to do, and it works", |_, world: &World| {
                world.has_ways_on()
            }),
            Property::sometimes("the ssd has moved", |_, world: &World| {
                world.destination_serves()
                    && !world.was_forced()
                    && world.source_journal.is_some_and(|record| record.step == SourceStep::Gone)
            }),
            Property::sometimes("the source thaws though the destination was ready", |_, world: &World| {
                let ready = |word: &ToSource| matches!(word, ToSource::Ready { .. });
                world.source_serves() && world.to_source.iter().any(ready)
            }),
            Property::sometimes("a granted ssd is given back", |_, world: &World| {
                !world.was_forced()
                    && world.source_serves()
                    && world.source_journal.is_some_and(|record| record.step == SourceStep::TakenBackHeard)
            }),
            Property::sometimes("both are stopped after the grant", |_, world: &World| {
                !world.source_serves()
                    && !world.destination_serves()
                    && world.source_journal.is_some_and(|record| record.step == SourceStep::Granted)
            }),
        ]
    }
}

impl Bounds {
    fn source_steps(&self, world: &World, source: &Source, steps: &mut Vec<Step>) {
        let mut hears = |event| steps.push(Step::Source(event));
        if world.source_writing.is_some() {
            hears(SourceEvent::Written);
        }
        if world.draining {
            hears(SourceEvent::Frozen);
        }
        if source.round() <= self.rounds {
            hears(SourceEvent::SwitchOver);
        }
        hears(SourceEvent::Expired);
        hears(SourceEvent::Cancel);
        if self.force && !world.source_forced {
            hears(SourceEvent::Force);
        }
        for round in world.vm_held.iter() {
            hears(SourceEvent::Vm { round, word: VmWord::Resumed });
        }
        for round in world.vm_went_on.iter() {
            hears(SourceEvent::Vm { round, word: VmWord::Completed });
        }
        let words = world.to_source.iter().map(|word| Message { pledge: PLEDGE, word: *word });
        words.chain(OLD_TO_SOURCE).for_each(|message| hears(SourceEvent::Message(message)));
        if world.source_crashes < self.source_crashes {
            for (landed, with_engine) in crashes(world.source_writing.is_some()) {
                let follows: &[bool] =
                    if world.rests(landed, self.rules) { &[false, true] } else { &[false] };
                steps.extend(follows.iter().map(|&follows| Step::SourceCrashes {
                    landed,
                    with_engine,
                    follows,
                }));
            }
        }
    }

    fn destination_steps(&self, world: &World, steps: &mut Vec<Step>) {
        let mut hears = |event| steps.push(Step::Destination(event));
        if world.destination_writing.is_some() {
            hears(DestinationEvent::Written);
        }
        if let Some(round) = world.settling {
            hears(DestinationEvent::Settled { round });
        }
        hears(DestinationEvent::Cancel);
        if self.force && !world.destination_forced {
            hears(DestinationEvent::Force);
        }
        if world.destination_crashes < self.destination_crashes {
            for (landed, with_engine) in crashes(world.destination_writing.is_some()) {
                steps.push(Step::DestinationCrashes { landed, with_engine });
            }
        }
    }
}

/// Whether the record under way is there afterwards, and whether the engine ends too.
fn crashes(writing: bool) -> impl Iterator<Item = (bool, bool)> {
    let landed: &[bool] = if writing { &[false, true] } else { &[false] };
    landed.iter().flat_map(|landed| [(*landed, false), (*landed, true)])
}

/// Through the bytes of the journal.
fn read_back(record: Record) -> Record {
    let parties = Parties {
        ssd: [9; 16],
        peer: "other".to_owned(),
        keep: true,
        closed: true,
        wiped: true,
        hypervisor: Some("/run/q".to_owned()),
        limits: None,
    };
    let bytes = record.to_bytes(&parties).expect("every record that is reached can be saved");
    let (read, record) = Record::from_bytes(&bytes).expect("and read");
    assert_eq!(read, parties);
    record
}

fn read_back_source(record: SourceRecord) -> SourceRecord {
    match read_back(Record::Source(record)) {
        Record::Source(read) if read == record => read,
        read => panic!("{record:?} was read back as {read:?}"),
    }
}

fn read_back_destination(record: DestinationRecord) -> DestinationRecord {
    match read_back(Record::Destination(record)) {
        Record::Destination(read) if read == record => read,
        read => panic!("{record:?} was read back as {read:?}"),
    }
}
