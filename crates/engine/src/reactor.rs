//! A reactor: one thread, run to completion, shared nothing.
//!
//! A turn looks at the mailbox, then gives each seat its turn: completions of the drive, submission doorbells, completion
//! doorbells. What all of them submitted then goes to the kernel with one call. Without work it spins for a while, then sleeps for spans that grow with the pause up to the configured one; with no
//! guest enabled it sleeps until a message comes.

mod places;

use crate::blame::Line;
use crate::clock::{Clock, ticks};
use crate::crew::Crew;
use crate::home::{Goal, Home, Next};
use crate::keeper::Keeper;
use crate::message::{Address, Answer, Call, Life, Message, News, Pair, SsdId};
use crate::records::Records;
use crate::seat::{Branch, Seat, Stand, Turn};
use crate::stats::{Counters, add};
use crate::vhost::{Order, VhostSeat};
use crate::watch::Heard;
use backend::RingHolder;
use backend::uring::Rings;
use block::Now;
use places::{Place, Places, Spot};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;

/// The shortest sleep.
const SLEEP_MIN_NS: u64 = 10_000;
/// A sleep lasts this part of the quiet time before it: what comes after a pause waits at most that much longer.
const SLEEP_PART: u64 = 8;
/// With I/O at the drive a reactor spins this much longer before it sleeps: a drive answers within it.
const BUSY_SPIN_NS: u64 = 2_000_000;

/// How long a reactor looks at nothing but doorbells before it takes a whole turn again.
const DOZE_NS: u64 = 100_000_000;
/// Ssds that are at work within that time are so at once.
const CROWD_NS: u64 = 10_000_000;
/// How often clients are checked for memory that they took away.
const CHECK_NS: u64 = 10_000_000;

/// How a reactor runs.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) cpu: Option<usize>,
    pub(crate) spin_ns: u64,
    pub(crate) idle_ns: u64,
    pub(crate) clock: Clock,
}

/// Whether several ssds are at work here.
#[derive(Default)]
struct Crowd {
    last: Option<(SsdId, Now)>,
    until: Now,
}

impl Crowd {
    #[inline]
    fn works(&mut self, id: SsdId, now: Now) {
        if let Some((other, at)) = self.last
            && other != id
            && now.0.saturating_sub(at.0) < CROWD_NS
        {
            self.until = Now(now.0.saturating_add(CROWD_NS));
        }
        self.last = Some((id, now));
    }

    #[inline]
    fn is_there(&self, now: Now) -> bool {
        now < self.until
    }
}

/// What a reactor's thread begins with.
#[derive(Clone)]
struct Setup {
    /// All shared reactors; only this one for a private reactor.
    crew: Arc<Crew>,
    /// Its index there.
    here: usize,
    options: Options,
    records: Records,
    keeper: Option<Arc<Keeper>>,
    counters: Option<Counters>,
    /// A private reactor ends with its only ssd.
    shared: bool,
}

/// Starts a shared reactor.
pub(crate) fn spawn(
    here: usize,
    crew: Arc<Crew>,
    options: Options,
    records: Records,
    keeper: Option<Arc<Keeper>>,
    counters: Counters,
) -> std::io::Result<JoinHandle<()>> {
    let manned = Arc::clone(&crew);
    let setup = Setup { crew, here, options, records, keeper, counters: Some(counters), shared: true };
    let thread = setup.spawn(format!("reactor-{here}"))?;
    manned.man(here);
    Ok(thread)
}

impl Setup {
    fn spawn(self, name: String) -> std::io::Result<JoinHandle<()>> {
        // Drives are opened on the thread and never leave it, so the reactor is made there.
        let run = || {
            let line = if self.shared { Line::of_reactor(self.here) } else { Line::of_other() };
            let rings = Rings::new(self.keeper.clone().map(|keeper| keeper as Arc<dyn RingHolder>));
            let crowd = Crowd::default();
            Reactor {
                setup: self,
                places: Places::default(),
                forwards: Vec::new(),
                rings,
                crowd,
                stopping: false,
                repin: false,
                complained: None,
                line,
            }
            .run();
        };
        std::thread::Builder::new().name(name).spawn(run)
    }
}

/// See the module.
struct Reactor {
    setup: Setup,
    places: Places,
    /// Where the homes are that were here: their mail follows them.
    forwards: Vec<(SsdId, Address)>,
    /// What the seats' doors to their drives share.
    rings: Rings,
    crowd: Crowd,
    stopping: bool,
    /// Its CPU has changed.
    repin: bool,
    /// When it last said that a private reactor cannot be started.
    complained: Option<std::time::Instant>,
    /// Says whose turn it is.
    line: Line,
}

impl Reactor {
    /// Starts a private reactor for one ssd.
    fn spawn_private(&self, id: SsdId) -> std::io::Result<Address> {
        let crew = Crew::private()?;
        let address = Arc::clone(crew.address(0));
        let setup = Setup {
            crew,
            here: 0,
            options: Options { cpu: None, ..self.setup.options.clone() },
            records: self.setup.records.clone(),
            keeper: self.setup.keeper.clone(),
            counters: None,
            shared: false,
        };
        setup.spawn(format!("private-{}", id.0))?;
        Ok(address)
    }

    fn stand(&self) -> Stand<'_> {
        let lane = if self.setup.shared { self.setup.here } else { metrics::PRIVATE_LANE };
        Stand { rings: &self.rings, lane }
    }

    fn mailbox(&self) -> &Address {
        self.setup.crew.address(self.setup.here)
    }

    fn run(mut self) {
        crate::pool::here(self.mailbox());
        let anywhere = rustix::thread::sched_getaffinity(None).ok();
        self.pin(anywhere.as_ref());
        // Guests may wait for a shared reactor of a keeper's engine, and an ssd that needs a ring may come at any time: it is there by then.
        if self.setup.keeper.is_some() && self.setup.shared {
            // What is wrong is said with the first drive.
            let _ = self.rings.prepare();
        }
        // Sleeps are short: the default slack of 50 µs would double them.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        let mut last = ticks();
        let mut quiet_ns = 0;
        let mut checked = Now(0);
        let mut slept = true;
        while !self.stopping {
            let now = self.setup.options.clock.at(last);
            let turn = self.turn(now, std::mem::take(&mut slept));
            if now.0.saturating_sub(checked.0) >= CHECK_NS {
                self.check_clients();
                self.count_places();
                checked = now;
            }
            if std::mem::take(&mut self.repin) {
                self.pin(anywhere.as_ref());
            }
            let after = ticks();
            let span_ns = self.setup.options.clock.span_ns(after.saturating_sub(last));
            last = after;
            self.count(&turn, span_ns);
            quiet_ns = if turn.is_open { 0 } else { quiet_ns + span_ns };
            // An ssd may have been given up in a turn without work: nothing would wake a private reactor any more.
            if turn.work > 0 || self.stopping {
                continue;
            }
            if quiet_ns >= self.spin_ns() {
                let longest_ns = self.setup.options.idle_ns;
                self.count_places();
                self.sleep((quiet_ns / SLEEP_PART).clamp(SLEEP_MIN_NS.min(longest_ns), longest_ns), now);
                slept = true;
                // The next turn is not at the time when this one fell asleep.
                let woken = ticks();
                let slept_ns = self.setup.options.clock.span_ns(woken.saturating_sub(last));
                last = woken;
                quiet_ns += slept_ns;
                self.count_sleep(slept_ns);
            } else {
                std::hint::spin_loop();
            }
        }
        self.mailbox().close();
    }

    /// `all`: looks at every place, as after a sleep.
    fn turn(&mut self, now: Now, all: bool) -> Turn {
        let mut sum = Turn::default();
        if self.mailbox().has_mail() {
            sum.work += self.read_mail(now);
        }
        sum.is_open = sum.work > 0;
        let Self { places, crowd, line, .. } = self;
        let mut moves = None;
        let mut turn = |spot: &mut Spot| {
            line.turn_to(Some(spot.id.0));
            let turn = spot.turn(now, crowd.is_there(now));
            sum.work += turn.work;
            sum.commands += turn.commands;
            if turn.work > 0 {
                crowd.works(spot.id, now);
                // One that has reached its limits does not keep the reactor awake for the next look at its queues.
                sum.is_open |= spot.place.shut_until().is_none();
            }
            if let Place::Home(home) = &spot.place
                && home.moves()
            {
                moves = Some(spot.id);
            }
            turn.work > 0
        };
        let mut worked = false;
        places.near(now, |spot| worked |= turn(spot));
        places.far(now, worked, all, |spot| _ = turn(spot));
        if let Some(id) = moves {
            self.move_out(id);
        }
        self.places.kick();
        sum
    }

    fn check_clients(&mut self) {
        for place in self.places.all_mut() {
            match place {
                Place::Home(home) => home.check_client(),
                Place::Vhost(seat) => seat.check_client(),
                _ => {}
            }
        }
    }

    fn spin_ns(&self) -> u64 {
        self.setup.options.spin_ns + if self.places.are_busy() { BUSY_SPIN_NS } else { 0 }
    }

    /// Sleeps until a message, a completion of a drive, a timer, or the time to look at the doorbells again. When all that
    /// can come is a doorbell, looks at nothing else and sleeps on.
    fn sleep(&mut self, sleep_ns: u64, now: Now) {
        self.line.turn_to(None);
        if !self.places.arm() || self.rings.is_ready() {
            return;
        }
        let dozes = sleep_ns == self.setup.options.idle_ns && self.places.are_still();
        let seats = || self.places.all().filter_map(Place::seat);
        let disks = || self.places.all().filter_map(Place::vhost);
        let mut fds: Vec<_> =
            seats().filter_map(Seat::wake_fd).chain(disks().flat_map(VhostSeat::wake_fds)).collect();
        // Drives of one ring.
        fds.sort_unstable_by_key(AsRawFd::as_raw_fd);
        fds.dedup_by_key(|fd| fd.as_raw_fd());
        let unwatched = seats().any(|seat| seat.is_busy() && seat.wake_fd().is_none());
        let polled =
            unwatched || seats().any(|seat| seat.power.is_enabled()) || disks().any(VhostSeat::is_polled);
        let times =
            self.places.all().flat_map(|place| place.deadline().into_iter().chain(place.shut_until()));
        let deadline_ns = times.map(|at| at.0.saturating_sub(now.0)).min();
        let timeout_ns = deadline_ns.into_iter().chain(polled.then_some(sleep_ns)).min();
        let rounds =
            if dozes && polled && deadline_ns.is_none_or(|ns| ns > DOZE_NS) { DOZE_NS / sleep_ns } else { 1 };
        for _ in 0..rounds.max(1) {
            let ready = self.mailbox().sleep(&fds, timeout_ns);
            if let Some(counters) = &self.setup.counters {
                add(&counters.get().sleeps, 1);
            }
            self.places.all().filter_map(Place::vhost).for_each(VhostSeat::woken);
            if ready || self.mailbox().has_mail() || self.places.rang() {
                return;
            }
        }
    }

    fn count(&self, turn: &Turn, span_ns: u64) {
        let Some(counters) = &self.setup.counters else { return };
        let counters = counters.get();
        if turn.work > 0 {
            add(&counters.busy_ns, span_ns);
            add(&counters.commands, turn.commands as u64);
        } else {
            add(&counters.idle_ns, span_ns);
        }
        add(&counters.turns, 1);
    }

    /// For whoever looks.
    fn count_places(&self) {
        let Some(counters) = &self.setup.counters else { return };
        let counters = counters.get();
        let pairs: usize = self.places.all().map(Place::pairs).sum();
        counters.seats.store(self.places.all().count() as u64, Relaxed);
        counters.pairs.store(pairs as u64, Relaxed);
        counters.on_duty.store(u64::from(self.setup.crew.is_on_duty(self.setup.here)), Relaxed);
    }

    fn pin(&self, anywhere: Option<&CpuSet>) {
        match (self.setup.options.cpu, anywhere) {
            (Some(cpu), _) => {
                let mut set = CpuSet::new();
                set.set(cpu);
                if let Err(error) = sched_setaffinity(None, &set) {
                    tracing::warn!(cpu, %error, "a reactor cannot be pinned to its CPU; it runs unpinned");
                }
            }
            (None, Some(anywhere)) => _ = sched_setaffinity(None, anywhere),
            (None, None) => {}
        }
    }

    fn count_sleep(&self, span_ns: u64) {
        if let Some(counters) = &self.setup.counters {
            add(&counters.get().idle_ns, span_ns);
        }
    }

    fn read_mail(&mut self, now: Now) -> usize {
        let mail = self.mailbox().take();
        let count = mail.len();
        for message in mail {
            self.read(message, now);
        }
        count
    }

    fn read(&mut self, message: Message, now: Now) {
        self.line.turn_to(message.ssd().map(|ssd| ssd.0));
        match message {
            Message::Settle(plan) => {
                self.vacate(plan.ssd.id);
                self.forwards.retain(|(id, _)| *id != plan.ssd.id);
                let reactors = (Arc::clone(&self.setup.crew), self.setup.here);
                let home = Home::new(*plan, reactors, self.setup.records.clone(), &self.stand(), now);
                self.places.add(Place::Home(Box::new(home)));
                // It was on its way when this reactor went off duty, or has always had its power from here.
                if self.setup.shared && !self.setup.crew.is_on_duty(self.setup.here) {
                    self.muster(now);
                }
            }
            Message::Branch(plan) => {
                let branch = Branch::new(*plan, &self.stand());
                self.places.add(Place::Branch(Box::new(branch)));
            }
            Message::Leave(id) => self.vacate(id),
            Message::Call(id, call, reply) => self.call(id, call, reply, now),
            Message::Group(id, command) => {
                if let Some(Place::Branch(branch)) = self.find(id) {
                    branch.command(command);
                }
            }
            Message::Interrupts(id, table) => {
                if let Some(Place::Branch(branch)) = self.find(id) {
                    branch.interrupts(table);
                }
            }
            Message::News(life, news) => self.news(life, news, now),
            Message::Persisted(life, ok) => match self.find(life.ssd) {
                Some(Place::Home(home)) if home.seat.life() == life => home.persisted(ok, now),
                Some(Place::Home(_)) => {}
                _ => self.forward(life.ssd, Message::Persisted(life, ok)),
            },
            Message::Managed(life, ticket, report) => match self.find(life.ssd) {
                Some(Place::Home(home)) if home.seat.life() == life => home.managed(ticket, *report, now),
                Some(Place::Home(_)) => {}
                _ => self.forward(life.ssd, Message::Managed(life, ticket, report)),
            },
            Message::Surveyed(life, ticket, found) => match self.find(life.ssd) {
                Some(Place::Home(home)) if home.seat.life() == life => home.surveyed(ticket, found, now),
                Some(Place::Home(_)) => {}
                _ => self.forward(life.ssd, Message::Surveyed(life, ticket, found)),
            },
            Message::Limits(id) => self.limits_changed(id),
            Message::Watch(id, heard) => self.heed(id, heard),
            Message::Vhost(id, order) => self.order(id, order, now),
            Message::Look => self.places.wake_all(),
            Message::Muster => self.muster(now),
            Message::Shift(id, cqid, to) => match self.find(id) {
                Some(Place::Home(home)) => home.shift(cqid, to, now),
                _ => self.forward(id, Message::Shift(id, cqid, to)),
            },
            // Nobody waits for it any more when it cannot be sent.
            Message::Pairs(reply) => _ = reply.send(self.pairs()),
            Message::Options(options) => {
                self.repin = self.setup.options.cpu != options.cpu;
                self.setup.options = *options;
            }
            Message::Stop => self.stopping = true,
        }
    }

    fn muster(&mut self, now: Now) {
        self.places.wake_all();
        let (crew, here) = (Arc::clone(&self.setup.crew), self.setup.here);
        for place in self.places.all_mut() {
            if let Place::Home(home) = place {
                home.muster(&crew, here, now);
            }
        }
    }

    fn pairs(&self) -> Vec<Pair> {
        let here = self.setup.here;
        let of = |place: &Place| {
            let ssd = place.id();
            match place {
                Place::Home(home) => {
                    let pair = |(queue, at, done)| Pair { ssd, queue, at, done, ring: false };
                    home.pairs().into_iter().map(pair).collect()
                }
                Place::Branch(_) => Vec::new(),
                Place::Vhost(seat) => {
                    let pair = |(queue, done)| Pair { ssd, queue, at: here, done, ring: true };
                    seat.rings().map(pair).collect::<Vec<_>>()
                }
            }
        };
        self.places.all().flat_map(of).collect()
    }

    fn news(&mut self, life: Life, news: News, now: Now) {
        match self.find(life.ssd) {
            Some(Place::Home(home)) if home.seat.life() == life => home.news(news, now),
            Some(Place::Home(_)) => {}
            _ => self.forward(life.ssd, Message::News(life, news)),
        }
    }

    /// To where an ssd's home went from here. What cannot be brought is dropped, and with it the sender of an answer.
    fn forward(&self, id: SsdId, message: Message) {
        if let Some((_, address)) = self.forwards.iter().find(|(ssd, _)| *ssd == id) {
            address.send(message);
        }
    }

    fn call(&mut self, id: SsdId, call: Call, reply: SyncSender<Answer>, now: Now) {
        match self.find(id) {
            Some(Place::Home(home)) => {
                if let Next::Gone = home.call(call, reply, now) {
                    self.vacate(id);
                    self.stopping |= !self.setup.shared;
                }
            }
            // An answer that nobody sends is ENODEV.
            _ => self.forward(id, Message::Call(id, call, reply)),
        }
    }

    fn order(&mut self, id: SsdId, order: Order, now: Now) {
        match (self.find(id), order) {
            (Some(Place::Vhost(seat)), order) => {
                let stays = seat.obey(order, now);
                if !stays {
                    self.vacate(id);
                }
            }
            (None, Order::Sit(plan)) => {
                let (ssd, device, setting) = *plan;
                let seat = VhostSeat::new(ssd, device, setting, &self.stand());
                self.places.add(Place::Vhost(Box::new(seat)));
            }
            _ => {}
        }
    }

    fn limits_changed(&mut self, id: SsdId) {
        match self.find(id) {
            Some(Place::Home(home)) => home.seat.desk.admission.change(),
            Some(Place::Branch(branch)) => branch.seat.desk.admission.change(),
            Some(Place::Vhost(seat)) => seat.limits_changed(),
            None => self.forward(id, Message::Limits(id)),
        }
    }

    fn heed(&mut self, id: SsdId, heard: Heard) {
        match self.places.find(id) {
            Some(Place::Home(home)) => home.heed(&self.rings, heard),
            Some(Place::Branch(branch)) => branch.seat.heed(&self.rings, &branch.memory, heard),
            Some(Place::Vhost(seat)) => seat.heed(&self.rings, heard),
            None => self.forward(id, Message::Watch(id, heard)),
        }
    }

    fn find(&mut self, id: SsdId) -> Option<&mut Place> {
        self.places.find(id)
    }

    fn vacate(&mut self, id: SsdId) {
        self.places.remove(id);
    }

    /// Gives an ssd to whoever asked for it.
    fn give_up(&mut self, id: SsdId) {
        let Some(Place::Home(home)) = self.places.remove(id) else { return };
        let Some((reply, settlement)) = home.depart() else { return };
        self.stopping |= !self.setup.shared;
        // Who asked waits for it, or asks once more and finds it here.
        let _ = reply.send(Answer::Settlement(Box::new(settlement)));
    }

    /// Gives an ssd whose guest memory is only reachable over its socket a reactor of its own, where waiting for the
    /// client harms nobody else; or one whose reactor is off duty to another.
    fn move_out(&mut self, id: SsdId) {
        let Some(Place::Home(home)) = self.find(id) else { return };
        let (goal, name) = (home.goal(), home.seat.ssd.name.clone());
        let address = match goal {
            Goal::Shared(to) => Arc::clone(self.setup.crew.address(to)),
            Goal::Away => return self.give_up(id),
            Goal::Private => match self.spawn_private(id) {
                Ok(address) => address,
                // It stays paused and asks again in the next turn.
                Err(error) => {
                    let now = std::time::Instant::now();
                    if self.complained.is_none_or(|at| now.duration_since(at).as_secs() > 10) {
                        tracing::error!(ssd = name, %error, "a private reactor cannot be started; trying again");
                        self.complained = Some(now);
                    }
                    return;
                }
            },
        };
        let Some(Place::Home(home)) = self.places.remove(id) else { return };
        self.forwards.push((id, Arc::clone(&address)));
        if goal == Goal::Private {
            tracing::info!(
                ssd = name,
                "guest memory without a descriptor is in use: moved to a private reactor"
            );
        }
        address.send(Message::Settle(Box::new(home.pack())));
    }
}
