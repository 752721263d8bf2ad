//! Ssds that move to other hosts, and that come from them (`docs/decisions/0036-mover.md`).
//!
//! ```text
//!  godwit migrate --> keeper --> Migrations::begin --> sending (a thread) ==== words (TLS) ====> listener --> arrival
//!                                  copy (a thread) --> streams ========== pages (TLS) =========> landing --> drive
//! ```
//! Who owns the ssd is decided by the two machines of `transfer::commit` and written in its journal ([`crate::passage`]); here is who drives
//! them. Nothing of it runs on a reactor.

mod along;
mod arrival;
pub(crate) mod blocks;
mod case;
mod copy;
mod gauge;
mod guest;
pub(crate) mod house;
mod journal;
mod line;
mod listener;
mod means;
mod past;
mod ports;
mod sending;
mod word;

pub(crate) use along::limits_that_came;
pub(crate) use blocks::{pages_of, tell};

use crate::identities::identity_of;
use crate::passage::{Passage, Standing, Store};
use crate::pool;
use crate::run::House;
use along::Outlook;
use anyhow::{Context, anyhow, bail, ensure};
use api::config::{self, Backend, Door};
use api::control::{MigrationStatus, MigrationTerms, Response, Steer};
use arrival::{Arrival, Expected};
use case::Case;
use guest::{Coming, Leaving, Part};
use hypervisor::Device;
use journal::Journal;
use line::Line;
use means::{Means, host_of};
use sending::{Event, Sending};
use state::migration::MigrationV1;
use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use transfer::commit::{
    Destination, DestinationEvent, DestinationRecord, DestinationStep, Former, Message, Parties, Record,
    Source, SourceEffect, SourceStep, ToDestination,
};
use word::{Guest, Offer, There, VERSION};

/// Streams of one migration at most.
const STREAMS_MAX: u16 = 64;

/// See the module.
pub(crate) struct Migrations {
    /// Or why there are none.
    means: Result<Arc<Means>, String>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What an engine before this one began is among the cases: whoever asks may be told.
    is_known: bool,
    /// All of that is under way again: new ones may begin.
    is_open: bool,
    /// Those that are asked for, and not on record yet.
    beginning: BTreeSet<String>,
    /// The last of each ssd, by name.
    cases: BTreeMap<String, Arc<Case>>,
    /// What is expected of each ssd that comes, by name: one migration at a time.
    arrivals: BTreeMap<String, Arc<Arrival>>,
    /// Guests that come, by their hypervisors' sockets: one at a time to each.
    guests: BTreeMap<PathBuf, Arc<Coming>>,
}

impl State {
    /// # Errors
    /// Another guest is on its way to the hypervisor that this one would come to.
    fn check_alone(&self, guest: &Guest, config: &config::Ssd) -> anyhow::Result<()> {
        let path = config.hypervisor.clone().unwrap_or_default();
        let Some(other) = self.guests.get(&path).filter(|other| other.id() != guest.id) else {
            return Ok(());
        };
        let arrival =
            self.arrivals.values().find(|arrival| arrival.comes_with(other) && !arrival.case.is_over());
        if let Some(arrival) = arrival {
            bail!(
                "another guest is on its way to the QEMU at {}, with ssd \"{}\": cancel that migration, if it is not to come",
                path.display(),
                arrival.case.ssd
            );
        }
        Ok(())
    }

    /// The guest of an ssd that is offered: the same for all of its ssds.
    fn coming(&mut self, guest: &Guest, config: &config::Ssd) -> Arc<Coming> {
        let path = config.hypervisor.clone().unwrap_or_default();
        let there = self.guests.get(&path).filter(|coming| coming.id() == guest.id);
        let coming = there.map_or_else(|| Arc::new(Coming::new(guest.clone(), &path)), Arc::clone);
        self.guests.insert(path, Arc::clone(&coming));
        coming
    }
}

/// No other migration of the ssd begins while this is there.
struct Beginning<'a> {
    migrations: &'a Migrations,
    ssd: String,
}

impl Drop for Beginning<'_> {
    fn drop(&mut self) {
        self.migrations.state().beginning.remove(&self.ssd);
    }
}

impl Migrations {
    pub(crate) fn new(config: Option<&config::Migration>) -> Self {
        let none = || {
            "this host moves no ssds: its configuration has no [migration]; see docs/guide/moving.md for the certificates that takes"
                .to_owned()
        };
        let means = config.ok_or_else(none).and_then(|config| {
            Means::new(config).map(Arc::new).map_err(|error| format!("this host moves no ssds: {error:#}"))
        });
        Self { means, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn means(&self) -> anyhow::Result<&Arc<Means>> {
        self.means.as_ref().map_err(|why| anyhow!("{why}"))
    }

    /// Whether an ssd is on its way to or from another host.
    pub(crate) fn is_moving(&self, ssd: &str) -> bool {
        let state = self.state();
        state.beginning.contains(ssd) || state.cases.get(ssd).is_some_and(|case| !case.is_over())
    }

    /// Goes on with what an engine before this one began, and listens for other hosts.
    ///
    /// # Errors
    /// It cannot listen: the ssds are served all the same.
    pub(crate) fn open(&self, house: &Arc<House>, config: Option<&config::Migration>) -> anyhow::Result<()> {
        let looked = self.go_on_with_all(house);
        // There is no more to come, whatever was wrong.
        self.state().is_known = true;
        looked?;
        self.state().is_open = true;
        let Some(config) = config else { return Ok(()) };
        let (means, Some(listen)) = (self.means()?, config.listen) else { return Ok(()) };
        let listener = TcpListener::bind(listen).with_context(|| {
            format!("cannot listen at {listen} for other hosts: is the address this host's, and free?")
        })?;
        let (house, means) = (Arc::clone(house), Arc::clone(means));
        std::thread::Builder::new()
            .name("hosts".to_owned())
            .spawn(move || listener::listen(&house, &means, &listener))?;
        Ok(())
    }

    fn go_on_with_all(&self, house: &Arc<House>) -> anyhow::Result<()> {
        house.look_again()?;
        for config in house.configs() {
            if let Err(error) = self.go_on(house, &config) {
                house
                    .keeper
                    .fault(None, format!("ssd \"{}\": its migration cannot go on: {error:#}", config.name));
            }
        }
        Ok(())
    }

    /// Whether what is not among them is not under way.
    pub(crate) fn is_known(&self) -> bool {
        self.state().is_known
    }

    /// A migration that a journal tells of.
    fn go_on(&self, house: &Arc<House>, config: &config::Ssd) -> anyhow::Result<()> {
        let Some(store) = Passage::of(config, house.pools()?).store().map(Arc::clone) else {
            return Ok(());
        };
        let Some(bytes) = store.read()? else { return Ok(()) };
        let (parties, record) = Record::from_bytes(&bytes)?;
        let number = house.number(&config.name).context("it has no number")?;
        match record {
            Record::Source(record) => {
                let is_done = match record.step {
                    SourceStep::Cancelled | SourceStep::TakenBackHeard => true,
                    SourceStep::Gone => parties.closed && (parties.wiped || parties.keep),
                    SourceStep::Superseded => parties.closed,
                    _ => false,
                };
                if is_done {
                    return Ok(());
                }
                let migration = record.pledge.migration;
                let offer = offer(config, migration, size_of(house, config)?)?;
                let journal = Journal::new(store, parties, migration, Some(Record::Source(record)));
                let (source, effects) = guest::recover(house, journal.parties(), record);
                let (terms, guest) = (MigrationTerms::default(), None);
                // Its copy does not begin again.
                let (inbox, snapshots) = (channel(), Vec::new());
                let departure = Departure { number, journal, offer, terms, snapshots, inbox, guest };
                self.send(house, departure, source, effects, Some(record.step)).map(drop)
            }
            Record::Destination(record) => {
                let migration = u128::from_be_bytes(record.pledge.migration);
                let (config, record) = (config.clone(), Some(record));
                let (seen, former, guest) = (None, None, None);
                let expected =
                    Expected { migration, number, config, store, parties, record, seen, former, guest };
                let arrival = Arrival::new(house, expected);
                self.keep(&mut self.state(), &arrival);
                Ok(())
            }
        }
    }

    fn keep(&self, state: &mut State, arrival: &Arc<Arrival>) {
        // What was over when the engine began is not news.
        if !arrival.case.is_over() {
            state.cases.insert(arrival.case.ssd.clone(), Arc::clone(&arrival.case));
        }
        state.arrivals.insert(arrival.case.ssd.clone(), Arc::clone(arrival));
    }

    fn arrival(&self, migration: u128) -> Option<Arc<Arrival>> {
        self.state().arrivals.values().find(|arrival| arrival.migration() == migration).cloned()
    }

    fn begin_alone(&self, ssd: &str) -> anyhow::Result<Beginning<'_>> {
        let mut state = self.state();
        ensure!(state.is_open, "the engine has just begun: ask again in a moment");
        if let Some(case) = state.cases.get(ssd).filter(|case| !case.is_over()) {
            bail!("ssd \"{ssd}\" is being moved already ({}): see `godwit migration list`", case.peer);
        }
        ensure!(state.beginning.insert(ssd.to_owned()), "ssd \"{ssd}\" is about to be moved already");
        Ok(Beginning { migrations: self, ssd: ssd.to_owned() })
    }

    /// Begins to move an ssd to another host.
    ///
    /// # Errors
    /// Why it cannot be moved, and what to do.
    pub(crate) fn begin(
        &self,
        house: &Arc<House>,
        ssd: &str,
        to: &str,
        terms: MigrationTerms,
        dry_run: bool,
    ) -> anyhow::Result<String> {
        let prepared = self.prepare(house, ssd, to, terms, None)?;
        if dry_run {
            return prepared.plan(house, to);
        }
        let warnings = prepared.outlook.said();
        self.launch(house, prepared, to, terms, channel(), None)?;
        Ok(format!("ssd \"{ssd}\" is on its way to {to}: see `godwit migration list`{warnings}"))
    }

    /// Begins to move a guest to another host with all the ssds that it has from here, by its QEMU's QMP socket.
    ///
    /// # Errors
    /// Why it cannot be moved, and what to do.
    pub(crate) fn begin_guest(
        &self,
        house: &Arc<House>,
        qmp: &Path,
        to: &str,
        terms: MigrationTerms,
        dry_run: bool,
    ) -> anyhow::Result<String> {
        let is_of_it = |case: &Arc<Case>| case.guest.as_deref() == Some(qmp) && !case.is_over();
        ensure!(
            !self.state().cases.values().any(is_of_it),
            "this guest is being moved already: see `godwit migration list`"
        );
        let (qemu, devices) = guest::ssds_of(house, qmp)?;
        let (ssds, devices): (Vec<_>, Vec<_>) = devices.into_iter().unzip();
        let names = devices.iter().map(|device: &Device| device.id.clone()).collect();
        let guest = Guest { id: u128::from_be_bytes(pool::random()?), ssds, devices: names };
        let prepared = guest.ssds.iter().map(|ssd| self.prepare(house, ssd, to, terms, Some(&guest)));
        let prepared = prepared.collect::<anyhow::Result<Vec<_>>>()?;
        if dry_run {
            let plans = prepared.into_iter().map(|prepared| prepared.plan(house, to));
            return Ok(plans.collect::<anyhow::Result<Vec<_>>>()?.join("\n"));
        }
        let names = guest.ssds.join("\", \"");
        let warnings = guest.ssds.iter().zip(&prepared).map(|(ssd, prepared)| {
            let said = prepared.outlook.said();
            if said.is_empty() { said } else { format!("{said} (ssd \"{ssd}\")") }
        });
        let warnings = warnings.collect::<String>();
        let (say, words) = channel();
        let mut parts = Vec::new();
        for ((part, prepared), device) in prepared.into_iter().enumerate().zip(devices) {
            let (number, (table, read)) = (prepared.number, channel());
            let line = guest::Line {
                path: qmp.to_owned(),
                part,
                words: say.clone(),
                table: Some(read),
                moved: false,
            };
            let (events, inbox) = channel();
            let case = self.launch(house, prepared, to, terms, (events.clone(), inbox), Some(line));
            match case {
                Ok(case) => parts.push(Part { case, events, device, number, table }),
                Err(error) => {
                    parts.iter().for_each(|part| part.case.steer(Steer::Cancel));
                    return Err(error);
                }
            }
        }
        drop(say);
        let means = Arc::clone(self.means()?);
        let (house, to) = (Arc::clone(house), to.to_owned());
        let told = format!(
            "a guest with ssd \"{names}\" is on its way to {to}: see `godwit migration list`{warnings}"
        );
        let leaving = Leaving { house, means, to, guest, qemu, path: qmp.to_owned(), terms, parts, words };
        let cases: Vec<_> = leaving.parts.iter().map(|part| Arc::clone(&part.case)).collect();
        if let Err(error) = std::thread::Builder::new().name("guest".to_owned()).spawn(move || leaving.run())
        {
            cases.iter().for_each(|case| case.steer(Steer::Cancel));
            return Err(error).context("no thread is left");
        }
        Ok(told)
    }

    /// Checks all that can be wrong with a migration before anything of it is on record, on both hosts.
    fn prepare(
        &self,
        house: &Arc<House>,
        ssd: &str,
        to: &str,
        terms: MigrationTerms,
        guest: Option<&Guest>,
    ) -> anyhow::Result<Prepared<'_>> {
        let means = self.means()?;
        host_of(to)?;
        ensure!((1..=STREAMS_MAX).contains(&terms.streams), "streams must be 1 to {STREAMS_MAX}");
        let config =
            house.config(ssd).with_context(|| format!("there is no ssd \"{ssd}\" in the configuration"))?;
        let number = house.number(ssd).context("it has no number")?;
        ensure!(house.ssd(number).is_some(), "ssd \"{ssd}\" is not served here: see `godwit status`");
        check_movable(&config)?;
        let no_change = house.hold_changes(number).with_context(|| format!("ssd \"{ssd}\""))?;
        let alone = self.begin_alone(ssd)?;
        drop(no_change);
        if config.door == Door::VfioUser && config.state.is_none() {
            bail!("ssd \"{ssd}\" has its state in memory only: give it a `state` in the configuration");
        }
        let passage = Passage::of(&config, house.pools()?);
        let store = passage.store().map(Arc::clone).with_context(|| match config.backend {
            Backend::Pool { .. } => format!("ssd \"{ssd}\" is in a pool, and its journal has no place there"),
            _ => format!("ssd \"{ssd}\" has no place for a journal: give it a `state` or a `journal` in the configuration"),
        })?;
        let former = match passage.standing() {
            Standing::Here(former) => former.map(|former| *former),
            Standing::Away(away) => bail!("ssd \"{ssd}\" is {}: {}", away.word, away.why),
        };
        let mut offer = offer(&config, pool::random()?, size_of(house, &config)?)?;
        (offer.dry_run, offer.guest) = (true, guest.cloned());
        let limits = house.limits_of(number).context("it is not served any more")?;
        let snapshots = along::snapshots(&config, house.pools()?);
        let along = along::offered(&config, limits, terms, &snapshots);
        offer.along = Some(along.clone());
        // Before anything is on record: most that can be wrong is found here.
        let mut line = Line::new(Arc::clone(means), to, offer.clone());
        let there = line.offer().with_context(|| format!("cannot speak to {to}"))?;
        let there = there.map_err(|why| anyhow!("{to} refuses it: {why}"))?;
        let outlook = along::outlook(ssd, &along, there.as_ref(), &snapshots)?;
        let go = there.is_some_and(|there| there.snapshots);
        let snapshots = if go { along.snapshots } else { Vec::new() };
        offer.dry_run = false;
        Ok(Prepared { alone, number, config, store, former, offer, outlook, snapshots })
    }

    /// Begins what was prepared.
    fn launch(
        &self,
        house: &Arc<House>,
        prepared: Prepared<'_>,
        to: &str,
        terms: MigrationTerms,
        inbox: (Sender<Event>, Receiver<Event>),
        guest: Option<guest::Line>,
    ) -> anyhow::Result<Arc<Case>> {
        let Prepared { alone: _alone, number, config, store, former, offer, snapshots, .. } = prepared;
        let limits = former.as_ref().and_then(|former| former.limits);
        let migration = offer.migration.to_be_bytes();
        let (source, effects) = first_step(former, migration)?;
        let uuid = identity_of(&config)?.namespace_ids(0).uuid;
        let (peer, keep) = (to.to_owned(), terms.keep_source);
        let hypervisor = guest.as_ref().map(|guest| guest.path.display().to_string());
        // What it came here with is what it has when it stays.
        let parties = Parties { ssd: uuid, peer, keep, closed: false, wiped: false, hypervisor, limits };
        let journal = Journal::new(store, parties, migration, None);
        let departure = Departure { number, journal, offer, terms, snapshots, inbox, guest };
        self.send(house, departure, source, effects, None)
    }

    fn send(
        &self,
        house: &Arc<House>,
        departure: Departure,
        source: Source,
        effects: Vec<SourceEffect>,
        step: Option<SourceStep>,
    ) -> anyhow::Result<Arc<Case>> {
        let Departure { number, journal, offer, terms, snapshots, inbox: (events, inbox), guest } = departure;
        let means = Arc::clone(self.means()?);
        let (orders, steers) = channel();
        let steer = Box::new(move |steer| _ = orders.send(steer));
        let peer = journal.parties().peer.clone();
        let mut case = Case::new(&offer.name, &peer, false, offer.device.size_bytes, steer);
        case.guest = guest.as_ref().map(|guest| guest.path.clone());
        let case = Arc::new(case);
        self.state().cases.insert(offer.name.clone(), Arc::clone(&case));
        let line = Line::new(Arc::clone(&means), &peer, offer);
        if let Some(ssd) = house.ssd(number) {
            gauge::watch(&case, &ssd, terms.latency_budget_permille);
        }
        let begun = Arc::clone(&case);
        let house = Arc::clone(house);
        let sending = Sending {
            house,
            means,
            case,
            number,
            journal,
            line,
            terms,
            snapshots,
            steers,
            guest,
            events,
            inbox,
        };
        let spawned = std::thread::Builder::new()
            .name("migration".to_owned())
            .spawn(move || sending.run(source, effects, step));
        spawned.inspect_err(|_| begun.end("failed")).context("no thread is left")?;
        Ok(begun)
    }

    /// Whether what another host offers is expected here, by whom it is heard (`None`: it only asked), and how it will be here (`None`: it asked nothing of
    /// that).
    fn expect(
        &self,
        house: &Arc<House>,
        offer: &Offer,
    ) -> anyhow::Result<(Option<Arc<Arrival>>, Option<There>)> {
        ensure!(
            offer.version == VERSION,
            "this host speaks version {VERSION} of the migration's words, the source version {}: use one release on both",
            offer.version
        );
        ensure!(self.state().is_open, "the engine has just begun: ask again in a moment");
        if let Some(arrival) = self.arrival(offer.migration) {
            let there = offer.along.as_ref().map(|along| arrival.offered(along));
            return Ok((Some(arrival), there));
        }
        let name = &offer.name;
        let (config, number, there) = expected_here(house, offer)?;
        let store = Passage::of(&config, house.pools()?)
            .store()
            .map(Arc::clone)
            .context("it has no place for a journal here")?;
        // One migration to here at a time: the one before gives way, or this one is refused. It may be at work: others do not wait for it.
        let before = self.state().arrivals.get(name).filter(|_| !offer.dry_run).cloned();
        if let Some(arrival) = &before {
            arrival.give_way()?;
        }
        let _no_change = house.hold_changes(number).with_context(|| format!("ssd \"{name}\""))?;
        // What was looked at may have been changed since: whether it is to come, and to whom its guest comes.
        let said = |config: &config::Ssd| {
            (config.incoming, config.spared, config.hypervisor.clone(), config.size_bytes)
        };
        ensure!(
            house.config(name).is_some_and(|now| said(&now) == said(&config)),
            "the configuration of ssd \"{name}\" has just changed: ask again"
        );
        let mut state = self.state();
        let now = state.arrivals.get(name);
        ensure!(
            offer.dry_run || now.map(|it| it.migration()) == before.map(|it| it.migration()),
            "another migration of ssd \"{name}\" has just begun: ask again"
        );
        if let Some(guest) = &offer.guest {
            state.check_alone(guest, &config)?;
        }
        let former = store.read()?;
        let seen = seen(&config, former.as_deref(), offer)?;
        if offer.dry_run {
            return Ok((None, there));
        }
        let guest = offer.guest.as_ref().map(|guest| state.coming(guest, &config));
        let uuid = identity_of(&config)?.namespace_ids(0).uuid;
        let peer = offer.from.clone();
        let hypervisor = guest.as_ref().map(|guest| guest.path().display().to_string());
        let limits = offer.along.as_ref().map(|along| along::saved(&along.limits.within_bounds()));
        let parties =
            Parties { ssd: uuid, peer, keep: false, closed: false, wiped: false, hypervisor, limits };
        let (migration, record) = (offer.migration, None);
        let expected = Expected { migration, number, config, store, parties, record, seen, former, guest };
        let arrival = Arrival::new(house, expected);
        if let Some(along) = &offer.along {
            arrival.offered(along);
        }
        self.keep(&mut state, &arrival);
        Ok((Some(arrival), there))
    }

    /// A guest whose memory is to come.
    fn coming(&self, id: u128) -> Option<Arc<Coming>> {
        self.state().guests.values().find(|guest| guest.id() == id).cloned()
    }

    /// All there are.
    pub(crate) fn list(&self) -> Vec<MigrationStatus> {
        self.state().cases.values().map(|case| case.status()).collect()
    }

    /// The time line of an ssd's last migration.
    pub(crate) fn timeline(&self, ssd: &str) -> Response {
        let case = self.state().cases.get(ssd).cloned();
        match case {
            Some(case) => Response::Timeline(case.gauge.timeline(ssd)),
            None => Response::Error(format!(
                "nothing is known of a migration of ssd \"{ssd}\": an engine that was restarted forgets those that are over"
            )),
        }
    }

    /// Steers the migration of an ssd.
    pub(crate) fn steer(&self, ssd: &str, steer: Steer) -> Response {
        let case = self.state().cases.get(ssd).cloned();
        match case {
            Some(case) if !case.is_over() => {
                case.steer(steer);
                Response::Done("told: see `godwit migration list`".to_owned())
            }
            Some(_) => Response::Error(format!("the migration of ssd \"{ssd}\" is over")),
            None => Response::Error(format!("ssd \"{ssd}\" is not being moved")),
        }
    }
}

/// A migration from here that nothing stands in the way of.
struct Prepared<'a> {
    alone: Beginning<'a>,
    number: usize,
    config: config::Ssd,
    store: Arc<dyn Store>,
    former: Option<MigrationV1>,
    offer: Offer,
    outlook: Outlook,
    /// Its snapshots that go along, oldest first.
    snapshots: Vec<String>,
}

impl Prepared<'_> {
    /// What would be done.
    fn plan(self, house: &House, to: &str) -> anyhow::Result<String> {
        let mut told = vec![format!(
            "ssd \"{}\" can be moved to {to}: {} MiB of {} MiB are in use{} and would be copied",
            self.config.name,
            in_use(house, self.number, &self.snapshots)? >> 20,
            self.offer.device.size_bytes >> 20,
            if self.snapshots.is_empty() { "" } else { ", with what only its snapshots have," }
        )];
        told.extend(self.outlook.details);
        told.extend(self.outlook.warnings);
        told.push("Nothing was done".to_owned());
        Ok(told.join(". "))
    }
}

/// What a migration from here begins with.
struct Departure {
    number: usize,
    journal: Journal,
    offer: Offer,
    terms: MigrationTerms,
    snapshots: Vec<String>,
    inbox: (Sender<Event>, Receiver<Event>),
    guest: Option<guest::Line>,
}

/// The ssd of this host that is offered, its number, and how it will be here.
///
/// # Errors
/// There is none, or not the same, or it is here.
fn expected_here(house: &Arc<House>, offer: &Offer) -> anyhow::Result<(config::Ssd, usize, Option<There>)> {
    let name = &offer.name;
    let config = house.config(name).with_context(|| {
        format!("no ssd \"{name}\" is expected here: add it to this host's configuration, with `incoming = true`, as it is at the source, or give its agent what `godwit ssd export` prints there (`godwit ssd accept`)")
    })?;
    check_movable(&config)?;
    let number = house.number(name).context("it has no number")?;
    let size_bytes = config.size_bytes.context("it has no `size` here: write it in the configuration")?;
    let device = device(&config, size_bytes)?;
    if let Some(difference) = offer.device.is_unknown().or_else(|| device.differs(&offer.device)) {
        bail!("ssd \"{name}\": {difference}");
    }
    if let Some(guest) = &offer.guest {
        Coming::check(house, guest, name).context("its guest cannot come with it")?;
    }
    ensure!(house.ssd(number).is_none(), "ssd \"{name}\" is served here: it can only come where it is not");
    let there = offer.along.as_ref().map(|along| along::here(&config, along)).transpose()?;
    if let Some(along) = &offer.along {
        along::check_names(&config, along, house.pools()?)?;
    }
    Ok((config, number, there))
}

/// What is gone with the engine that opened it cannot arrive, and nothing of it is anywhere to leave.
fn check_movable(config: &config::Ssd) -> anyhow::Result<()> {
    match config.backend {
        Backend::Ram | Backend::Null => {
            bail!("ssd \"{}\" has no drive that keeps anything: it cannot be moved", config.name)
        }
        _ => Ok(()),
    }
}

/// The highest epoch of an ssd that its journal here knows.
///
/// # Errors
/// By that journal it cannot come now.
fn seen(config: &config::Ssd, former: Option<&[u8]>, offer: &Offer) -> anyhow::Result<Option<u64>> {
    let name = &config.name;
    // Somebody may want what is only here, and says so by the word `incoming` if not.
    let spared = || {
        ensure!(
            config.incoming && !config.spared,
            "ssd \"{name}\" has data here that is nowhere else: save it, then write `incoming = true`, and no `spared`, in this host's configuration (of an agent's ssd: delete it \
             there, and accept it anew)"
        );
        anyhow::Ok(())
    };
    Ok(match former.map(Record::from_bytes).transpose()? {
        None => {
            ensure!(
                config.incoming,
                "ssd \"{name}\" is this host's own: `incoming = true` is not in its configuration"
            );
            None
        }
        Some((_, Record::Destination(record)))
            if record.pledge.migration == offer.migration.to_be_bytes() =>
        {
            bail!(
                "its journal here is of this migration, and could not be read when the engine began: restart the engine"
            )
        }
        Some((parties, Record::Destination(record))) => {
            if let DestinationStep::Superseded { .. } = record.step {
                spared()?;
            }
            Some(over(&parties, &record)?)
        }
        Some((parties, Record::Source(record))) => {
            ensure!(record.is_over(), "ssd \"{name}\" is on its way from here to another host");
            if parties.keep || record.step == SourceStep::Superseded {
                spared()?;
            }
            Some(record.held.max(record.pledge.epoch))
        }
    })
}

/// The machine of a migration that begins, by what the journal says of the one before.
fn first_step(
    former: Option<MigrationV1>,
    migration: [u8; 16],
) -> anyhow::Result<(Source, Vec<SourceEffect>)> {
    let begun = match former.map(Record::of).transpose()? {
        None => Source::begin(migration, 1, None),
        Some((_, Record::Source(record))) => {
            Source::begin(migration, record.held, Some(Former::From(&record)))
        }
        Some((parties, Record::Destination(record))) => {
            let mut destination = Destination::recover(record).0;
            if parties.closed {
                let message = Message { pledge: record.pledge, word: ToDestination::Closed };
                destination.handle(DestinationEvent::Message(message));
            }
            Source::begin(migration, record.pledge.epoch, Some(Former::To(&destination)))
        }
    };
    begun.map_err(|refusal| anyhow!("{refusal}"))
}

/// The epoch of a migration to here that is over, and that another may follow.
fn over(parties: &Parties, record: &DestinationRecord) -> anyhow::Result<u64> {
    use DestinationStep as Step;
    match record.step {
        Step::Dropped | Step::Superseded { .. } => Ok(record.pledge.epoch),
        Step::Owned | Step::Forced => bail!("it is owned here already, since it came from {}", parties.peer),
        Step::Incoming | Step::Ready => {
            bail!(
                "it is on its way here from {}: cancel that migration here, if it is not to come",
                parties.peer
            )
        }
    }
}

fn offer(config: &config::Ssd, migration: [u8; 16], size_bytes: u64) -> anyhow::Result<Offer> {
    Ok(Offer {
        version: VERSION,
        migration: u128::from_be_bytes(migration),
        dry_run: false,
        guest: None,
        along: None,
        name: config.name.clone(),
        from: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        device: device(config, size_bytes)?,
    })
}

fn device(config: &config::Ssd, size_bytes: u64) -> anyhow::Result<word::Device> {
    let identity = identity_of(config)?;
    // A disk shows its serial number, and nothing else.
    let (door, nqn, uuid) = match config.door {
        Door::VfioUser => ("vfio-user", identity.nqn.clone(), hex(&identity.namespace_ids(0).uuid)),
        Door::VhostUser => ("vhost-user", String::new(), String::new()),
    };
    let (profile, serial) = (config.profile.clone(), config.identity.serial.clone());
    Ok(word::Device {
        size_bytes,
        door: door.to_owned(),
        profile,
        serial,
        nqn,
        uuid,
        lba_bytes: config.lba_bytes,
    })
}

fn size_of(house: &House, config: &config::Ssd) -> anyhow::Result<u64> {
    let served = house.number(&config.name).and_then(|number| house.ssd(number));
    served.map(|ssd| ssd.limits().capacity_bytes).or(config.size_bytes).context("nobody knows its size")
}

/// Bytes that an ssd has, and that its snapshots have beside it.
fn in_use(house: &House, number: usize, snapshots: &[String]) -> anyhow::Result<u64> {
    let ssd = house.ssd(number).context("it is not served any more")?;
    let mut sum = 0;
    if let (Some(volume), false) = (ssd.drive.volume(), snapshots.is_empty()) {
        let mut before = None;
        for state in snapshots.iter().map(Some).chain([None]) {
            let changes = volume.changes(before, state.map(String::as_str))?;
            let mapped = changes.into_iter().filter(|change| change.mapped);
            sum += mapped.map(|change| change.bytes.end - change.bytes.start).sum::<u64>();
            before = state.map(String::as_str);
        }
        return Ok(sum);
    }
    ssd.drive.allocated(ssd.limits().capacity_bytes, &mut |start, end| sum += end - start)?;
    Ok(sum)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
