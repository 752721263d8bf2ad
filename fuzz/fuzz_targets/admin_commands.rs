//! Any admin commands after a proper enable, with answers of groups, drive and record writer in any order, resets and crashes
//! between them. What must hold is in `godwit_fuzz::rig`; and the same input gives the same effects twice.
#![no_main]

use arbitrary::Arbitrary;
use block::Outcome;
use godwit_fuzz::admin::{Admin, Page};
use godwit_fuzz::edge::Edge;
use godwit_fuzz::guest::{self, Place};
use godwit_fuzz::rig::Rig;
use libfuzzer_sys::fuzz_target;
use nvme::profile::GODWIT_2;
use state::SsdV1;

#[derive(Arbitrary, Clone, Debug)]
struct Input {
    twice: u8,
    shape: u8,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Clone, Debug)]
enum Step {
    Admin {
        command: Admin,
        prp1: Place,
        prp2: Place,
        page: Option<Page>,
        go: Go,
    },
    /// An I/O queue pair at a place of its own.
    Queues {
        qid: u8,
        vector: u8,
        go: Go,
    },
    Fill {
        at: Place,
        page: Page,
    },
    List {
        at: Place,
        entries: Vec<Place>,
    },
    /// A command into one of those.
    Io {
        qid: u8,
        opcode: u8,
        nsid: u8,
        slba: Edge,
        nlb: u8,
        prp1: Place,
        fuse: u8,
        times: u8,
    },
    Bell {
        index: u8,
        value: u8,
    },
    Poll {
        step: u16,
    },
    Deliver {
        which: u8,
        count: u8,
    },
    Complete {
        which: u8,
        outcome: u8,
    },
    Moods(Vec<u8>),
    Persisted(bool),
    Consume,
    Settle,
    Memory(u8),
    Disable,
    Enable,
    Shutdown(u8),
    Subsystem,
    Flr,
    DeviceReset,
    Crash(bool),
    Time(u32),
}

/// How far things go at once.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Go {
    Nothing,
    Poll,
    Settle,
    Rounds(u8),
}

impl Go {
    fn run(self, rig: &mut Rig) {
        match self {
            Self::Nothing => {}
            Self::Poll => rig.poll(1),
            Self::Settle => rig.settle(),
            Self::Rounds(rounds) => {
                for _ in 0..rounds % 8 {
                    rig.poll(1);
                    (0..3).for_each(|which| rig.deliver(which, 255));
                    rig.complete(0, Outcome::Done);
                    rig.persisted(true);
                    rig.surveyed();
                }
            }
        }
    }
}

/// Where the rings of an I/O queue pair lie: within the memory that both may use.
fn ring(qid: u8) -> u64 {
    0x2_0000 + u64::from(qid) * 0x2000
}

fn queues(rig: &mut Rig, qid: u8, vector: u8, go: Go) {
    let (id, base) = (u32::from(qid), ring(qid));
    let mut create = [0_u32; 16];
    (create[0], create[6]) = (5, (base & 0xffff_ffff) as u32 + 0x1000);
    (create[10], create[11]) = (id | 63 << 16, 3 | u32::from(vector) << 16);
    rig.submit(&mut create);
    go.run(rig);
    let mut create = [0_u32; 16];
    (create[0], create[6]) = (1, (base & 0xffff_ffff) as u32);
    (create[10], create[11]) = (id | 63 << 16, 1 | id << 16);
    rig.submit(&mut create);
    go.run(rig);
    rig.page.store(usize::from(qid) * 2, 0);
}

fn step(rig: &mut Rig, step: &Step) {
    match step {
        Step::Admin { command, prp1, prp2, page, go } => {
            if let Some(page) = page {
                page.store(*prp1);
            }
            let mut dwords = command.dwords(*prp1, *prp2, |back| rig.recent_cid(back));
            rig.submit(&mut dwords);
            go.run(rig);
        }
        Step::Queues { qid, vector, go } => queues(rig, 1 + qid % 4, *vector % 8, *go),
        Step::Fill { at, page } => page.store(*at),
        Step::List { at, entries } => {
            let bytes: Vec<u8> = entries.iter().flat_map(|place| place.address().to_le_bytes()).collect();
            guest::poke(at.address() & !7, &bytes);
        }
        Step::Io { qid, opcode, nsid, slba, nlb, prp1, fuse, times } => {
            const OPCODES: [u32; 9] = [0, 1, 2, 4, 5, 8, 9, 0x0c, 0x19];
            let qid = 1 + qid % 4;
            for time in 0..=u32::from(*times % 8) {
                let tail = rig.page.load(usize::from(qid) * 2) % 64;
                let mut dwords = [0_u32; 16];
                // A fused pair: Compare, then Write.
                let (opcode, fuse) = if *fuse > 0xd0 {
                    (5 - 4 * (time & 1), 1 + (time & 1))
                } else {
                    (OPCODES[usize::from(*opcode) % 9], 0)
                };
                dwords[0] = opcode | fuse << 8 | (time + tail) << 16;
                dwords[1] = u32::from(*nsid % 4);
                let address = prp1.address();
                (dwords[6], dwords[7]) = ((address & 0xffff_ffff) as u32, (address >> 32) as u32);
                (dwords[10], dwords[11], dwords[12]) = (slba.u32() & 0xfff, 0, u32::from(*nlb % 8));
                let bytes: Vec<u8> = dwords.iter().flat_map(|dword| dword.to_le_bytes()).collect();
                guest::poke(ring(qid) + u64::from(tail) * 64, &bytes);
                rig.page.store(usize::from(qid) * 2, (tail + 1) % 64);
            }
        }
        Step::Bell { index, value } => rig.page.store(2 + usize::from(*index % 12), u32::from(*value)),
        Step::Poll { step } => rig.poll(u64::from(*step) << 10),
        Step::Deliver { which, count } => rig.deliver(*which, *count),
        Step::Complete { which, outcome } => {
            let outcome = if *outcome < 0xd0 { Outcome::Done } else { Outcome::Failed(Rig::fault(*outcome)) };
            rig.complete(usize::from(*which), outcome);
        }
        Step::Moods(moods) => rig.moods(moods),
        Step::Persisted(ok) => {
            rig.persisted(*ok);
            rig.surveyed();
        }
        Step::Consume => rig.consume(),
        Step::Settle => rig.settle(),
        Step::Memory(shape) => rig.memory(shape & !32),
        Step::Disable => rig.disable(),
        Step::Enable => rig.enable(),
        Step::Shutdown(how) => {
            let cc = rig.cc() & !0xc000;
            rig.write32(0x14, cc | u32::from(how % 4) << 14);
        }
        Step::Subsystem => {
            rig.forget();
            rig.write32(0x20, 0x4e56_4d65);
        }
        Step::Flr => {
            rig.forget();
            // PCI Express Device Control, Initiate Function Level Reset.
            rig.config_write(0x68, &0x8000_u16.to_le_bytes());
        }
        Step::DeviceReset => rig.device_reset(),
        Step::Crash(written) => rig.crash(*written),
        Step::Time(milliseconds) => rig.now = rig.now.saturating_add(u64::from(*milliseconds) * 1_000_000),
    }
}

fn run(input: &Input) -> u64 {
    let mut rig = Rig::of(&GODWIT_2, &SsdV1::default(), input.shape & 16);
    rig.enable();
    assert_eq!(rig.csts() & 3, 1, "a proper enable");
    for one in &input.steps {
        step(&mut rig, one);
    }
    rig.end();
    rig.engine.trace
}

fuzz_target!(|input: Input| {
    let first = run(&input);
    if input.twice % 8 == 7 {
        assert_eq!(first, run(&input), "the same input, other effects");
    }
});
