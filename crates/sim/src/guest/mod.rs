//! The model guest: a driver as stock ones are, and everything else that is legal. It is the auditor as well, because it is the
//! one who knows what it asked for, what it was answered, and what every sector may hold.

mod admin;
mod io;
mod life;
mod ram;
mod reap;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use memory::MemoryMap;

use crate::ledger::{Content, Ledger};
use crate::rng::Rng;
pub use life::Glimpse;
pub use ram::{PAGE, RAM_BYTES};

/// I/O queues of each kind that the guest uses.
pub const QUEUES: u16 = 4;
/// Sectors of a namespace that it uses.
pub const HOT_SECTORS: u64 = 96;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

/// The outcome of a check.
pub type Checked = Result<(), Violation>;

macro_rules! violation {
    ($($text:tt)*) => { Err($crate::guest::Violation(format!($($text)*))) };
}
pub(crate) use violation;

/// What one seed does.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Commands may touch blocks that others are writing.
    pub overlap: bool,
    /// The drive fails requests.
    pub faults: bool,
    /// Shadow doorbells are used.
    pub shadow: bool,
    /// Namespaces are formatted, sanitized, made and deleted.
    pub manage: bool,
    /// The controller is reset, shut down, and power is cut.
    pub resets: bool,
}

/// What a command was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Read,
    Write { fua: bool },
    Flush,
    Zeroes { fua: bool },
    Deallocate,
    Compare { expected: Vec<Content> },
    Verify,
    Copy { from: u64, fua: bool },
    Uncorrectable,
    Admin(AdminOp),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AdminOp {
    CreateCq(u16),
    CreateSq(u16),
    DeleteSq(u16),
    DeleteCq(u16),
    Abort {
        sqid: u16,
        cid: u16,
    },
    Event,
    SetFeature {
        fid: u8,
        value: u32,
    },
    GetFeature {
        fid: u8,
        expected: u32,
    },
    SetQueues,
    Identify,
    /// Which of its blocks are allocated.
    LbaStatus {
        nsid: u32,
    },
    SelfTest,
    Log {
        lid: u8,
    },
    Doorbells,
    Format {
        nsid: u32,
        shift: u8,
    },
    Sanitize,
    Attach {
        nsid: u32,
        attach: bool,
    },
    Create {
        shift: u8,
    },
    Delete {
        nsid: u32,
    },
}

impl AdminOp {
    /// It changes which namespaces there are, or what they hold.
    fn changes_namespaces(&self) -> bool {
        matches!(
            self,
            Self::Format { .. }
                | Self::Sanitize
                | Self::Attach { .. }
                | Self::Create { .. }
                | Self::Delete { .. }
        )
    }
}

/// A command without an answer.
#[derive(Clone, Debug)]
pub(crate) struct Cmd {
    pub(crate) key: u64,
    pub(crate) op: Op,
    pub(crate) nsid: u32,
    /// First sector and number of sectors.
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) begun: u64,
    pub(crate) buffer: Option<ram::Buffer>,
    /// Of a fused pair: the other's command identifier, and whether this is the Write.
    pub(crate) fused: Option<(u16, bool)>,
    pub(crate) abort_asked: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Sq {
    pub(crate) base: u64,
    pub(crate) size: u32,
    pub(crate) cqid: u16,
    pub(crate) tail: u32,
    pub(crate) rung: u32,
    pub(crate) head: u32,
    pub(crate) deleting: bool,
    pub(crate) ready: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Cq {
    pub(crate) base: u64,
    pub(crate) size: u32,
    pub(crate) vector: u16,
    pub(crate) head: u32,
    pub(crate) rung: u32,
    pub(crate) phase: bool,
    pub(crate) ready: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Ns {
    pub(crate) shift: u8,
    pub(crate) blocks: u64,
    pub(crate) attached: bool,
}

/// A register access or another call that waits for its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// A store into BAR0.
    Bar(u64, u32),
    /// A store into configuration space.
    Config(u16, u32),
}

/// Where the guest's driver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// The controller is off.
    Off,
    /// Waits for CSTS.RDY = 1.
    Enabling,
    /// In use.
    Running,
    /// Waits for CSTS.RDY = 0.
    Disabling,
    /// Waits for CSTS.SHST = 10b.
    ShuttingDown,
}

/// See the module.
pub struct Guest {
    pub(crate) rng: Rng,
    pub(crate) habits: Habits,
    /// All of RAM, always.
    pub(crate) ram: Arc<MemoryMap>,
    pub(crate) buffers: Vec<usize>,
    pub(crate) life: Life,
    pub(crate) sqs: BTreeMap<u16, Sq>,
    pub(crate) cqs: BTreeMap<u16, Cq>,
    pub(crate) commands: BTreeMap<(u16, u16), Cmd>,
    pub(crate) namespaces: BTreeMap<u32, Ns>,
    pub(crate) ledger: Ledger,
    /// Counts everything the guest does: the time of the ledger.
    pub(crate) tick: u64,
    pub(crate) stamp: u64,
    /// When a namespace was last being changed.
    pub(crate) namespaces_changed: u64,
    pub(crate) sanitizing: bool,
    pub(crate) features: BTreeMap<u8, u32>,
    pub(crate) shadow: bool,
    /// Values that a compare-and-write replaced: nobody can find them there again.
    pub(crate) consumed: BTreeSet<(u32, u64, (u64, u64))>,
    /// What the Compare of a pair found, by queue and identifier of its Write.
    pub(crate) compared: BTreeMap<(u16, u16), Vec<(u64, Content)>>,
    pub(crate) write_through_since: u64,
    /// Sectors that Write Uncorrectable ever named.
    pub(crate) ever_bad: BTreeSet<(u32, u64)>,
    pub(crate) power_was_cut: bool,
    pub(crate) queues_set: bool,
    /// Event types that wait for their log page to be read.
    pub(crate) masked: [bool; 8],
    pub(crate) winding_down: bool,
    /// Calls to be made, in order.
    pub(crate) calls: VecDeque<Call>,
    pub(crate) last_error_count: u64,
    pub(crate) event_owed: Option<u64>,
    pub(crate) quiet_rings: Vec<(u16, u64)>,
    /// Answers heard.
    pub answers: u64,
    /// Lines for who replays.
    pub trace: Option<Vec<String>>,
}

impl Guest {
    /// A guest that was just powered on.
    #[must_use]
    pub fn new(rng: Rng, habits: Habits, ram: Arc<MemoryMap>, namespaces: &[(u32, u8, u64)]) -> Self {
        let namespaces: BTreeMap<u32, Ns> = namespaces
            .iter()
            .map(|&(nsid, shift, blocks)| (nsid, Ns { shift, blocks, attached: true }))
            .collect();
        Self {
            rng,
            habits,
            ram,
            buffers: (0..ram::BUFFERS).collect(),
            life: Life::Off,
            sqs: BTreeMap::new(),
            cqs: BTreeMap::new(),
            commands: BTreeMap::new(),
            namespaces,
            ledger: Ledger::default(),
            tick: 1,
            stamp: 0,
            namespaces_changed: 0,
            sanitizing: false,
            features: BTreeMap::new(),
            shadow: false,
            consumed: BTreeSet::new(),
            winding_down: false,
            calls: VecDeque::new(),
            last_error_count: 0,
            event_owed: None,
            quiet_rings: Vec::new(),
            compared: BTreeMap::new(),
            write_through_since: u64::MAX,
            ever_bad: BTreeSet::new(),
            power_was_cut: false,
            queues_set: false,
            masked: [false; 8],
            answers: 0,
            trace: None,
        }
    }

    pub(crate) fn say(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(line());
        }
    }

    pub(crate) fn now(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    /// When the oldest outstanding command began.
    pub(crate) fn oldest(&self) -> u64 {
        self.commands.values().map(|cmd| cmd.begun).min().unwrap_or(self.tick)
    }

    /// Commands that must be answered whatever happens: all but event requests.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.commands.values().filter(|cmd| cmd.op != Op::Admin(AdminOp::Event)).count()
    }

    /// Nothing new from now on, but what makes the outstanding end.
    pub fn wind_down(&mut self) {
        self.winding_down = true;
    }

    /// The next call to the controller, if one waits.
    pub fn next_call(&mut self) -> Option<Call> {
        self.calls.front().copied()
    }

    /// It was answered.
    pub fn call_answered(&mut self) {
        self.calls.pop_front();
    }

    /// What is outstanding, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        let commands: Vec<String> = self
            .commands
            .iter()
            .map(|((sqid, cid), cmd)| {
                format!(
                    "\n  sq {sqid} cid {cid} #{} {:?} ns {} {}+{}",
                    cmd.key, cmd.op, cmd.nsid, cmd.first, cmd.count
                )
            })
            .collect();
        format!(
            "life {:?} calls {:?}{}\n  sqs {:?}\n  cqs {:?}",
            self.life,
            self.calls,
            commands.concat(),
            self.sqs,
            self.cqs
        )
    }
}
