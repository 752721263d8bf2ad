//! The pre-copy loop: pass after pass, each of what was written during the one before, until so little is left that the source can stand still for it.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use dirty::{Map, NoMemory, PAGE_BYTES, PAGES_MAX, codec};

use crate::control::{Clock, Control, Progress, Work, per_second, time_of};
use crate::frame::{
    Cancel, Limits, MAP_BYTES_MAX, Plan, STATE_BYTES_MAX, STREAMS_MAX, STRIPE_PAGES, stream_of,
};
use crate::source::Source;
use crate::stream::{Context, Ending, HEARTBEAT, Stream};
use crate::wire::Fault;

/// Less than this says nothing about a rate.
const MEASURED_BYTES_MIN: u64 = 1 << 20;

/// How a copy is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Which migration.
    pub migration: [u8; 16],
    /// Connections side by side, 1 to [`STREAMS_MAX`].
    pub streams: u16,
    /// What is sent at most.
    pub limits: Limits,
    /// Whether LZ4 is tried.
    pub compress: bool,
    /// The other side makes durable at least every so many bytes of a stream: what a break costs at most.
    pub flush_bytes: u64,
    /// How long the source may stand still.
    pub stun_max: Duration,
    /// It stands still for less than it may where another pass leaves less to send; for what takes no longer than this none is made.
    pub rest_min: Duration,
    /// Connections of a stream in a row that get nowhere before the copy stops.
    pub attempts_max: u32,
    /// From a broken connection to the next.
    pub retry: Duration,
    /// How long an ack may take while the other side says that it is there: a slow drive's flush.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            migration: [0; 16],
            streams: 4,
            limits: Limits::default(),
            compress: true,
            flush_bytes: 256 << 20,
            stun_max: Duration::from_millis(10),
            rest_min: Duration::from_millis(1),
            attempts_max: 10,
            retry: Duration::from_secs(1),
            patience: Duration::from_secs(30),
        }
    }
}

/// Why a copy stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Streams, sizes or limits that cannot be.
    #[error("cannot copy: {0}")]
    Options(&'static str),
    /// See [`NoMemory`].
    #[error(transparent)]
    NoMemory(#[from] NoMemory),
    /// The source failed.
    #[error("cannot read what is to be moved: {0}")]
    Source(#[source] io::Error),
    /// By [`Control::cancel`].
    #[error("the migration was cancelled")]
    Cancelled,
    /// The other side gives up.
    #[error("the other host gives up ({:?}): {}", .0.reason, .0.text)]
    Refused(Cancel),
    /// A stream's connections broke, too many in a row. Nothing is lost: run again when the network is back.
    #[error(
        "stream {stream} cannot get through to the other host: {fault}; what arrived is kept, go on when the network is back"
    )]
    Lost {
        /// Which.
        stream: u16,
        /// What became of the last connection.
        fault: Fault,
    },
    /// The other side lost what it had said to be durable.
    #[error("the other host no longer has what it acknowledged on stream {stream}: start the migration anew")]
    Forgotten {
        /// Which.
        stream: u16,
    },
    /// The last pass has begun: only [`Precopy::last`] may follow.
    #[error("the last pass has begun: it can be repeated or cancelled, and nothing else")]
    Closing,
    /// The source was written after its last pass.
    #[error("the source was written after its last pass: it was not suspended; cancel this migration")]
    Written,
    /// Another stream stopped for good.
    #[error("another stream stopped")]
    Aside,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Suspend the source and send the rest by [`Precopy::last`]: this is how long it takes.
    Ready(Duration),
    /// The source is written faster than pages move: slow its writes to so many bytes a second, and run again.
    Throttle {
        /// Bytes a second that it may write.
        to: u64,
        /// Bytes a second that it writes.
        from: u64,
    },
    /// However little is left, the way there and back alone takes longer than the source may stand still.
    Far(Duration),
}

/// One pass of all streams: who is still at it, and whether it makes sense to go on.
#[derive(Debug)]
pub(crate) struct Shift {
    left: Mutex<usize>,
    done: Condvar,
    over: AtomicBool,
}

impl Shift {
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Relaxed)
    }

    /// One stream is done. Calls `beat` from time to time until all are.
    fn leave(&self, failed: bool, clock: &dyn Clock, mut beat: impl FnMut()) {
        if failed {
            self.over.store(true, Relaxed);
        }
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.done.notify_all();
        while !clock.wait(HEARTBEAT, &mut |time| self.have_all_left(time)) {
            beat();
        }
    }

    /// Whether all streams are done, within so long.
    fn have_all_left(&self, time: Duration) -> bool {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.done.wait_timeout_while(left, time, |left| *left > 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0 == 0
    }
}

/// The side that sends. Keeps all it needs to go on after a break.
pub struct Precopy<'a, C> {
    context: Context<'a, C>,
    streams: Vec<Stream<C>>,
    /// Harvested, and not yet handed to the streams.
    staging: Map,
    pass: u32,
    armed: bool,
    closing: bool,
    harvested: Duration,
    /// Bytes of pages a second: as they went, and without pacing.
    rate: Option<(u64, u64)>,
    round_trip: Duration,
}

impl<'a, C: Read + Write + Send> Precopy<'a, C> {
    /// `connect` makes a connection for a stream, with timeouts in both directions: a peer that says nothing is known by them.
    ///
    /// # Errors
    /// [`Error::Options`], [`Error::NoMemory`].
    pub fn new(
        plan: Plan,
        source: &'a dyn Source,
        connect: &'a (dyn Fn(u16) -> io::Result<C> + Sync),
        clock: &'a dyn Clock,
        control: &'a Control,
        options: Options,
    ) -> Result<Self, Error> {
        if plan.pages != source.pages() || plan.pages == 0 || plan.pages > PAGES_MAX {
            return Err(Error::Options("the plan's size is not the source's, or none that can be moved"));
        }
        if options.streams == 0 || options.streams > STREAMS_MAX {
            return Err(Error::Options("there are 1 to 64 streams"));
        }
        if options.limits.window_bytes < Limits::WINDOW_BYTES_MIN || options.limits.data_pages == 0 {
            return Err(Error::Options("the window is smaller than 64 KiB, or frames have no pages"));
        }
        let streams: Result<Vec<_>, Error> =
            (0..options.streams).map(|index| Stream::new(index, plan.pages)).collect();
        Ok(Self {
            streams: streams?,
            staging: Map::new(plan.pages)?,
            context: Context { source, connect, clock, control, plan, options },
            pass: 0,
            armed: false,
            closing: false,
            harvested: Duration::ZERO,
            rate: None,
            round_trip: Duration::ZERO,
        })
    }

    /// Copies until the rest is small enough, or until something must be done about it.
    ///
    /// # Errors
    /// [`Error`]. After [`Error::Lost`] it can be called again, and goes on where it was.
    pub fn run(&mut self) -> Result<Verdict, Error> {
        loop {
            if let Some(verdict) = self.round()? {
                return Ok(verdict);
            }
        }
    }

    /// One pass, and what to make of it. `None`: another is worth while.
    ///
    /// # Errors
    /// As [`Precopy::run`].
    pub fn round(&mut self) -> Result<Option<Verdict>, Error> {
        if self.closing {
            return Err(Error::Closing);
        }
        let (first, planned) = (!self.armed, self.gather()?);
        let (control, clock) = (self.context.control, self.context.clock);
        let before = (control.pages_sent.load(Relaxed), control.waited_ns.load(Relaxed), clock.now());
        self.drive(None)?;
        self.pass += 1;
        self.measure(before);
        if let Some(stream) = self.streams.first_mut()
            && let Some(trip) = stream.round_trip(&self.context)?
        {
            self.round_trip = trip;
        }
        let since = self.harvested;
        self.harvest()?;
        let left = self.staging.count() * PAGE_BYTES;
        let dirty_rate = per_second(left, self.harvested.saturating_sub(since));
        let (rate, unpaced) = self.rate.unwrap_or((0, 0));
        // Nothing was ever sent: nothing is known.
        let rest = (left == 0 || unpaced > 0).then(|| time_of(left, unpaced));
        let round_trip = self.round_trip;
        let stun = rest.map(|rest| rest + round_trip);
        control.report(|progress| {
            *progress = Progress { dirty_rate, round_trip, predicted_stun: stun, ..*progress };
        });
        let Options { stun_max, rest_min, .. } = self.context.options;
        // A pass that leaves nearly as much as it took leads nowhere.
        let shrinks = first || left / 3 < planned * PAGE_BYTES / 4;
        Ok(match stun {
            // What is allowed is not used up where another pass makes it less.
            Some(stun) if stun <= stun_max && (!shrinks || rest <= Some(rest_min)) => {
                Some(Verdict::Ready(stun))
            }
            _ if round_trip > stun_max => Some(Verdict::Far(round_trip)),
            Some(_) if !shrinks => Some(Verdict::Throttle { to: rate / 2, from: dirty_rate }),
            _ => None,
        })
    }

    /// Sends the rest: what was written, the pages that are still `missing` there in any case (fetched later), and the device's state. The source stands
    /// still before this is called, and stays so: if it fails, repeat it, or cancel and let the source go on. When it returns, the
    /// other side has everything durable.
    ///
    /// # Errors
    /// [`Error`].
    pub fn last(&mut self, missing: &Map, state: &[u8]) -> Result<(), Error> {
        if state.len() > STATE_BYTES_MAX {
            return Err(Error::Options("the state is larger than 16 MiB"));
        }
        if missing.pages() != self.context.plan.pages {
            return Err(Error::Options("the map of missing pages has another size than the plan"));
        }
        let map = codec::encode(missing);
        if map.len() > MAP_BYTES_MAX {
            return Err(Error::Options(
                "the map of missing pages is larger than 64 MiB: send more of them first",
            ));
        }
        self.context.control.hurry();
        self.gather()?;
        self.closing = true;
        self.drive(Some((&map, state)))
    }

    /// Says to the other side that this one is still there. Where a caller waits between passes for longer than a socket's timeout.
    pub fn keep_alive(&mut self) {
        for stream in &mut self.streams {
            stream.keep_alive(self.context.control);
        }
    }

    fn harvest(&mut self) -> Result<(), Error> {
        self.context.source.harvest(&self.staging).map_err(Error::Source)?;
        self.harvested = self.context.clock.now();
        Ok(())
    }

    /// Gives each stream what it has to send; returns the pages.
    fn gather(&mut self) -> Result<u64, Error> {
        let (source, streams) = (self.context.source, &self.streams);
        let spread = |first: u64, pages: u64| {
            let (mut at, end) = (first, first.saturating_add(pages).min(source.pages()));
            while at < end {
                let next = ((at / STRIPE_PAGES + 1) * STRIPE_PAGES).min(end);
                let index = usize::from(stream_of(at, self.context.options.streams));
                if let Some(stream) = streams.get(index) {
                    stream.todo().mark(at, next - at);
                }
                at = next;
            }
        };
        if self.armed {
            self.harvest()?;
        } else {
            source.arm().map_err(Error::Source)?;
            self.harvested = self.context.clock.now();
            source.allocated(&mut |first, pages| spread(first, pages)).map_err(Error::Source)?;
            self.armed = true;
        }
        let streams = &self.streams;
        let count = self.context.options.streams;
        self.staging.take(|block, marks| {
            let base = block as u64 * STRIPE_PAGES;
            if let Some(stream) = streams.get(usize::from(stream_of(base, count))) {
                marks.runs(|first, pages| stream.todo().mark(base + u64::from(first), pages.into()));
            }
        });
        let planned = self.streams.iter().map(|stream| stream.todo().count()).sum();
        self.context.control.pages_left.store(planned, Relaxed);
        let pass = self.pass;
        self.context.control.report(|progress| progress.pass = pass);
        Ok(planned)
    }

    /// A pass of all streams.
    fn drive(&mut self, last: Option<(&[u8], &[u8])>) -> Result<(), Error> {
        let ending = Ending { pass: self.pass, last };
        let shift = Shift {
            left: Mutex::new(self.streams.len()),
            done: Condvar::new(),
            over: AtomicBool::new(false),
        };
        let context = &self.context;
        let work = |stream: &mut Stream<C>| {
            let done = stream.pass(context, &ending, &shift);
            shift.leave(done.is_err(), context.clock, || stream.keep_alive(context.control));
            done
        };
        let mut outcomes: Vec<Result<(), Error>> = self.streams.iter().map(|_| Err(Error::Aside)).collect();
        let work = &work;
        match (&mut self.streams[..], &mut outcomes[..]) {
            ([stream], [outcome]) => *outcome = work(stream),
            (streams, outcomes) => {
                let works = streams.iter_mut().zip(outcomes);
                let works =
                    works.map(|(stream, outcome)| Box::new(move || *outcome = work(stream)) as Work<'_>);
                context.clock.at_once(works.collect());
            }
        }
        let mut aside = Ok(());
        for outcome in outcomes {
            match outcome {
                Err(Error::Aside) => aside = Err(Error::Aside),
                Err(error) => return Err(error),
                Ok(()) => {}
            }
        }
        aside
    }

    fn measure(&mut self, (pages, waited_ns, started): (u64, u64, Duration)) {
        let control = self.context.control;
        let bytes = (control.pages_sent.load(Relaxed) - pages) * PAGE_BYTES;
        if bytes == 0 || (bytes < MEASURED_BYTES_MIN && self.rate.is_some()) {
            return;
        }
        let elapsed = self.context.clock.now().saturating_sub(started);
        let waited = control.waited_ns.load(Relaxed).saturating_sub(waited_ns);
        let waited = Duration::from_nanos(waited / u64::from(self.context.options.streams));
        let (rate, unpaced) = (per_second(bytes, elapsed), per_second(bytes, elapsed.saturating_sub(waited)));
        self.rate = Some((rate, unpaced));
        control.report(|progress| (progress.rate, progress.rate_unpaced) = (rate, unpaced));
    }
}
