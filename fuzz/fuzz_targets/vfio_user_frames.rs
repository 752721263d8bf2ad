//! Any messages and descriptor counts, into the parser and into a session with a device that records: at most one reply a
//! message, replies of sane sizes, the device called only for what it has.
#![no_main]

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use arbitrary::Arbitrary;
use frontend::vfio_user::frame::{self, DATA_BYTES_MAX, HEADER_BYTES, Header, Request};
use frontend::vfio_user::{
    ClientFd, Device, DeviceInfo, DmaMap, DmaUnmap, Errno, IrqAction, IrqData, IrqInfo, Limits, MmapArea,
    RegionInfo, RegionMmap, Session, SetIrqs,
};
use godwit_fuzz::edge::Edge;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    negotiate: bool,
    few_maps: bool,
    messages: Vec<Message>,
}

#[derive(Arbitrary, Debug)]
enum Message {
    /// As it comes off the socket.
    Raw {
        header: [u8; HEADER_BYTES],
        payload: Vec<u8>,
        fds: u8,
    },
    /// A known command with words that are near an edge.
    Words {
        command: u8,
        flags: u8,
        words: Vec<Word>,
        fds: u8,
        lie: i8,
    },
    /// Capabilities as text.
    Version {
        major: Edge,
        minor: Edge,
        text: String,
        nul: bool,
    },
    /// What a client would send, nearly.
    Map {
        iova: Edge,
        size: Edge,
        offset: Edge,
        flags: u8,
        argsz: Edge,
        fd: bool,
    },
    Unmap {
        iova: Edge,
        size: Edge,
        flags: u8,
    },
    Read {
        region: u8,
        offset: Edge,
        count: Edge,
    },
    Write {
        region: u8,
        offset: Edge,
        data: Vec<u8>,
        count: Option<Edge>,
    },
    Multi {
        writes: Vec<(u8, Edge, u8)>,
        count: Option<Edge>,
    },
    Irqs {
        index: u8,
        start: Edge,
        count: Edge,
        flags: u8,
        fds: u8,
        bools: Vec<u8>,
    },
}

#[derive(Arbitrary, Debug)]
enum Word {
    Half(Edge),
    Whole(Edge),
}

struct Recorder {
    info: DeviceInfo,
    maps: BTreeMap<u64, u64>,
    calls: u32,
}

fn null() -> &'static OwnedFd {
    static FD: OnceLock<OwnedFd> = OnceLock::new();
    FD.get_or_init(|| std::fs::File::open("/dev/null").expect("/dev/null").into())
}

impl Recorder {
    fn new() -> Self {
        let region = |size, readable, writable| RegionInfo { size, readable, writable, mmap: None };
        let mut regions = vec![region(0, false, false); 9];
        regions[0] = RegionInfo {
            mmap: Some(RegionMmap {
                fd: Arc::new(null().try_clone().expect("dup")),
                offset: 0,
                areas: vec![MmapArea { offset: 4096, size: 4096 }],
            }),
            ..region(16 << 10, true, true)
        };
        regions[2] = region(1 << 24, true, false);
        regions[4] = region(8 << 10, false, true);
        regions[7] = region(4096, true, true);
        let irq = |count, maskable| IrqInfo { count, eventfd: true, maskable, ..IrqInfo::default() };
        let irqs = vec![irq(1, true), irq(0, false), irq(129, false), irq(1, false), irq(1, false)];
        Self { info: DeviceInfo { resettable: true, regions, irqs }, maps: BTreeMap::new(), calls: 0 }
    }

    fn inside(&mut self, region: u32, offset: u64, len: usize, write: bool) -> Result<(), Errno> {
        self.calls += 1;
        let info = &self.info.regions[region as usize];
        assert!(len > 0 && len <= DATA_BYTES_MAX, "an access of {len} bytes");
        assert!(offset.checked_add(len as u64).expect("no wrap") <= info.size, "past the region's end");
        assert!(if write { info.writable } else { info.readable });
        // Some fail.
        if offset % 7 == 6 { Err(Errno::IO) } else { Ok(()) }
    }
}

impl Device for Recorder {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        data.fill(0xa5);
        self.inside(region, offset, data.len(), false)
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.inside(region, offset, data.len(), true)
    }

    fn dma_map(&mut self, map: DmaMap) -> Result<(), Errno> {
        self.calls += 1;
        assert!(map.size > 0);
        let last = map.iova.checked_add(map.size - 1).expect("no wrap");
        assert!(!self.maps.iter().any(|(&from, &to)| from <= last && map.iova <= to), "maps overlap");
        if let Some((_, offset)) = map.backing {
            assert!(offset.checked_add(map.size).is_some());
        }
        if map.iova % 5 == 4 {
            return Err(Errno::NOMEM);
        }
        self.maps.insert(map.iova, last);
        Ok(())
    }

    fn dma_unmap(&mut self, unmap: DmaUnmap) -> Result<(), Errno> {
        self.calls += 1;
        match unmap {
            DmaUnmap::All => self.maps.clear(),
            DmaUnmap::Range { iova, size } => {
                assert_eq!(self.maps.remove(&iova), Some(iova + (size - 1)), "an unmap of something else");
            }
        }
        Ok(())
    }

    fn set_irqs(&mut self, set: SetIrqs) -> Result<(), Errno> {
        self.calls += 1;
        let irq = self.info.irqs[set.index as usize];
        assert!(set.start.checked_add(set.count).expect("no wrap") <= irq.count);
        match &set.data {
            IrqData::None => assert!(set.count > 0 || (set.start == 0 && set.action == IrqAction::Trigger)),
            IrqData::Bool(list) => assert_eq!(list.len(), set.count as usize),
            IrqData::Eventfd(list) => assert_eq!(list.len(), set.count as usize),
        }
        assert!(set.action == IrqAction::Trigger || irq.maskable);
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Errno> {
        self.calls += 1;
        Ok(())
    }
}

fn header(command: u16, flags: u32, payload: usize) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[0..2].copy_from_slice(&0x1234_u16.to_le_bytes());
    bytes[2..4].copy_from_slice(&command.to_le_bytes());
    bytes[4..8].copy_from_slice(&u32::try_from(HEADER_BYTES + payload).expect("small").to_le_bytes());
    bytes[8..12].copy_from_slice(&flags.to_le_bytes());
    bytes
}

fn put(bytes: &mut Vec<u8>, words: &[(u64, usize)]) {
    for &(value, size) in words {
        bytes.extend_from_slice(&value.to_le_bytes()[..size]);
    }
}

/// Header, payload, number of descriptors.
fn encode(message: Message) -> ([u8; HEADER_BYTES], Vec<u8>, usize) {
    let mut payload = Vec::new();
    let (command, flags, fds) = match message {
        Message::Raw { header, payload, fds } => return (header, payload, usize::from(fds % 20)),
        Message::Words { command, flags, words, fds, lie } => {
            for word in words {
                match word {
                    Word::Half(edge) => put(&mut payload, &[(edge.0, 4)]),
                    Word::Whole(edge) => put(&mut payload, &[(edge.0, 8)]),
                }
            }
            let cut = usize::from(lie.unsigned_abs());
            if lie < 0 {
                payload.truncate(payload.len().saturating_sub(cut));
            } else if cut < 8 {
                payload.resize(payload.len() + cut, 0xee);
            }
            (u16::from(command % 20), u32::from(flags), usize::from(fds % 20))
        }
        Message::Version { major, minor, text, nul } => {
            put(&mut payload, &[(major.0 & 1, 2), (minor.0, 2)]);
            payload.extend_from_slice(text.as_bytes());
            if nul {
                payload.push(0);
            }
            (1, 0, 0)
        }
        Message::Map { iova, size, offset, flags, argsz, fd } => {
            let argsz = if argsz.0 & 1 == 0 { 32 } else { argsz.0 };
            let words = [(argsz, 4), (u64::from(flags), 4), (offset.0, 8), (iova.0, 8), (size.0, 8)];
            put(&mut payload, &words);
            (2, 0, usize::from(fd))
        }
        Message::Unmap { iova, size, flags } => {
            put(&mut payload, &[(24, 4), (u64::from(flags & 3), 4), (iova.0, 8), (size.0, 8)]);
            (3, 0, 0)
        }
        Message::Read { region, offset, count } => {
            put(&mut payload, &[(offset.0, 8), (u64::from(region % 12), 4), (count.0, 4)]);
            (9, 0, 0)
        }
        Message::Write { region, offset, data, count } => {
            let count = count.map_or(data.len() as u64, |count| count.0);
            put(&mut payload, &[(offset.0, 8), (u64::from(region % 12), 4), (count, 4)]);
            payload.extend_from_slice(&data);
            (10, 0, 0)
        }
        Message::Multi { writes, count } => {
            put(&mut payload, &[(count.map_or(writes.len() as u64, |count| count.0), 8)]);
            for (region, offset, count) in writes {
                let (region, count) = (u64::from(region % 12), u64::from(count % 12));
                put(&mut payload, &[(offset.0, 8), (region, 4), (count, 4), (0x77, 8)]);
            }
            (15, 0, 0)
        }
        Message::Irqs { index, start, count, flags, fds, bools } => {
            let argsz = 20 + bools.len() as u64;
            let (index, flags) = (u64::from(index % 6), u64::from(flags));
            put(&mut payload, &[(argsz, 4), (flags, 4), (index, 4), (start.0, 4), (count.0, 4)]);
            payload.extend_from_slice(&bools);
            (8, 0, usize::from(fds % 20))
        }
    };
    (header(command, flags, payload.len()), payload, fds)
}

fn descriptors(count: usize) -> Vec<ClientFd> {
    (0..).take(count).map(|id| ClientFd { id, fd: null().try_clone().expect("dup") }).collect()
}

fn check_request(request: &Request<'_>) {
    match request {
        Request::RegionRead(range) => assert!(range.count as usize <= DATA_BYTES_MAX),
        Request::RegionWrite { range, data } => assert_eq!(range.count as usize, data.len()),
        Request::RegionWriteMulti(writes) => assert!(writes.iter().all(|write| write.bytes().len() <= 8)),
        Request::DmaMap(map) => assert!(map.size > 0 && map.iova.checked_add(map.size - 1).is_some()),
        Request::Version { data, .. } => assert!(data.len() <= frame::VERSION_DATA_BYTES_MAX),
        _ => {}
    }
}

fuzz_target!(|input: Input| {
    let limits = Limits { dma_maps_max: if input.few_maps { 2 } else { 64 }, ..Limits::default() };
    let mut session = Session::new(&limits);
    let mut device = Recorder::new();
    let greeting = input.negotiate.then(|| Message::Version {
        major: Edge(0),
        minor: Edge(1),
        text: r#"{"capabilities":{"max_msg_fds":8,"write_multiple":true}}"#.to_owned(),
        nul: true,
    });
    for message in greeting.into_iter().chain(input.messages) {
        let (head, payload, fds) = encode(message);
        let Ok(header) = Header::parse(&head) else { continue };
        assert!(header.payload_bytes <= frame::MESSAGE_BYTES_MAX - HEADER_BYTES);
        if let Ok(request) = frame::parse(&header, &payload, descriptors(fds)) {
            check_request(&request);
        }
        if header.is_reply() {
            // The reader keeps these from the session.
            continue;
        }
        let (calls, begun) = (device.calls, session.dma_data_bytes_max().is_some());
        let outcome = session.handle(&header, &payload, descriptors(fds), &mut device);
        assert!(begun || device.calls == calls, "the device was called before the version was agreed on");
        assert_eq!(outcome.reply.is_none(), header.no_reply(), "a reply for each command that wants one");
        let Some(reply) = outcome.reply else { continue };
        assert!(reply.bytes.len() >= HEADER_BYTES);
        assert!(reply.bytes.len() <= frame::MESSAGE_BYTES_MAX, "a reply of {} bytes", reply.bytes.len());
        let answer: [u8; HEADER_BYTES] = reply.bytes[..HEADER_BYTES].try_into().expect("16 bytes");
        let answer = Header::parse(&answer).expect("a sound header");
        assert_eq!((answer.id, answer.command), (header.id, header.command));
        assert!(answer.is_reply());
        assert_eq!(answer.payload_bytes, reply.bytes.len() - HEADER_BYTES);
        assert_eq!(answer.is_error(), outcome.refused.is_some());
        assert!(!answer.is_error() || (answer.payload_bytes == 0 && answer.errno > 0 && answer.errno < 4096));
    }
    assert_eq!(device.maps.len().min(limits.dma_maps_max), device.maps.len());
});
