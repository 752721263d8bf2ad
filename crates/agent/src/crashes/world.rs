//! The daemon's double, and the clock of an agent's end.

use super::{Ended, moves};
use crate::plane::{How, Plane, PlaneError};
use api::config::{Backend, Config, KeySource};
use api::control::{EngineRequest, MigrationStatus, PoolRequest, PoolStatus, Status, Timeline, VolumeStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The daemon and the clock of an agent's end.
#[derive(Default)]
pub(super) struct World {
    /// Effects until the end; 0: it does not come.
    pub(super) left: AtomicUsize,
    /// Effects until "a" arrives from another host; 0: it does not.
    pub(super) until_arrival: AtomicUsize,
    /// Effects until it leaves for another host; 0: it does not.
    pub(super) until_departure: AtomicUsize,
    /// Effects until it is offered to another host; 0: it is not.
    pub(super) until_offer: AtomicUsize,
    pub(super) daemon: Mutex<Double>,
}

/// A daemon's double: it keeps to the contract of `Apply`.
#[derive(Default)]
pub(super) struct Double {
    pub(super) served: BTreeMap<String, (PathBuf, u64)>,
    /// How often each file was made.
    pub(super) made: BTreeMap<PathBuf, u32>,
    /// These have clients.
    pub(super) clients: BTreeSet<String>,
    /// Refuses an ssd of this name, after it accepted so many.
    pub(super) refused: Option<(String, u32)>,
    /// Who was ever taken away.
    pub(super) lost: BTreeSet<String>,
    pub(super) applied: u32,
    /// By path: what `Create` made, whether or not it is served.
    pub(super) drives: BTreeMap<PathBuf, Drive>,
    /// Pools that are served, by name.
    pub(super) pools: BTreeMap<String, PathBuf>,
    /// Drives that carry somebody's data.
    pub(super) taken: BTreeSet<PathBuf>,
    /// Extents whose wipe fails from now on.
    pub(super) broken: bool,
    /// An older copy of the drive is put back while something is being wiped: with this volume, which it still has.
    pub(super) put_back: Option<String>,
    /// The next snapshot is made, and refused all the same.
    pub(super) spoils: bool,
    /// By volume: what its journal says.
    pub(super) journals: BTreeMap<String, &'static str>,
    /// Volumes that another host serves, in truth.
    pub(super) elsewhere: BTreeSet<String>,
    /// Those that are to come have no room.
    pub(super) full: bool,
    /// So many configurations are not answered.
    pub(super) busy: u32,
    /// Which QEMU the guest of each comes to, and how much each may do, as it is configured.
    pub(super) said: BTreeMap<String, Said>,
    /// Those that are said to come.
    pub(super) expected: BTreeSet<String>,
    /// And those of them that nothing is to replace.
    pub(super) spared: BTreeSet<String>,
    /// "a" is being moved.
    pub(super) moving: bool,
    /// The size of "a", and what was said of it, when it left last.
    pub(super) left_with: Option<(u64, Said)>,
    /// The snapshots that come with "a" when it arrives.
    pub(super) coming: Vec<String>,
    /// What went is given back when the volume is deleted, and not before.
    pub(super) slow: bool,
    /// Those that stay when it leaves.
    pub(super) staying: BTreeSet<String>,
    /// The keys that data was written with, by the place of the data.
    pub(super) keys: BTreeMap<PathBuf, Vec<u8>>,
}

/// The `hypervisor` of an ssd, and its limit of I/O.
pub(super) type Said = (Option<PathBuf>, Option<u64>);

/// A drive that carries a pool.
#[derive(Default)]
pub(super) struct Drive {
    pub(super) uuid: String,
    /// How often it was formatted.
    pub(super) formatted: u32,
    /// The volumes: what is in them, and whether they are served.
    pub(super) volumes: BTreeMap<String, (String, bool)>,
    /// Those of them that are snapshots, and of what.
    pub(super) snapshots: BTreeMap<String, String>,
    /// Contents that are to be zeroed, with the looks at the pool until they are.
    pub(super) wiping: Vec<(String, u32)>,
    pub(super) quarantined: u64,
    /// Every volume that was ever made, and how often.
    pub(super) made: BTreeMap<String, u32>,
}

impl World {
    pub(super) fn effect(&self) {
        let until = self.until_arrival.load(Ordering::Relaxed);
        self.until_arrival.store(until.saturating_sub(1), Ordering::Relaxed);
        if until == 1 {
            self.daemon().arrive("a");
        }
        let until = self.until_departure.load(Ordering::Relaxed);
        self.until_departure.store(until.saturating_sub(1), Ordering::Relaxed);
        if until == 1 {
            self.daemon().leave("a");
        }
        let until = self.until_offer.load(Ordering::Relaxed);
        self.until_offer.store(until.saturating_sub(1), Ordering::Relaxed);
        if until == 1 {
            self.daemon().moving_is("offered");
        }
        let left = self.left.load(Ordering::Relaxed);
        self.left.store(left.saturating_sub(1), Ordering::Relaxed);
        if left == 1 {
            resume_unwind(Box::new(Ended));
        }
    }

    pub(super) fn daemon(&self) -> MutexGuard<'_, Double> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Double {
    pub(super) fn apply(&mut self, text: &str, how: How) -> Result<String, PlaneError> {
        let refused = |text: &str| Err(PlaneError::Refused(text.to_owned()));
        if self.busy > 0 {
            self.busy -= 1;
            return Err(PlaneError::Silent("another change is under way".to_owned()));
        }
        let config = Config::parse(Path::new("x"), text).map_err(|e| PlaneError::Refused(e.to_string()))?;
        let names: BTreeSet<&str> = config.ssds.iter().map(|ssd| ssd.name.as_str()).collect();
        if let Some((name, after)) = &mut self.refused
            && names.contains(name.as_str())
        {
            if *after == 0 {
                return refused("this ssd cannot be");
            }
            *after -= 1;
        }
        let gone: Vec<String> =
            self.served.keys().filter(|name| !names.contains(name.as_str())).cloned().collect();
        if gone.iter().any(|name| self.clients.contains(name)) && !how.force {
            return refused("it has a client");
        }
        let (mut wanted, mut says) = (BTreeMap::new(), BTreeMap::new());
        for ssd in &config.ssds {
            let size = ssd.size_bytes.unwrap_or(0);
            let path = match &ssd.backend {
                Backend::Uring { path, .. } => path.clone(),
                Backend::Pool { pool, .. } => PathBuf::from(format!("{pool}/{}", ssd.volume())),
                _ => return refused("no file"),
            };
            if self.served.get(&ssd.name).is_some_and(|(_, before)| *before > size) {
                return refused("an ssd does not shrink");
            }
            let grows = self.served.get(&ssd.name).is_some_and(|(_, before)| *before < size);
            if grows && self.has_gone(ssd.volume()) && !ssd.incoming {
                return refused("it is not here any more");
            }
            let said = (ssd.hypervisor.clone(), ssd.limits.iops.map(|rate| rate.per_second));
            if self.moving && self.said.get(&ssd.name).is_some_and(|before| before.0 != said.0) {
                return refused("it is being moved");
            }
            says.insert(ssd.name.clone(), said);
            wanted.insert(ssd.name.clone(), (path, size));
        }
        for pool in &config.pools {
            if !self.drives.contains_key(&pool.path) {
                return refused("its drive carries no pool");
            }
        }
        if how.dry_run {
            return Ok(format!("{} ssds", wanted.len()));
        }
        for ssd in &config.ssds {
            let Some(KeySource::File(key)) = &ssd.key else { continue };
            let key = std::fs::read(key).expect("a key is there before its ssd");
            assert_eq!(key.len(), 64, "half a key");
            let (place, _) = wanted[&ssd.name].clone();
            let written_with = self.keys.entry(place).or_insert_with(|| key.clone());
            assert!(*written_with == key, "{} is noise with another key", ssd.name);
        }
        self.lost.extend(gone);
        self.pools = config.pools.iter().map(|pool| (pool.name.clone(), pool.path.clone())).collect();
        self.serve_volumes(&config);
        for (path, _) in wanted.values().filter(|(path, _)| path.is_absolute()) {
            if !path.exists() {
                *self.made.entry(path.clone()).or_default() += 1;
                std::fs::write(path, "zeros").unwrap();
            }
        }
        (self.served, self.said) = (wanted, says);
        self.expected = config.ssds.iter().filter(|ssd| ssd.incoming).map(|ssd| ssd.name.clone()).collect();
        self.spared = config.ssds.iter().filter(|ssd| ssd.spared).map(|ssd| ssd.name.clone()).collect();
        self.applied += 1;
        Ok(String::new())
    }
}

impl Double {
    pub(super) fn drive(&mut self, pool: &str) -> Result<&mut Drive, PlaneError> {
        let drive = self.pools.get(pool).and_then(|path| self.drives.get_mut(path));
        drive.ok_or_else(|| PlaneError::Refused("no such pool".to_owned()))
    }

    fn serve_volumes(&mut self, config: &Config) {
        let all = self.drives.values_mut().flat_map(|drive| drive.volumes.values_mut());
        all.for_each(|(_, served)| *served = false);
        for ssd in &config.ssds {
            let Backend::Pool { pool, .. } = &ssd.backend else { continue };
            let journal = self.journals.get(ssd.volume()).copied();
            let is_here = moves::is_here(journal, ssd.incoming);
            assert!(!is_here || !self.elsewhere.contains(ssd.volume()), "{} is served twice", ssd.name);
            let no_room = self.full && ssd.incoming;
            let Ok(drive) = self.drive(pool) else { continue };
            if no_room && !drive.volumes.contains_key(ssd.volume()) {
                continue;
            }
            let volume = drive.volumes.entry(ssd.volume().to_owned()).or_insert_with(|| {
                *drive.made.entry(ssd.volume().to_owned()).or_default() += 1;
                ("zeros".to_owned(), true)
            });
            volume.1 = is_here;
        }
    }

    fn ask(&mut self, request: PoolRequest) -> Result<String, PlaneError> {
        let refused = |text: &str| Err(PlaneError::Refused(text.to_owned()));
        match request {
            PoolRequest::Create { path, uuid, force_destroy_data, .. } => {
                let uuid = uuid.unwrap();
                assert_eq!(uuid.len(), 32);
                match self.drives.get(&path) {
                    Some(there) if there.uuid == uuid => return Ok("already".to_owned()),
                    None if !self.taken.contains(&path) => {}
                    _ if force_destroy_data.is_none() => return refused("it is taken"),
                    _ => {}
                }
                self.drives.insert(path, Drive { uuid, formatted: 1, ..Drive::default() });
            }
            PoolRequest::Delete { pool, volume } => {
                let fails = self.broken;
                let journals = self.journals.clone();
                let drive = self.drive(&pool)?;
                let of = drive.snapshots.get(&volume).and_then(|of| journals.get(of));
                if matches!(of, Some(&"offered" | &"incoming")) {
                    return refused("its migration is not over");
                }
                drive.snapshots.remove(&volume);
                if journals.get(&volume) == Some(&"gone") {
                    self.vacate(&volume);
                }
                let drive = self.drive(&pool)?;
                match drive.volumes.remove(&volume) {
                    None => return refused("no such volume"),
                    Some((_, true)) => panic!("a volume is deleted that is served"),
                    Some(_) if fails => drive.quarantined += 1,
                    Some((content, false)) => drive.wiping.push((content, 2)),
                }
                self.journals.remove(&volume);
                self.keys.remove(&PathBuf::from(format!("{pool}/{volume}")));
            }
            PoolRequest::Snapshot { ref pool, ref volume, ref name }
            | PoolRequest::Clone { ref pool, ref volume, ref name } => {
                let is_snapshot = matches!(request, PoolRequest::Snapshot { .. });
                let (pool, volume, name) = (pool.clone(), volume.clone(), name.clone());
                let drive = self.drive(&pool)?;
                let Some((content, _)) = drive.volumes.get(&volume).cloned() else {
                    return refused("no such volume");
                };
                *drive.made.entry(name.clone()).or_default() += 1;
                if is_snapshot {
                    drive.snapshots.insert(name.clone(), volume);
                }
                assert!(drive.volumes.insert(name, (content, false)).is_none(), "made twice");
                if std::mem::take(&mut self.spoils) {
                    return refused("its drive failed then");
                }
            }
            other => panic!("{other:?}"),
        }
        Ok(String::new())
    }

    /// Each look finds less to wipe.
    pub(super) fn look(&mut self) -> Vec<PoolStatus> {
        let pools = self.pools.clone();
        let mut shown = Vec::new();
        for (name, path) in pools {
            let drive = self.drives.get_mut(&path).unwrap();
            if let Some(volume) = self.put_back.take_if(|_| !drive.wiping.is_empty()) {
                drive.volumes.insert(volume, ("older".to_owned(), false));
            }
            let volume = |(name, (_, served)): (&String, &(String, bool))| VolumeStatus {
                name: name.clone(),
                size_bytes: 1 << 20,
                mapped_bytes: 1 << 20,
                read_only: drive.snapshots.contains_key(name),
                parent: drive.snapshots.get(name).filter(|of| drive.volumes.contains_key(*of)).cloned(),
                served: *served,
                migration: self.journals.get(name).map(|word| (*word).to_owned()),
                ..VolumeStatus::default()
            };
            shown.push(PoolStatus {
                name,
                path,
                state: "serving".to_owned(),
                uuid: drive.uuid.clone(),
                extent_bytes: 1 << 20,
                wiping: drive.wiping.len() as u64,
                quarantined: drive.quarantined,
                volumes: drive.volumes.iter().map(volume).collect(),
                ..PoolStatus::default()
            });
            drive.wiping.iter_mut().for_each(|(_, looks)| *looks -= 1);
            drive.wiping.retain(|(_, looks)| *looks > 0);
        }
        shown
    }
}

impl Plane for World {
    fn pools(&self) -> Result<Vec<PoolStatus>, PlaneError> {
        Ok(self.daemon().look())
    }

    fn pool(&self, request: PoolRequest) -> Result<String, PlaneError> {
        self.effect();
        let answer = self.daemon().ask(request);
        self.effect();
        answer
    }

    fn apply(&self, config: &str, how: How) -> Result<String, PlaneError> {
        self.effect();
        let answer = self.daemon().apply(config, how);
        self.effect();
        answer
    }

    fn status(&self) -> Result<Status, PlaneError> {
        Ok(Status { ssds: self.daemon().stand(), ..Status::default() })
    }

    fn migrations(&self) -> Result<Vec<MigrationStatus>, PlaneError> {
        Ok(Vec::new())
    }

    fn engine(&self, _request: EngineRequest) -> Result<String, PlaneError> {
        Err(PlaneError::Refused("nothing moves here".to_owned()))
    }

    fn timeline(&self, _ssd: &str) -> Result<Timeline, PlaneError> {
        Err(PlaneError::Refused("nothing moves here".to_owned()))
    }
}
