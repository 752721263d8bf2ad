//! What ends with a process and what does not: the drive and the guests stay, everything else is dropped when it dies.
//!
//! The pool's own stores and the doors' requests are effects. Before each, the process may end; and before each store of the pool's
//! thread the reactors may have had any number of turns, as they do while a real thread waits for its drive.
#![expect(unsafe_code, reason = "`Backend::submit` is an unsafe method")]
// UNSAFETY: no unsafe block: requests are handed to the model drive, whose own module says when it touches their memory.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use block::{Backend, Completion, Limits, Request, Submitted};
use volume::steward::Medium;

use super::guests::Guests;
use crate::disk::Disk;
use crate::rng::Rng;

/// Copied, zeroed or looked at between two turns of the reactors.
const PIECE_BYTES: u64 = 256 << 10;

thread_local! {
    static HERE: RefCell<Option<Rc<Outside>>> = const { RefCell::new(None) };
}

/// The process ended: what unwinds.
pub(super) struct Died;

/// What a process does not take along.
pub(super) struct Outside {
    pub(super) disk: RefCell<Disk>,
    pub(super) guests: RefCell<Guests>,
    rng: RefCell<Rng>,
    /// Effects until the process ends.
    fuse: Cell<u64>,
    pub(super) points: Cell<u64>,
    /// The drive does all that it says.
    honest: Cell<bool>,
}

impl Outside {
    pub(super) fn new(disk: Disk, guests: Guests, rng: Rng) -> Rc<Self> {
        let this = Rc::new(Self {
            disk: RefCell::new(disk),
            guests: RefCell::new(guests),
            rng: RefCell::new(rng),
            fuse: Cell::new(u64::MAX),
            points: Cell::new(0),
            honest: Cell::new(false),
        });
        HERE.set(Some(Rc::clone(&this)));
        this
    }

    /// The process ends before so many more effects; `u64::MAX`: it does not.
    pub(super) fn arm(&self, effects: u64) {
        self.fuse.set(effects);
    }

    /// From now on the drive fails nothing.
    pub(super) fn calm(&self) {
        self.honest.set(true);
        self.disk.borrow_mut().calm();
    }

    /// Before an effect.
    pub(super) fn point(&self) {
        self.points.set(self.points.get() + 1);
        match self.fuse.get() {
            u64::MAX => {}
            0 => {
                self.fuse.set(u64::MAX);
                std::panic::resume_unwind(Box::new(Died));
            }
            left => self.fuse.set(left - 1),
        }
    }

    /// While the pool's thread waits for its drive.
    fn meanwhile(&self) {
        let turns = self.rng.borrow_mut().below(4);
        for _ in 0..turns {
            self.guests.borrow_mut().turn(&self.disk);
        }
    }

    fn effect(&self) {
        self.meanwhile();
        self.point();
    }

    fn chance(&self, in_thousand: usize) -> bool {
        !self.honest.get() && self.rng.borrow_mut().below(1000) < in_thousand
    }
}

fn here() -> Rc<Outside> {
    HERE.with_borrow(|here| here.as_ref().map(Rc::clone)).expect("a world is there")
}

/// The drive, as the pool's thread has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drive;

impl volume::Disk for Drive {
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(here().disk.borrow().limits().capacity_bytes)
    }

    fn read_at(&self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
        into.copy_from_slice(here().disk.borrow().look(offset_bytes, into.len() as u64));
        Ok(())
    }

    fn write_at(&self, offset_bytes: u64, from: &[u8]) -> io::Result<()> {
        let outside = here();
        outside.effect();
        outside.disk.borrow_mut().write_now(offset_bytes, from.len() as u64, Some(from));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let outside = here();
        outside.effect();
        outside.disk.borrow_mut().flush_now();
        Ok(())
    }
}

impl Medium for Drive {
    fn zero(&self, start_bytes: u64, len_bytes: u64) -> io::Result<()> {
        let outside = here();
        for (at, len) in pieces(len_bytes) {
            outside.effect();
            // Some drives say that they did it.
            if !outside.chance(5) {
                outside.disk.borrow_mut().write_now(start_bytes + at, len, None);
            }
        }
        Ok(())
    }

    fn is_zero(&self, start_bytes: u64, len_bytes: u64) -> io::Result<bool> {
        let outside = here();
        outside.meanwhile();
        let disk = outside.disk.borrow();
        Ok(is_blank(disk.look(start_bytes, len_bytes)))
    }

    fn copy(&self, from_bytes: u64, to_bytes: u64, len_bytes: u64) -> io::Result<()> {
        let outside = here();
        for (at, len) in pieces(len_bytes) {
            outside.effect();
            if outside.chance(5) {
                return Err(io::Error::other("the drive failed"));
            }
            let mut disk = outside.disk.borrow_mut();
            let bytes = disk.look(from_bytes + at, len).to_vec();
            disk.write_now(to_bytes + at, len, Some(&bytes));
        }
        Ok(())
    }
}

/// By whole blocks, which is much faster than by bytes.
pub(super) fn is_blank(bytes: &[u8]) -> bool {
    static ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|block| ZEROS.starts_with(block))
}

fn pieces(len_bytes: u64) -> impl Iterator<Item = (u64, u64)> {
    let step = usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX);
    (0..len_bytes).step_by(step).map(move |at| (at, PIECE_BYTES.min(len_bytes - at)))
}

/// The drive, as one reactor has it.
pub(super) struct Lower {
    pub(super) number: usize,
    in_flight: usize,
}

impl Lower {
    pub(super) fn new(number: usize) -> Self {
        Self { number, in_flight: 0 }
    }
}

impl Backend for Lower {
    fn limits(&self) -> Limits {
        here().disk.borrow().limits()
    }

    unsafe fn submit(&mut self, request: &Request<'_>) -> Submitted {
        let outside = here();
        outside.point();
        let submitted = outside.disk.borrow_mut().submit(self.number, request);
        self.in_flight += usize::from(submitted == Submitted::Queued);
        submitted
    }

    fn kick(&mut self) {}

    fn poll(&mut self, done: &mut Vec<Completion>) {
        let outside = here();
        let mut disk = outside.disk.borrow_mut();
        while done.len() < done.capacity() {
            let Some(ended) = disk.reap(self.number) else { break };
            self.in_flight -= 1;
            done.push(ended);
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}
