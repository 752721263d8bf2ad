//! A change of what is served, in its two halves: what can fail, and what happens then.
//!
//! ```text
//!  Prepare --> open what comes; nothing is served yet --> Prepared        (or refused: what was made is taken back)
//!  Commit  --> leave what goes, serve what comes ------> Changed
//! ```
//!
//! On a thread of its own: reactors, and the sessions of all other ssds, have no part in it. The keeper's configuration is the truth: an
//! engine that ends between the halves, or in one, is followed by one that begins with the old one or the new one.

use crate::clock;
use crate::run::{House, index};
use crate::served::{Planned, Served};
use crate::ssd::Ssd;
use crate::terms;
use anyhow::{Context, bail};
use api::config::{Backend, Config, Engine, Limits};
use link::control::{Change, Prepared, Slot, ToKeeper};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{MutexGuard, PoisonError};

/// A change that is prepared. Dropped without having been carried out, it takes back what it made.
pub(crate) struct Readied {
    change: u64,
    added: BTreeMap<usize, (Planned, Made)>,
    removed: Vec<usize>,
    /// Of all ssds, by their names: those that change and those that do not.
    limits: Vec<(String, Limits)>,
    engine: Engine,
}

/// What opening a drive made of its file.
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

    fn make_ready(&self, config_path: &Path, change: &Change) -> anyhow::Result<Readied> {
        let config = Config::parse(config_path, &change.config)?;
        crate::identities::check_distinct(&config)?;
        if !change.grown.is_empty() {
            bail!("an ssd cannot grow while it is served: restart godwitd to grow it");
        }
        // A pool that came with a change that is given up stays open, and serves nobody.
        if let Ok(pools) = self.pools() {
            config.pools.iter().for_each(|pool| pools.add(pool, None));
        }
        let mut added = BTreeMap::new();
        for slot in &change.added {
            let (number, opened) =
                self.open(&config, slot).with_context(|| format!("ssd \"{}\"", slot.name))?;
            added.insert(number, opened);
        }
        let removed = change.removed.iter().copied().map(index).collect();
        let limits = config.ssds.iter().map(|ssd| (ssd.name.clone(), ssd.limits)).collect();
        Ok(Readied { change: change.change, added, removed, limits, engine: config.engine })
    }

    fn open(&self, config: &Config, slot: &Slot) -> anyhow::Result<(usize, (Planned, Made))> {
        let config = config.ssd(&slot.name).context("the configuration does not have it")?;
        let number = index(slot.number.context("it has no number")?);
        let before = Made::before(&config.backend);
        let planned = self.plan(number, config, None, None);
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

    /// Carries out what was prepared, and says when that is done.
    pub(crate) fn commit(&self, change: u64) {
        let mut readied = self.readied.lock().unwrap_or_else(PoisonError::into_inner);
        match readied.take_if(|readied| readied.change == change) {
            Some(Readied { added, removed, limits, engine, .. }) => {
                self.call_up(&engine);
                self.leave(&removed);
                self.limit(&limits);
                self.take_up(added);
            }
            None => {
                self.keeper.fault(None, format!("change {change} was not prepared: the next engine has it"))
            }
        }
        drop(readied);
        self.keeper.tell(&ToKeeper::Changed { change });
    }

    /// Ends the sessions of what goes, makes its data durable and closes its drives.
    fn leave(&self, removed: &[usize]) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let going: Vec<Served> = removed.iter().filter_map(|number| slots.open.remove(number)).collect();
        drop(slots);
        going.iter().for_each(Served::stop);
        for served in going {
            if let Err(error) = served.join() {
                self.keeper.fault(None, format!("removed, but {error:#}"));
            }
        }
    }

    /// The limits of the ssds that are served and stay.
    fn limit(&self, limits: &[(String, Limits)]) {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.at(clock::ticks());
        for served in slots.open.values() {
            let ssd = served.ssd();
            if let Some((_, limits)) = limits.iter().find(|(name, _)| *name == ssd.name) {
                terms::set_limits(ssd, limits, now, self.duty.crew());
            }
        }
    }

    fn take_up(&self, added: BTreeMap<usize, (Planned, Made)>) {
        for (number, (planned, made)) in added {
            made.keep();
            let name = planned.ssd().name.clone();
            let (ready, readies) = channel();
            // Its client may come as soon as it is powered on, and finds it here.
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            let started = planned.start(ready).map(|served| _ = slots.open.insert(number, served));
            drop(slots);
            let started = started.map_err(anyhow::Error::from);
            let served = started.and_then(|()| readies.recv().context("its thread ended")?.map(drop));
            if let Err(error) = served {
                self.keeper.fault(Some(number), format!("it cannot be served: {error:#}"));
                let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
                slots.open.remove(&number);
            } else {
                tracing::info!(ssd = name, "served from now on");
            }
        }
    }
}
