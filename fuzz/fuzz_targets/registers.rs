//! Any reads and writes of configuration space, BAR0 and BAR4, at any offset and size, with resets, doorbells, turns and answers
//! between them: nothing panics, a read changes nothing, and in the end CSTS agrees with CC.
#![no_main]

use arbitrary::Arbitrary;
use block::Outcome;
use godwit_fuzz::admin::Admin;
use godwit_fuzz::edge::Edge;
use godwit_fuzz::guest::Place;
use godwit_fuzz::rig::{ACQ, ASQ, Rig};
use libfuzzer_sys::fuzz_target;
use nvme::controller::Bar;
use state::SsdV1;

#[derive(Arbitrary, Debug)]
struct Input {
    shape: u8,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Read { where_: Where, len: u8 },
    Write { where_: Where, data: Data },
    Known { register: u8, value: Value },
    Bell { index: u16, value: Edge },
    Enable,
    Admin { command: Admin, prp1: Place, prp2: Place },
    Poll(u16),
    Deliver { which: u8, count: u8 },
    Complete { which: u8, ok: bool },
    Moods(Vec<u8>),
    Persisted(bool),
    Memory(u8),
    DeviceReset,
    Settle,
    Consume,
}

#[derive(Arbitrary, Debug)]
enum Where {
    Config(u16),
    Low(u8),
    Registers(Edge),
    Doorbells(u16),
    Msix(u16),
    MsixAny(Edge),
}

#[derive(Arbitrary, Debug)]
enum Data {
    One(u8),
    Two(u16),
    Four(Edge),
    Eight(Edge),
    Many(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum Value {
    /// CC as a driver writes it, a field wrong at most.
    Cc {
        enable: bool,
        shn: u8,
        odd: Option<u8>,
    },
    Address(Place),
    Rings,
    Queue(u16, u16),
    Any(Edge),
    Reset,
}

fn write(rig: &mut Rig, place: &Where, data: &[u8]) {
    // Whatever is written may be CC, a doorbell, a BAR or the power state: the host's own bookkeeping ends.
    if !matches!(place, Where::Msix(_) | Where::MsixAny(_)) {
        rig.forget();
    }
    match place {
        Where::Config(offset) => rig.config_write(*offset, data),
        Where::Low(offset) => rig.write(Bar::Registers, u64::from(*offset % 0x50), data),
        Where::Registers(edge) => rig.write(Bar::Registers, edge.0, data),
        Where::Doorbells(offset) => rig.write(Bar::Registers, 0x1000 + u64::from(offset % 4100), data),
        Where::Msix(offset) => rig.write(Bar::Msix, u64::from(*offset), data),
        Where::MsixAny(edge) => rig.write(Bar::Msix, edge.0, data),
    }
}

fn read(rig: &mut Rig, place: &Where, len: usize) {
    match place {
        Where::Config(offset) => drop(rig.config_read(*offset, len)),
        Where::Low(offset) => drop(rig.read(Bar::Registers, u64::from(*offset % 0x50), len)),
        Where::Registers(edge) => drop(rig.read(Bar::Registers, edge.0, len)),
        Where::Doorbells(offset) => drop(rig.read(Bar::Registers, 0x1000 + u64::from(offset % 4100), len)),
        Where::Msix(offset) => drop(rig.read(Bar::Msix, u64::from(*offset), len)),
        Where::MsixAny(edge) => drop(rig.read(Bar::Msix, edge.0, len)),
    }
}

fn known(rig: &mut Rig, register: u8, value: &Value) {
    const REGISTERS: [u64; 8] = [0x14, 0x24, 0x28, 0x30, 0x1c, 0x20, 0x0c, 0x10];
    rig.forget();
    let offset = REGISTERS[usize::from(register) % 8];
    match value {
        Value::Cc { enable, shn, odd } => {
            let mut cc = 0x0046_0000 | u32::from(*enable) | u32::from(shn & 3) << 14;
            if let Some(bit) = odd {
                cc ^= 1 << (bit % 32);
            }
            rig.write32(0x14, cc);
        }
        Value::Address(place) => rig.write(
            Bar::Registers,
            if register & 1 == 0 { 0x28 } else { 0x30 },
            &place.address().to_le_bytes(),
        ),
        Value::Rings => {
            rig.write(Bar::Registers, 0x28, &ASQ.to_le_bytes());
            rig.write(Bar::Registers, 0x30, &ACQ.to_le_bytes());
        }
        Value::Queue(sq, cq) => rig.write32(0x24, u32::from(*sq) | u32::from(*cq) << 16),
        Value::Any(edge) => rig.write32(offset, edge.u32()),
        Value::Reset => rig.write32(0x20, 0x4e56_4d65),
    }
}

fuzz_target!(|input: Input| {
    let mut rig = Rig::new(&SsdV1::default(), input.shape & !32);
    for step in &input.steps {
        match step {
            Step::Read { where_, len } => read(&mut rig, where_, usize::from(*len)),
            Step::Write { where_, data } => match data {
                Data::One(byte) => write(&mut rig, where_, &[*byte]),
                Data::Two(value) => write(&mut rig, where_, &value.to_le_bytes()),
                Data::Four(edge) => write(&mut rig, where_, &edge.u32().to_le_bytes()),
                Data::Eight(edge) => write(&mut rig, where_, &edge.0.to_le_bytes()),
                Data::Many(bytes) => write(&mut rig, where_, bytes),
            },
            Step::Known { register, value } => known(&mut rig, *register, value),
            Step::Bell { index, value } => {
                let index = usize::from(*index % 1030);
                if index < 2 {
                    rig.forget();
                }
                rig.page.store(index, value.u32());
            }
            Step::Enable => rig.enable(),
            Step::Admin { command, prp1, prp2 } => {
                let mut dwords = command.dwords(*prp1, *prp2, |back| rig.recent_cid(back));
                rig.submit(&mut dwords);
            }
            Step::Poll(time) => rig.poll(u64::from(*time) << 16),
            Step::Deliver { which, count } => rig.deliver(*which, *count),
            Step::Complete { which, ok } => {
                let outcome = if *ok { Outcome::Done } else { Outcome::Failed(block::Fault::Media) };
                rig.complete(usize::from(*which), outcome);
            }
            Step::Moods(moods) => rig.moods(moods),
            Step::Persisted(ok) => rig.persisted(*ok),
            Step::Memory(shape) => rig.memory(*shape),
            Step::DeviceReset => rig.device_reset(),
            Step::Settle => rig.settle(),
            Step::Consume => rig.consume(),
        }
    }
    rig.end();
});
