//! Copies an ssd's blocks to the other host while its guest goes on, and the rest while it stands still.

use super::blocks::{Blocks, pages_of};
use super::case::Case;
use super::means::Means;
use super::past::Past;
use super::sending::Event;
use crate::clock::{Clock, ticks};
use crate::crew::Crew;
use crate::passenger::Passenger;
use crate::records::Records;
use crate::ssd::Ssd;
use crate::terms;
use anyhow::{Context, bail, ensure};
use api::control::MigrationTerms;
use dirty::Map;
use state::controller::{ControllerV1, VectorV1};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;
use transfer::control::System;
use transfer::copy::{Error, Options, Precopy, Verdict};
use transfer::frame::{Plan, STATE_BYTES_MAX};
use transfer::tls::{Outgoing, Protocol};

/// From a network that is gone to the next look at it.
const NETWORK: Duration = Duration::from_secs(2);
/// For the hypervisor to read a table of its own.
const TABLE: Duration = Duration::from_secs(4);
/// Between passes while its guest's memory is copied.
const PAUSE: Duration = Duration::from_millis(100);
/// A guest that is written faster than it moves is slowed to no less than this.
const SLOWEST: u64 = 1 << 20;

/// See the module. Runs on a thread of its own.
pub(super) struct Copy {
    pub(super) ssd: Arc<Ssd>,
    pub(super) crew: Arc<Crew>,
    pub(super) clock: Clock,
    pub(super) records: Option<Records>,
    pub(super) means: Arc<Means>,
    pub(super) case: Arc<Case>,
    pub(super) migration: [u8; 16],
    pub(super) terms: MigrationTerms,
    /// Its snapshots, if they go along.
    pub(super) past: Option<Past>,
    pub(super) events: Sender<Event>,
    /// Its controller, which goes with its guest, and who says what its MSI-X table is: its hypervisor, while it stands still.
    pub(super) controller: Option<(Passenger, Receiver<Vec<VectorV1>>)>,
    /// First: freeze, and send the rest. Closed: the end, whatever came of it.
    pub(super) go: Receiver<()>,
}

impl Copy {
    pub(super) fn run(mut self) {
        let past = self.past.take();
        let done = self.copy(past);
        // The guest is as quick as before, whatever came of it.
        self.slow(None);
        if let Err(error) = done {
            let _ = self.events.send(Event::Failed(format!("{error:#}")));
            // Nothing is noted from here on; what stands still goes on when the machine says so.
            while self.go.recv().is_ok() {}
        }
    }

    fn copy(&self, past: Option<Past>) -> anyhow::Result<()> {
        self.case.gauge.copy_begins(self.terms.latency_budget_permille != 0);
        let pages = pages_of(&self.ssd).context("its size is no multiple of 4 KiB: it cannot be moved")?;
        let streams = self.terms.streams;
        let blocks = Blocks::new(&self.ssd, &self.crew, pages, usize::from(streams))?;
        let plan = Plan {
            pages,
            name: self.ssd.name.clone(),
            profile: self.ssd.profile.name.to_owned(),
            settings: Vec::new(),
        };
        self.case.set_bandwidth(self.terms.bandwidth);
        let stun_max = Duration::from_micros(self.terms.max_stun_us);
        let options = Options { migration: self.migration, streams, stun_max, ..Options::default() };
        let (means, peer) = (&self.means, &self.case.peer);
        let connect = |_| means.connect(peer, Protocol::Pages);
        let clock = System::default();
        let mut precopy = Precopy::new(plan, &blocks, &connect, &clock, &self.case.control, options)?;
        if let Some(past) = past {
            past.send(&self.case, &blocks, &mut precopy)?;
        }
        self.pre_copy(&mut precopy)?;
        let _ = self.events.send(Event::Close);
        // What is written until then is copied now and then, so that little is left when the moment comes.
        loop {
            match self.go.recv_timeout(PAUSE) {
                Ok(()) => break,
                Err(RecvTimeoutError::Timeout) => self.pre_copy(&mut precopy)?,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
        blocks.freeze()?;
        ensure!(
            pages_of(&self.ssd) == Some(pages),
            "it has grown since its copy began: migrate it again, and give it the new size at the destination"
        );
        let state = self.state()?;
        // The word goes beside the blocks, not behind them: the destination waits for them, and the guest for one way less.
        let _ = self.events.send(Event::Rested);
        precopy.last(&Map::new(pages)?, &state)?;
        // What was frozen stays so, and what is noted is noted, until it is known who has the ssd.
        while self.go.recv().is_ok() {}
        Ok(())
    }

    /// Until little enough is left.
    fn pre_copy(&self, precopy: &mut Precopy<'_, Outgoing>) -> anyhow::Result<()> {
        loop {
            match precopy.run() {
                Ok(Verdict::Ready(_)) => return Ok(()),
                Ok(Verdict::Far(trip)) => bail!(
                    "the way to the other host and back alone takes {trip:?}, longer than the guest may stand still: allow more with --max-stun"
                ),
                Ok(Verdict::Throttle { to, from }) => {
                    let to = to.max(SLOWEST);
                    tracing::info!(
                        ssd = self.ssd.name,
                        from,
                        to,
                        "its writes are slowed: they outrun the link"
                    );
                    self.case.remark(format!(
                        "its writes outrun the link and are slowed to {} MiB a second meanwhile",
                        to >> 20
                    ));
                    self.slow(Some(to));
                }
                // What arrived is kept: the copy goes on where it was.
                Err(error @ Error::Lost { .. }) => {
                    self.case.remark(error.to_string());
                    std::thread::sleep(NETWORK);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn slow(&self, bytes_per_s: Option<u64>) {
        terms::slow_writes(&self.ssd, bytes_per_s, self.clock.at(ticks()), &self.crew);
    }

    /// What the ssd is beside its blocks: its controller as it stands, if its guest goes with it; else its record, as its controller would find it
    /// after a power failure.
    fn state(&self) -> anyhow::Result<Vec<u8>> {
        if let Some((passenger, table)) = &self.controller {
            let mut controller = ControllerV1::from_bytes(&passenger.save()?)?;
            controller.vectors =
                table.recv_timeout(TABLE).context("its hypervisor does not tell its MSI-X table")?;
            return Ok(controller.to_bytes()?);
        }
        let Some(path) = self.ssd.record_path() else { return Ok(Vec::new()) };
        // What was asked for before is in it.
        self.records.as_ref().map(Records::settle);
        match std::fs::read(path) {
            Ok(bytes) => {
                ensure!(bytes.len() <= STATE_BYTES_MAX, "{} is larger than any state", path.display());
                Ok(bytes)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).with_context(|| format!("cannot read its state {}", path.display())),
        }
    }
}
