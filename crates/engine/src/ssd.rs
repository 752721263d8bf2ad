//! What is known of an ssd on every reactor.

use crate::data_key::DataKey;
use crate::drive::Drive;
use crate::keeper::Keeper;
use crate::management::Desk;
use crate::message::SsdId;
use crate::terms::Terms;
use crate::trouble::Trouble;
use crate::watch::Watch;
use crate::written::Written;
use link::control::Role;
use memory::{DoorbellPage, SharedRegion};
use nvme::group::GroupConfig;
use nvme::profile::{Identity, Profile};
use state::region::ControllerRegion;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// An ssd: constant facts, but for its terms and the size of its drive.
pub(crate) struct Ssd {
    pub(crate) id: SsdId,
    pub(crate) name: String,
    pub(crate) drive: Drive,
    /// Of what lies on the drive. `None`: it lies there in the clear.
    pub(crate) data_key: Option<DataKey>,
    pub(crate) profile: Profile,
    pub(crate) identity: Identity,
    /// Where the record outlives the daemon; see [`Ssd::record_path`].
    pub(crate) state: Option<PathBuf>,
    /// What is counted of it.
    pub(crate) page: Arc<SharedRegion<metrics::Page>>,
    /// Who outlives this process, if anyone does.
    pub(crate) keeper: Option<Arc<Keeper>>,
    /// Its limits, which may change, and its share of its drive.
    pub(crate) terms: Arc<Terms>,
    /// Where its writes are noted, while it is copied.
    pub(crate) watch: Watch,
    /// Of a management controller: where its orders go.
    pub(crate) management: OnceLock<Desk>,
    /// What is written into its guest's memory, if anyone here wants to know.
    pub(crate) written: Written,
    /// Somebody looks at its drive's map ([`crate::survey`]).
    pub(crate) is_surveyed: AtomicBool,
    /// Its drive's map cannot be read.
    pub(crate) map_failed: Trouble,
}

impl Ssd {
    /// What a successor needs of the drive, beside what is on it.
    pub(crate) fn drive_parts(&self) -> std::io::Result<Vec<(Role, OwnedFd)>> {
        let drive = self.drive.descriptor()?.map(|drive| (Role::DRIVE, drive));
        let key = self.data_key.as_ref().map(DataKey::descriptor).transpose()?.map(|key| (Role::KEY, key));
        Ok(drive.into_iter().chain(key).collect())
    }

    /// What is counted of it, for the keeper.
    pub(crate) fn page_part(&self) -> std::io::Result<Option<(Role, OwnedFd)>> {
        self.page.fd().map(|page| Ok((Role::METRICS, page.try_clone_to_owned()?))).transpose()
    }
}

impl Ssd {
    /// Where the record outlives the daemon. One that awaits its drive has none: that of an earlier life here is not touched.
    pub(crate) fn record_path(&self) -> Option<&Path> {
        self.state.as_deref().filter(|_| self.drive.is_there())
    }

    /// What its drive can do, and how large it is now.
    pub(crate) fn limits(&self) -> block::Limits {
        self.drive.limits()
    }
}

fn next_life() -> u64 {
    static LIVES: AtomicU64 = AtomicU64::new(0);
    LIVES.fetch_add(1, Ordering::Relaxed)
}

/// What lives from power on to power off: the shared state of one controller and its doorbells.
#[derive(Clone)]
pub(crate) struct Power {
    /// Counts the lives of all ssds of this process.
    pub(crate) number: u64,
    pub(crate) region: Arc<SharedRegion<ControllerRegion>>,
    pub(crate) doorbells: Arc<SharedRegion<DoorbellPage>>,
}

impl Power {
    /// Fresh, zeroed memory.
    pub(crate) fn on(name: &str) -> std::io::Result<Self> {
        Ok(Self {
            number: next_life(),
            region: Arc::new(SharedRegion::memfd(&format!("godwit-{name}-state"))?),
            doorbells: Arc::new(SharedRegion::memfd(&format!("godwit-{name}-doorbells"))?),
        })
    }

    /// Memory that a predecessor left.
    pub(crate) fn found(region: OwnedFd, doorbells: OwnedFd) -> std::io::Result<Self> {
        Ok(Self {
            number: next_life(),
            region: Arc::new(SharedRegion::from_fd(region)?),
            doorbells: Arc::new(SharedRegion::from_fd(doorbells)?),
        })
    }

    /// What a group of I/O queues needs.
    pub(crate) fn group_config(&self, ssd: &Ssd) -> GroupConfig {
        GroupConfig {
            region: Arc::clone(&self.region),
            doorbells: Arc::clone(&self.doorbells),
            limits: ssd.limits(),
            mdts_bytes: nvme::limits::MDTS_BYTES,
        }
    }

    /// True while the guest may ring doorbells: CC.EN is set.
    pub(crate) fn is_enabled(&self) -> bool {
        self.region.registers.cc.load(Ordering::Relaxed) & 1 != 0
    }
}
