//! One stream of the side that sends: what it has still to send, what nobody acknowledged yet, and its connection, which may break at any time.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use dirty::Map;

use crate::compression::Compression;
use crate::control::{Clock, Control, Go};
use crate::copy::{Error, Options, Shift};
use crate::frame::{
    Barrier, Cancel, Damage, Data, End, FEATURE_LZ4, FEATURE_ZEROS, FEATURES, Frame, HEAD_BYTES, Hello, Kind,
    Limits, PAGE, PART_BYTES_MAX, Part, Payload, Plan, Reason, STRIPE_PAGES, VERSION_MAX, VERSION_MIN,
};
use crate::source::{Content, Run, Source};
use crate::wire::{Fault, Wire};

/// Runs that wait for a durable answer at most; with more, the stream waits itself.
const OWED_MAX: usize = 1 << 16;
/// A side that has nothing else to say says at least so often that it is there.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);
/// Bytes of a frame beside what it carries, at most.
const FRAME_BYTES: u64 = HEAD_BYTES as u64 + 20;

/// What may still come from the other side after a cancel.
const ANSWERS_BYTES_MAX: u64 = 64 << 10;
const ZERO_PAGE: [u8; PAGE] = [0; PAGE];

/// What all streams of a copy share.
pub(crate) struct Context<'a, C> {
    pub(crate) source: &'a dyn Source,
    pub(crate) connect: &'a (dyn Fn(u16) -> io::Result<C> + Sync),
    pub(crate) clock: &'a dyn Clock,
    pub(crate) control: &'a Control,
    pub(crate) plan: Plan,
    pub(crate) options: Options,
}

/// How a pass ends.
#[derive(Clone, Copy)]
pub(crate) struct Ending<'a> {
    pub(crate) pass: u32,
    /// Nothing follows but this, which stream 0 carries: compact map and state.
    pub(crate) last: Option<(&'a [u8], &'a [u8])>,
}

/// Why a stream stops for now.
enum Stop {
    /// Its connection is gone: another may do.
    Fault(Fault),
    /// Nothing more can be done here.
    Error(Error),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Cancelled(cancel) => Self::Error(Error::Refused(cancel)),
            fault => Self::Fault(fault),
        }
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// A barrier, as it was sent.
struct Asked {
    barrier: Barrier,
    /// Since the barrier before it.
    bytes: u64,
}

pub(crate) struct Stream<C> {
    index: u16,
    /// Pages to send.
    todo: Arc<Map>,
    /// Runs that were sent, with the barrier behind them.
    owed: VecDeque<(u64, Run)>,
    /// What no ack answered.
    under_way: VecDeque<Asked>,
    under_way_bytes: u64,
    /// Bytes since the last barrier, and since the last that asked for a flush.
    open_bytes: u64,
    unflushed_bytes: u64,
    /// All bytes that were ever sent.
    moved_bytes: u64,
    /// The last barriers that were sent, answered, answered as durable.
    sent: u64,
    acked: u64,
    durable: u64,
    /// The barrier that ended the last pass.
    ended: Option<u64>,
    wire: Option<Wire<C>>,
    attempt: u32,
    /// Connections in a row that got nowhere.
    failures: u32,
    limits: Limits,
    features: u32,
    compression: Compression,
    buffer: Vec<u8>,
}

impl<C: Read + Write> Stream<C> {
    pub(crate) fn new(index: u16, pages: u64) -> Result<Self, Error> {
        Ok(Self {
            index,
            todo: Arc::new(Map::new(pages)?),
            owed: VecDeque::new(),
            under_way: VecDeque::new(),
            under_way_bytes: 0,
            open_bytes: 0,
            unflushed_bytes: 0,
            moved_bytes: 0,
            sent: 0,
            acked: 0,
            durable: 0,
            ended: None,
            wire: None,
            attempt: 0,
            failures: 0,
            limits: Limits::default(),
            features: 0,
            compression: Compression::new(),
            buffer: Vec::new(),
        })
    }

    /// What it has to send; anybody may add to it.
    pub(crate) fn todo(&self) -> &Map {
        &self.todo
    }

    /// Sends all there is to send, over as many connections as it takes. When it returns, the other side has it durable.
    pub(crate) fn pass(
        &mut self,
        context: &Context<'_, C>,
        ending: &Ending<'_>,
        shift: &Shift,
    ) -> Result<(), Error> {
        loop {
            let durable = self.durable;
            let error = match self.try_pass(context, ending, shift) {
                Ok(()) => {
                    self.failures = 0;
                    return Ok(());
                }
                Err(Stop::Error(error)) => error,
                Err(Stop::Fault(fault)) => {
                    self.wire = None;
                    self.failures = if self.durable > durable { 1 } else { self.failures + 1 };
                    if self.failures <= context.options.attempts_max {
                        context.clock.sleep(context.options.retry);
                        continue;
                    }
                    self.failures = 0;
                    return Err(Error::Lost { stream: self.index, fault });
                }
            };
            self.part(&error);
            return Err(error);
        }
    }

    /// Says why it gives up, if anybody listens.
    fn part(&mut self, error: &Error) {
        let reason = match error {
            // Another stream says why; this one may go on later.
            Error::Aside => return,
            Error::Refused(_) => None,
            Error::Source(_) => Some(Reason::Drive),
            _ => Some(Reason::Wish),
        };
        if let (Some(mut wire), Some(reason)) = (self.wire.take(), reason) {
            wire.part(Cancel { reason, text: error.to_string() }, ANSWERS_BYTES_MAX);
        }
    }

    fn try_pass(&mut self, context: &Context<'_, C>, ending: &Ending<'_>, shift: &Shift) -> Result<(), Stop> {
        if self.wire.is_none() && !self.is_ended() {
            if context.control.is_cancelled() {
                return Err(Error::Cancelled.into());
            }
            self.connect(context)?;
        }
        if self.is_ended() {
            return if self.todo.count() == 0 { Ok(()) } else { Err(Error::Written.into()) };
        }
        self.drain(context, shift)?;
        if let Some((map, state)) = ending.last.filter(|_| self.index == 0) {
            self.parts(context, map, Frame::Map)?;
            self.parts(context, state, Frame::State)?;
        }
        self.send(context, &Frame::End(End { pass: ending.pass, last: ending.last.is_some() }))?;
        let id = self.barrier(context, true)?;
        if ending.last.is_some() {
            self.ended = Some(id);
        }
        self.wait(context, id)
    }

    /// Whether the last pass is over, and the other side has it all.
    pub(crate) fn is_ended(&self) -> bool {
        self.ended.is_some_and(|id| self.durable >= id)
    }

    fn connect(&mut self, context: &Context<'_, C>) -> Result<(), Stop> {
        self.attempt += 1;
        let mut wire = Wire::sender((context.connect)(self.index).map_err(Fault::from)?);
        wire.send(&Frame::Hello(Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            features: FEATURES,
            migration: context.options.migration,
            stream: self.index,
            streams: context.options.streams,
            attempt: self.attempt,
            limits: context.options.limits,
        }))?;
        wire.flush()?;
        let Frame::Welcome(welcome) = wire.receive()? else {
            return Err(Fault::from(Damage::Order(Kind::Welcome)).into());
        };
        if welcome.durable > self.sent {
            let field = "durable barrier";
            return Err(Fault::from(Damage::Field { kind: Kind::Welcome, field }).into());
        }
        if welcome.durable < self.durable {
            return Err(Error::Forgotten { stream: self.index }.into());
        }
        self.limits = context.options.limits.and(welcome.limits);
        // So that one frame is at most half a window.
        let half = u16::try_from(self.limits.window_bytes / 2 / 4096 - 1).unwrap_or(u16::MAX);
        self.limits.data_pages = self.limits.data_pages.min(half);
        self.features = welcome.features;
        self.go_on_from(welcome.durable, context.control);
        wire.send(&Frame::Plan(context.plan.clone()))?;
        self.wire = Some(wire);
        Ok(())
    }

    /// What lies behind this barrier did not arrive, or not for sure: it is to be sent again.
    fn go_on_from(&mut self, durable: u64, control: &Control) {
        for (barrier, run) in self.owed.drain(..) {
            if barrier > durable {
                self.todo.mark(run.first(), run.pages().into());
                control.pages_left.fetch_add(run.pages().into(), Relaxed);
            }
        }
        self.under_way.clear();
        (self.under_way_bytes, self.open_bytes, self.unflushed_bytes) = (0, 0, 0);
        (self.acked, self.durable) = (durable, durable);
    }

    /// Sends all that is to be sent. What could not be is put back.
    fn drain(&mut self, context: &Context<'_, C>, shift: &Shift) -> Result<(), Stop> {
        let (todo, mut stop) = (Arc::clone(&self.todo), None);
        todo.take(|block, marks| {
            let base = block as u64 * STRIPE_PAGES;
            marks.runs(|first, pages| {
                let first = base + u64::from(first);
                let mut done = 0;
                if stop.is_none() {
                    stop = self.run(context, shift, (first, pages), &mut done).err();
                }
                todo.mark(first + u64::from(done), (pages - done).into());
            });
        });
        stop.map_or(Ok(()), Err)
    }

    /// Counts in `done` the pages that were sent.
    fn run(
        &mut self,
        context: &Context<'_, C>,
        shift: &Shift,
        (first, pages): (u64, u32),
        done: &mut u32,
    ) -> Result<(), Stop> {
        let step = u32::from(self.limits.data_pages);
        while *done < pages {
            let count = step.min(pages - *done);
            let Some(run) = Run::checked(first + u64::from(*done), count, context.plan.pages) else {
                *done = pages;
                return Ok(());
            };
            if shift.is_over() {
                return Err(Error::Aside.into());
            }
            self.admit(context)?;
            self.copy(context, run)?;
            *done += count;
            // What is sent again after a break counts again.
            let _ = context
                .control
                .pages_left
                .fetch_update(Relaxed, Relaxed, |left| Some(left.saturating_sub(count.into())));
            context.control.pages_sent.fetch_add(count.into(), Relaxed);
        }
        Ok(())
    }

    /// Waits until more may go.
    fn admit(&mut self, context: &Context<'_, C>) -> Result<(), Stop> {
        let mut quiet = Duration::ZERO;
        loop {
            let wait = match context.control.admit(context.clock.now()) {
                Go::Now => return Ok(()),
                Go::Cancelled => return Err(Error::Cancelled.into()),
                Go::Paused => HEARTBEAT / 4,
                Go::In(wait) => wait.min(HEARTBEAT / 4),
            };
            context.clock.sleep(wait);
            let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
            context.control.waited_ns.fetch_add(nanos, Relaxed);
            self.compression.sent(0, wait);
            quiet += wait;
            if quiet >= HEARTBEAT {
                quiet = Duration::ZERO;
                self.beat(context.control)?;
            }
        }
    }

    fn beat(&mut self, control: &Control) -> Result<(), Fault> {
        let Some(wire) = &mut self.wire else { return Ok(()) };
        let bytes = wire.send(&Frame::Pace(control.pace_in_force()))?;
        control.bytes_sent.fetch_add(bytes, Relaxed);
        wire.flush()
    }

    /// Says that it is still there, if it has a connection.
    pub(crate) fn keep_alive(&mut self, control: &Control) {
        if !self.is_ended() && self.beat(control).is_err() {
            self.wire = None;
        }
    }

    /// Reads a run and sends it, zeros by themselves.
    fn copy(&mut self, context: &Context<'_, C>, run: Run) -> Result<(), Stop> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(run.pages() as usize * PAGE, 0);
        let done = match context.source.read(run, &mut buffer) {
            Err(error) => Err(Error::Source(error).into()),
            // Since then the source may have gone on, and the rest of its last pass would be whole with what was written later.
            Ok(_) if context.control.is_cancelled() => Err(Error::Cancelled.into()),
            Ok(Content::Hole) if self.features & FEATURE_ZEROS != 0 => {
                self.put(context, run, Payload::Hole, 0)
            }
            Ok(content) => {
                if content == Content::Hole {
                    buffer.fill(0);
                }
                self.pieces(context, run, &buffer)
            }
        };
        self.buffer = buffer;
        done
    }

    fn pieces(&mut self, context: &Context<'_, C>, run: Run, bytes: &[u8]) -> Result<(), Stop> {
        let zeros = self.features & FEATURE_ZEROS != 0;
        let is_zero = |page: &[u8]| zeros && page == ZERO_PAGE;
        let (mut first, mut rest) = (run.first(), bytes);
        while let Some(page) = rest.get(..PAGE) {
            let zero = is_zero(page);
            let mut pages = 1;
            while rest.get(pages * PAGE..(pages + 1) * PAGE).is_some_and(|page| is_zero(page) == zero) {
                pages += 1;
            }
            let (piece, behind) = rest.split_at(pages * PAGE);
            let count = u32::try_from(pages).unwrap_or(u32::MAX);
            if let Some(run) = Run::checked(first, count, context.plan.pages) {
                if zero {
                    self.put(context, run, Payload::Zeros, 0)?;
                } else {
                    self.bytes(context, run, piece)?;
                }
            }
            (first, rest) = (first + u64::from(count), behind);
        }
        Ok(())
    }

    fn bytes(&mut self, context: &Context<'_, C>, run: Run, plain: &[u8]) -> Result<(), Stop> {
        let check = crc32c::crc32c(plain);
        if self.features & FEATURE_LZ4 == 0 || !context.options.compress {
            return self.put(context, run, Payload::Raw(plain), check);
        }
        let mut compression = std::mem::replace(&mut self.compression, Compression::new());
        let payload = compression.pack(plain, context.clock).map_or(Payload::Raw(plain), Payload::Lz4);
        let started = context.clock.now();
        let before = self.moved_bytes;
        let done = self.put(context, run, payload, check);
        compression.sent(self.moved_bytes - before, context.clock.now().saturating_sub(started));
        self.compression = compression;
        done
    }

    fn put(
        &mut self,
        context: &Context<'_, C>,
        run: Run,
        payload: Payload<'_>,
        check: u32,
    ) -> Result<(), Stop> {
        let carried = match payload {
            Payload::Raw(bytes) | Payload::Lz4(bytes) => bytes.len() as u64,
            Payload::Zeros | Payload::Hole => 0,
        };
        self.reserve(context, carried + FRAME_BYTES)?;
        // Before it is sent: what went half is owed as well.
        self.owe(run);
        self.send(context, &Frame::Data(Data { run, payload, check }))?;
        let quarter = u64::from(self.limits.window_bytes / 4);
        if self.open_bytes >= quarter {
            let flush = self.unflushed_bytes >= context.options.flush_bytes;
            self.barrier(context, flush)?;
        }
        if self.owed.len() >= OWED_MAX {
            let id = self.barrier(context, true)?;
            self.wait(context, id)?;
        }
        Ok(())
    }

    fn owe(&mut self, run: Run) {
        let barrier = self.sent + 1;
        if let Some((at, last)) = self.owed.back_mut()
            && *at == barrier
            && last.end() == run.first()
            && let Some(pages) = last.pages().checked_add(run.pages())
            && let Some(both) = Run::checked(last.first(), pages, self.todo.pages())
        {
            *last = both;
            return;
        }
        self.owed.push_back((barrier, run));
    }

    /// Waits until the window has room.
    fn reserve(&mut self, context: &Context<'_, C>, bytes: u64) -> Result<(), Stop> {
        let window = u64::from(self.limits.window_bytes);
        while self.under_way_bytes + self.open_bytes + bytes > window {
            if self.under_way.is_empty() {
                if self.open_bytes == 0 {
                    break;
                }
                self.barrier(context, false)?;
            }
            self.answer(context)?;
        }
        Ok(())
    }

    fn parts<'b>(
        &mut self,
        context: &Context<'_, C>,
        bytes: &'b [u8],
        kind: fn(Part<'b>) -> Frame<'b>,
    ) -> Result<(), Stop> {
        let mut rest = bytes;
        let most = (self.limits.window_bytes as usize / 2).min(PART_BYTES_MAX);
        loop {
            let (piece, behind) = rest.split_at(rest.len().min(most));
            self.reserve(context, piece.len() as u64 + FRAME_BYTES)?;
            self.send(context, &kind(Part { last: behind.is_empty(), bytes: piece }))?;
            rest = behind;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    fn send(&mut self, context: &Context<'_, C>, frame: &Frame<'_>) -> Result<(), Stop> {
        let wire = self.wire.as_mut().ok_or(Fault::Closed)?;
        let bytes = wire.send(frame)?;
        self.open_bytes += bytes;
        self.unflushed_bytes += bytes;
        self.moved_bytes += bytes;
        context.control.charge(bytes, context.clock.now());
        Ok(())
    }

    fn barrier(&mut self, context: &Context<'_, C>, flush: bool) -> Result<u64, Stop> {
        let id = self.sent + 1;
        let barrier = Barrier { id, flush };
        self.send(context, &Frame::Barrier(barrier))?;
        self.wire.as_mut().ok_or(Fault::Closed)?.flush()?;
        self.sent = id;
        let bytes = std::mem::take(&mut self.open_bytes);
        self.under_way.push_back(Asked { barrier, bytes });
        self.under_way_bytes += bytes;
        if flush {
            self.unflushed_bytes = 0;
        }
        Ok(id)
    }

    fn wait(&mut self, context: &Context<'_, C>, id: u64) -> Result<(), Stop> {
        while self.acked < id {
            self.answer(context)?;
        }
        Ok(())
    }

    /// Takes the next ack. A peer that only says that it is there is not waited for for ever.
    fn answer(&mut self, context: &Context<'_, C>) -> Result<(), Stop> {
        let started = context.clock.now();
        loop {
            if context.control.is_cancelled() {
                return Err(Error::Cancelled.into());
            }
            match self.wire.as_mut().ok_or(Fault::Closed)?.receive()? {
                Frame::Ack(ack) => return self.acknowledge(ack),
                Frame::Pace(_) if context.clock.now().saturating_sub(started) < context.options.patience => {}
                Frame::Pace(_) => return Err(Fault::Stalled.into()),
                frame => return Err(Fault::from(Damage::Order(frame.kind())).into()),
            }
        }
    }

    /// Each barrier is answered, in order, and by what it asked for.
    fn acknowledge(&mut self, ack: Barrier) -> Result<(), Stop> {
        let Some(Asked { bytes, .. }) = self.under_way.pop_front_if(|asked| asked.barrier == ack) else {
            return Err(Fault::from(Damage::Field { kind: Kind::Ack, field: "barrier" }).into());
        };
        self.under_way_bytes -= bytes;
        self.acked = ack.id;
        if ack.flush {
            self.durable = ack.id;
            while self.owed.pop_front_if(|(barrier, _)| *barrier <= ack.id).is_some() {}
        }
        Ok(())
    }

    /// How long a barrier takes when nothing else is under way; `None`: the connection broke.
    pub(crate) fn round_trip(&mut self, context: &Context<'_, C>) -> Result<Option<Duration>, Error> {
        let started = context.clock.now();
        match self.barrier(context, true).and_then(|id| self.wait(context, id)) {
            Ok(()) => Ok(Some(context.clock.now().saturating_sub(started))),
            Err(Stop::Fault(_)) => {
                self.wire = None;
                Ok(None)
            }
            Err(Stop::Error(error)) => {
                self.part(&error);
                Err(error)
            }
        }
    }
}
