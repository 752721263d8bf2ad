//! Has ssds moved, one after the other, lets something go wrong, and sees what came of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::berth::Berth;
use super::fault::Fault;
use super::host::{Host, Mover};
use crate::load::workload::Random;
use crate::verify::plug::Plan;

/// What the loads are asked.
pub(super) enum Order {
    /// The ssd is about to be moved: somebody may wait for it there already.
    Follow { guest: usize, to: usize, early: bool },
    /// Those at a host do nothing for a while, when what is out is answered. Or no longer.
    Rest { host: usize, rest: bool, done: Sender<()> },
    /// Where the ssd's client is.
    Where { guest: usize, at: Sender<Option<usize>> },
    /// The ssd is here now: read all of it.
    Whole { guest: usize, host: usize, whole: Sender<Stun> },
}

/// From the last completion at one host to the first at the other; `None`: the client did not move.
pub(super) type Stun = Option<u64>;

/// What happened.
#[derive(Default)]
pub(super) struct Told {
    pub(super) events: u64,
    pub(super) moved: u64,
    pub(super) double_owners: u64,
    pub(super) stranded: u64,
    pub(super) helped: u64,
    /// Stuns that clients saw, without a fault and with one, and those that engines measured.
    pub(super) stuns: Vec<u64>,
    pub(super) stuns_in_faults: Vec<u64>,
    pub(super) engine_stuns: Vec<u64>,
    pub(super) faults: BTreeMap<&'static str, u64>,
    /// A line a migration.
    pub(super) rounds: Vec<String>,
}

/// See the module.
pub(super) struct Conductor<'a> {
    pub(super) hosts: &'a [Host; 2],
    pub(super) movers: &'a [Mover],
    pub(super) plans: &'a [Plan],
    /// Where each ssd is.
    pub(super) owners: Vec<usize>,
    pub(super) random: Random,
    pub(super) with_faults: bool,
    pub(super) only: Option<&'a str>,
    pub(super) epoch: Instant,
    pub(super) patience: Duration,
    pub(super) stun_max: Duration,
    pub(super) orders: Sender<Order>,
    /// The loads have found something that ends the run.
    pub(super) over: &'a AtomicBool,
    /// How long a migration takes when nothing is wrong.
    pub(super) usual: Duration,
    pub(super) told: Told,
}

const LOOK: Duration = Duration::from_millis(10);
/// Draws of one fault that is asked for.
const TRIES: usize = 500;
/// An operator looks after what does not end by itself when so much time has gone by.
const HELP_AFTER: Duration = Duration::from_secs(15);
/// A client is turned away, or hears nothing for as long.
const PROBE: Duration = Duration::from_millis(200);

/// One migration.
#[derive(Clone, Copy)]
struct Round {
    guest: usize,
    from: usize,
    to: usize,
    fault: Fault,
    /// When the fault comes.
    after: Duration,
    bandwidth: u64,
}

impl Conductor<'_> {
    /// Has `count` migrations made.
    ///
    /// # Errors
    /// An ssd is nowhere, or something cannot be done that must be possible.
    pub(super) fn run(&mut self, count: u64) -> Result<()> {
        for number in 0..count {
            if self.over.load(Ordering::Relaxed) {
                return Ok(());
            }
            let round = self.draw();
            self.told.events += 1;
            *self.told.faults.entry(round.fault.name()).or_default() += 1;
            let start = Instant::now();
            let ended = self.round(round);
            let end = match &ended {
                Ok(end) => end.clone(),
                Err(error) => format!("{error:#}"),
            };
            let Round { guest, from, to, fault, after, .. } = round;
            self.told.rounds.push(format!(
                "{:.1} s: {}: {} from {} to {}, {fault:?} after {after:?}: {end}; {:?} in all",
                (start - self.epoch).as_secs_f64(),
                number + 1,
                self.movers[guest].ssd.name,
                self.hosts[from].name,
                self.hosts[to].name,
                start.elapsed(),
            ));
            ended.with_context(|| format!("migration {}", number + 1))?;
        }
        Ok(())
    }

    fn draw(&mut self) -> Round {
        let guest = usize::try_from(self.random.below(self.movers.len() as u64)).unwrap_or(0);
        let from = self.owners[guest];
        let there = self.movers[guest].backings[1 - from];
        let mebibytes = self.movers[guest].ssd.mebibytes;
        let mut drawn = Fault::draw(&mut self.random, from, there, mebibytes);
        for _ in 0..TRIES {
            if self.only.is_none_or(|only| only == drawn.name()) {
                break;
            }
            drawn = Fault::draw(&mut self.random, from, there, mebibytes);
        }
        let is_wanted = self.with_faults && self.only.is_none_or(|only| only == drawn.name());
        let fault = if is_wanted { drawn } else { Fault::Nothing };
        let span = u64::try_from(self.usual.as_micros()).unwrap_or(1_000_000) * 5 / 4;
        let after = Duration::from_micros(self.random.below(span.max(1)));
        let bandwidth = [0, 0, 32 << 20, 96 << 20][usize::try_from(self.random.below(4)).unwrap_or(0)];
        Round { guest, from, to: 1 - from, fault, after, bandwidth }
    }

    /// Says how it ended.
    fn round(&mut self, round: Round) -> Result<String> {
        let Round { guest, from, to, fault, .. } = round;
        let name = self.movers[guest].ssd.name.clone();
        self.orders.send(Order::Follow { guest, to, early: self.random.below(2) == 0 })?;
        let start = Instant::now();
        let (refused, struck) = self.begin_and_strike(round, &name)?;
        let mut helped = Vec::new();
        if let Fault::Away(_) = fault {
            let (step, is_here) = self.do_without(&round, &name)?;
            helped.extend(step);
            if is_here {
                self.whole(guest, from, &name).context("while the other host is away")?;
            }
            fault.heal(self.hosts, to)?;
        } else if struck && fault.passes() {
            std::thread::sleep(fault.lasts());
            fault.heal(self.hosts, to)?;
        }
        let owner = self.settle(&round, &name, &mut helped);
        if !fault.passes() && !matches!(fault, Fault::Away(_)) {
            fault.heal(self.hosts, to)?;
        }
        if let Fault::Drive(_) = fault {
            self.rest(to, false)?;
        }
        let owner = owner?;
        self.told.helped += helped.len() as u64;
        let stun = self.whole(guest, owner, &name)?;
        self.probe(guest, 1 - owner, &name);
        self.owners[guest] = owner;
        if owner == to {
            self.told.moved += 1;
            self.record_stuns(&round, &name, stun)?;
            self.hosts[from].expect(&name)?;
        } else {
            let is_harmless = matches!(fault, Fault::Nothing);
            ensure!(!is_harmless, "nothing was wrong, and it did not move: {}", self.seen(&name));
        }
        if owner == to && fault == Fault::Nothing {
            self.usual = (self.usual * 3 + start.elapsed().min(self.usual * 2)) / 4;
        }
        let what = if owner == to { "moved" } else { "stayed" };
        let refused = refused.map_or_else(String::new, |why| format!(", refused: {why}"));
        Ok(format!("{what}{refused}, helped by {helped:?}, stun {stun:?} ns"))
    }

    fn record_stuns(&mut self, round: &Round, name: &str, stun: Stun) -> Result<()> {
        if round.fault != Fault::Nothing {
            self.told.stuns_in_faults.extend(stun);
            return Ok(());
        }
        self.told.stuns.push(stun.with_context(|| format!("{name} moved, and its client did not"))?);
        let migration = self.hosts[round.from].migration(name)?.unwrap_or_default();
        self.told.engine_stuns.extend(migration["stun_ns"].as_u64());
        Ok(())
    }

    /// Begins, and lets go wrong what shall. Why it was refused, if it was; and whether the fault came.
    fn begin_and_strike(&self, round: Round, name: &str) -> Result<(Option<String>, bool)> {
        let Round { to, fault, after, .. } = round;
        if let Fault::Drive(_) = fault {
            self.rest(to, true)?;
        }
        if fault.comes_first() {
            fault.strike(self.hosts, to, name)?;
            return Ok((self.begin(&round, name, &AtomicBool::new(false))?, true));
        }
        let (begun, struck) = (Instant::now(), AtomicBool::new(false));
        let (refused, strike) = std::thread::scope(|scope| {
            let strike = scope.spawn(|| {
                std::thread::sleep(after.saturating_sub(begun.elapsed()));
                let done = fault.strike(self.hosts, to, name);
                struck.store(fault != Fault::Nothing, Ordering::Release);
                done
            });
            let refused = self.begin(&round, name, &struck);
            (refused, strike.join())
        });
        strike.map_err(|_| anyhow::anyhow!("the fault ended with a panic"))??;
        Ok((refused?, true))
    }

    /// Until it is on its way. Why it is not, once something is wrong.
    fn begin(&self, round: &Round, name: &str, is_wrong: &AtomicBool) -> Result<Option<String>> {
        let peer = self.hosts[round.to].way.address().to_string();
        let terms = json!({"bandwidth": round.bandwidth, "max_stun_us": self.stun_max.as_micros()});
        let request =
            json!({"command": "engine", "question": "migrate", "ssd": name, "to": peer, "terms": terms});
        let deadline = Instant::now() + self.patience;
        loop {
            let answer = self.hosts[round.from].ask(&request);
            let why = match answer {
                Ok(answer) if answer.get("done").is_some() => return Ok(None),
                Ok(answer) => answer["error"].as_str().unwrap_or_default().to_owned(),
                Err(error) => format!("{error:#}"),
            };
            if is_wrong.load(Ordering::Acquire) || matches!(round.fault, Fault::Full | Fault::Drive(_)) {
                return Ok(Some(why));
            }
            // A host that has just begun, or a word of the migration before that is still on its way.
            ensure!(Instant::now() < deadline, "it cannot be moved: {why}");
            std::thread::sleep(LOOK);
        }
    }

    /// An operator whose other host is away brings the ssd to serve again: by which word, and whether it must serve here then. It need not if it may
    /// have been served there.
    fn do_without(&self, round: &Round, name: &str) -> Result<(Option<&'static str>, bool)> {
        let host = &self.hosts[round.from];
        let deadline = Instant::now() + HELP_AFTER;
        while Instant::now() < deadline {
            let migration = host.migration(name)?.unwrap_or(Value::Null);
            let state = migration["state"].as_str().unwrap_or_default();
            match state {
                "beginning" | "copying" | "switching over" | "paused" => {
                    host.steer(name, "cancel")?;
                    return Ok((Some("cancel"), true));
                }
                "granted" => {
                    // Whoever was served there has written there.
                    let (at, where_it_is) = channel();
                    self.orders.send(Order::Where { guest: round.guest, at })?;
                    if where_it_is.recv_timeout(self.patience)? == Some(round.to) {
                        return Ok((None, false));
                    }
                    host.steer(name, "force")?;
                    return Ok((Some("force"), true));
                }
                _ if migration.is_null() || migration["over"] == true || state == "cancelling" => {
                    let is_here = host.standing(name).as_deref() == Some("serving");
                    return Ok((None, is_here));
                }
                _ => std::thread::sleep(LOOK),
            }
        }
        Ok((None, false))
    }

    /// Until one host serves the ssd and the other says that it does not, and nothing of the migration is left.
    fn settle(&mut self, round: &Round, name: &str, helped: &mut Vec<&'static str>) -> Result<usize> {
        let (start, mut last_help) = (Instant::now(), Instant::now());
        loop {
            if let Some(owner) = self.owner(name) {
                return Ok(owner);
            }
            if start.elapsed() > self.patience * 2 {
                self.told.stranded += 1;
                bail!("{name} is nowhere: {}", self.seen(name));
            }
            if round.fault != Fault::Nothing && last_help.elapsed() > HELP_AFTER {
                last_help = Instant::now();
                self.told.rounds.push(format!("{name} is helped: {}", self.seen(name)));
                // What has not been granted may be given up by the source alone.
                if self.hosts[round.from].steer(name, "cancel").is_ok() {
                    helped.push("cancel");
                }
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Where the ssd is, if that is clear.
    fn owner(&self, name: &str) -> Option<usize> {
        const AWAY: [&str; 4] = ["incoming", "gone", "dropped", "superseded"];
        let mut serving = None;
        for (at, host) in self.hosts.iter().enumerate() {
            let migration = host.migration(name).ok()?;
            if migration.is_some_and(|migration| migration["over"] != true) {
                return None;
            }
            let standing = host.standing(name)?;
            if standing == "serving" && serving.is_none() {
                serving = Some(at);
            } else if !AWAY.contains(&standing.as_str()) {
                return None;
            }
        }
        serving
    }

    fn seen(&self, name: &str) -> String {
        let tell = |host: &Host| {
            let migration = host.migration(name).ok().flatten().unwrap_or(Value::Null);
            format!("at {} {:?} {migration}", host.name, host.standing(name))
        };
        self.hosts.iter().map(tell).collect::<Vec<_>>().join("; ")
    }

    /// Its client is there, and has read all of it.
    fn whole(&mut self, guest: usize, host: usize, name: &str) -> Result<Stun> {
        let (whole, read) = channel();
        self.orders.send(Order::Whole { guest, host, whole })?;
        let read = read.recv_timeout(self.patience * 2);
        if read.is_err() && !self.over.load(Ordering::Relaxed) {
            self.told.stranded += 1;
            bail!("{name} is served by {}, and its client did not read it: {}", host, self.seen(name));
        }
        Ok(read.ok().flatten())
    }

    fn rest(&self, host: usize, rest: bool) -> Result<()> {
        let (done, are_done) = channel();
        self.orders.send(Order::Rest { host, rest, done })?;
        // Each says so once, and then nobody is left who could.
        loop {
            match are_done.recv_timeout(self.patience) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => bail!("what is out at host {host} is not answered"),
            }
        }
    }

    /// Nobody is served where the ssd is not.
    fn probe(&mut self, guest: usize, host: usize, name: &str) {
        let ssd = &self.movers[guest].ssd;
        let socket = self.hosts[host].socket(name);
        if Berth::connect(&socket, ssd, &self.plans[guest], PROBE).is_ok() {
            self.told.double_owners += 1;
            self.told.rounds.push(format!("{name} is served by host {}, too", self.hosts[host].name));
        }
    }
}
