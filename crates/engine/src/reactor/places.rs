//! The seats on a reactor, and how often each is looked at.
//!
//! ```text
//!  at work --nothing to do--> still, near --20 µs--> still, far
//!     ^                            | rang, due, a message |
//!     +----------------------------+----------------------+
//! ```
//! A seat at work has its turn in every turn of the reactor. Of one that is *still* only the doorbells are looked at, one load each: in
//! every turn while it is *near*, and in rounds when it is *far*, a few seats in each turn. So a reactor with hundreds of idle guests is
//! as quick for those at work as one without, and a guest's first command is still found within a round.

use crate::home::Home;
use crate::message::SsdId;
use crate::seat::{Branch, Seat, Turn};
use crate::vhost::VhostSeat;
use block::Now;
use nvme::watch::Watch;

/// A still seat is near for so long after its last work.
const NEAR_NS: u64 = 20_000;
/// Far seats looked at in one turn, at least: in a turn that found work, and in one that found none.
const LOOKS_BUSY: usize = 2;
const LOOKS_IDLE: usize = 16;
/// The doorbells of so many further far seats are on their way while one is looked at.
const AHEAD: usize = 6;
/// All far seats are looked at within that time, and a turn.
const ROUND_NS: u64 = 400_000;
/// A still seat has a turn all the same, soon after its last work (what it may spend is given back, and it counts no longer as at work at
/// its drive), and later now and then.
const SETTLED_NS: u64 = 12_000_000;
const STILL_NS: u64 = 100_000_000;

/// An ssd's place.
pub(super) enum Place {
    Home(Box<Home>),
    Branch(Box<Branch>),
    Vhost(Box<VhostSeat>),
}

impl Place {
    pub(super) fn id(&self) -> SsdId {
        match self {
            Place::Home(home) => home.seat.id(),
            Place::Branch(branch) => branch.seat.id(),
            Place::Vhost(seat) => seat.id(),
        }
    }

    pub(super) fn seat(&self) -> Option<&Seat> {
        match self {
            Place::Home(home) => Some(&home.seat),
            Place::Branch(branch) => Some(&branch.seat),
            Place::Vhost(_) => None,
        }
    }

    pub(super) fn vhost(&self) -> Option<&VhostSeat> {
        match self {
            Place::Vhost(seat) => Some(seat),
            _ => None,
        }
    }

    /// Queue pairs, or rings, that are served here.
    pub(super) fn pairs(&self) -> usize {
        match self {
            Place::Vhost(seat) => seat.rings().count(),
            _ => self.seat().map_or(0, |seat| seat.group.pairs()),
        }
    }

    fn is_busy(&self) -> bool {
        self.seat().is_some_and(Seat::is_busy) || self.vhost().is_some_and(VhostSeat::is_busy)
    }

    /// Before a sleep. `false`: there is something to do.
    fn arm(&mut self) -> bool {
        match self {
            Place::Vhost(seat) => seat.arm(),
            _ => true,
        }
    }

    /// Until when its limits let nothing begin.
    pub(super) fn shut_until(&self) -> Option<Now> {
        match self {
            Place::Vhost(seat) => seat.shut_until(),
            _ => self.seat()?.shut_until(),
        }
    }

    /// When a timer is due.
    pub(super) fn deadline(&self) -> Option<Now> {
        match self {
            Place::Home(home) => home.deadline(),
            Place::Vhost(seat) => seat.deadline(),
            Place::Branch(_) => None,
        }
    }

    #[inline]
    fn turn(&mut self, now: Now, crowded: bool) -> Turn {
        match self {
            Place::Home(home) => home.turn(now, crowded),
            Place::Branch(branch) => branch.turn(now, crowded),
            Place::Vhost(seat) => seat.turn(now, crowded),
        }
    }

    #[inline]
    fn kick(&mut self) {
        match self {
            Place::Home(home) => home.seat.kick(),
            Place::Branch(branch) => branch.seat.kick(),
            Place::Vhost(seat) => seat.kick(),
        }
    }

    #[inline]
    fn rest(&mut self) -> bool {
        match self {
            Place::Home(home) => home.rest(),
            Place::Branch(branch) => branch.seat.rest(),
            Place::Vhost(seat) => seat.rest(),
        }
    }

    #[inline]
    fn rang(&self) -> bool {
        match self {
            Place::Home(home) => home.rang(),
            Place::Branch(branch) => branch.seat.rang(),
            Place::Vhost(seat) => seat.rang(),
        }
    }

    /// What one that rests waits for. Nothing: only it can tell.
    fn watch(&self, watch: &mut Watch) {
        match self {
            Place::Home(home) => home.watch(watch),
            Place::Branch(branch) => branch.watch(watch),
            Place::Vhost(_) => {}
        }
    }

    fn looked_at(&mut self, at: Now) {
        match self {
            Place::Home(home) => home.seat.looked_at(at),
            Place::Branch(branch) => branch.seat.looked_at(at),
            Place::Vhost(seat) => seat.looked_at(at),
        }
    }
}

/// A place, and what is known of it without a look into it.
pub(super) struct Spot {
    pub(super) id: SsdId,
    pub(super) place: Place,
    /// It has nothing to do; only its doorbells are looked at.
    still: bool,
    /// When it was last looked at, had work, and has a turn at the latest while it is still.
    looked: Now,
    worked: Now,
    due: Now,
    /// While it is far: what it waits for, so that nothing of the place is touched for a look in vain. Its memory is kept for the next time.
    watch: Watch,
}

impl Spot {
    /// Whether it is still still.
    #[inline]
    fn looks_still(&mut self, now: Now) -> bool {
        let still = now < self.due && !self.rang();
        if still {
            self.looked = now;
        }
        still
    }

    /// Whether its doorbells say that it is still no more.
    #[inline]
    fn rang(&self) -> bool {
        self.watch.rang().unwrap_or_else(|| self.place.rang())
    }

    fn go_far(&mut self) {
        self.place.watch(&mut self.watch);
    }

    fn wake(&mut self) {
        self.watch.clear();
        if std::mem::take(&mut self.still) {
            self.place.looked_at(self.looked);
        }
    }

    /// Its turn.
    #[inline]
    pub(super) fn turn(&mut self, now: Now, crowded: bool) -> Turn {
        let turn = self.place.turn(now, crowded);
        self.looked = now;
        if turn.work > 0 {
            self.worked = now;
        } else if self.place.rest() {
            self.still = true;
            let settled = now.0.saturating_sub(self.worked.0) >= SETTLED_NS;
            let at = Now(now.0.saturating_add(if settled { STILL_NS } else { SETTLED_NS }));
            self.due = self.place.deadline().map_or(at, |deadline| deadline.min(at));
        }
        turn
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Places {
    near: Vec<Spot>,
    far: Vec<Spot>,
    /// The next of `far` to be looked at.
    next: usize,
    /// When some were looked at.
    looked: Now,
}

impl Places {
    pub(super) fn add(&mut self, place: Place) {
        let (looked, worked, due) = (Now(0), Now(0), Now(0));
        self.near.push(Spot {
            id: place.id(),
            place,
            still: false,
            looked,
            worked,
            due,
            watch: Watch::default(),
        });
    }

    /// The place of an ssd, which has a turn before it is still again.
    pub(super) fn find(&mut self, id: SsdId) -> Option<&mut Place> {
        if let Some(at) = self.far.iter().position(|spot| spot.id == id) {
            self.approach(at);
        }
        let spot = self.near.iter_mut().find(|spot| spot.id == id)?;
        spot.wake();
        Some(&mut spot.place)
    }

    pub(super) fn remove(&mut self, id: SsdId) -> Option<Place> {
        for spots in [&mut self.near, &mut self.far] {
            if let Some(at) = spots.iter().position(|spot| spot.id == id) {
                return Some(spots.remove(at).place);
            }
        }
        None
    }

    /// All have a turn before they are still again.
    pub(super) fn wake_all(&mut self) {
        self.near.append(&mut self.far);
        self.near.iter_mut().for_each(Spot::wake);
    }

    /// Gives each near place that has something to do to `turn`. What is still for long goes far.
    #[inline]
    pub(super) fn near(&mut self, now: Now, mut turn: impl FnMut(&mut Spot)) {
        let mut at = 0;
        while let Some(spot) = self.near.get_mut(at) {
            if spot.still {
                if spot.looks_still(now) {
                    if now.0.saturating_sub(spot.worked.0) > NEAR_NS {
                        let mut spot = self.near.swap_remove(at);
                        spot.go_far();
                        self.far.push(spot);
                    } else {
                        at += 1;
                    }
                    continue;
                }
                spot.wake();
            }
            turn(spot);
            at += 1;
        }
    }

    /// Looks at some of the far places, or at `all`, and gives those that have something to do to `turn`.
    #[inline]
    pub(super) fn far(&mut self, now: Now, worked: bool, all: bool, mut turn: impl FnMut(&mut Spot)) {
        let count = self.far.len();
        let span_ns = now.0.saturating_sub(std::mem::replace(&mut self.looked, now).0).min(ROUND_NS);
        if count == 0 {
            return;
        }
        let least = if worked { LOOKS_BUSY } else { LOOKS_IDLE };
        let due = usize::try_from((count as u64 * span_ns).div_ceil(ROUND_NS)).unwrap_or(count);
        let looks = if all { count } else { due.max(least).min(count) };
        // One that has work is not kept waiting for looks that can be taken in the next turn.
        let enough = if all { count } else { due.max(LOOKS_BUSY) };
        let mut found = worked;
        for look in 0..looks {
            if found && look >= enough {
                return;
            }
            if self.next >= self.far.len() {
                self.next = 0;
            }
            if let Some(spot) = self.far.get(self.next + AHEAD) {
                spot.watch.prefetch();
            }
            let Some(spot) = self.far.get_mut(self.next) else { return };
            if spot.looks_still(now) {
                self.next += 1;
            } else {
                // Another has its place, and is next.
                found = true;
                self.approach(self.next);
                if let Some(spot) = self.near.last_mut() {
                    turn(spot);
                }
            }
        }
    }

    fn approach(&mut self, at: usize) {
        let mut spot = self.far.swap_remove(at);
        spot.wake();
        self.near.push(spot);
    }

    /// Hands what was submitted to the drives.
    pub(super) fn kick(&mut self) {
        self.near.iter_mut().filter(|spot| !spot.still).for_each(|spot| spot.place.kick());
    }

    /// Something is at a drive, and nothing but that is waited for.
    pub(super) fn are_busy(&self) -> bool {
        let awake = self.near.iter().filter(|spot| !spot.still);
        awake.map(|spot| &spot.place).any(|place| place.is_busy() && place.shut_until().is_none())
    }

    /// Whether any guest rang that rests.
    pub(super) fn rang(&self) -> bool {
        self.near.iter().chain(&self.far).any(Spot::rang)
    }

    /// Before a sleep. `false`: there is something to do.
    pub(super) fn arm(&mut self) -> bool {
        self.all_mut().all(Place::arm)
    }

    /// All that can come is a doorbell, or what wakes a sleeper.
    pub(super) fn are_still(&self) -> bool {
        self.near.iter().all(|spot| spot.still)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Place> {
        self.near.iter().chain(&self.far).map(|spot| &spot.place)
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Place> {
        self.near.iter_mut().chain(&mut self.far).map(|spot| &mut spot.place)
    }
}
