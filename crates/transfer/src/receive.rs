//! The side that receives: verifies, writes, acknowledges. One [`Receiver`] a migration; each connection is served by a thread of the caller's.

use std::io::{self, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dirty::{Map, codec};

use crate::frame::{
    Barrier, Cancel, Damage, FEATURES, Frame, HEAD_BYTES, Head, Hello, Kind, Limits, MAP_BYTES_MAX, Part,
    Payload, Plan, Reason, STATE_BYTES_MAX, STREAMS_MAX, Scope, VERSION_MAX, Welcome,
};
use crate::source::Sink;
use crate::wire::{Fault, Wire};

const GIVEN_UP: &str = "the migration was given up";

/// What came with the last pass.
#[derive(Debug)]
pub struct Arrived {
    /// Pages that are still missing.
    pub missing: Map,
    /// The device's state, not interpreted.
    pub state: Vec<u8>,
}

#[derive(Debug, Default)]
struct Slot {
    /// The connection that may write: the newest.
    attempt: u32,
    written: u64,
    durable: u64,
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    streams: Option<u16>,
    plan: Option<Plan>,
    cancelled: bool,
    /// Why this side gave up: every stream is told.
    gave_up: Option<Cancel>,
    arrived: Option<Arrived>,
}

/// A connection of which it is known which migration it is for, and that has not lost a byte by that.
pub struct Greeted<C> {
    first: io::Cursor<Vec<u8>>,
    migration: [u8; 16],
    connection: C,
}

impl<C: Read> Greeted<C> {
    /// Reads the hello. The socket has timeouts.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn new(mut connection: C) -> Result<Self, Fault> {
        let mut first = vec![0; HEAD_BYTES];
        connection.read_exact(&mut first)?;
        let head = Head::parse(first.as_slice().try_into().unwrap_or(&[0; HEAD_BYTES]), 0)?;
        if head.kind() != Kind::Hello {
            return Err(Damage::Order(head.kind()).into());
        }
        first.resize(HEAD_BYTES + head.bytes(), 0);
        connection.read_exact(&mut first[HEAD_BYTES..])?;
        let Frame::Hello(hello) = head.body(&first[HEAD_BYTES..], None)? else {
            return Err(Damage::Order(head.kind()).into());
        };
        Ok(Self { migration: hello.migration, first: io::Cursor::new(first), connection })
    }

    /// Which.
    #[must_use]
    pub fn migration(&self) -> [u8; 16] {
        self.migration
    }
}

impl<C: Read> Read for Greeted<C> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self.first.read(out)? {
            0 => self.connection.read(out),
            count => Ok(count),
        }
    }
}

impl<C: Write> Write for Greeted<C> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.connection.write(bytes)
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.connection.write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.connection.flush()
    }
}

/// Refuses a plan, with the reason.
pub type Accept<'a> = dyn Fn(&Plan) -> Result<(), String> + Sync + 'a;

/// See the module.
pub struct Receiver<'a> {
    migration: [u8; 16],
    limits: Limits,
    sink: &'a dyn Sink,
    accept: &'a Accept<'a>,
    slots: Vec<Mutex<Slot>>,
    shared: Mutex<Shared>,
    /// A flush failed.
    lost: Mutex<bool>,
}

/// What one connection holds until its end.
#[derive(Default)]
struct Held {
    stream: u16,
    attempt: u32,
    map: Pieces,
    state: Pieces,
    last: bool,
    space: Vec<u8>,
}

#[derive(Default)]
struct Pieces {
    bytes: Vec<u8>,
    whole: bool,
}

impl Pieces {
    fn add(&mut self, part: Part<'_>, max: usize, kind: Kind) -> Result<(), Damage> {
        if self.whole {
            return Err(Damage::Order(kind));
        }
        if self.bytes.len() + part.bytes.len() > max {
            return Err(Damage::Field { kind, field: "size" });
        }
        self.bytes.extend_from_slice(part.bytes);
        self.whole = part.last;
        Ok(())
    }
}

impl<'a> Receiver<'a> {
    /// `accept` is asked once whether the plan fits what was prepared; the pages of the plan are all that the sink is ever asked for.
    ///
    /// The sink reads as zeros everywhere: what the source has nowhere is not sent. So a migration that starts anew wipes its copy first.
    #[must_use]
    pub fn new(migration: [u8; 16], limits: Limits, sink: &'a dyn Sink, accept: &'a Accept<'a>) -> Self {
        let slots = (0..STREAMS_MAX).map(|_| Mutex::default()).collect();
        Self { migration, limits, sink, accept, slots, shared: Mutex::default(), lost: Mutex::default() }
    }

    /// What arrived, once every stream has ended.
    #[must_use]
    pub fn arrived(&self) -> Option<Arrived> {
        let streams = usize::from(self.shared().streams?);
        let ended = self.slots.iter().take(streams).all(|slot| lock(slot).ended);
        if ended { self.shared().arrived.take() } else { None }
    }

    /// Takes no connection any more, and nothing more from those there are.
    pub fn cancel(&self) {
        self.shared().cancelled = true;
        for slot in &self.slots {
            lock(slot).attempt = u32::MAX;
        }
    }

    /// One at a time: a drive says only once that it lost something, and whoever hears it keeps the others from being told otherwise.
    fn make_durable(&self) -> Result<(), Fault> {
        let mut lost = lock(&self.lost);
        if *lost {
            return Err(Fault::Superseded(GIVEN_UP));
        }
        let done = self.sink.flush();
        *lost = done.is_err();
        done.map_err(Fault::Sink)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }

    /// Serves a connection to its end. The socket has timeouts in both directions. Only an error of the sink, a plan that is refused
    /// and a cancel of the other side's end the migration; after any other, the other side may connect again.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn serve<C: Read + Write>(&self, connection: C) -> Result<(), Fault> {
        let mut wire = Wire::receiver(connection);
        let served = self.converse(&mut wire);
        let cancel = match &served {
            Err(fault @ Fault::Damage(Damage::Version { .. })) => {
                Some(Cancel { reason: Reason::Version, text: fault.to_string() })
            }
            // A drive says only once that it lost what was not durable yet: no stream may be told afterwards that it is.
            Err(fault @ Fault::Sink(_)) => Some(self.give_up(Reason::Drive, fault.to_string())),
            Err(Fault::Refused(why)) => Some(self.give_up(Reason::Refused, why.clone())),
            Err(Fault::Superseded(_)) => self.shared().gave_up.clone(),
            Err(Fault::Cancelled(_)) => {
                self.cancel();
                None
            }
            _ => None,
        };
        if let Some(cancel) = cancel {
            wire.part(cancel, u64::from(self.limits.window_bytes) + (4 << 20));
        }
        served
    }

    /// The first reason is the one that is told.
    fn give_up(&self, reason: Reason, text: String) -> Cancel {
        let cancel = self.shared().gave_up.get_or_insert(Cancel { reason, text }).clone();
        self.cancel();
        cancel
    }

    fn converse<C: Read + Write>(&self, wire: &mut Wire<C>) -> Result<(), Fault> {
        let Frame::Hello(hello) = wire.receive()? else { return Err(Damage::Order(Kind::Hello).into()) };
        let durable = self.take_over(&hello)?;
        let limits = self.limits.and(hello.limits);
        let features = FEATURES & hello.features;
        let version = VERSION_MAX.min(hello.version_max);
        wire.send(&Frame::Welcome(Welcome { version, features, durable, limits }))?;
        wire.flush()?;
        let Frame::Plan(plan) = wire.receive()? else { return Err(Damage::Order(Kind::Plan).into()) };
        let pages = plan.pages;
        self.take_plan(plan)?;
        let (stream, streams) = (hello.stream, hello.streams);
        wire.set_scope(Scope { pages, stream, streams, data_pages: limits.data_pages });
        let mut held = Held { stream, attempt: hello.attempt, ..Held::default() };
        loop {
            let answer = match wire.receive()? {
                Frame::Barrier(barrier) => self.barrier(&mut held, barrier, pages)?,
                frame => {
                    self.take(&mut held, &frame)?;
                    continue;
                }
            };
            wire.send(&Frame::Ack(answer))?;
            wire.flush()?;
            if held.last {
                return Ok(());
            }
        }
    }

    /// The connection becomes the one that may write its stream; returns up to which barrier everything is durable.
    fn take_over(&self, hello: &Hello) -> Result<u64, Fault> {
        if hello.migration != self.migration {
            return Err(Fault::Superseded("a connection for another migration"));
        }
        {
            let mut shared = self.shared();
            if shared.cancelled {
                return Err(Fault::Superseded(GIVEN_UP));
            }
            if *shared.streams.get_or_insert(hello.streams) != hello.streams {
                return Err(Damage::Field { kind: Kind::Hello, field: "number of streams" }.into());
            }
        }
        let mut slot = self.slot(hello.stream)?;
        if hello.attempt <= slot.attempt {
            return Err(Fault::Superseded("a newer connection has this stream"));
        }
        // From here on the older one writes nothing: it looks under this lock.
        slot.attempt = hello.attempt;
        if slot.written > slot.durable {
            self.make_durable()?;
            slot.durable = slot.written;
        }
        Ok(slot.durable)
    }

    fn take_plan(&self, plan: Plan) -> Result<(), Fault> {
        let mut shared = self.shared();
        match &shared.plan {
            Some(known) if *known == plan => Ok(()),
            Some(_) => Err(Damage::Field { kind: Kind::Plan, field: "content (it changed)" }.into()),
            None => {
                if shared.cancelled {
                    return Err(Fault::Superseded(GIVEN_UP));
                }
                (self.accept)(&plan).map_err(Fault::Refused)?;
                shared.plan = Some(plan);
                Ok(())
            }
        }
    }

    fn slot(&self, stream: u16) -> Result<MutexGuard<'_, Slot>, Fault> {
        let slot = self.slots.get(usize::from(stream));
        Ok(lock(slot.ok_or(Damage::Field { kind: Kind::Hello, field: "stream" })?))
    }

    /// The stream, if this connection is still the one that may write it.
    fn own(&self, held: &Held) -> Result<MutexGuard<'_, Slot>, Fault> {
        let slot = self.slot(held.stream)?;
        if slot.attempt == held.attempt {
            Ok(slot)
        } else {
            Err(Fault::Superseded("a newer connection has this stream"))
        }
    }

    fn take(&self, held: &mut Held, frame: &Frame<'_>) -> Result<(), Fault> {
        let kind = frame.kind();
        if held.last && kind != Kind::Pace {
            return Err(Damage::Order(kind).into());
        }
        match frame {
            Frame::Data(data) => {
                let mut space = std::mem::take(&mut held.space);
                let plain = data.plain(&mut space)?;
                let slot = self.own(held)?;
                if slot.ended {
                    return Err(Damage::Order(kind).into());
                }
                match plain {
                    Some(bytes) => self.sink.write(data.run, bytes),
                    None => self.sink.zero(data.run, data.payload == Payload::Hole),
                }
                .map_err(Fault::Sink)?;
                drop(slot);
                held.space = space;
            }
            Frame::Map(part) if held.stream == 0 => held.map.add(*part, MAP_BYTES_MAX, kind)?,
            Frame::State(part) if held.stream == 0 => held.state.add(*part, STATE_BYTES_MAX, kind)?,
            Frame::End(end) => held.last = end.last,
            Frame::Pace(_) => drop(self.own(held)?),
            _ => return Err(Damage::Order(kind).into()),
        }
        Ok(())
    }

    fn barrier(&self, held: &mut Held, barrier: Barrier, pages: u64) -> Result<Barrier, Fault> {
        let wrong = |field| Fault::from(Damage::Field { kind: Kind::Barrier, field });
        let arrived = if held.last && held.stream == 0 { Some(Self::whole(held, pages)?) } else { None };
        let mut slot = self.own(held)?;
        if barrier.id <= slot.written {
            return Err(wrong("id"));
        }
        if held.last && !barrier.flush {
            return Err(wrong("flush"));
        }
        if barrier.flush {
            self.make_durable()?;
            slot.durable = barrier.id;
        }
        slot.written = barrier.id;
        if held.last {
            if arrived.is_some() {
                self.shared().arrived = arrived;
            }
            slot.ended = true;
        }
        Ok(barrier)
    }

    fn whole(held: &mut Held, pages: u64) -> Result<Arrived, Fault> {
        for (pieces, kind) in [(&held.map, Kind::Map), (&held.state, Kind::State)] {
            if !pieces.whole {
                return Err(Damage::Field { kind, field: "end (it is missing)" }.into());
            }
        }
        let wrong = |_| Fault::from(Damage::Field { kind: Kind::Map, field: "content" });
        let mut missing = Map::new(pages).map_err(|_| Fault::Sink(std::io::ErrorKind::OutOfMemory.into()))?;
        codec::decode(&held.map.bytes, &mut missing).map_err(wrong)?;
        Ok(Arrived { missing, state: std::mem::take(&mut held.state.bytes) })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
