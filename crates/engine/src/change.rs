//! A change of what is served, in its two halves: what can fail, and what happens then.
//!
//! ```text
//!  Prepare --> open what comes; nothing is served yet --> Prepared        (or refused: what was made is taken back)
//!  Commit  --> grow, leave what goes, serve what comes -> Changed
//! ```
//!
//! On a thread of its own: reactors, and the sessions of all other ssds, have no part in it. The keeper's configuration is the truth: an
//! engine that ends between the halves, or in one, is followed by one that begins with the old one or the new one.

use crate::clock;
use crate::passage::{Absent, Away};
use crate::pool::{Pools, Purpose};
use crate::run::{House, index};
use crate::served::{Planned, Served};
use crate::ssd::Ssd;
use crate::terms;
use anyhow::{Context, ensure};
use api::config::{self, Backend, Config, Engine};
use link::control::{Change, Prepared, Slot, ToKeeper};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};

/// A change that is prepared. Dropped without having been carried out, it takes back what it made.
pub(crate) struct Readied {
    change: u64,
    added: BTreeMap<usize, (Planned, Made)>,
    /// Ssds that come, and whose owner is not here.
    absent: BTreeMap<usize, (Absent, Away)>,
    removed: Vec<usize>,
    /// These change otherwise than by their limits: their size, or what is said of their coming.
    changed: Vec<usize>,
    grown: Vec<Growth>,
    /// After what comes: it may be in them.
    pools: NewPools,
    /// Of all ssds, by their names: those that change and those that do not.
    ssds: Vec<config::Ssd>,
    engine: Engine,
    /// Names of all pools there are then.
    all_pools: Vec<String>,
}

/// An ssd that grows.
struct Growth {
    number: usize,
    ssd: Arc<Ssd>,
    to_bytes: u64,
    made: Made,
}

/// Pools that are open since this change was prepared. Dropped, they are given up; their files, too, where there were none.
struct NewPools {
    pools: Arc<Pools>,
    names: Vec<String>,
    files: Vec<PathBuf>,
}

impl NewPools {
    /// Opens what a configuration has more. One that was there before and could not be had is tried again.
    fn open(pools: &Arc<Pools>, config: &Config) -> anyhow::Result<Self> {
        let mut this = Self { pools: Arc::clone(pools), names: Vec::new(), files: Vec::new() };
        for pool in &config.pools {
            if pools.knows(&pool.name) {
                pools.add(pool, None);
                continue;
            }
            this.names.push(pool.name.clone());
            if !pool.path.exists() {
                this.files.push(pool.path.clone());
            }
            pools.add_or_refuse(pool)?;
        }
        Ok(this)
    }

    /// They stay.
    fn keep(mut self) {
        self.names.clear();
        self.files.clear();
    }
}

impl Drop for NewPools {
    fn drop(&mut self) {
        self.names.iter().for_each(|name| self.pools.give_up(name));
        for file in &self.files {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// What opening a drive, or making room on it, made of its file.
#[derive(Default)]
struct Made {
    /// The path of a file that was not there before.
    file: Option<PathBuf>,
    /// An open file that was shorter before, and how long it was.
    longer: Option<(OwnedFd, u64)>,
}

impl Made {
    /// What is there before a drive is opened: the length of its file. `None`: opening it makes nothing, or the file itself.
    fn before(backend: &Backend) -> Option<u64> {
        let Backend::Uring { path, .. } = backend else { return None };
        std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|file| file.len())
    }

    fn since(before: Option<u64>, backend: &Backend, ssd: &Ssd) -> Self {
        let Backend::Uring { path, .. } = backend else { return Self::default() };
        match before {
            None if path.is_file() => Self { file: Some(path.clone()), longer: None },
            Some(former) => {
                let longer = ssd.drive.descriptor().ok().flatten().map(|file| (file, former));
                Self { file: None, longer }
            }
            None => Self::default(),
        }
    }

    /// How long the file of a drive is that is about to get longer.
    fn growing(backend: &Backend, ssd: &Ssd) -> Self {
        let Backend::Uring { .. } = backend else { return Self::default() };
        // The open file's: another may have its path by now.
        let file = ssd.drive.descriptor().ok().flatten();
        let longer = file.and_then(|file| {
            let stat = rustix::fs::fstat(&file).ok()?;
            let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
            let len = u64::try_from(stat.st_size).ok().filter(|_| is_file)?;
            Some((file, len))
        });
        Self { file: None, longer }
    }

    /// It stays.
    fn keep(mut self) {
        (self.file, self.longer) = (None, None);
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // Nobody has seen what is taken back here: it was opened, and locked, by this change alone.
        if let Some((file, former)) = self.longer.take()
            && rustix::fs::fstat(&file)
                .is_ok_and(|stat| u64::try_from(stat.st_size).is_ok_and(|now| now > former))
        {
            let _ = rustix::fs::ftruncate(&file, former);
        }
        if let Some(path) = self.file.take() {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl House {
    /// Makes ready, and says so.
    pub(crate) fn prepare(&self, config_path: &str, change: &Change) {
        let mut readied = self.give_up_change();
        let refused = match self.make_ready(Path::new(config_path), change) {
            Ok(ready) => {
                *readied = Some(ready);
                None
            }
            Err(error) => Some(format!("{error:#}")),
        };
        drop(readied);
        self.keeper.tell(&ToKeeper::Prepared(Prepared { change: change.change, refused }));
    }

    /// From here on, as long as this is held, no change is prepared or carried out.
    pub(crate) fn give_up_change(&self) -> MutexGuard<'_, Option<Readied>> {
        let mut readied = self.readied.lock().unwrap_or_else(PoisonError::into_inner);
        drop(readied.take());
        readied
    }

    /// The keeper does not want the change that was prepared, and never will: it took too long.
    pub(crate) fn forget_change(&self, change: u64) {
        let mut readied = self.readied.lock().unwrap_or_else(PoisonError::into_inner);
        drop(readied.take_if(|readied| readied.change == change));
    }

    /// For a migration that begins: as long as this is held, no change is prepared or carried out, and the next one that is prepared finds the migration.
    ///
    /// # Errors
    /// The ssd is about to go, or to be another, by a change that is prepared already.
    pub(crate) fn hold_changes(&self, number: usize) -> anyhow::Result<MutexGuard<'_, Option<Readied>>> {
        let readied = self.readied.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ready) = readied.as_ref() {
            ensure!(
                !ready.removed.contains(&number),
                "it is about to go from the configuration of this host"
            );
            ensure!(
                !ready.changed.contains(&number),
                "the configuration of this host is about to say something else of it: ask again in a moment"
            );
        }
        Ok(readied)
    }

    fn make_ready(&self, config_path: &Path, change: &Change) -> anyhow::Result<Readied> {
        let config = Config::parse(config_path, &change.config)?;
        crate::identities::check_distinct(&config)?;
        let pools = NewPools::open(self.pools()?, &config)?;
        let (mut added, mut absent) = (BTreeMap::new(), BTreeMap::new());
        for slot in &change.added {
            let ssd = config.ssd(&slot.name).context("the configuration does not have it")?;
            if let Some(away) = self.away(ssd).with_context(|| format!("ssd \"{}\"", slot.name))? {
                let number = index(slot.number.context("it has no number")?);
                absent.insert(number, (Absent::new(ssd), away));
                continue;
            }
            let (number, opened) =
                self.open(&config, slot).with_context(|| format!("ssd \"{}\"", slot.name))?;
            added.insert(number, opened);
        }
        let removed: Vec<usize> = change.removed.iter().copied().map(index).collect();
        for number in removed.iter().copied().chain(change.grown.iter().copied().map(index)) {
            self.check_stays(number)?;
        }
        let mut changed: Vec<usize> = change.grown.iter().copied().map(index).collect();
        for ssd in &config.ssds {
            changed.extend(self.check_expected(ssd)?);
        }
        let mut grown = Vec::new();
        for number in change.grown.iter().copied().map(index) {
            grown.extend(self.make_room(&config, number)?);
        }
        let ssds = config.ssds;
        let all_pools = config.pools.into_iter().map(|pool| pool.name).collect();
        let engine = config.engine;
        let change = change.change;
        Ok(Readied { change, added, absent, removed, changed, grown, pools, ssds, engine, all_pools })
    }

    fn open(&self, config: &Config, slot: &Slot) -> anyhow::Result<(usize, (Planned, Made))> {
        let config = config.ssd(&slot.name).context("the configuration does not have it")?;
        let number = index(slot.number.context("it has no number")?);
        let before = Made::before(&config.backend);
        let planned = self.plan(number, config, None, None, Purpose::Serve);
        // A drive that cannot be opened may have been made all the same.
        let planned = planned.inspect_err(|_| {
            if let (None, Backend::Uring { path, .. }) = (before, &config.backend)
                && path.is_file()
            {
                let _ = std::fs::remove_file(path);
            }
        })?;
        let made = Made::since(before, &config.backend, planned.ssd());
        Ok((number, (planned, made)))
    }

    /// The number of an ssd of which it is said otherwise whether it comes, and its guest with it.
    ///
    /// # Errors
    /// It comes just now, or is here and nowhere else.
    fn check_expected(&self, ssd: &config::Ssd) -> anyhow::Result<Option<usize>> {
        let (Some(number), Some(before)) = (self.number(&ssd.name), self.config(&ssd.name)) else {
            return Ok(None);
        };
        if (before.incoming, before.spared, &before.hypervisor) == (ssd.incoming, ssd.spared, &ssd.hypervisor)
        {
            return Ok(None);
        }
        let has_no_journal = before.incoming != ssd.incoming && self.has_no_journal(&before);
        // Whoever is on his way goes by what was said when he set out.
        if before.hypervisor != ssd.hypervisor || before.spared != ssd.spared || has_no_journal {
            self.check_stays(number)?;
        }
        // The next engine would not serve it, and another host's could come in its place.
        ensure!(
            before.incoming || !ssd.incoming || !has_no_journal || !self.is_open(number),
            "ssd \"{0}\" is here, and was never elsewhere: with `incoming` nobody would be served by what it has. To replace it by one that comes, take it out of the configuration first",
            ssd.name
        );
        Ok(Some(number))
    }

    /// For an ssd that grows. `None`: it is not served now, and will be as large as it is to be when it is.
    fn make_room(&self, config: &Config, number: usize) -> anyhow::Result<Option<Growth>> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let open = slots.open.get(&number).map(|served| Arc::clone(served.ssd()));
        drop(slots);
        let Some(ssd) = open else {
            self.check_grows_elsewhere(config, number)?;
            return Ok(None);
        };
        let config = config.ssd(&ssd.name).context("the configuration does not have what grows")?;
        let to_bytes = config.size_bytes.context("it grows to no size")?;
        let made = Made::growing(&config.backend, &ssd);
        ssd.drive.make_room(to_bytes).with_context(|| format!("ssd \"{}\"", ssd.name))?;
        Ok(Some(Growth { number, ssd, to_bytes, made }))
    }

    /// Carries out what was prepared, and says when that is done.
    pub(crate) fn commit(&self, change: u64) {
        let mut readied = self.readied.lock().unwrap_or_else(PoisonError::into_inner);
        match readied.take_if(|readied| readied.change == change) {
            Some(Readied { added, absent, removed, grown, pools, ssds, engine, all_pools, .. }) => {
                pools.keep();
                self.call_up(&engine);
                self.grow(grown);
                self.leave(&removed);
                if let Ok(open) = self.pools() {
                    open.keep_only(&all_pools);
                }
                self.limit(&ssds);
                *self.configs.lock().unwrap_or_else(PoisonError::into_inner) = ssds;
                for (number, (absent, away)) in absent {
                    self.stay_away(number, absent, &away);
                }
                // One that was not here may say by now that its guest comes with it, or that it comes without.
                self.await_no_more();
                self.await_guests();
                self.take_up(added);
            }
            None => {
                self.keeper.fault(None, format!("change {change} was not prepared: the next engine has it"))
            }
        }
        drop(readied);
        self.keeper.tell(&ToKeeper::Changed { change });
    }

    /// The drive first: a guest that hears of it may use it at once.
    fn grow(&self, grown: Vec<Growth>) {
        for Growth { number, ssd, to_bytes, made } in grown {
            made.keep();
            if let Err(error) = ssd.drive.grow(to_bytes) {
                let why =
                    format!("it does not grow to {to_bytes} bytes, and is as large as it was: {error:#}");
                self.keeper.fault(Some(number), why);
                continue;
            }
            let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            let announce = slots.open.get(&number).map(|it| it.announcement(ssd.limits().capacity_bytes));
            drop(slots);
            // Not under the lock: others plug in meanwhile.
            if let Some(announce) = announce {
                announce();
            }
        }
    }

    /// Ends the sessions of what goes, makes its data durable and closes its drives.
    fn leave(&self, removed: &[usize]) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let absent: Vec<_> = removed.iter().filter_map(|number| slots.absent.remove(number)).collect();
        let going: Vec<Served> = removed.iter().filter_map(|number| slots.open.remove(number)).collect();
        drop(slots);
        self.end_wait(absent.into_iter().filter_map(|absent| absent.waiting).collect());
        going.iter().for_each(Served::stop);
        for served in going {
            if let Err(error) = served.join() {
                self.keeper.fault(None, format!("removed, but {error:#}"));
            }
        }
    }

    /// The limits of the ssds that are served and stay; of those that are not, all that they will be served by.
    fn limit(&self, ssds: &[config::Ssd]) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.at(clock::ticks());
        for served in slots.open.values() {
            let ssd = served.ssd();
            if let Some(config) = ssds.iter().find(|config| config.name == ssd.name) {
                terms::set_limits(ssd, config.own_limits(), now, self.duty.crew());
            }
        }
        for absent in slots.absent.values_mut() {
            if let Some(config) = ssds.iter().find(|config| config.name == absent.config.name) {
                absent.config = config.clone();
                // By these it is held when it comes.
                if let Some(waiting) = &absent.waiting {
                    terms::set_limits(waiting.ssd(), config.own_limits(), now, self.duty.crew());
                }
            }
        }
    }

    fn take_up(&self, added: BTreeMap<usize, (Planned, Made)>) {
        for (number, (planned, made)) in added {
            made.keep();
            if let Err(error) = self.take_up_one(number, planned) {
                self.keeper.fault(Some(number), format!("it cannot be served: {error:#}"));
            }
        }
    }
}
