//! The destination of a guest: its QEMU takes the memory that comes, and lets the guest run when all of its ssds are owned here.

use super::memory::Tunnel;
use super::{QMP_PATIENCE, let_run, restore};
use crate::migration::listener::Known;
use crate::migration::word::{FromDestination, Guest, send};
use crate::run::House;
use anyhow::{Context, anyhow, bail, ensure};
use hypervisor::{Destination, DestinationNow, DestinationWord, Device, Interface};
use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use transfer::tls::Incoming;

/// From the source's word that the guest is here to the hypervisor's own.
const COMPLETION: Duration = Duration::from_secs(5);
/// QEMU says by itself what happens.
const LISTEN: Duration = Duration::from_secs(10);

/// Of the source's, with its place among those of hosts.
pub(super) type Connection = (Incoming, Known);

/// See the module.
pub(in crate::migration) struct Coming {
    guest: Guest,
    path: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The connection from the source, until the one back is there.
    outward: Option<Connection>,
    /// Once memory comes; with the places of its connections.
    tunnel: Option<(Tunnel, [Known; 2])>,
    whole: Whole,
    owned: BTreeSet<String>,
}

/// How much of a guest is here.
#[derive(Default)]
enum Whole {
    /// Not all, or its hypervisor has not said so yet.
    #[default]
    NotYet,
    /// All of it, and its devices are set up.
    Yes(Box<(Destination, Vec<Device>)>),
    /// It will not come, and why.
    Never(String),
}

impl Coming {
    /// Whether a guest could come, with this ssd and its others; nothing is changed by asking.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub(in crate::migration) fn check(house: &House, guest: &Guest, ssd: &str) -> anyhow::Result<()> {
        ensure!(
            guest.ssds.iter().any(|one| one == ssd) && guest.ssds.len() == guest.devices.len(),
            "the source says of its guest what cannot be"
        );
        let mut wanted = Vec::new();
        let mut at: Option<PathBuf> = None;
        for (name, id) in guest.ssds.iter().zip(&guest.devices) {
            let config = house.config(name).with_context(|| {
                format!("its guest has ssd \"{name}\", too, which is not in the configuration here")
            })?;
            let path = config.hypervisor.clone().with_context(|| {
                format!("ssd \"{name}\" has no `hypervisor` here: write the QMP socket of the QEMU that waits for its guest")
            })?;
            ensure!(
                at.as_ref().is_none_or(|at| *at == path),
                "the ssds of one guest name different sockets as their `hypervisor`: write the same for all"
            );
            at = Some(path);
            wanted.push((config, id));
        }
        let mut qemu = Destination::connect(&at.unwrap_or_default(), QMP_PATIENCE)?;
        qemu.check()?;
        let devices = qemu.devices()?;
        ensure!(
            devices.len() == wanted.len(),
            "the QEMU that waits has {} devices that might be Godwit's, and the guest comes with {} ssds: start it as the source was",
            devices.len(),
            wanted.len()
        );
        for (config, id) in wanted {
            let name = &config.name;
            let there = devices.iter().find(|device| super::serves(&config, &device.server));
            let there = there.with_context(|| {
                format!(
                    "the QEMU that waits has no device at {}, the socket of ssd \"{name}\"",
                    config.socket.display()
                )
            })?;
            ensure!(
                there.id == *id,
                "ssd \"{name}\" is device {:?} of the guest, and {:?} of the QEMU that waits: start it as the source was",
                id.as_deref().unwrap_or("without id"),
                there.id.as_deref().unwrap_or("without id")
            );
        }
        Ok(())
    }

    pub(in crate::migration) fn new(guest: Guest, path: &Path) -> Self {
        Self { guest, path: path.to_owned(), state: Mutex::default(), changed: Condvar::new() }
    }

    pub(in crate::migration) fn path(&self) -> &Path {
        &self.path
    }

    pub(in crate::migration) fn id(&self) -> u128 {
        self.guest.id
    }

    fn has(&self, ssd: &str) -> bool {
        self.guest.ssds.iter().any(|one| one == ssd)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection of the source's. The last is answered when the hypervisor expects the guest.
    pub(super) fn connected(self: Arc<Self>, house: &Arc<House>, connection: Connection, back: bool) {
        let mut state = self.state();
        let (mut stream, known) = connection;
        if !back {
            // Only then does the source connect the other way.
            if send(&mut stream, &FromDestination::Noted).is_ok() {
                state.outward = Some((stream, known));
            }
            return;
        }
        let expected = self.expect(&state);
        let answer = match &expected {
            Ok(_) => FromDestination::Welcome,
            Err(error) => FromDestination::No { why: format!("{error:#}") },
        };
        // Whoever does not hear it will not say anything by the connections either.
        let _ = send(&mut stream, &answer);
        let Some(((outward, first), (qemu, ours))) = state.outward.take().zip(expected.ok()) else { return };
        match Tunnel::between(ours, outward, stream, false) {
            Ok(tunnel) => {
                state.tunnel = Some((tunnel, [first, known]));
                let (this, house) = (Arc::clone(&self), Arc::clone(house));
                let wait = move || this.wait(&house, qemu);
                if let Err(error) = std::thread::Builder::new().name("guest".to_owned()).spawn(wait) {
                    state.whole = Whole::Never(format!("no thread is left: {error}"));
                }
            }
            Err(error) => tracing::warn!(%error, ssds = ?self.guest.ssds, "a guest's memory cannot come"),
        }
    }

    /// Has the hypervisor expect the guest; beside it our end of its socket.
    fn expect(&self, state: &State) -> anyhow::Result<(Destination, UnixStream)> {
        ensure!(state.outward.is_some(), "the way there comes before the way back");
        ensure!(state.tunnel.is_none(), "its memory comes already");
        let mut qemu = Destination::connect(&self.path, QMP_PATIENCE)?;
        qemu.check()?;
        let (ours, theirs) = UnixStream::pair()?;
        qemu.expect(theirs.into())?;
        Ok((qemu, ours))
    }

    /// Until the hypervisor has all of the guest; then its devices are set up, while the ssds pass from host to host.
    fn wait(&self, house: &House, mut qemu: Destination) {
        let came = self.set_up(house, &mut qemu);
        let mut state = self.state();
        let left = match came {
            // Its hypervisor says so before its last word to the one at the source, which would run the guest again without that.
            Ok(devices) => {
                state.whole = Whole::Yes(Box::new((qemu, devices)));
                None
            }
            Err(error) => {
                (state.tunnel, state.whole) = (None, Whole::Never(format!("{error:#}")));
                Some(qemu)
            }
        };
        drop(state);
        self.changed.notify_all();
        // Whoever waits for that has heard it: this may take a while.
        if let Some(mut qemu) = left {
            qemu.give_up_pci();
        }
    }

    /// Its devices, once it is whole and they are set up.
    fn set_up(&self, house: &House, qemu: &mut Destination) -> anyhow::Result<Vec<Device>> {
        // While the guest still runs.
        let devices = qemu.devices()?;
        if devices.iter().any(|device| device.interface == Interface::VfioUser) {
            qemu.prepare_pci()?;
        }
        until_whole(qemu)?;
        let since = Instant::now();
        restore(house, qemu, &devices, &|name| self.has(name))?;
        let took_us = since.elapsed().as_micros();
        tracing::info!(ssds = ?self.guest.ssds, took_us, "a guest has come: its controllers are set up");
        Ok(devices)
    }

    /// Whether all of the guest is here. Asked before an ssd of it is taken: without its memory it is better given back.
    ///
    /// # Errors
    /// It is not, and will not be.
    pub(in crate::migration) fn check_whole(&self) -> anyhow::Result<()> {
        let state = self.state();
        // Once one ssd is owned here the others belong to it.
        if !state.owned.is_empty() {
            return Ok(());
        }
        ensure!(
            state.tunnel.is_some() || !matches!(state.whole, Whole::NotYet),
            "nothing is known of its memory: the engine was restarted"
        );
        let waited =
            self.changed.wait_timeout_while(state, COMPLETION, |state| matches!(state.whole, Whole::NotYet));
        match &waited.unwrap_or_else(PoisonError::into_inner).0.whole {
            Whole::Yes(_) => Ok(()),
            Whole::NotYet => bail!("its memory has not come whole, though the source says so"),
            Whole::Never(why) => bail!("{why}"),
        }
    }

    /// The guest does not come: nothing of its memory is taken any more.
    pub(in crate::migration) fn give_up(&self) {
        let mut state = self.state();
        (state.outward, state.tunnel) = (None, None);
        // QEMU's socket is an operator's again.
        if let Whole::Yes(_) = state.whole {
            state.whole = Whole::Never("it was given up".to_owned());
        }
    }

    /// An ssd of the guest's is owned and served here. The last one lets it run.
    ///
    /// # Errors
    /// It does not run, and what to do.
    pub(in crate::migration) fn owned(&self, house: &House, ssd: &str) -> anyhow::Result<()> {
        let mut state = self.state();
        state.owned.insert(ssd.to_owned());
        if !self.guest.ssds.iter().all(|ssd| state.owned.contains(ssd)) {
            return Ok(());
        }
        state.tunnel = None;
        let since = Instant::now();
        let run = match std::mem::take(&mut state.whole) {
            Whole::Yes(whole) => {
                let (mut qemu, devices) = *whole;
                let_run(house, &mut qemu, &devices, &|name| self.has(name))
            }
            Whole::NotYet => Err(anyhow!("nothing is known of its memory")),
            Whole::Never(why) => Err(anyhow!(why)),
        };
        let took_us = since.elapsed().as_micros();
        tracing::info!(ssds = ?self.guest.ssds, took_us, runs = run.is_ok(), "all of a guest's ssds are here");
        run.with_context(|| {
            format!(
                "its guest is here, and does not run: look at QEMU ({}), then restart the engine (`godwit upgrade`), which lets it run",
                self.path.display()
            )
        })
    }
}

fn until_whole(qemu: &mut Destination) -> anyhow::Result<()> {
    loop {
        match qemu.next(LISTEN)? {
            Some(DestinationWord::Completed) => return Ok(()),
            Some(DestinationWord::Failed { why }) => {
                bail!("its memory did not come: QEMU says {why}; start that QEMU anew before the next try")
            }
            Some(DestinationWord::Ended) => bail!("the QEMU that waited for it has ended"),
            Some(DestinationWord::Coming | DestinationWord::Resumed | DestinationWord::Stopped) | None => {}
        }
    }
}

/// Lets a guest run that has come to the hypervisor at `path` and never ran there, if all of its ssds are served here. For an engine that was started since
/// its memory came.
///
/// # Errors
/// QEMU's.
pub(in crate::migration) fn run_what_came(house: &House, path: &Path) -> anyhow::Result<()> {
    let mut qemu = Destination::connect(path, QMP_PATIENCE)?;
    if qemu.now()? != DestinationNow::Completed {
        return Ok(());
    }
    let configs = house.configs();
    let is_its = |name: &str| {
        configs.iter().any(|config| config.name == name && config.hypervisor.as_deref() == Some(path))
    };
    let is_served = |device: &Device| {
        let config = configs.iter().find(|config| super::serves(config, &device.server));
        let number =
            config.filter(|config| is_its(&config.name)).and_then(|config| house.number(&config.name));
        number.is_some_and(|number| house.ssd(number).is_some())
    };
    let devices = qemu.devices()?;
    if devices.iter().all(is_served) {
        restore(house, &mut qemu, &devices, &is_its)?;
        let_run(house, &mut qemu, &devices, &is_its)?;
        tracing::info!(hypervisor = %path.display(), "the guest runs here");
    }
    Ok(())
}

/// Whether the hypervisor at `path` has all of a guest that never ran there. For an engine that was started since its memory came.
///
/// # Errors
/// It has not, or nobody can say.
pub(in crate::migration) fn check_came(path: &Path) -> anyhow::Result<()> {
    match Destination::connect(path, QMP_PATIENCE)?.now()? {
        DestinationNow::Completed => Ok(()),
        other => bail!("its hypervisor here does not have its guest: {other:?}"),
    }
}
