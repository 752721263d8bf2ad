//! One ssd from start to stop: its record, its power cycles, its clients one after the other.

use crate::clock::{Clock, ticks};
use crate::data_key::{DataKey, check_key};
use crate::drive::Drive;
use crate::identities::identity_of;
use crate::interrupts::Table;
use crate::keeper::Keeper;
use crate::message::{Address, Call, Message, Settlement, SsdId};
use crate::meter;
use crate::migration::limits_that_came;
use crate::pool::{Pools, Purpose};
use crate::records::{Records, check_writable};
use crate::session::{Means, Wire, call_home, power_off};
use crate::ssd::{Power, Ssd};
use crate::terms::Terms;
use crate::watch::Watch;
use anyhow::{Context, bail, ensure};
use api::config;
use drive::discovery::Host;
use drive::grant::{DEFAULT_FOLDER, Grants, What};
use frontend::vfio_user::{Connection, Limits, Listener, Shutdown};
use memory::{MemoryMap, SharedRegion};
use nvme::controller::{Controller, ControllerConfig};
use nvme::profile::Profile;
use state::ssd::SsdV1;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

/// An ssd whose drive and record were found good.
pub(crate) struct Opened {
    ssd: Arc<Ssd>,
    record: SsdV1,
    listener: Listener,
}

impl Opened {
    pub(crate) fn ssd(&self) -> &Arc<Ssd> {
        &self.ssd
    }
}

/// What a predecessor left of an ssd, beside its controller.
#[derive(Default)]
pub(crate) struct Kept {
    /// Of its drive.
    pub(crate) drive: Option<OwnedFd>,
    /// The key of its data.
    pub(crate) key: Option<OwnedFd>,
    /// Its record, for an ssd without a state file.
    pub(crate) record: Option<Vec<u8>>,
    /// What is counted of it; `None`: that begins anew.
    pub(crate) page: Option<Arc<SharedRegion<metrics::Page>>>,
    /// What it is opened for.
    pub(crate) purpose: Purpose,
}

/// Opens the drive and reads the record.
pub(crate) fn open_ssd(
    at: usize,
    config: &config::Ssd,
    kept: Kept,
    keeper: Option<Arc<Keeper>>,
    pools: &Pools,
) -> anyhow::Result<(Arc<Ssd>, SsdV1)> {
    let data_key = DataKey::open(config, kept.key)?;
    let drive = Drive::open(config, kept.drive, kept.purpose, pools)?;
    let limits = drive.limits();
    if config.lba_bytes < limits.block_bytes {
        bail!(
            "its drive has blocks of {} bytes, so lba = {} cannot be served; write lba = {} in the configuration",
            limits.block_bytes,
            config.lba_bytes,
            limits.block_bytes
        );
    }
    let profile =
        Profile::by_name(&config.profile).with_context(|| format!("no profile \"{}\"", config.profile))?;
    // What lies there of one that has not come is of another time.
    let state = config.state.as_deref().filter(|_| !matches!(kept.purpose, Purpose::Await(_)));
    let mut record = read_record(state, kept.record, &profile, limits.capacity_bytes)?;
    check_key(data_key.as_ref(), &mut record)?;
    let identity = identity_of(config)?;
    let page = kept.page.unwrap_or_else(|| meter::page(config, None).0);
    let ssd = Ssd {
        id: SsdId(at),
        name: config.name.clone(),
        drive,
        data_key,
        profile,
        identity,
        state: config.state.clone(),
        page,
        keeper,
        terms: Terms::new(config, limits_that_came(config, pools)),
        watch: Watch::default(),
        management: OnceLock::new(),
        written: crate::written::Written::default(),
        is_surveyed: std::sync::atomic::AtomicBool::new(false),
        map_failed: crate::trouble::Trouble::default(),
    };
    Ok((Arc::new(ssd), record))
}

/// Opens an ssd and binds its socket.
pub(crate) fn open(at: usize, config: &config::Ssd, pools: &Pools) -> anyhow::Result<Opened> {
    let (ssd, record) = open_ssd(at, config, Kept::default(), None, pools)?;
    let path = config.socket.display();
    let listener = Listener::bind(&config.socket).with_context(|| {
        format!(
            "cannot listen at {path}: is the directory there and writable, and no other godwitd serving it?"
        )
    })?;
    Ok(Opened { ssd, record, listener })
}

pub(crate) fn backend_config(config: &config::Ssd) -> anyhow::Result<backend::Config> {
    let size = || config.size_bytes.context("no size");
    Ok(match &config.backend {
        config::Backend::Null => backend::Config::Null { size_bytes: size()? },
        config::Backend::Ram => backend::Config::Ram { size_bytes: size()? },
        config::Backend::Pool { pool, .. } => {
            bail!("it has no drive of its own, but extents of pool \"{pool}\"")
        }
        config::Backend::Uring { path, direct, register_buffers } => {
            let mut uring = backend::uring::Config::new(path);
            uring.size_bytes = config.size_bytes;
            if !direct {
                uring.direct = backend::uring::Direct::Never;
            }
            uring.register_buffers = register_buffers.unwrap_or(uring.register_buffers);
            backend::Config::Uring(uring)
        }
        config::Backend::Drive { serial, namespace, grants } => {
            let grants = Grants::new(grants.as_deref().unwrap_or(Path::new(DEFAULT_FOLDER)));
            let what = if *namespace { What::Namespace } else { What::Drive };
            let device = grants.served(&Host::default(), &config.name, serial, what)?;
            let size_bytes = config.size_bytes.unwrap_or(device.size_bytes);
            ensure!(
                size_bytes == device.size_bytes,
                "{} has {} bytes, the configuration says {size_bytes}: leave `size` out",
                device.path.display(),
                device.size_bytes
            );
            backend::Config::Uring(backend::uring::Config::new(&device.path))
        }
    })
}

/// The record of an ssd that comes from another host, as it will be served here: its key is this host's own.
///
/// # Errors
/// It does not fit what is served here, and says why.
pub(crate) fn fit_record(ssd: &Ssd, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut record = SsdV1::from_bytes(bytes).context("the record that came with it makes no sense here")?;
    record.key_check = ssd.data_key.as_ref().map(|key| key.key().check());
    check_fit(&record, "the record that came with it", &ssd.profile, ssd.limits().capacity_bytes)?;
    Ok(record.to_bytes()?)
}

fn check_fit(record: &SsdV1, what: &str, profile: &Profile, capacity_bytes: u64) -> anyhow::Result<()> {
    if record.capacity_bytes > capacity_bytes {
        bail!(
            "{what} describes {} bytes, but its drive has {capacity_bytes}: is this the right drive?",
            record.capacity_bytes
        );
    }
    nvme::controller::check_record(record, capacity_bytes & !0xfff).with_context(|| {
        format!("{what} cannot be served: use the Godwit that wrote it, or restore a backup")
    })?;
    if record.profile != profile.name {
        bail!("{what} says profile \"{}\", the configuration \"{}\"", record.profile, profile.name);
    }
    Ok(())
}

fn read_record(
    state: Option<&Path>,
    kept: Option<Vec<u8>>,
    profile: &Profile,
    capacity_bytes: u64,
) -> anyhow::Result<SsdV1> {
    let fresh = || SsdV1 { capacity_bytes, profile: profile.name.to_owned(), ..SsdV1::default() };
    let Some(path) = state else {
        return kept.map_or_else(|| Ok(fresh()), |bytes| SsdV1::from_bytes(&bytes).map_err(Into::into));
    };
    check_writable(path).with_context(|| {
        format!(
            "its state {} cannot be written: make its directory, writable for this user, or write another `state`",
            path.display()
        )
    })?;
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(fresh()),
        Err(error) => return Err(error).with_context(|| format!("cannot read its state {}", path.display())),
    };
    let record = SsdV1::from_bytes(&bytes).with_context(|| {
        format!(
            "{}: restore it from a backup, or move it away to start with one empty namespace",
            path.display()
        )
    })?;
    check_fit(&record, &format!("its state {}", path.display()), profile, capacity_bytes)?;
    Ok(record)
}

/// The threads that serve one ssd.
pub(crate) struct Server {
    pub(crate) shutdown: Shutdown,
    pub(crate) thread: JoinHandle<anyhow::Result<()>>,
}

impl Server {
    pub(crate) fn start(
        opened: Opened,
        home: Address,
        records: Records,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let shutdown = Shutdown::new()?;
        let ends = shutdown.clone();
        let name = format!("ssd-{}", opened.ssd.id.0);
        let power = power_on(&opened.ssd, &home, &opened.record, clock)
            .with_context(|| format!("ssd \"{}\"", opened.ssd.name))?;
        let thread = std::thread::Builder::new().name(name).stack_size(256 << 10).spawn(move || {
            let Opened { ssd, record, listener } = opened;
            let name = ssd.name.clone();
            let mut slot = Slot { power: Some(power), record, ssd, home, records, clock };
            listener.run(Limits::default(), &ends, &mut |connection| slot.serve(connection))?;
            slot.close().with_context(|| format!("ssd \"{name}\""))
        })?;
        Ok(Self { shutdown, thread })
    }

    pub(crate) fn shut_down(&self) {
        self.shutdown.trigger();
    }

    pub(crate) fn join(self) -> anyhow::Result<()> {
        self.thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread of an ssd panicked")))
    }
}

/// Where a client plugs in.
struct Slot {
    ssd: Arc<Ssd>,
    home: Address,
    /// `None` after a power-on failed; then the record is what the next one begins with.
    power: Option<Power>,
    record: SsdV1,
    records: Records,
    clock: Clock,
}

impl Slot {
    /// Serves one client until it leaves, then cycles the power for the next. Whatever fails, the next client finds a device
    /// that knows nothing of this one, or none.
    fn serve(&mut self, connection: Connection) {
        let remote = connection.remote_memory();
        let wire = self.powered().and_then(|power| {
            let (ssd, home) = (Arc::clone(&self.ssd), Arc::clone(&self.home));
            let means = Means { records: self.records.clone(), clock: self.clock };
            Ok(Wire::new(ssd, &power, home, means, remote)?)
        });
        let result = wire.and_then(|mut wire| {
            connection.serve(&mut wire);
            let left = wire.leave();
            self.cycle_power(left.as_ref().ok().and_then(Option::as_ref))?;
            Ok(left.map(drop)?)
        });
        if let Err(error) = result {
            tracing::error!(ssd = self.ssd.name, error = format!("{error:#}"), "the ssd cannot go on");
        }
    }

    /// The power, switched on if it is not.
    fn powered(&mut self) -> anyhow::Result<Power> {
        let power = match self.power.take() {
            Some(power) => power,
            None => power_on(&self.ssd, &self.home, &self.record, self.clock)?,
        };
        self.power = Some(power.clone());
        Ok(power)
    }

    /// `record`: of a device that has no home to ask.
    fn cycle_power(&mut self, record: Option<&SsdV1>) -> anyhow::Result<()> {
        self.record = match record {
            Some(record) => record.clone(),
            None => power_off(&self.home, &self.ssd)?,
        };
        self.power = None;
        self.powered().map(drop)
    }

    /// Makes all durable, with no client connected.
    fn close(mut self) -> anyhow::Result<()> {
        self.powered()?;
        call_home(&self.home, &self.ssd, Call::Flush).context("its data cannot be made durable")?;
        let record = power_off(&self.home, &self.ssd)?;
        self.records.keep_now(&self.ssd, record).context("its state cannot be written")
    }
}

/// A controller over the region of this power cycle, used or fresh.
pub(crate) fn controller(ssd: &Ssd, power: &Power, record: &SsdV1, clock: Clock) -> Controller {
    let limits = ssd.limits();
    let config = ControllerConfig {
        region: Arc::clone(&power.region),
        doorbells: Arc::clone(&power.doorbells),
        profile: ssd.profile.clone(),
        identity: ssd.identity.clone(),
        capacity_bytes: limits.capacity_bytes,
        limits,
    };
    Controller::new(config, record, clock.at(ticks()))
}

/// Gives the ssd a fresh controller at its home.
fn power_on(ssd: &Arc<Ssd>, home: &Address, record: &SsdV1, clock: Clock) -> anyhow::Result<Power> {
    let power = Power::on(&ssd.name)?;
    let controller = controller(ssd, &power, record, clock);
    let settlement = Settlement {
        ssd: Arc::clone(ssd),
        power: power.clone(),
        namespaces: Arc::clone(controller.namespaces()),
        controller,
        memory: Arc::new(MemoryMap::empty()),
        interrupts: Table::default(),
        resume: None,
        client: None,
        private: false,
    };
    home.send(Message::Settle(Box::new(settlement)));
    Ok(power)
}

#[cfg(test)]
mod tests {
    use super::{Kept, Pools, open_ssd};
    use api::config::Config;
    use std::path::Path;

    #[test]
    fn an_ssd_whose_state_cannot_be_written_is_refused_at_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let open = |state: &str| {
            let at = |name: &str| folder.path().join(name).display().to_string();
            let text = format!(
                "[[ssd]]\nname = \"a\"\nsize = \"16MiB\"\nsocket = \"{}\"\nstate = \"{}\"\nbackend = {{ type = \"ram\" }}\n",
                at("a.sock"),
                at(state)
            );
            let config = Config::parse(Path::new("test"), &text).unwrap();
            let pools = Pools::open(&config.pools, |_| None, None);
            open_ssd(0, &config.ssds[0], Kept::default(), None, &pools)
        };
        assert!(open("a.state").is_ok());
        let error = format!("{:#}", open("missing/a.state").err().unwrap());
        assert!(error.contains("missing/a.state cannot be written: make its directory"), "{error}");
    }
}
