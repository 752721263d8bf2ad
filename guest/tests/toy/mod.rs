//! A toy server: as much of a vfio-user NVMe controller as it takes to test the client and the driver without the daemon.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread::JoinHandle;

use guest::mapping::Mapping;
use guest::nvme::{admin, nvm, reg};
use guest::vfio_user::{Client, Frame, Header, command, region};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

/// A running toy; it ends when its client disconnects.
pub(crate) struct Toy {
    pub(crate) path: PathBuf,
    thread: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Toy {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("toy.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            Server::new(Client::from_stream(stream)).run();
        });
        Toy { path, thread, _directory: directory }
    }

    pub(crate) fn join(self) {
        self.thread.join().unwrap();
    }
}

#[derive(Clone, Copy, Default)]
struct Queue {
    base: u64,
    entries: u32,
    index: u32,
    cqid: u16,
    phase: bool,
}

enum Memory {
    Shared(Mapping),
    Remote,
}

/// Roles reversed, a client is just as good a server: it sends and receives frames.
struct Server {
    peer: Client,
    registers: Vec<u8>,
    config: Vec<u8>,
    page_fd: OwnedFd,
    page: Mapping,
    memory: Vec<(u64, u64, Memory)>,
    sqs: [Queue; 4],
    cqs: [Queue; 4],
    disk: Vec<u8>,
}

const DISK_BYTES: usize = 1 << 20;

impl Server {
    fn new(peer: Client) -> Self {
        let page_fd = memfd_create("toy-doorbells", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&page_fd, 8192).unwrap();
        let page = Mapping::new(&page_fd, 4096, 4096, true).unwrap();
        let mut registers = vec![0; 4096];
        registers[..8].copy_from_slice(&(4095_u64 | 1 << 16 | 10 << 24 | 1 << 37).to_le_bytes());
        Server {
            peer,
            registers,
            config: vec![0; 256],
            page_fd,
            page,
            memory: Vec::new(),
            sqs: [Queue::default(); 4],
            cqs: [Queue::default(); 4],
            disk: (0..DISK_BYTES).map(|index| (index / 512 % 251).try_into().unwrap()).collect(),
        }
    }

    fn run(mut self) {
        for turn in 0_u64.. {
            let worked = (0..4).fold(false, |worked, qid| self.queue(qid) | worked);
            if worked && turn % 256 != 0 {
                continue;
            }
            let ready = {
                let fd = self.peer.stream().as_fd();
                let wait = Timespec { tv_sec: 0, tv_nsec: 0 };
                poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait)).unwrap() > 0
            };
            if ready {
                let Ok(frame) = self.peer.recv_frame() else { return };
                self.message(frame);
            }
        }
    }

    fn message(&mut self, frame: Frame) {
        let payload = &frame.payload;
        let number = |at: usize| u64::from_le_bytes(payload[at..at + 8].try_into().unwrap());
        let word = |at: usize| u32::from_le_bytes(payload[at..at + 4].try_into().unwrap());
        let (mut reply, mut fds) = (Vec::new(), Vec::new());
        match frame.header.command {
            command::VERSION => reply = b"\0\0\x01\0{\"capabilities\":{\"max_msg_fds\":8}}\0".to_vec(),
            command::DMA_MAP => {
                let memory = match frame.fds.into_iter().next() {
                    Some(fd) => Memory::Shared(
                        Mapping::new(fd, number(8), number(24).try_into().unwrap(), true).unwrap(),
                    ),
                    None => Memory::Remote,
                };
                self.memory.push((number(16), number(24), memory));
            }
            command::DMA_UNMAP => {
                self.memory.retain(|(iova, _, _)| *iova != number(8));
                reply = payload.clone();
            }
            command::DEVICE_GET_REGION_INFO => {
                for field in [64, 0xF, word(8), 32] {
                    reply.extend_from_slice(&u32::to_le_bytes(field));
                }
                for field in [0x4000, 0, 1 | 1 << 16, 1, 0x1000, 0x1000] {
                    reply.extend_from_slice(&u64::to_le_bytes(field));
                }
                // One capability: id 1, version 1, no next, one area.
                fds.push(self.page_fd.as_fd());
            }
            command::REGION_READ => {
                let (offset, count) = (usize::try_from(number(0)).unwrap(), word(12) as usize);
                let space = if word(8) == region::CONFIG { &self.config } else { &self.registers };
                reply = [&payload[..16], &space[offset..offset + count]].concat();
            }
            command::REGION_WRITE => {
                let offset = usize::try_from(number(0)).unwrap();
                let space = if word(8) == region::CONFIG { &mut self.config } else { &mut self.registers };
                space[offset..offset + payload.len() - 16].copy_from_slice(&payload[16..]);
                if word(8) == region::BAR0 && offset as u64 == reg::CC {
                    self.enable();
                }
                reply = payload[..16].to_vec();
            }
            _ => return self.refuse(frame.header),
        }
        let mut header = Header::command(frame.header.id, frame.header.command, reply.len());
        header.flags = Header::REPLY;
        self.peer.send_frame(header, &reply, &fds).unwrap();
    }

    fn refuse(&mut self, mut header: Header) {
        (header.size, header.flags, header.errno) = (16, Header::REPLY | Header::ERROR, 95);
        self.peer.send_frame(header, &[], &[]).unwrap();
    }

    fn register(&self, at: u64) -> u64 {
        let at = usize::try_from(at).unwrap();
        u64::from_le_bytes(self.registers[at..at + 8].try_into().unwrap())
    }

    fn enable(&mut self) {
        let on = self.registers[0x14] & 1;
        self.registers[0x1C] = on;
        (self.sqs, self.cqs) = ([Queue::default(); 4], [Queue::default(); 4]);
        self.page.fill(0, 4096, 0);
        if on == 1 {
            let aqa = self.register(reg::AQA);
            let sq = Queue {
                base: self.register(reg::ASQ),
                entries: (aqa & 0xFFF) as u32 + 1,
                ..Queue::default()
            };
            let entries = (aqa >> 16 & 0xFFF) as u32 + 1;
            self.sqs[0] = sq;
            self.cqs[0] = Queue { base: self.register(reg::ACQ), entries, phase: true, ..Queue::default() };
        }
    }

    fn read(&mut self, iova: u64, target: &mut [u8]) {
        let found = self.memory.iter().find(|(base, len, _)| iova >= *base && iova - base < *len).unwrap();
        if let (base, _, Memory::Shared(mapping)) = found {
            return mapping.read((iova - base).try_into().unwrap(), target);
        }
        let payload = [iova.to_le_bytes(), (target.len() as u64).to_le_bytes()].concat();
        let reply = self.peer.request(command::DMA_READ, &payload, &[]).unwrap();
        target.copy_from_slice(&reply.payload[16..]);
    }

    fn write(&mut self, iova: u64, source: &[u8]) {
        let found = self.memory.iter().find(|(base, len, _)| iova >= *base && iova - base < *len).unwrap();
        if let (base, _, Memory::Shared(mapping)) = found {
            let at = usize::try_from(iova - base).unwrap();
            if let Ok(entry) = <[u8; 16]>::try_from(source) {
                // A completion: the word with the phase last.
                mapping.write(at, &entry[..8]);
                return mapping.store_u64(at + 8, u64::from_le_bytes(entry[8..].try_into().unwrap()));
            }
            return mapping.write(at, source);
        }
        let payload = [&iova.to_le_bytes(), &(source.len() as u64).to_le_bytes(), source].concat();
        self.peer.request(command::DMA_WRITE, &payload, &[]).unwrap();
    }

    fn queue(&mut self, qid: usize) -> bool {
        let queue = self.sqs[qid];
        if queue.entries == 0 || self.page.load_u32(qid * 8) == queue.index {
            return false;
        }
        let mut bytes = [0; 64];
        self.read(queue.base + u64::from(queue.index) * 64, &mut bytes);
        let sqe = guest::nvme::Sqe::from(bytes);
        self.sqs[qid].index = (queue.index + 1) % queue.entries;
        let (result, status) = if qid == 0 { self.admin(&sqe.0) } else { self.io(&sqe.0) };
        self.post(qid, (sqe.0[0] >> 16) as u16, result, status);
        true
    }

    fn post(&mut self, sqid: usize, cid: u16, result: u32, status: u16) {
        let (head, cqid) = (self.sqs[sqid].index, usize::from(self.sqs[sqid].cqid));
        let cq = self.cqs[cqid];
        let status = status << 1 | u16::from(cq.phase);
        let words = [result, 0, head | (sqid as u32) << 16, u32::from(cid) | u32::from(status) << 16];
        let entry: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.write(cq.base + u64::from(cq.index) * 16, &entry);
        let cq = &mut self.cqs[cqid];
        cq.index = (cq.index + 1) % cq.entries;
        cq.phase ^= cq.index == 0;
    }

    fn admin(&mut self, sqe: &[u32; 16]) -> (u32, u16) {
        let prp1 = u64::from(sqe[6]) | u64::from(sqe[7]) << 32;
        let (qid, entries) = ((sqe[10] & 0xFFFF) as usize, (sqe[10] >> 16) + 1);
        match (sqe[0] & 0xFF) as u8 {
            admin::IDENTIFY => {
                let mut data = vec![0; 4096];
                data[..8].copy_from_slice(&(DISK_BYTES as u64 / 512).to_le_bytes());
                data[130] = 9;
                self.write(prp1, &data);
                (0, 0)
            }
            admin::SET_FEATURES => (0x0002_0002, 0),
            admin::CREATE_IO_CQ => {
                self.cqs[qid] = Queue { base: prp1, entries, phase: true, ..Queue::default() };
                (0, 0)
            }
            admin::CREATE_IO_SQ => {
                self.page.store_u32(qid * 8, 0);
                self.sqs[qid] =
                    Queue { base: prp1, entries, cqid: (sqe[11] >> 16) as u16, ..Queue::default() };
                (0, 0)
            }
            admin::DELETE_IO_SQ => {
                self.sqs[qid] = Queue::default();
                (0, 0)
            }
            admin::DELETE_IO_CQ => (0, 0),
            _ => (0, 1),
        }
    }

    fn io(&mut self, sqe: &[u32; 16]) -> (u32, u16) {
        let pointers =
            [u64::from(sqe[6]) | u64::from(sqe[7]) << 32, u64::from(sqe[8]) | u64::from(sqe[9]) << 32];
        let at = sqe[10] as usize * 512;
        let bytes = ((sqe[12] & 0xFFFF) as usize + 1) * 512;
        if at + bytes > DISK_BYTES {
            return (0, 0x80 | 1 << 14);
        }
        let opcode = (sqe[0] & 0xFF) as u8;
        let first = (4096 - (pointers[0] % 4096) as usize).min(bytes);
        let pages = self.pages(pointers[1], (bytes - first).div_ceil(4096));
        let mut done = 0;
        for (iova, len) in
            std::iter::once((pointers[0], first)).chain(pages.into_iter().map(|page| (page, 4096)))
        {
            let len = len.min(bytes - done);
            if opcode == nvm::READ {
                let data = self.disk[at + done..at + done + len].to_vec();
                self.write(iova, &data);
            } else {
                let mut data = vec![0; len];
                self.read(iova, &mut data);
                self.disk[at + done..at + done + len].copy_from_slice(&data);
            }
            done += len;
        }
        (0, 0)
    }

    fn pages(&mut self, prp2: u64, count: usize) -> Vec<u64> {
        if count <= 1 {
            return vec![prp2; count];
        }
        let mut list = vec![0; count * 8];
        self.read(prp2, &mut list);
        list.as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry)).collect()
    }
}
