//! Any messages and descriptor counts, into the parser and into a session with a device that asserts what it was promised:
//! at most one reply a message, of a sane size; rings that lie in memory; nothing changed under a running ring; and a
//! successor that is told the same.
#![no_main]

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use arbitrary::Arbitrary;
use frontend::vhost_user::{
    Blk, BlkInfo, ClientFd, Errno, F_RING_PACKED, FDS_MAX, FdId, HEADER_BYTES, Header, Inflight, Log,
    Message, NewInflight, Region, Ring, Session,
};
use godwit_fuzz::edge::Edge;
use libfuzzer_sys::fuzz_target;

const QUEUES: u16 = 4;
const SIZE_MAX: u16 = 256;
const USER: u64 = 0x7F00_0000_0000;

#[derive(Arbitrary, Debug)]
struct Input {
    negotiate: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// As it comes off the socket.
    Raw {
        header: [u8; HEADER_BYTES],
        payload: Vec<u8>,
        fds: u8,
    },
    /// A known message with words that are near an edge.
    Words {
        request: u8,
        words: Vec<Edge>,
        fds: u8,
        lie: i8,
    },
    /// What a client would send, nearly.
    Table {
        regions: Vec<(u8, Edge, u8, Edge)>,
        add: bool,
        fds: Option<u8>,
    },
    Remove {
        guest: u8,
        size: Edge,
        user: u8,
    },
    Num {
        index: u8,
        num: Edge,
    },
    Addr {
        index: u8,
        places: [(u8, u8); 3],
        flags: u8,
    },
    Kick {
        index: u8,
        fd: bool,
    },
    Enable {
        index: u8,
        on: u8,
    },
    Base {
        index: u8,
    },
    Features {
        packed: bool,
        log: bool,
        protocol: bool,
    },
    Inflight {
        queues: u16,
        size: u16,
        bytes: Edge,
    },
    Config {
        offset: Edge,
        size: Edge,
        write: bool,
        data: Vec<u8>,
    },
    Reset,
    /// The process dies and another one goes on.
    Crash,
    /// The device's next call fails.
    Fail,
}

/// Asserts what the session promised.
struct Device {
    info: BlkInfo,
    running: BTreeMap<u16, Ring>,
    memory: BTreeMap<u64, u64>,
    inflight: Option<(u16, u16, bool)>,
    features: u64,
    fail: bool,
}

fn null() -> OwnedFd {
    static FD: OnceLock<OwnedFd> = OnceLock::new();
    let fd = FD.get_or_init(|| std::fs::File::open("/dev/null").expect("/dev/null").into());
    fd.try_clone().expect("dup")
}

impl Device {
    fn new() -> Self {
        let features = 1 << 32 | F_RING_PACKED | 1 << 29;
        Self {
            info: BlkInfo { features, dirty_log: true, queues_max: QUEUES, queue_size_max: SIZE_MAX },
            running: BTreeMap::new(),
            memory: BTreeMap::new(),
            inflight: None,
            features: 0,
            fail: false,
        }
    }

    fn asked(&mut self) -> Result<(), Errno> {
        if std::mem::take(&mut self.fail) { Err(Errno::IO) } else { Ok(()) }
    }

    fn still(&mut self) -> Result<(), Errno> {
        assert!(self.running.is_empty(), "changed under running rings");
        self.asked()
    }

    fn insert(&mut self, region: &Region) {
        let last = region.guest_address.checked_add(region.size.checked_sub(1).expect("no bytes"));
        let last = last.expect("wraps");
        assert!(region.offset.checked_add(region.size).is_some());
        let below = self.memory.range(..=last).next_back();
        assert!(below.is_none_or(|(at, size)| at + (size - 1) < region.guest_address), "overlaps");
        self.memory.insert(region.guest_address, region.size);
    }

    fn holds(&self, address: u64, len: u64) -> bool {
        let Some(last) = address.checked_add(len - 1) else { return false };
        let mut at = address;
        while let Some((first, size)) = self.memory.range(..=at).next_back() {
            let end = first + (size - 1);
            if end < at {
                return false;
            }
            if end >= last {
                return true;
            }
            at = end + 1;
        }
        false
    }
}

impl Blk for Device {
    fn info(&self) -> &BlkInfo {
        &self.info
    }

    fn config(&self) -> Vec<u8> {
        vec![7; 60]
    }

    fn set_writeback(&mut self, _on: bool) -> Result<(), Errno> {
        self.asked()
    }

    fn set_features(&mut self, features: u64) -> Result<(), Errno> {
        self.still()?;
        assert_eq!(features & !(self.info.features | 1 << 26), 0);
        self.features = features;
        Ok(())
    }

    fn set_memory(&mut self, regions: Vec<Region>) -> Result<(), Errno> {
        self.still()?;
        self.memory.clear();
        regions.iter().for_each(|region| self.insert(region));
        Ok(())
    }

    fn add_memory(&mut self, region: Region) -> Result<(), Errno> {
        self.still()?;
        self.insert(&region);
        Ok(())
    }

    fn remove_memory(&mut self, guest_address: u64, size: u64) -> Result<(), Errno> {
        self.still()?;
        assert_eq!(self.memory.remove(&guest_address), Some(size));
        Ok(())
    }

    fn set_kick(&mut self, queue: u16, _fd: Option<OwnedFd>) -> Result<(), Errno> {
        assert!(queue < QUEUES);
        self.asked()
    }

    fn set_call(&mut self, queue: u16, _fd: Option<OwnedFd>) -> Result<(), Errno> {
        assert!(queue < QUEUES);
        self.asked()
    }

    fn set_err(&mut self, queue: u16, _fd: Option<OwnedFd>) -> Result<(), Errno> {
        assert!(queue < QUEUES);
        self.asked()
    }

    fn new_inflight(&mut self, num_queues: u16, queue_size: u16) -> Result<NewInflight, Errno> {
        assert!((1..=QUEUES).contains(&num_queues) && (1..=SIZE_MAX).contains(&queue_size));
        self.asked()?;
        Ok(NewInflight { fd: Arc::new(null()), size: 4096 })
    }

    fn set_inflight(&mut self, inflight: Inflight) -> Result<(), Errno> {
        self.still()?;
        assert!(inflight.size > 0 && inflight.offset.checked_add(inflight.size).is_some());
        self.inflight = Some((inflight.num_queues, inflight.queue_size, inflight.own));
        Ok(())
    }

    fn clear_inflight(&mut self, queue: u16) -> Result<(), Errno> {
        assert!(!self.running.contains_key(&queue));
        assert!(self.inflight.is_some_and(|(_, _, own)| own));
        self.asked()
    }

    fn set_log(&mut self, log: Log) -> Result<(), Errno> {
        assert!(log.size > 0 && log.offset.checked_add(log.size).is_some());
        self.still()
    }

    fn set_log_event(&mut self, _fd: OwnedFd) -> Result<(), Errno> {
        self.asked()
    }

    fn start(&mut self, queue: u16, ring: Ring) -> Result<(), Errno> {
        let size = u64::from(ring.size);
        assert!((1..=SIZE_MAX).contains(&ring.size) && (ring.packed || ring.size.is_power_of_two()));
        assert_eq!(ring.packed, self.features & F_RING_PACKED != 0);
        let (driver, device) = if ring.packed { (4, 4) } else { (6 + 2 * size, 6 + 8 * size) };
        assert!(self.holds(ring.descriptors, 16 * size) && ring.descriptors.is_multiple_of(16));
        assert!(self.holds(ring.driver, driver) && ring.driver.is_multiple_of(2));
        assert!(self.holds(ring.device, device) && ring.device.is_multiple_of(4));
        let (queues, entries, _) = self.inflight.expect("a region before the first start");
        assert!(queue < queues && ring.size <= entries);
        self.asked()?;
        assert!(self.running.insert(queue, ring).is_none());
        Ok(())
    }

    fn stop(&mut self, queue: u16) -> Result<u32, Errno> {
        assert!(self.running.contains_key(&queue));
        self.asked()?;
        self.running.remove(&queue);
        Ok(3)
    }

    fn reset(&mut self) -> Result<(), Errno> {
        self.still()?;
        self.features = 0;
        Ok(())
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn halves(first: u32, second: u32) -> Vec<u8> {
    [first.to_le_bytes(), second.to_le_bytes()].concat()
}

fn region(&(guest, size, user, offset): &(u8, Edge, u8, Edge)) -> [u64; 4] {
    [u64::from(guest) << 16, size.0, USER + (u64::from(user) << 16), offset.0]
}

/// Request, payload, descriptors, a lie about the payload's size.
fn encode(step: &Step) -> Option<(u32, Vec<u8>, usize, i8)> {
    let low = |edge: &Edge| edge.u32();
    Some(match step {
        Step::Raw { .. } | Step::Crash | Step::Fail => return None,
        Step::Words { request, words: all, fds, lie } => {
            let all: Vec<u64> = all.iter().take(64).map(|edge| edge.0).collect();
            (u32::from(*request), words(&all), usize::from(*fds), *lie)
        }
        Step::Table { regions, add: true, fds } => {
            let one = regions.first().map_or([0; 4], region);
            (37, [words(&[0]), words(&one)].concat(), usize::from(fds.unwrap_or(1)), 0)
        }
        Step::Table { regions, add: false, fds } => {
            let count = regions.len().min(16);
            let all: Vec<u64> = regions.iter().take(count).flat_map(region).collect();
            let head = halves(u32::try_from(count).unwrap_or(0), 0);
            (5, [head, words(&all)].concat(), fds.map_or(count, usize::from), 0)
        }
        Step::Remove { guest, size, user } => {
            let one = region(&(*guest, *size, *user, Edge(0)));
            (38, [words(&[0]), words(&one)].concat(), 0, 0)
        }
        Step::Num { index, num } => (8, halves((*index).into(), low(num)), 0, 0),
        Step::Addr { index, places, flags } => {
            let place = |(page, in_page): (u8, u8)| USER + (u64::from(page) << 12) + u64::from(in_page);
            let [descriptor, used, available] = places.map(place);
            let head = halves((*index).into(), (*flags).into());
            (9, [head, words(&[descriptor, used, available, 0])].concat(), 0, 0)
        }
        Step::Kick { index, fd } => {
            (12, words(&[u64::from(*index) | u64::from(!*fd) << 8]), usize::from(*fd), 0)
        }
        Step::Enable { index, on } => (18, halves((*index).into(), (*on).into()), 0, 0),
        Step::Base { index } => (11, halves((*index).into(), 0), 0, 0),
        Step::Features { packed, log, protocol } => {
            let bits = u64::from(*packed) << 34 | u64::from(*log) << 26 | u64::from(*protocol) << 30;
            (2, words(&[1 << 32 | bits]), 0, 0)
        }
        Step::Inflight { queues, size, bytes } => {
            let counts = u64::from(*size) << 16 | u64::from(*queues);
            (32, words(&[bytes.0, 0, counts]), 1, 0)
        }
        Step::Config { offset, size, write, data } => {
            let head = [halves(low(offset), low(size)), vec![0; 4]].concat();
            (if *write { 25 } else { 24 }, [&head[..], &data[..data.len().min(512)]].concat(), 0, 0)
        }
        Step::Reset => (34, vec![], 0, 0),
    })
}

fn message(step: &Step, next: &mut FdId) -> Option<Message> {
    let mut fds = |count: usize| {
        let count = count.min(FDS_MAX + 2);
        let one = |_| {
            *next += 1;
            ClientFd { id: *next, fd: null() }
        };
        (0..count.min(FDS_MAX)).map(one).collect::<Vec<_>>()
    };
    if let Step::Raw { header, payload, fds: count } = step {
        let header = Header::parse(header).ok()?;
        let mut payload = payload.clone();
        payload.resize(header.payload_bytes, 0);
        let surplus_fds = usize::from(*count) > FDS_MAX;
        return Some(Message { header, payload, fds: fds((*count).into()), surplus_fds });
    }
    let (request, mut payload, count, lie) = encode(step)?;
    payload.resize(payload.len().saturating_add_signed(lie.into()), 0);
    let size = u32::try_from(payload.len()).ok()?;
    let mut bytes = [0; HEADER_BYTES];
    for (to, word) in bytes.as_chunks_mut().0.iter_mut().zip([request, 9, size]) {
        *to = word.to_le_bytes();
    }
    let header = Header::parse(&bytes).ok()?;
    Some(Message { header, payload, fds: fds(count), surplus_fds: count > FDS_MAX })
}

fuzz_target!(|input: Input| {
    let mut device = Device::new();
    let mut session = Session::new(&device);
    let mut next = 0;
    if input.negotiate {
        let all = Step::Words { request: 16, words: vec![], fds: 0, lie: 0 };
        if let Some(mut agree) = message(&all, &mut next) {
            agree.payload = words(&[0x1_B22B & !(1 << 1)]);
            agree.header.payload_bytes = 8;
            session.handle(agree, &mut device);
        }
    }
    for step in input.steps.iter().take(64) {
        match step {
            Step::Fail => device.fail = true,
            Step::Crash => {
                let saved = session.saved();
                let fds = saved.fd_ids().into_iter().map(|id| (id, null())).collect();
                let mut other = Device::new();
                // A ring that the device refused to start may start now: only what was said is the same.
                let successor = Session::restore(&saved, fds, &mut other).expect("what was taken once");
                assert_eq!(successor.saved(), saved);
                assert!(session.running().iter().all(|queue| successor.running().contains(queue)));
                (session, device) = (successor, other);
            }
            step => {
                let Some(message) = message(step, &mut next) else { continue };
                let outcome = session.handle(message, &mut device);
                let bytes = outcome.reply.map_or(0, |reply| reply.bytes.len());
                assert!(bytes <= HEADER_BYTES + 12 + 256);
                assert!(!outcome.made.iter().any(|(id, _)| !session.saved().fd_ids().contains(id)));
                if outcome.close {
                    return;
                }
            }
        }
        assert_eq!(session.running(), device.running.keys().copied().collect::<Vec<_>>());
    }
});
