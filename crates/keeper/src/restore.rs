//! Going on from what the service manager kept of a keeper that is gone (`store`).

use crate::carry::Descriptors;
use crate::cell;
use crate::island;
use crate::keeper::Keeper;
use crate::listener::Listener;
use crate::poller::Token;
use crate::process::{Binary, Stage};
use crate::session::Session;
use crate::ssd::Ssd;
use crate::store::{Desk, IDS_END, Store};
use crate::tally::{Direction, Tally};
use crate::vault::{self, Vault};
use anyhow::{Context, ensure};
use link::control::{Packet, ToEngine};
use rustix::process::Signal;
use state::keeper::{EngineV1, KeeperV1, KeptSessionV1, KeptSsdV1};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The first descriptor that a service manager passes (sd_listen_fds(3)).
const FIRST: u32 = 3;
/// The most descriptors that are looked at.
const PASSED_MAX: u32 = 1024;

/// What was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) keeper: KeeperV1,
    pub(crate) fds: Descriptors,
    /// What the manager calls it, and older ones'.
    pub(crate) names: Vec<String>,
}

/// An engine whose keeper is gone: it lets its I/O end and goes. Until then nobody may do its work.
#[derive(Debug)]
pub(crate) struct Orphan {
    kept: EngineV1,
    pidfd: Arc<OwnedFd>,
    blame: Arc<OwnedFd>,
    binary: Arc<Binary>,
    /// By when it must be gone; then it is killed, and the drives' locks tell when its I/O has ended.
    by: Option<Instant>,
}

/// How long an orphan may take.
const ORPHAN_TIME: Duration = Duration::from_secs(10);

/// The descriptors that the service manager passes to this process, by their names.
pub(crate) fn passed() -> Vec<(String, OwnedFd)> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    if variable("LISTEN_PID") != std::process::id().to_string() {
        return Vec::new();
    }
    let count = variable("LISTEN_FDS").parse::<u32>().unwrap_or(0).min(PASSED_MAX);
    let names = variable("LISTEN_FDNAMES");
    // All are taken, known or not: nobody else closes them.
    let named = (FIRST..FIRST + count).zip(names.split(':').chain(std::iter::repeat("")));
    named.filter_map(|(number, name)| Some((name.to_owned(), island::adopt(number).ok()?))).collect()
}

/// The newest place with a record. `None`: nothing was kept.
pub(crate) fn find(passed: Vec<(String, OwnedFd)>) -> anyhow::Result<Option<Found>> {
    let names: Vec<String> =
        passed.iter().map(|(name, _)| name.clone()).filter(|name| name.starts_with("godwit-")).collect();
    let mut places: BTreeMap<u64, BTreeMap<String, OwnedFd>> = BTreeMap::new();
    for (name, fd) in passed {
        if let Some((number, part)) = parse(&name) {
            places.entry(number).or_default().insert(part, fd);
        }
    }
    let mut error = None;
    for (number, mut parts) in places.into_iter().rev() {
        let Some(root) = parts.remove("root") else { continue };
        let record = match cell::read(&root) {
            // Its keeper died before it wrote: the one before it counts.
            Err(_) => continue,
            Ok(record) => record,
        };
        match KeeperV1::from_bytes(&record) {
            Ok(keeper) => {
                let fds = descriptors(parts).with_context(|| format!("place {number}"))?;
                return Ok(Some(Found { keeper, fds, names }));
            }
            Err(newest) => error = error.or(Some(newest)),
        }
    }
    match error {
        None => Ok(None),
        Some(error) => Err(error).context(
            "what the service manager keeps of the last keeper cannot be read; start the release that wrote it, or stop the service \
             first (its clients lose their devices)",
        ),
    }
}

/// "godwit-7-vault-0-r" is "vault-0-r" of place 7.
fn parse(name: &str) -> Option<(u64, String)> {
    let (number, part) = name.strip_prefix("godwit-")?.split_once('-')?;
    Some((number.parse().ok()?, part.to_owned()))
}

/// The number of a place after all these.
pub(crate) fn next_number(names: &[String]) -> u64 {
    names.iter().filter_map(|name| parse(name)).map(|(number, _)| number).max().unwrap_or(0) + 1
}

/// What is in the vaults. It stays there: this process may be killed, too.
fn descriptors(mut parts: BTreeMap<String, OwnedFd>) -> anyhow::Result<Descriptors> {
    let mut fds = Descriptors::default();
    let reads: Vec<String> = parts.keys().filter(|part| part.ends_with("-r")).cloned().collect();
    for name in reads {
        let (read, write) =
            (parts.remove(&name), parts.remove(&(name.trim_end_matches('r').to_owned() + "w")));
        let (Some(read), Some(write)) = (read, write) else { continue };
        let vault = Vault { read, write };
        let mark = IDS_END | (marker() >> 1);
        vault.put(&[(mark, vault.read.as_fd())])?;
        // The marker was the last; when it has come, each has come once.
        while let Some(packet) = vault::turn(&vault)? {
            let is_last = packet.iter().any(|(id, _)| *id == mark);
            let known = packet.into_iter().filter(|(id, _)| *id < IDS_END);
            fds.0.extend(known.map(|(id, fd)| (id, Arc::new(fd))));
            if is_last {
                break;
            }
        }
    }
    Ok(fds)
}

/// A number that no earlier process used lately.
fn marker() -> u32 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u32::try_from((now.tv_nsec ^ (now.tv_sec << 20)) & 0x7FFF_FFFF).unwrap_or(1)
}

impl Found {
    pub(crate) fn ssd(&self, name: &str) -> Option<&KeptSsdV1> {
        self.keeper.ssds.iter().find(|ssd| ssd.name == name)
    }

    /// An ssd's socket, if it is where the configuration wants it.
    pub(crate) fn listener(&self, name: &str, path: &Path) -> Option<Listener> {
        let kept = self.ssd(name)?.listener.as_ref().filter(|kept| Path::new(&kept.path) == path)?;
        Listener::from_kept(kept, &self.fds).ok()
    }

    /// What was applied to a running daemon whose configuration file is still the same: it stands. A file that was changed since
    /// then counts.
    pub(crate) fn changed_text(&self, file_text: &str) -> Option<String> {
        let began_with = self.keeper.file_text.as_deref()?;
        if began_with != file_text {
            if self.keeper.config_text != file_text {
                tracing::warn!(
                    "the configuration file was changed: what had been applied does not stand any more"
                );
            }
            return None;
        }
        Some(self.keeper.config_text.clone())
    }

    pub(crate) fn console(&self, path: &Path) -> Option<Listener> {
        let kept = self.keeper.console.as_ref().filter(|kept| Path::new(&kept.path) == path)?;
        Listener::from_kept(kept, &self.fds).ok()
    }
}

impl Orphan {
    fn from_kept(kept: &EngineV1, fds: &Descriptors, now: Instant) -> anyhow::Result<Self> {
        Ok(Self {
            kept: kept.clone(),
            pidfd: fds.shared(kept.pidfd)?,
            blame: fds.shared(kept.blame)?,
            binary: Arc::new(Binary::from_kept(&kept.program, fds)?),
            by: Some(now + ORPHAN_TIME),
        })
    }

    /// For a keeper after this one, should it not live as long either.
    pub(crate) fn to_kept(&self, naming: &mut impl crate::carry::Naming) -> EngineV1 {
        EngineV1 {
            pidfd: naming.shared(&self.pidfd),
            blame: naming.shared(&self.blame),
            program: self.binary.to_kept(naming),
            ..self.kept.clone()
        }
    }
}

impl Keeper {
    /// Makes a place in the service manager's store, if there is one, and goes on from what was found there.
    pub(crate) fn settle(&mut self, found: Option<Found>) -> anyhow::Result<()> {
        let Some(shelf) = self.options.notify.store() else { return Ok(()) };
        let names = found.as_ref().map_or(&[][..], |found| &found.names);
        let next = found.as_ref().and_then(|found| found.fds.0.keys().next_back()).map_or(0, |id| id + 1);
        let store = Store::new(shelf, next_number(names), next % IDS_END)
            .context("the service manager's descriptor store cannot be used")?;
        let old = names.to_vec();
        self.store = Some(store.clone());
        if let Some(found) = found {
            self.go_on(&found, &store)?;
        }
        self.save();
        store.remove(&old);
        Ok(())
    }

    /// After a re-exec: a new place with what this keeper has, then the old one goes.
    pub(crate) fn settle_again(&mut self, old: &[String]) -> anyhow::Result<()> {
        let Some(shelf) = self.options.notify.store() else { return Ok(()) };
        let store = Store::new(shelf, next_number(old), 0)
            .context("the service manager's descriptor store cannot be used")?;
        self.store = Some(store.clone());
        for number in self.numbers() {
            self.keep_session(number);
        }
        self.save();
        store.remove(old);
        Ok(())
    }

    fn go_on(&mut self, found: &Found, store: &Store) -> anyhow::Result<()> {
        let now = Instant::now();
        self.take_up(&found.keeper, &found.fds)?;
        let patience = (self.options.limits.frame_time, self.options.limits.send_time);
        for ssd in self.ssds.values_mut() {
            let Some(kept) = found.ssd(&ssd.name) else { continue };
            ssd.resume(kept, &found.fds)?;
            let session = restored(ssd, kept, &found.fds, now, patience, store).transpose();
            match session {
                Ok(session) => ssd.session = session,
                // This client loses its device; the others do not.
                Err(error) => {
                    tracing::error!(
                        ssd = ssd.name,
                        error = format!("{error:#}"),
                        "its client cannot be kept"
                    );
                }
            }
        }
        let ours = |name: &str| self.ssds.values().any(|ssd| ssd.name == name);
        for kept in found.keeper.ssds.iter().filter(|kept| !ours(&kept.name)) {
            tracing::warn!(ssd = kept.name, "not in the configuration any more: let go");
        }
        let sessions = self.ssds.values().filter(|ssd| ssd.session.is_some()).count();
        tracing::warn!(
            generation = self.generation,
            sessions,
            "this keeper goes on from what the service manager kept"
        );
        if let Some(engine) = &found.keeper.engine {
            let orphan = Orphan::from_kept(engine, &found.fds, now)?;
            self.history.ended(now, engine.generation, "its keeper ended".to_owned(), true);
            self.last_end = Some(("its keeper ended".to_owned(), now, false));
            self.poller.set(Token::Orphan, &orphan.pidfd, (true, false));
            self.orphan = Some(orphan);
            self.start_at = None;
        }
        Ok(())
    }

    /// The engine of the keeper before is gone: the next one may start.
    pub(crate) fn orphan_ended(&mut self, now: Instant) {
        let Some(orphan) = self.orphan.take() else { return };
        tracing::info!(
            generation = orphan.kept.generation,
            pid = orphan.kept.pid,
            "the last keeper's engine is gone"
        );
        self.poller.closed(Token::Orphan);
        self.start_at = Some(now);
    }

    /// The engine of the keeper before takes too long.
    pub(crate) fn orphan_late(&mut self, now: Instant) {
        let Some(orphan) = &mut self.orphan else { return };
        if orphan.by.take_if(|by| *by <= now).is_some() {
            tracing::error!(pid = orphan.kept.pid, "the last keeper's engine does not end; killing it");
            let _ = rustix::process::pidfd_send_signal(&orphan.pidfd, Signal::KILL);
        }
    }

    /// This process is to end, and the service manager starts another: clients wait. Without a store this is a stop.
    pub(crate) fn leave(&mut self, now: Instant) {
        if self.store.is_none() || self.leaving || self.stopping {
            return self.stop(now);
        }
        tracing::info!("leaving everything to the next keeper");
        self.leaving = true;
        self.end_change();
        self.start_at = None;
        let deadline = now + self.options.limits.pause_time;
        match self.active_mut() {
            Some(engine) => {
                engine.stage = Stage::Pausing;
                engine.deadline = Some(deadline);
                engine.say(Packet::new(&ToEngine::Pause, Vec::new()));
                engine.flush();
                self.sync_engine();
            }
            None => self.left(),
        }
    }

    /// Nothing is under way any more: the process may end.
    pub(crate) fn left(&mut self) {
        self.save();
        self.ssds.values_mut().for_each(|ssd| ssd.listener.stays = true);
        self.console.stays();
        self.outcome = Some(Ok(()));
    }

    /// At the very end, unless another keeper is to go on.
    pub(crate) fn empty_store(&mut self) {
        if let Some(store) = self.store.take_if(|_| self.stopping) {
            let names = store.lock().names();
            store.remove(&names);
        }
    }

    pub(crate) fn orphan_deadline(&self) -> Option<Instant> {
        self.orphan.as_ref()?.by
    }
}

/// An ssd's client, brought in step with what went through its socket.
fn restored(
    ssd: &Ssd,
    kept: &KeptSsdV1,
    fds: &Descriptors,
    now: Instant,
    patience: (Duration, Duration),
    store: &Store,
) -> Option<anyhow::Result<Session>> {
    let cell = kept.cell?;
    let restore = || {
        let kept = KeptSessionV1::from_bytes(&cell::read(&*fds.shared(cell)?)?)?;
        let mut session = Session::from_kept(&kept, fds, now, patience)?;
        let mut known = None;
        if let (Some(client), Some(kept)) = (&mut session.client, &kept.client) {
            let mut tally = Tally::map(fds.shared(kept.tally.context("it has no count")?)?)?;
            let went = tally.bytes(Direction::Out).checked_sub(kept.went_bytes);
            ensure!(went.is_some_and(|went| client.outbox.skip(went)), "more was sent to it than there was");
            // What it has yet to read is then in its socket, and no longer ours to wait for.
            client.read_by = client.read_by.filter(|_| !client.outbox.is_empty());
            let still_there = kept.came_bytes.checked_sub(tally.bytes(Direction::In));
            let still_there = still_there.context("more came from it than was written down")?;
            // That it is gone shows soon enough.
            let _ = tally.consume(client.socket.as_fd(), usize::try_from(still_there)?);
            known = Some((tally, kept.came_bytes));
        }
        session.desk = Some(Desk::new(store, &ssd.name, known)?);
        session.changed = true;
        session.save();
        anyhow::Ok(session)
    };
    Some(restore())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Cell;
    use state::envelope;
    use state::keeper::{Fd, ListenerV1, MAGIC, ProgramV1, VERSION};

    /// A place as a keeper leaves it, with one descriptor in its vault.
    fn place(number: u64, record: Option<&[u8]>) -> Vec<(String, OwnedFd)> {
        let mut root = Cell::new().expect("memory");
        if let Some(record) = record {
            root.write(record).expect("written");
        }
        let vault = Vault::new().expect("a vault");
        let program = std::fs::File::open("/proc/self/exe").expect("there");
        vault.put(&[(4, program.as_fd())]).expect("room");
        let name = |part: &str| format!("godwit-{number}-{part}");
        let root = root.fd.try_clone().expect("room");
        vec![(name("root"), root), (name("vault-3-r"), vault.read), (name("vault-3-w"), vault.write)]
    }

    fn record(generation: u64) -> Vec<u8> {
        let program = ProgramV1 { fd: Fd(4), path: "/usr/bin/godwitd".to_owned() };
        KeeperV1 { generation, program: Some(program), ..KeeperV1::default() }.to_bytes().expect("small")
    }

    #[test]
    fn the_newest_place_with_a_record_counts_and_all_names_are_known() {
        let mut passed = place(7, Some(&record(1)));
        passed.extend(place(10, Some(&record(2))));
        // Its keeper was killed before it wrote.
        passed.extend(place(11, None));
        passed.push((
            "another's".to_owned(),
            rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("room"),
        ));
        let found = find(passed).expect("readable").expect("there");
        assert_eq!(found.keeper.generation, 2);
        assert_eq!(found.names.len(), 9);
        assert_eq!(next_number(&found.names), 12);
        let program = found.keeper.program.as_ref().expect("a program");
        assert!(found.fds.shared(program.fd).is_ok() && found.fds.shared(Fd(5)).is_err());
    }

    #[test]
    fn a_reader_that_is_killed_at_any_packet_leaves_everything_to_the_next() {
        let vault = Vault::new().expect("a vault");
        let fd = Cell::new().expect("memory").fd;
        for id in 0..10 {
            vault.put(&[(id, fd.as_fd())]).expect("room");
        }
        for killed_after in 0..12 {
            let mark = IDS_END | killed_after;
            vault.put(&[(mark, fd.as_fd())]).expect("room");
            for _ in 0..killed_after {
                vault::turn(&vault).expect("sound");
            }
            // And between putting a packet at the end and taking it from the head.
            let entries = vault::take(vault.read.as_fd(), true).expect("sound").expect("there");
            let again: Vec<_> = entries.iter().map(|(id, fd)| (*id, fd.as_fd())).collect();
            vault.put(&again).expect("room");
            let copy = |end: &OwnedFd| end.try_clone().expect("room");
            let parts = [("vault-0-r", copy(&vault.read)), ("vault-0-w", copy(&vault.write))];
            let fds = descriptors(parts.map(|(name, fd)| (name.to_owned(), fd)).into()).expect("sound");
            assert_eq!(
                fds.0.keys().copied().collect::<Vec<_>>(),
                (0..10).collect::<Vec<_>>(),
                "{killed_after}"
            );
        }
    }

    #[test]
    fn a_record_of_a_newer_release_is_neither_ignored_nor_believed() {
        let newer = envelope::seal(MAGIC, VERSION + 1, &[0xA0]).expect("small");
        let error = format!("{:#}", find(place(3, Some(&newer))).expect_err("unreadable"));
        assert!(error.contains("start the release that wrote it") && error.contains("newer"), "{error}");
        assert!(find(Vec::new()).expect("nothing").is_none());
        assert!(find(place(3, None)).expect("nothing").is_none());
    }

    #[test]
    fn a_socket_is_taken_over_only_where_the_configuration_wants_it() {
        let listener = ListenerV1 { fd: Fd(1), path: "/run/a.sock".to_owned() };
        let ssd = KeptSsdV1 { name: "a".to_owned(), listener: Some(listener), ..KeptSsdV1::default() };
        let keeper = KeeperV1 { ssds: vec![ssd], ..KeeperV1::default() };
        let found = Found { keeper, fds: Descriptors::default(), names: Vec::new() };
        assert!(found.ssd("a").is_some() && found.ssd("b").is_none());
        assert!(found.listener("a", Path::new("/run/other.sock")).is_none());
    }
}
