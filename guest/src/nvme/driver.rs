//! The driver: submit, ring, poll.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::command::{Completion, Sqe};
use super::controller::Doorbells;
use super::queue::{CompletionQueue, SubmissionQueue};
use super::shadow::Shadow;
use crate::ram::Ram;
use crate::vfio_user::{Client, region};
use crate::{Error, Result};

/// How long a wait gives its processor away without sleeping, and how long it sleeps then.
const PATIENCE: Duration = Duration::from_micros(200);
const NAP: Duration = Duration::from_micros(50);

/// How a driver sets itself up.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Size of guest RAM.
    pub ram_bytes: usize,
    /// Where the device sees it.
    pub ram_iova: u64,
    /// Pass the memfd to the server; otherwise it must use DMA_READ and DMA_WRITE.
    pub share_ram: bool,
    /// Entries of the admin queues.
    pub admin_depth: u32,
    /// How long a command may take.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            ram_bytes: 64 << 20,
            ram_iova: 0x1_0000_0000,
            share_ram: true,
            admin_depth: 64,
            timeout: crate::PATIENCE,
        }
    }
}

/// One NVMe controller, driven by polling from one thread.
#[derive(Debug)]
pub struct Driver {
    // Dropped first: the server lets go of the RAM before the RAM goes.
    pub(super) client: Client,
    pub(super) doorbells: Doorbells,
    pub(super) cap: u64,
    pub(super) options: Options,
    pub(super) sqs: BTreeMap<u16, SubmissionQueue>,
    pub(super) cqs: BTreeMap<u16, CompletionQueue>,
    /// Completions polled while waiting for another one.
    pub(super) stash: VecDeque<Completion>,
    pub(super) shadow: Option<Shadow>,
    pub(super) vectors: Vec<OwnedFd>,
    pub(super) ram: Arc<Ram>,
}

impl Driver {
    /// Connects, maps 64 MiB of RAM, enables the controller and asks for 128 I/O queue pairs.
    ///
    /// # Errors
    /// No server, one that refuses, or a controller that does not become ready.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self> {
        Self::connect_with(path, Options::default())
    }

    /// [`Driver::connect`] with options.
    ///
    /// # Errors
    /// As [`Driver::connect`].
    pub fn connect_with(path: impl AsRef<Path>, options: Options) -> Result<Self> {
        let mut driver = Self::attach(Client::connect(path)?, options)?;
        driver.enable()?;
        driver.set_queue_count(128)?;
        Ok(driver)
    }

    /// Maps RAM and doorbells over a connected client; the controller is left as it is.
    ///
    /// # Errors
    /// The client's.
    pub fn attach(client: Client, options: Options) -> Result<Self> {
        Self::attach_to(client, Ram::new(options.ram_bytes, options.ram_iova)?, options)
    }

    /// [`Driver::attach`] with RAM that is there already.
    ///
    /// # Errors
    /// The client's.
    pub fn attach_to(mut client: Client, ram: Arc<Ram>, options: Options) -> Result<Self> {
        client.set_dma_memory(ram.clone());
        let fd = options.share_ram.then(|| (ram.fd(), 0));
        client.dma_map(ram.iova(), ram.len() as u64, fd)?;
        // PCI command: memory space, bus master, no INTx.
        client.region_write(region::CONFIG, 4, &0x0406_u16.to_le_bytes())?;
        let doorbells = Self::map_doorbells(&mut client)?;
        let cap = client.read_number(region::BAR0, super::reg::CAP, 8)?;
        Ok(Driver {
            client,
            doorbells,
            cap,
            options,
            sqs: BTreeMap::new(),
            cqs: BTreeMap::new(),
            stash: VecDeque::new(),
            shadow: None,
            vectors: Vec::new(),
            ram,
        })
    }

    /// Goes on over another connection, to the same device elsewhere: memory, doorbells and interrupts are the new one's, queues and what is out
    /// stay. Returns the connection there was.
    ///
    /// # Errors
    /// The new client's.
    pub fn move_to(&mut self, mut client: Client) -> Result<Client> {
        client.set_dma_memory(self.ram.clone());
        let fd = self.options.share_ram.then(|| (self.ram.fd(), 0));
        client.dma_map(self.ram.iova(), self.ram.len() as u64, fd)?;
        self.doorbells = Self::map_doorbells(&mut client)?;
        for (start, chunk) in (0..).step_by(16).zip(self.vectors.chunks(16)) {
            let borrowed: Vec<_> = chunk.iter().map(std::os::fd::AsFd::as_fd).collect();
            client.set_irq_eventfds(crate::vfio_user::irq::MSIX, start, &borrowed)?;
        }
        Ok(std::mem::replace(&mut self.client, client))
    }

    /// Guest RAM, to allocate buffers from.
    #[must_use]
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// The vfio-user client below.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// CAP as read at the start.
    #[must_use]
    pub fn cap(&self) -> u64 {
        self.cap
    }

    /// How long a command may take before [`Error::Timeout`].
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.options.timeout = timeout;
    }

    /// A submission queue of this driver.
    #[must_use]
    pub fn sq(&self, sqid: u16) -> Option<&SubmissionQueue> {
        self.sqs.get(&sqid)
    }

    /// A completion queue of this driver.
    #[must_use]
    pub fn cq(&self, cqid: u16) -> Option<&CompletionQueue> {
        self.cqs.get(&cqid)
    }

    /// Takes a queue pair out of the driver, for a caller that runs the rings itself and deletes the queues by commands.
    #[must_use]
    pub fn take_queue_pair(&mut self, qid: u16) -> Option<(SubmissionQueue, CompletionQueue)> {
        Some((self.sqs.remove(&qid)?, self.cqs.remove(&qid)?))
    }

    /// Runs one admin command to its end. The status is the caller's to look at ([`Completion::ok`]).
    ///
    /// # Errors
    /// [`Error::Timeout`] or the client's.
    pub fn admin(&mut self, sqe: Sqe) -> Result<Completion> {
        self.io(0, sqe)
    }

    /// Runs one command on queue `sqid` to its end. The status is the caller's to look at ([`Completion::ok`]).
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::QueueFull`], [`Error::NoQueue`] or the client's.
    pub fn io(&mut self, sqid: u16, sqe: Sqe) -> Result<Completion> {
        let cid = self.submit(sqid, sqe)?;
        self.wait(sqid, cid)
    }

    /// Places a command, with an identifier of the driver's choice, and rings.
    ///
    /// # Errors
    /// [`Error::QueueFull`], [`Error::NoQueue`] or the client's.
    pub fn submit(&mut self, sqid: u16, sqe: Sqe) -> Result<u16> {
        let cid = self.place(sqid, sqe)?;
        self.ring(sqid)?;
        Ok(cid)
    }

    /// Places a command, with an identifier of the driver's choice, without ringing.
    ///
    /// # Errors
    /// [`Error::QueueFull`] or [`Error::NoQueue`].
    pub fn place(&mut self, sqid: u16, sqe: Sqe) -> Result<u16> {
        self.sqs.get_mut(&sqid).ok_or(Error::NoQueue(sqid))?.push(sqe)
    }

    /// Places any 64 bytes, identifier included, even when the queue is full, without ringing.
    ///
    /// # Errors
    /// [`Error::NoQueue`].
    pub fn place_raw(&mut self, sqid: u16, sqe: impl Into<Sqe>) -> Result<()> {
        self.sqs.get_mut(&sqid).ok_or(Error::NoQueue(sqid))?.push_raw(sqe.into());
        Ok(())
    }

    /// Tells the controller the tail of `sqid` (by shadow doorbell where they are on).
    ///
    /// # Errors
    /// [`Error::NoQueue`] or the client's.
    pub fn ring(&mut self, sqid: u16) -> Result<()> {
        let tail = self.sqs.get(&sqid).ok_or(Error::NoQueue(sqid))?.tail;
        self.announce(usize::from(sqid) * 2, tail)
    }

    /// The next completion of `cqid` that nobody waited for yet.
    ///
    /// # Errors
    /// [`Error::NoQueue`] or the client's.
    pub fn poll(&mut self, cqid: u16) -> Result<Option<Completion>> {
        let ours = |done: &Completion| match self.sqs.get(&done.sqid) {
            Some(sq) => sq.cqid == cqid,
            // Of a submission queue deleted since: whoever asks first may have it.
            None => true,
        };
        let stashed = self.stash.iter().position(ours);
        match stashed.and_then(|at| self.stash.remove(at)) {
            Some(completion) => Ok(Some(completion)),
            None => self.poll_ring(cqid),
        }
    }

    /// Waits for the completion of one command; others are kept for [`Driver::poll`] and later waits.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::NoQueue`] or the client's.
    pub fn wait(&mut self, sqid: u16, cid: u16) -> Result<Completion> {
        let wanted = |done: &Completion| done.sqid == sqid && done.cid == cid;
        if let Some(completion) = self.stash.iter().position(wanted).and_then(|at| self.stash.remove(at)) {
            return Ok(completion);
        }
        let cqid = self.sqs.get(&sqid).ok_or(Error::NoQueue(sqid))?.cqid;
        let (begin, timeout) = (Instant::now(), self.options.timeout);
        loop {
            match self.poll_ring(cqid)? {
                Some(completion) if wanted(&completion) => return Ok(completion),
                Some(completion) => self.stash.push_back(completion),
                None => self.idle(begin, timeout)?,
            }
        }
    }

    /// Waits for any completion of `cqid`.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::NoQueue`] or the client's.
    pub fn wait_any(&mut self, cqid: u16, timeout: Duration) -> Result<Completion> {
        let begin = Instant::now();
        loop {
            match self.poll(cqid)? {
                Some(completion) => return Ok(completion),
                None => self.idle(begin, timeout)?,
            }
        }
    }

    /// The next completion of the ring itself; the stash is left alone.
    pub(super) fn poll_ring(&mut self, cqid: u16) -> Result<Option<Completion>> {
        let cq = self.cqs.get_mut(&cqid).ok_or(Error::NoQueue(cqid))?;
        let Some(completion) = cq.pop() else { return Ok(None) };
        let head = cq.head;
        if let Some(sq) = self.sqs.get_mut(&completion.sqid) {
            sq.completed(&completion);
        }
        self.announce(usize::from(cqid) * 2 + 1, head)?;
        Ok(Some(completion))
    }

    /// Nothing to do: serve the server if it must ask for memory, let others run, and mind the time. Who waits for long sleeps, as
    /// a guest does, and leaves the processor to the daemon that it waits for.
    fn idle(&mut self, begin: Instant, timeout: Duration) -> Result<()> {
        if !self.options.share_ram {
            self.client.serve_dma(Duration::ZERO)?;
        }
        match begin.elapsed() {
            waited if waited > timeout => return Err(Error::Timeout(timeout)),
            waited if waited > PATIENCE => std::thread::sleep(NAP),
            _ => std::thread::yield_now(),
        }
        Ok(())
    }

    fn announce(&mut self, index: usize, value: u32) -> Result<()> {
        // The admin queues have no shadow here, as in Linux.
        let ring = match &self.shadow {
            Some(shadow) if index >= 2 => shadow.publish(index, value),
            _ => true,
        };
        if ring { self.write_doorbell(index, value) } else { Ok(()) }
    }
}
