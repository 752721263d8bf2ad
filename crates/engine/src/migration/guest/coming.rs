//! The destination of a guest: its QEMU takes the memory that comes, and lets the guest run when all of its ssds are owned here.

use super::memory::Tunnel;
use super::{QMP_PATIENCE, let_run};
use crate::migration::word::{FromDestination, Guest, send};
use crate::run::House;
use anyhow::{Context, bail, ensure};
use hypervisor::{Destination, DestinationNow};
use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use transfer::tls::Incoming;

/// From the source's word that the guest is here to the hypervisor's own.
const COMPLETION: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(1);

/// See the module.
pub(in crate::migration) struct Coming {
    guest: Guest,
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The connection from the source, until the one back is there.
    outward: Option<Incoming>,
    /// Once memory comes.
    way: Option<(Destination, Tunnel)>,
    owned: BTreeSet<String>,
}

impl Coming {
    /// Whether a guest could come to the hypervisor at `path`; nothing is changed by asking.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub(in crate::migration) fn check(path: &Path) -> anyhow::Result<()> {
        let mut qemu = Destination::connect(path, QMP_PATIENCE)?;
        Ok(qemu.check()?)
    }

    pub(in crate::migration) fn new(guest: Guest, path: &Path) -> Self {
        Self { guest, path: path.to_owned(), state: Mutex::default() }
    }

    pub(in crate::migration) fn id(&self) -> u128 {
        self.guest.id
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection of the source's. The last is answered when the hypervisor expects the guest.
    pub(super) fn connected(&self, mut stream: Incoming, back: bool) {
        let mut state = self.state();
        if !back {
            // Only then does the source connect the other way.
            if send(&mut stream, &FromDestination::Noted).is_ok() {
                state.outward = Some(stream);
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
        let Some((outward, (qemu, ours))) = state.outward.take().zip(expected.ok()) else { return };
        match Tunnel::between(ours, outward, stream, false) {
            Ok(tunnel) => state.way = Some((qemu, tunnel)),
            Err(error) => tracing::warn!(%error, ssds = ?self.guest.ssds, "a guest's memory cannot come"),
        }
    }

    /// Has the hypervisor expect the guest; beside it our end of its socket.
    fn expect(&self, state: &State) -> anyhow::Result<(Destination, UnixStream)> {
        ensure!(state.outward.is_some(), "the way there comes before the way back");
        ensure!(state.way.is_none(), "its memory comes already");
        let mut qemu = Destination::connect(&self.path, QMP_PATIENCE)?;
        qemu.check()?;
        let (ours, theirs) = UnixStream::pair()?;
        qemu.expect(theirs.into())?;
        Ok((qemu, ours))
    }

    /// Whether all of the guest is here. Asked before the first of its ssds is taken: without its memory it is better given back.
    ///
    /// # Errors
    /// It is not, and will not be.
    pub(in crate::migration) fn check_whole(&self) -> anyhow::Result<()> {
        let mut state = self.state();
        let (qemu, _) =
            state.way.as_mut().context("nothing is known of its memory: the engine was restarted")?;
        wait_whole(qemu)
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
        let run = match state.way.take() {
            Some((mut qemu, _tunnel)) => let_run(house, &mut qemu),
            None => bail!("nothing is known of its memory"),
        };
        run.with_context(|| {
            format!(
                "its guest is here, and does not run: look at QEMU ({}), and let it run by `cont`",
                self.path.display()
            )
        })
    }
}

fn wait_whole(qemu: &mut Destination) -> anyhow::Result<()> {
    let deadline = Instant::now() + COMPLETION;
    loop {
        match qemu.now()? {
            DestinationNow::Completed => return Ok(()),
            DestinationNow::Coming if Instant::now() < deadline => std::thread::sleep(LOOK),
            DestinationNow::Coming => bail!("its memory has not come whole, though the source says so"),
            other => bail!("its hypervisor here does not have it: {other:?}"),
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
    let sockets: Vec<PathBuf> = qemu.devices()?.into_iter().map(|device| device.socket).collect();
    let is_served = |socket: &PathBuf| {
        let configs = house.configs();
        let config = configs.iter().find(|config| super::is_same(&config.socket, socket));
        let number = config.and_then(|config| house.number(&config.name));
        number.is_some_and(|number| house.ssd(number).is_some())
    };
    if sockets.iter().all(is_served) {
        let_run(house, &mut qemu)?;
        tracing::info!(hypervisor = %path.display(), "the guest runs here");
    }
    Ok(())
}
