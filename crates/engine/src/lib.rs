//! The data plane: reactors, the table of ssds, and the sessions of their clients.
//!
//! ```text
//!  client --socket--> session thread of the ssd --Call--> home reactor: nvme::Controller + its group
//!                                               <-Answer-      |  GroupCommand / News
//!  guest --doorbells, guest RAM (shared memory)------------> every reactor: nvme::QueueGroup --> block::Backend
//! ```
//!
//! [`run()`] serves for a keeper, which starts it again: this is `godwitd engine`. [`Engine`] serves in the process that calls it, for tests
//! and for programs of one's own; its end costs its guests their device.

mod admission;
mod balance;
mod blame;
mod change;
mod channel;
mod clock;
mod crew;
mod data_key;
mod drive;
mod duty;
mod home;
mod identities;
mod interrupts;
mod keeper;
mod mailbox;
mod management;
mod message;
mod meter;
mod migration;
mod passage;
mod passenger;
mod pool;
mod reactor;
mod records;
mod run;
mod seat;
mod serve;
mod served;
mod session;
mod slot;
mod ssd;
pub mod stats;
mod survey;
mod terms;
mod trouble;
mod vhost;
mod waits;
mod watch;
mod written;

pub use run::run;
#[doc(hidden)]
pub use {
    passenger::{Passenger, Passengers},
    run::run_with,
};

use crate::duty::Duty;
use crate::message::{Address, Message};
use crate::pool::Pools;
use crate::records::Records;
use crate::serve::Server;
use crate::ssd::Ssd;
use crate::stats::Stats;
use anyhow::Context;
use api::config::{Config, Door, Limits};
use api::control::{PoolRequest, Response};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

/// A running engine. Dropping it without [`Engine::stop`] leaves its threads running.
pub struct Engine {
    servers: Vec<Server>,
    duty: Duty,
    records: Option<Records>,
    record_keeper: JoinHandle<()>,
    stats_path: Option<PathBuf>,
    ssds: Vec<Arc<Ssd>>,
    /// Of NVMe ssds: where their homes were at first, and are known from since.
    homes: Vec<(Arc<Ssd>, Address)>,
    clock: clock::Clock,
    pools: Pools,
}

impl Engine {
    /// Opens every ssd of `config`, then listens on their sockets. Nothing is served if any cannot be.
    ///
    /// # Errors
    /// Says which ssd, what failed and what to do.
    pub fn start(config: &Config, stats_path: Option<PathBuf>) -> anyhow::Result<Self> {
        identities::check_distinct(config)?;
        raise_descriptor_limit();
        let clock = clock::Clock::calibrate(clock::Calibration::begin());
        let stats = Stats::open(stats_path.as_deref()).context("cannot make the statistics page")?;
        let (records, record_keeper) = Records::start()?;
        let pools = Pools::open(&config.pools, |_| None, None);
        let ssds = config
            .ssds
            .iter()
            .enumerate()
            .map(|(at, config)| open(at, config, &pools).with_context(|| format!("ssd \"{}\"", config.name)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let duty = Duty::new(stats, records.clone(), None, clock)?;
        duty.call_up(&config.engine)?;
        let (mut servers, mut all, mut homes) = (Vec::new(), Vec::new(), Vec::new());
        for (at, opened) in ssds.into_iter().enumerate() {
            all.push(Arc::clone(opened.ssd()));
            servers.push(match opened {
                Opened::Nvme(opened) => {
                    homes.push((Arc::clone(opened.ssd()), duty.home_of(at)));
                    Server::start(*opened, duty.home_of(at), records.clone(), clock)?
                }
                Opened::Vhost(opened) => vhost::start(opened, Arc::clone(duty.crew()))?,
            });
        }
        tracing::info!(ssds = servers.len(), reactors = config.engine.reactors, "serving");
        let records = Some(records);
        Ok(Self { servers, duty, records, record_keeper, stats_path, ssds: all, homes, clock, pools })
    }

    /// What is asked of pools; may wait for a pool's thread.
    #[must_use]
    pub fn ask(&self, request: PoolRequest) -> Response {
        self.pools.ask(request)
    }

    /// Changes the limits of a running ssd. `false`: there is none of that name.
    pub fn set_limits(&self, name: &str, limits: &Limits) -> bool {
        let Some(ssd) = self.ssds.iter().find(|ssd| ssd.name == name) else { return false };
        terms::set_limits(ssd, Some(*limits), self.clock.at(clock::ticks()), self.duty.crew());
        true
    }

    /// Logs what an NVMe ssd's controller writes into its guest: all that is answered after this returned.
    ///
    /// # Errors
    /// There is no such ssd, it is logged already, or no log can be made.
    pub fn log_written(&self, name: &str) -> anyhow::Result<()> {
        let (ssd, home) = self.home_of(name).context("there is no such ssd")?;
        written::arm(ssd, home)
    }

    /// Says which pages of 4 KiB were written since they were last said, by their addresses. To be copied when this has returned.
    ///
    /// # Errors
    /// There is no such ssd, it is not logged, or has more memory than a log.
    pub fn take_written(&self, name: &str, page: &mut impl FnMut(u64)) -> anyhow::Result<()> {
        let (ssd, _) = self.home_of(name).context("there is no such ssd")?;
        Ok(written::take(ssd, page)?)
    }

    /// Logs no more.
    ///
    /// # Errors
    /// There is no such ssd, or it is not logged.
    pub fn end_log(&self, name: &str) -> anyhow::Result<()> {
        let (ssd, home) = self.home_of(name).context("there is no such ssd")?;
        Ok(written::disarm(ssd, home)?)
    }

    fn home_of(&self, name: &str) -> Option<&(Arc<Ssd>, Address)> {
        self.homes.iter().find(|(ssd, _)| ssd.name == name)
    }

    /// So many reactors serve from now on, by the engine's part of a configuration.
    ///
    /// # Errors
    /// A thread cannot be started; then as many serve as there are.
    pub fn call_up(&self, config: &api::config::Engine) -> anyhow::Result<()> {
        self.duty.call_up(config)?;
        self.duty.muster();
        Ok(())
    }

    /// Moves a queue pair of an NVMe ssd to another reactor, if that can be done now.
    pub fn move_queue_pair(&self, name: &str, queue: u16, reactor: usize) {
        if let Some(ssd) = self.ssds.iter().find(|ssd| ssd.name == name) {
            self.duty.crew().tell_all(|| Message::Shift(ssd.id, queue, reactor));
        }
    }

    /// Ends every session, makes what was written durable, writes the records, and ends all threads.
    ///
    /// # Errors
    /// The first ssd whose data or record could not be made durable; the others are stopped all the same.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.pools.refuse_parked();
        for server in &self.servers {
            server.shut_down();
        }
        let results: Vec<_> = self.servers.into_iter().map(Server::join).collect();
        self.duty.dismiss();
        self.pools.rest();
        drop(self.records.take());
        let _ = self.record_keeper.join();
        if let Some(path) = &self.stats_path {
            let _ = std::fs::remove_file(path);
        }
        results.into_iter().collect()
    }
}

/// An ssd whose drive was found good, by its door.
enum Opened {
    Nvme(Box<serve::Opened>),
    Vhost(vhost::Opened),
}

impl Opened {
    fn ssd(&self) -> &Arc<Ssd> {
        match self {
            Self::Nvme(opened) => opened.ssd(),
            Self::Vhost(opened) => opened.ssd(),
        }
    }
}

fn open(at: usize, config: &api::config::Ssd, pools: &Pools) -> anyhow::Result<Opened> {
    if let passage::Standing::Away(away) = passage::Passage::of(config, pools).standing() {
        anyhow::bail!("it is {}: {}", away.word, away.why);
    }
    anyhow::ensure!(
        config.profile != api::config::MANAGEMENT_PROFILE,
        "a management controller is served by godwitd, and not in a program of one's own"
    );
    Ok(match config.door {
        Door::VfioUser => Opened::Nvme(Box::new(serve::open(at, config, pools)?)),
        Door::VhostUser => Opened::Vhost(vhost::open(at, config, pools)?),
    })
}

/// A client passes a descriptor for each interrupt and each piece of memory; no client may want for them because of another.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}
