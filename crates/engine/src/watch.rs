//! A seat's door to its drive, and the notes that are taken at it while the ssd is copied to another host.
//!
//! Nobody pays for it while no copy is made: a door is plain until a [`Watch`] reaches its seat, which then goes on through the same door. A write
//! is noted when it *ended*: the copy reads what it harvested, and must find it at the drive. So all that was under way when the watch came has
//! to end before the copy may begin; each seat says so by dropping its [`Heard`], in its own time, and no reactor waits for another.
#![expect(unsafe_code, reason = "guest memory is passed through to the drive")]
// UNSAFETY: `Backend::submit` is implemented by passing the request on, with its promise.

use crate::seat::open_door;
use crate::ssd::Ssd;
use backend::uring::Rings;
use block::{Backend, Completion, Fault, Limits, Op, Outcome, Range, Request, Submitted, Token};
use dirty::{Map, PAGE_BYTES};
use memory::MemoryMap;
use std::collections::HashMap;
use std::convert::Infallible;
use std::os::fd::RawFd;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

/// Dropped when all that was at the drive when it came has ended.
pub(crate) type Heard = Sender<Infallible>;

/// Where writes to an ssd are noted, while they are.
#[derive(Debug, Default)]
pub(crate) struct Watch(Mutex<Watched>);

#[derive(Clone, Debug, Default)]
struct Watched {
    /// Of a copy to another host.
    map: Option<Arc<Map>>,
    /// Of a management controller's log.
    tracked: Option<Arc<Map>>,
    closed: bool,
}

impl Watch {
    /// From here on each door that is opened notes in this map, or in none; those that are open hear of it by a message.
    pub(crate) fn set(&self, map: Option<Arc<Map>>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map = map;
    }

    /// As [`Watch::set`], beside it: in the map of a management controller's log.
    pub(crate) fn track(&self, map: Option<Arc<Map>>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).tracked = map;
    }

    /// The ssd is owned elsewhere: nothing goes to the drive any more, and what is asked for fails. A flush does not: what was acknowledged
    /// is durable where the ssd is now.
    pub(crate) fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
    }

    fn now(&self) -> Watched {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Watched {
    fn is_any(&self) -> bool {
        self.map.is_some() || self.tracked.is_some() || self.closed
    }
}

/// See the module.
pub(crate) struct SeatDoor {
    door: Box<dyn Backend>,
    /// It leads nowhere: the ssd's drive has not come yet.
    awaits_drive: bool,
    notes: Option<Box<Notes>>,
}

/// What a watched door knows of what goes through it.
struct Notes {
    watched: Watched,
    /// What went through and has not come back.
    flights: HashMap<Token, Flight>,
    /// What went before the first watch came: nothing is known of it.
    strangers: usize,
    /// Counts the waits that began.
    era: u64,
    waits: Vec<Wait>,
}

struct Flight {
    era: u64,
    /// What it writes.
    written: Option<Range>,
}

/// Who wants to hear when `left` flights of eras before this one have ended.
struct Wait {
    era: u64,
    left: usize,
    _heard: Heard,
}

impl SeatDoor {
    /// Watched from the start, if the ssd is.
    pub(crate) fn new(door: Box<dyn Backend>, watch: &Watch) -> Self {
        let watched = watch.now();
        let notes = watched.is_any().then(|| Box::new(Notes::new(watched, 0)));
        Self { door, awaits_drive: false, notes }
    }

    /// To the drive of an ssd, on this thread.
    pub(crate) fn of(ssd: &Ssd, rings: &Rings, memory: &Arc<MemoryMap>) -> Self {
        // Looked at first: a drive that comes in between is at worst opened twice, and never missed.
        let awaits_drive = !ssd.drive.is_there();
        let mut door = Self { awaits_drive, ..Self::new(open_door(ssd, rings), &ssd.watch) };
        door.memory_changed(memory);
        door
    }

    /// The ssd's watch has changed, or its drive has come, or somebody wants to know when the drive has ended what it has now.
    pub(crate) fn heed(&mut self, ssd: &Ssd, rings: &Rings, memory: &Arc<MemoryMap>, heard: Heard) {
        if self.awaits_drive && ssd.drive.is_there() {
            (self.door, self.awaits_drive) = (open_door(ssd, rings), false);
            self.door.memory_changed(memory);
        }
        self.watch(&ssd.watch, heard);
    }

    fn watch(&mut self, watch: &Watch, heard: Heard) {
        let (watched, strangers) = (watch.now(), self.door.in_flight());
        if self.notes.is_none() && !watched.is_any() && strangers == 0 {
            return;
        }
        let notes = self.notes.get_or_insert_with(|| Box::new(Notes::new(Watched::default(), strangers)));
        notes.watched = watched;
        notes.wait(heard);
        if notes.are_idle() {
            self.notes = None;
        }
    }
}

impl Notes {
    fn new(watched: Watched, strangers: usize) -> Self {
        Self { watched, flights: HashMap::new(), strangers, era: 0, waits: Vec::new() }
    }

    fn wait(&mut self, heard: Heard) {
        self.era += 1;
        let left = self.flights.len() + self.strangers;
        if left > 0 {
            self.waits.push(Wait { era: self.era, left, _heard: heard });
        }
    }

    /// There is nothing to note or to wait for any more.
    fn are_idle(&self) -> bool {
        !self.watched.is_any() && self.strangers == 0 && self.flights.is_empty() && self.waits.is_empty()
    }

    fn submitted(&mut self, request: &Request<'_>, submitted: Submitted) {
        match submitted {
            // A write that failed may have landed in part.
            Submitted::Ended(_) => {
                dirty::settle();
                self.note(written(request));
            }
            Submitted::Queued => {
                let flight = Flight { era: self.era, written: written(request) };
                _ = self.flights.insert(request.token, flight);
            }
            Submitted::Full => {}
        }
    }

    fn ended(&mut self, done: &[Completion]) {
        // Before the notes: see `dirty::settle`.
        dirty::settle();
        for (token, _) in done {
            match self.flights.remove(token) {
                Some(Flight { era, written }) => {
                    self.note(written);
                    self.landed(era);
                }
                None => {
                    self.strangers = self.strangers.saturating_sub(1);
                    self.landed(0);
                }
            }
        }
    }

    fn note(&self, written: Option<Range>) {
        let Some(range) = written else { return };
        let first = range.start_bytes / PAGE_BYTES;
        let end = range.start_bytes.saturating_add(range.len_bytes).div_ceil(PAGE_BYTES);
        for map in [&self.watched.map, &self.watched.tracked].into_iter().flatten() {
            map.mark(first, end.saturating_sub(first));
        }
    }

    /// A flight of this era has ended.
    fn landed(&mut self, era: u64) {
        for wait in self.waits.iter_mut().filter(|wait| era < wait.era) {
            wait.left -= 1;
        }
        self.waits.retain(|wait| wait.left > 0);
    }
}

fn written(request: &Request<'_>) -> Option<Range> {
    match request.op {
        Op::Write { .. } | Op::WriteZeroes { .. } | Op::Discard => Some(request.range),
        Op::Read | Op::Flush => None,
    }
}

impl Backend for SeatDoor {
    fn limits(&self) -> Limits {
        self.door.limits()
    }

    #[inline]
    unsafe fn submit(&mut self, request: &Request<'_>) -> Submitted {
        if self.notes.as_ref().is_some_and(|notes| notes.watched.closed) {
            let is_flush = request.op == Op::Flush;
            return Submitted::Ended(if is_flush { Outcome::Done } else { Outcome::Failed(Fault::Gone) });
        }
        // SAFETY: the caller's promise is handed on as it is.
        let submitted = unsafe { self.door.submit(request) };
        if let Some(notes) = &mut self.notes {
            notes.submitted(request, submitted);
        }
        submitted
    }

    #[inline]
    fn kick(&mut self) {
        self.door.kick();
    }

    #[inline]
    fn poll(&mut self, done: &mut Vec<Completion>) {
        let known = done.len();
        self.door.poll(done);
        if let Some(notes) = &mut self.notes {
            notes.ended(&done[known..]);
            if notes.are_idle() {
                self.notes = None;
            }
        }
    }

    #[inline]
    fn in_flight(&self) -> usize {
        self.door.in_flight()
    }

    fn at_drive(&self) -> usize {
        self.door.at_drive()
    }

    fn give_up_waiting(&mut self, whose: &dyn Fn(Token) -> bool) {
        self.door.give_up_waiting(whose);
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.door.wake_fd()
    }

    fn memory_changed(&mut self, map: &Arc<MemoryMap>) {
        self.door.memory_changed(map);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, TryRecvError, channel};

    /// A drive that ends what it is told to.
    #[derive(Default)]
    struct Slow(Vec<Token>, Arc<Mutex<Vec<Token>>>);

    impl Backend for Slow {
        fn limits(&self) -> Limits {
            Limits { capacity_bytes: 1 << 30, block_bytes: 512, segments_max: 1, discard: true }
        }

        unsafe fn submit(&mut self, request: &Request<'_>) -> Submitted {
            if request.op == Op::Flush {
                return Submitted::Ended(Outcome::Done);
            }
            self.0.push(request.token);
            Submitted::Queued
        }

        fn kick(&mut self) {}

        fn poll(&mut self, done: &mut Vec<Completion>) {
            let ended: Vec<_> = self.1.lock().unwrap().drain(..).collect();
            self.0.retain(|token| !ended.contains(token));
            done.extend(ended.into_iter().map(|token| (token, Outcome::Done)));
        }

        fn in_flight(&self) -> usize {
            self.0.len()
        }
    }

    struct Bench {
        door: SeatDoor,
        watch: Watch,
        ends: Arc<Mutex<Vec<Token>>>,
    }

    impl Bench {
        fn new() -> Self {
            let (slow, watch) = (Slow::default(), Watch::default());
            let ends = Arc::clone(&slow.1);
            Self { door: SeatDoor::new(Box::new(slow), &watch), watch, ends }
        }

        fn go(&mut self, token: u64, op: Op, start_bytes: u64, len_bytes: u64) {
            let range = Range { start_bytes, len_bytes };
            // SAFETY: no memory is named.
            _ = unsafe { self.door.submit(&Request { token: Token(token), op, range, data: &[] }) };
        }

        fn end(&mut self, tokens: &[u64]) {
            self.ends.lock().unwrap().extend(tokens.iter().map(|token| Token(*token)));
            self.door.poll(&mut Vec::with_capacity(8));
        }

        fn wait(&mut self) -> Receiver<Infallible> {
            let (heard, all) = channel();
            self.door.watch(&self.watch, heard);
            all
        }
    }

    const WRITE: Op = Op::Write { fua: false };

    fn is_over(wait: &Receiver<Infallible>) -> bool {
        matches!(wait.try_recv(), Err(TryRecvError::Disconnected))
    }

    fn marked(map: &Map) -> Vec<u64> {
        let mut pages = Vec::new();
        map.take(|block, marks| {
            marks.runs(|first, count| {
                pages.extend((first..first + count).map(|page| block as u64 * 4096 + u64::from(page)));
            });
        });
        pages
    }

    #[test]
    fn nothing_goes_to_a_drive_whose_ssd_is_owned_elsewhere_and_what_is_asked_for_fails() {
        let mut bench = Bench::new();
        bench.watch.close();
        _ = bench.wait();
        bench.go(1, WRITE, 0, 4096);
        assert_eq!(bench.door.in_flight(), 0);
        let flush = Request {
            token: Token(2),
            op: Op::Flush,
            range: Range { start_bytes: 0, len_bytes: 0 },
            data: &[],
        };
        // SAFETY: no memory is named.
        assert_eq!(unsafe { bench.door.submit(&flush) }, Submitted::Ended(Outcome::Done));
        assert!(
            SeatDoor::new(Box::new(Slow::default()), &bench.watch).notes.is_some(),
            "nor through a door that is opened later"
        );
    }

    #[test]
    fn a_write_is_noted_when_it_has_ended_and_a_read_is_not() {
        let mut bench = Bench::new();
        let map = Arc::new(Map::new(1 << 18).unwrap());
        bench.watch.set(Some(Arc::clone(&map)));
        assert!(is_over(&bench.wait()), "nothing was at the drive");
        bench.go(1, WRITE, 4096 * 5 + 512, 4096);
        bench.go(2, Op::Read, 0, 4096);
        bench.go(3, Op::Discard, 4096 * 9, 8192);
        bench.go(4, Op::Flush, 0, 0);
        assert!(marked(&map).is_empty(), "the copy would read what is not there yet");
        bench.end(&[2, 1]);
        assert_eq!(marked(&map), [5, 6]);
        bench.end(&[3]);
        assert_eq!(marked(&map), [9, 10]);
        bench.watch.set(None);
        _ = bench.wait();
        bench.go(5, WRITE, 0, 4096);
        bench.end(&[5]);
        assert!(marked(&map).is_empty());
    }

    #[test]
    fn who_waits_hears_when_all_that_was_under_way_has_ended_and_nothing_of_later() {
        let mut bench = Bench::new();
        [1, 2].into_iter().for_each(|token| bench.go(token, WRITE, 0, 4096));
        let first = bench.wait();
        // A slot that is free again is used again.
        bench.end(&[1]);
        bench.go(1, WRITE, 0, 4096);
        bench.go(3, Op::Read, 0, 4096);
        let second = bench.wait();
        assert!(!is_over(&first));
        bench.go(4, WRITE, 0, 4096);
        bench.end(&[2]);
        assert!(is_over(&first) && !is_over(&second));
        bench.end(&[3]);
        assert!(!is_over(&second));
        bench.end(&[1]);
        assert!(is_over(&second), "what came later does not count");
    }
}
