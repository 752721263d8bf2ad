//! What an ssd may do, and what it shares with others: the same for its seats on all reactors.

use crate::crew::Crew;
use crate::message::Message;
use crate::ssd::Ssd;
use api::config;
use block::Now;
use qos::drive::Party;
use qos::{Drive, Limits, Rate, Throttle, Weight};
use std::collections::HashMap;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// See the module.
pub(crate) struct Terms {
    throttle: Mutex<Arc<Throttle>>,
    /// What is wished for, and by whom.
    wishes: Mutex<Wishes>,
    party: Arc<Party>,
    /// `false`: whoever is first is served first.
    isolated: bool,
    /// A [`Hold`].
    hold: AtomicU8,
}

/// Whether anything may go to the drive at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// By the limits.
    Open,
    /// Nothing; what the guest asks for waits, as if its limits were reached.
    Frozen,
    /// Nothing any more: the ssd is owned elsewhere. What its guest asked for ends with its session, and flushes end at once.
    Closed,
}

impl Terms {
    /// Those of the configuration, else those that the ssd came with. Its drive is there.
    pub(crate) fn new(config: &config::Ssd, came: Option<config::Limits>) -> Arc<Self> {
        let drive = match &config.backend {
            config::Backend::Uring { path, .. } => shared_drive(path),
            config::Backend::Pool { pool, .. } => shared(Place::Pool(pool.clone())),
            config::Backend::Drive { serial, .. } => shared(Place::Serial(serial.clone())),
            _ => Arc::default(),
        };
        let wishes = Wishes { own: config.own_limits(), came, slowed: None };
        let limits = wishes.limits();
        Arc::new(Self {
            throttle: Mutex::new(Arc::new(Throttle::new(limits_of(&limits)))),
            wishes: Mutex::new(wishes),
            party: Arc::new(Party::new(drive, weight_of(&limits))),
            isolated: config.isolated,
            hold: AtomicU8::new(0),
        })
    }

    /// None, and a drive of its own.
    #[cfg(test)]
    pub(crate) fn unlimited() -> Arc<Self> {
        Arc::new(Self {
            throttle: Mutex::new(Arc::new(Throttle::new(Limits::default()))),
            wishes: Mutex::default(),
            party: Arc::new(Party::new(Arc::default(), Weight::default())),
            isolated: true,
            hold: AtomicU8::new(0),
        })
    }

    /// By which the ssd is held, whatever slows it for a while.
    pub(crate) fn limits(&self) -> config::Limits {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner).limits()
    }

    /// The limits in force.
    pub(crate) fn throttle(&self) -> Arc<Throttle> {
        Arc::clone(&self.throttle.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Its share of its drive; `None`: it is not isolated.
    pub(crate) fn party(&self) -> Option<&Arc<Party>> {
        Some(&self.party).filter(|_| self.isolated)
    }

    pub(crate) fn hold(&self) -> Hold {
        match self.hold.load(Ordering::SeqCst) {
            0 => Hold::Open,
            1 => Hold::Frozen,
            _ => Hold::Closed,
        }
    }

    /// From now on. The seats are told by [`Message::Watch`].
    pub(crate) fn set_hold(&self, hold: Hold) {
        self.hold.store(hold as u8, Ordering::SeqCst);
    }

    /// Others from now on. The seats are told by a message.
    fn change(&self, change: impl FnOnce(&mut Wishes), now: Now) {
        let mut wishes = self.wishes.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut wishes);
        let limits = wishes.in_force();
        let mut throttle = self.throttle.lock().unwrap_or_else(PoisonError::into_inner);
        *throttle = Arc::new(throttle.changed(limits_of(&limits), now));
        self.party.set_weight(weight_of(&limits));
    }
}

/// Changes an ssd's limits while it runs: its seats hear of it in their next turn. What was spent and what is owed stays so. `None`: none are
/// written for it any more, and those that it came with hold.
pub(crate) fn set_limits(ssd: &Ssd, own: Option<config::Limits>, now: Now, crew: &Crew) {
    ssd.terms.change(|wishes| wishes.own = own, now);
    crew.tell_all(|| Message::Limits(ssd.id));
}

/// Of an ssd that was opened before it came.
pub(crate) fn set_limits_that_came(ssd: &Ssd, came: Option<config::Limits>, now: Now, crew: &Crew) {
    ssd.terms.change(|wishes| wishes.came = came, now);
    crew.tell_all(|| Message::Limits(ssd.id));
}

/// Its writes go at most at this rate for now, whatever its limits allow; `None`: as they allow.
pub(crate) fn slow_writes(ssd: &Ssd, bytes_per_s: Option<u64>, now: Now, crew: &Crew) {
    ssd.terms.change(|wishes| wishes.slowed = bytes_per_s, now);
    crew.tell_all(|| Message::Limits(ssd.id));
}

/// The limits of the configuration, those that the ssd came with from another host, and what a migration asks for beside them.
#[derive(Clone, Copy, Debug, Default)]
struct Wishes {
    own: Option<config::Limits>,
    came: Option<config::Limits>,
    /// Bytes a second that may be written.
    slowed: Option<u64>,
}

impl Wishes {
    fn limits(&self) -> config::Limits {
        self.own.or(self.came).unwrap_or_default()
    }

    fn in_force(&self) -> config::Limits {
        let mut limits = self.limits();
        if let Some(slowed) = self.slowed {
            let allowed = limits.write_bandwidth.map_or(slowed, |rate| rate.per_second.min(slowed));
            limits.write_bandwidth = Some(config::Rate { per_second: allowed, burst: Some(allowed / 20) });
        }
        limits
    }
}

fn limits_of(limits: &config::Limits) -> Limits {
    let rate = |rate: Option<config::Rate>| {
        rate.map(|config::Rate { per_second, burst }| Rate { per_second, burst })
    };
    Limits {
        iops: rate(limits.iops),
        read_iops: rate(limits.read_iops),
        write_iops: rate(limits.write_iops),
        bandwidth: rate(limits.bandwidth),
        read_bandwidth: rate(limits.read_bandwidth),
        write_bandwidth: rate(limits.write_bandwidth),
    }
}

fn weight_of(limits: &config::Limits) -> Weight {
    Weight::new(limits.weight).unwrap_or_default()
}

/// The drive that a file or device lies on, the same for all that lie there. What it is cannot always be seen (a RAID is one
/// drive, and a file system that spans several is); one that cannot be looked at is shared with nobody.
fn shared_drive(path: &Path) -> Arc<Drive> {
    let Ok(metadata) = std::fs::metadata(path) else { return Arc::default() };
    let is_device = metadata.file_type().is_block_device();
    shared(Place::Device(whole_disk(if is_device { metadata.st_rdev() } else { metadata.st_dev() })))
}

/// What ssds share.
#[derive(PartialEq, Eq, Hash)]
enum Place {
    Device(u64),
    Pool(String),
    /// Namespaces of one drive.
    Serial(String),
}

/// The same for all that name the same place.
fn shared(place: Place) -> Arc<Drive> {
    static DRIVES: Mutex<Option<HashMap<Place, Weak<Drive>>>> = Mutex::new(None);
    let mut drives = DRIVES.lock().unwrap_or_else(PoisonError::into_inner);
    let drives = drives.get_or_insert_default();
    drives.retain(|_, drive| drive.strong_count() > 0);
    if let Some(drive) = drives.get(&place).and_then(Weak::upgrade) {
        return drive;
    }
    let drive = Arc::default();
    drives.insert(place, Arc::downgrade(&drive));
    drive
}

/// The disk of a partition; any other device is its own.
fn whole_disk(device: u64) -> u64 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let Ok(folder) = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")) else { return device };
    if !folder.join("partition").exists() {
        return device;
    }
    let number = folder.parent().and_then(|disk| std::fs::read_to_string(disk.join("dev")).ok());
    let parts = number.as_deref().and_then(|text| text.trim().split_once(':'));
    let disk = parts.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    disk.map_or(device, |(major, minor)| rustix::fs::makedev(major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_one_file_system_share_its_drive_and_what_is_not_there_shares_with_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
        for path in [&a, &b] {
            std::fs::write(path, "").unwrap();
        }
        let first = shared_drive(&a);
        assert!(Arc::ptr_eq(&first, &shared_drive(&b)));
        let other = shared_drive(Path::new("/proc/version"));
        assert!(!Arc::ptr_eq(&first, &other));
        let missing = folder.path().join("missing");
        assert!(!Arc::ptr_eq(&shared_drive(&missing), &shared_drive(&missing)));
    }
}
