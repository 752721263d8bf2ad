//! Reading and writing an ssd beside its reactors: a few threads, each with a door of its own, for callers that wait.
#![expect(unsafe_code, reason = "buffers are handed to the drive")]
// UNSAFETY: one call of `Backend::submit`. The buffer is the thread's until the request's completion came back: `Hand::act` does not return
// before, and nothing between can panic or give the buffer away.

use crate::drive::Drive;
use crate::mailbox::Mailbox;
use crate::message::{Address, Message};
use crate::pool;
use crate::seat::{door_to, open_door, wake_fd};
use crate::ssd::Ssd;
use backend::RingHolder;
use backend::uring::Rings;
use block::{Backend, Completion, Fault, Op, Outcome, Range, Request, Submitted, Token};
use memory::Segment;
use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Moved by one request at most.
const CHUNK_BYTES: usize = 1 << 20;
/// What direct I/O asks of memory: no drive asks for more.
const ALIGN: usize = 4096;
/// How long a thread sleeps on a drive that does not say when it is done.
const LOOK_NS: u64 = 1_000_000;

/// Memory that direct I/O takes, 1 MiB.
struct Buffer {
    room: Vec<u8>,
    skip: usize,
}

impl Buffer {
    fn new() -> Self {
        let room = vec![0; CHUNK_BYTES + ALIGN];
        let skip = room.as_ptr().align_offset(ALIGN).min(ALIGN);
        Self { room, skip }
    }

    fn bytes(&mut self, len: usize) -> &mut [u8] {
        &mut self.room[self.skip..self.skip + len.min(CHUNK_BYTES)]
    }
}

struct Job {
    op: Op,
    range: Range,
    /// For reads and writes.
    buffer: Option<Buffer>,
    reply: SyncSender<(io::Result<()>, Option<Buffer>)>,
}

/// See the module. Dropped, its threads end and close their doors before that returns.
pub(crate) struct Ports {
    jobs: Option<Sender<Job>>,
    buffers: Mutex<Vec<Buffer>>,
    threads: Vec<JoinHandle<()>>,
}

impl Ports {
    /// So many requests at once.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(crate) fn open(ssd: &Arc<Ssd>, count: usize) -> io::Result<Self> {
        Self::open_to(ssd, None, count)
    }

    /// As [`Ports::open`], to a drive that has what the ssd had at another time.
    ///
    /// # Errors
    /// The same.
    pub(crate) fn open_to(ssd: &Arc<Ssd>, drive: Option<Drive>, count: usize) -> io::Result<Self> {
        let drive = Arc::new(drive);
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let mut this = Self { jobs: Some(jobs), buffers: Mutex::default(), threads: Vec::new() };
        for _ in 0..count {
            let (ssd, drive, queue) = (Arc::clone(ssd), Arc::clone(&drive), Arc::clone(&queue));
            let mailbox = Arc::new(Mailbox::new()?);
            let thread = std::thread::Builder::new().name(format!("copy-{}", ssd.id.0));
            this.threads.push(thread.spawn(move || work(&ssd, (*drive).as_ref(), &queue, mailbox))?);
        }
        Ok(this)
    }

    fn ask(&self, op: Op, range: Range, buffer: Option<Buffer>) -> (io::Result<()>, Option<Buffer>) {
        let (reply, answer) = sync_channel(1);
        let gone = || (Err(io::Error::other("the thread of its copy has ended")), None);
        let Some(jobs) = &self.jobs else { return gone() };
        if jobs.send(Job { op, range, buffer, reply }).is_err() {
            return gone();
        }
        answer.recv().unwrap_or_else(|_| gone())
    }

    fn buffer(&self) -> Buffer {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_else(Buffer::new)
    }

    fn give_back(&self, buffer: Option<Buffer>) {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).extend(buffer);
    }

    /// Fills `out`.
    ///
    /// # Errors
    /// The drive's.
    pub(crate) fn read(&self, start_bytes: u64, out: &mut [u8]) -> io::Result<()> {
        let mut at = start_bytes;
        for piece in out.chunks_mut(CHUNK_BYTES) {
            let range = Range { start_bytes: at, len_bytes: piece.len() as u64 };
            let (done, mut buffer) = self.ask(Op::Read, range, Some(self.buffer()));
            if let (Ok(()), Some(buffer)) = (&done, &mut buffer) {
                piece.copy_from_slice(buffer.bytes(piece.len()));
            }
            self.give_back(buffer);
            done?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// The drive's.
    pub(crate) fn write(&self, start_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        let mut at = start_bytes;
        for piece in bytes.chunks(CHUNK_BYTES) {
            let mut buffer = self.buffer();
            buffer.bytes(piece.len()).copy_from_slice(piece);
            let range = Range { start_bytes: at, len_bytes: piece.len() as u64 };
            let (done, buffer) = self.ask(Op::Write { fua: false }, range, Some(buffer));
            self.give_back(buffer);
            done?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// The range reads as zeros from here on, and needs no space where the drive can do without.
    ///
    /// # Errors
    /// The drive's.
    pub(crate) fn zero(&self, range: Range) -> io::Result<()> {
        self.ask(Op::WriteZeroes { deallocate: true, fua: false }, range, None).0
    }

    /// Makes durable what was written through here.
    ///
    /// # Errors
    /// The drive's.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.ask(Op::Flush, Range { start_bytes: 0, len_bytes: 0 }, None).0
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        self.jobs = None;
        self.threads.drain(..).for_each(|thread| _ = thread.join());
    }
}

fn work(ssd: &Ssd, drive: Option<&Drive>, queue: &Mutex<Receiver<Job>>, mailbox: Address) {
    pool::here(&mailbox);
    let rings = Rings::new(ssd.keeper.clone().map(|keeper| keeper as Arc<dyn RingHolder>));
    let door = drive.map_or_else(|| open_door(ssd, &rings), |drive| door_to(ssd, drive, &rings));
    let mut hand = Hand { door, mailbox, done: Vec::with_capacity(8) };
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { op, range, mut buffer, reply }) = next else { return };
        let len = usize::try_from(range.len_bytes).unwrap_or(CHUNK_BYTES);
        let done = match &mut buffer {
            Some(buffer) => hand.act(op, range, &[Segment::of(buffer.bytes(len))]),
            None => hand.act(op, range, &[]),
        };
        // Who asked may have ended.
        let _ = reply.send((done, buffer));
    }
}

/// One door, one request at a time.
struct Hand {
    door: Box<dyn Backend>,
    mailbox: Arc<Mailbox<Message>>,
    done: Vec<Completion>,
}

impl Hand {
    fn act(&mut self, op: Op, range: Range, data: &[Segment]) -> io::Result<()> {
        let request = Request { token: Token(0), op, range, data };
        loop {
            // SAFETY: see the module: the buffer is there until the completion came, below.
            match unsafe { self.door.submit(&request) } {
                Submitted::Ended(outcome) => return result_of(outcome),
                Submitted::Queued => break,
                Submitted::Full => self.wait(),
            }
        }
        self.door.kick();
        loop {
            self.done.clear();
            self.door.poll(&mut self.done);
            if let Some((_, outcome)) = self.done.first() {
                return result_of(*outcome);
            }
            // What a first poll found room for goes with the next.
            self.door.kick();
            self.wait();
        }
    }

    /// Until the drive is done, a pool has changed, or for a moment.
    fn wait(&self) {
        let fds: Vec<_> = wake_fd(self.door.as_ref()).into_iter().collect();
        self.mailbox.sleep(&fds, Some(LOOK_NS));
        self.mailbox.take();
    }
}

fn result_of(outcome: Outcome) -> io::Result<()> {
    let kind = match outcome {
        Outcome::Done => return Ok(()),
        Outcome::Failed(Fault::NoSpace) => io::ErrorKind::StorageFull,
        Outcome::Failed(Fault::Unsupported) => io::ErrorKind::Unsupported,
        Outcome::Failed(Fault::Gone) => io::ErrorKind::NotConnected,
        Outcome::Failed(_) => {
            return Err(io::Error::other("the drive reports an error: see the host's kernel log"));
        }
    };
    Err(kind.into())
}
