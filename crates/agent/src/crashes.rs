//! The agent is ended between any two effects, and the next one goes on.

use crate::book::Book;
use crate::desired::{self, Ask, Terms};
use crate::place::Place;
use crate::plane::{How, Plane, PlaneError};
use crate::store::{self, Store};
use crate::work::{Base, Work};
use api::config::{Backend, Config};
use api::control::{SsdStatus, Status};
use api::rest::{OperationState, Phase, SsdChange, SsdCreate};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

/// What an agent that is ended unwinds with.
struct Ended;

/// The daemon and the clock of an agent's end.
#[derive(Default)]
struct World {
    /// Effects until the end; 0: it does not come.
    left: AtomicUsize,
    daemon: Mutex<Double>,
}

/// A daemon's double: it keeps to the contract of `Apply`.
#[derive(Default)]
struct Double {
    served: BTreeMap<String, (PathBuf, u64)>,
    /// How often each file was made.
    made: BTreeMap<PathBuf, u32>,
    /// These have clients.
    clients: BTreeSet<String>,
    /// Refuses an ssd of this name, after it accepted so many.
    refused: Option<(String, u32)>,
    /// Who was ever taken away.
    lost: BTreeSet<String>,
    applied: u32,
}

impl World {
    fn effect(&self) {
        let left = self.left.load(Ordering::Relaxed);
        self.left.store(left.saturating_sub(1), Ordering::Relaxed);
        if left == 1 {
            resume_unwind(Box::new(Ended));
        }
    }

    fn daemon(&self) -> MutexGuard<'_, Double> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Double {
    fn apply(&mut self, text: &str, how: How) -> Result<String, PlaneError> {
        let refused = |text: &str| Err(PlaneError::Refused(text.to_owned()));
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
        let mut wanted = BTreeMap::new();
        for ssd in &config.ssds {
            let Backend::Uring { path, .. } = &ssd.backend else { return refused("no file") };
            let size = ssd.size_bytes.unwrap_or(0);
            if self.served.get(&ssd.name).is_some_and(|(_, before)| *before > size) {
                return refused("an ssd does not shrink");
            }
            wanted.insert(ssd.name.clone(), (path.clone(), size));
        }
        if how.dry_run {
            return Ok(format!("{} ssds", wanted.len()));
        }
        self.lost.extend(gone);
        for (path, _) in wanted.values() {
            if !path.exists() {
                *self.made.entry(path.clone()).or_default() += 1;
                std::fs::write(path, "zeros").unwrap();
            }
        }
        self.served = wanted;
        self.applied += 1;
        Ok(String::new())
    }
}

impl Plane for World {
    fn apply(&self, config: &str, how: How) -> Result<String, PlaneError> {
        self.effect();
        let answer = self.daemon().apply(config, how);
        self.effect();
        answer
    }

    fn status(&self) -> Result<Status, PlaneError> {
        let ssd = |name: &String| SsdStatus { name: name.clone(), ..SsdStatus::default() };
        Ok(Status { ssds: self.daemon().served.keys().map(ssd).collect(), ..Status::default() })
    }
}

/// A host: its folder and its daemon, which outlive agents.
struct Host {
    folder: tempfile::TempDir,
    world: Arc<World>,
    ends: u32,
}

impl Host {
    fn new() -> Self {
        // In memory, if there is such a folder: some thousand transactions, each durable.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        std::fs::create_dir(folder.path().join("ssds")).unwrap();
        Self { folder, world: Arc::default(), ends: 0 }
    }

    fn place(&self) -> Place {
        Place { ssds: self.folder.path().join("ssds"), sockets: self.folder.path().to_owned() }
    }

    fn agent(&self) -> (Book, Work) {
        let store = Store::open(&self.folder.path().join("state")).unwrap();
        let (wake, _) = mpsc::channel();
        let book = Book::new(store, wake).unwrap();
        let world = Arc::clone(&self.world);
        let work = Work {
            book: book.clone(),
            plane: Arc::clone(&self.world) as Arc<dyn Plane>,
            place: self.place(),
            base: Base { file: self.folder.path().join("none"), otherwise: "control = \"/c\"".to_owned() },
            now_ms: || 7,
            trouble: Arc::default(),
            told: None,
            between: Box::new(move || world.effect()),
        };
        (book, work)
    }

    /// One agent's life: it is asked, works until nothing is left to do, and may be ended at any effect.
    fn live(&mut self, id: &str, ask: &Ask) -> bool {
        let life = catch_unwind(AssertUnwindSafe(|| {
            let (book, mut work) = self.agent();
            let uuid = format!("{id:0>8}-0000-4000-8000-000000000000");
            let terms = Terms { id: id.to_owned(), if_match: None, now_ms: 1, uuid };
            book.write(|sqlite| desired::submit(sqlite, &self.place(), ask, &terms)).unwrap();
            self.world.effect();
            while !book.read(store::running).unwrap().is_empty() {
                work.turn();
            }
            work.turn();
        }));
        match life {
            Ok(()) => true,
            Err(panic) if panic.is::<Ended>() => {
                self.ends += 1;
                false
            }
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Asks, again and again with the same id, until it is done: as a client does whose agent goes.
    fn ask(&mut self, id: &str, ask: &Ask) -> OperationState {
        while !self.live(id, ask) {}
        let (book, _) = self.agent();
        book.read(|sqlite| store::operation(sqlite, id)).unwrap().unwrap().shown.state
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            std::fs::read_dir(self.place().ssds).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn served(&self) -> Vec<(String, u64)> {
        self.world.daemon().served.iter().map(|(name, (_, size))| (name.clone(), *size)).collect()
    }

    fn has_nothing(&self) -> bool {
        self.served().is_empty() && self.files().is_empty()
    }
}

fn create() -> Ask {
    let body = SsdCreate { name: "a".to_owned(), size_bytes: Some(1 << 20), ..SsdCreate::default() };
    Ask::SsdCreate { body }
}

fn grow() -> Ask {
    Ask::SsdChange {
        name: "a".to_owned(),
        body: SsdChange { size_bytes: Some(2 << 20), ..SsdChange::default() },
    }
}

fn delete(force: bool) -> Ask {
    Ask::SsdDelete { name: "a".to_owned(), force }
}

/// Runs a story with an end of the agent after each number of effects, until the story has no more effects.
fn at_every_effect(story: impl Fn(&mut Host)) {
    let mut ended = 0;
    for effects in 1.. {
        let mut host = Host::new();
        host.world.left.store(effects, Ordering::Relaxed);
        story(&mut host);
        if host.ends == 0 {
            break;
        }
        ended += 1;
    }
    assert!(ended >= 4, "the agent was ended at {ended} points only");
}

#[test]
fn an_ssds_whole_life_happens_exactly_once_wherever_the_agent_is_killed() {
    at_every_effect(|host| {
        assert_eq!(host.ask("1", &create()), OperationState::Done);
        assert_eq!(host.served(), [("a".to_owned(), 1 << 20)]);
        let [data] = &host.files()[..] else { panic!("{:?}", host.files()) };
        std::fs::write(data, "the guest's").unwrap();
        assert_eq!(host.ask("2", &grow()), OperationState::Done);
        assert_eq!(host.served(), [("a".to_owned(), 2 << 20)]);
        assert_eq!(std::fs::read_to_string(data).unwrap(), "the guest's");
        let (book, work) = host.agent();
        let row = book.read(|sqlite| store::ssd(sqlite, "a")).unwrap().unwrap();
        assert_eq!((row.generation, row.phase, row.operation), (2, Phase::Ready, None));
        drop((book, work));
        assert_eq!(host.ask("3", &delete(false)), OperationState::Done);
        assert!(host.has_nothing());
        // Under its name another one, which never sees the first one's data.
        assert_eq!(host.ask("4", &create()), OperationState::Done);
        assert_eq!(host.files().len(), 1);
        assert_ne!(host.files()[0], *data);
        let daemon = host.world.daemon();
        assert!(daemon.made.len() == 2 && daemon.made.values().all(|made| *made == 1), "{:?}", daemon.made);
    });
}

#[test]
fn a_creation_that_is_refused_leaves_nothing_wherever_the_agent_is_killed() {
    for accepted in [0, 1] {
        at_every_effect(|host| {
            host.world.daemon().refused = Some(("a".to_owned(), accepted));
            let state = host.ask("1", &create());
            // With one acceptance it is done, unless the agent was killed before it knew.
            assert!(accepted == 1 || state == OperationState::Failed);
            if state == OperationState::Failed {
                assert!(host.has_nothing());
                let (book, _) = host.agent();
                assert_eq!(book.read(|sqlite| store::ssd(sqlite, "a")).unwrap(), None);
                let row = book.read(|sqlite| store::operation(sqlite, "1")).unwrap().unwrap();
                assert!(row.shown.message.unwrap().contains("cannot be"));
            }
        });
    }
}

#[test]
fn a_deletion_that_is_refused_loses_nothing_wherever_the_agent_is_killed() {
    at_every_effect(|host| {
        assert_eq!(host.ask("1", &create()), OperationState::Done);
        host.world.daemon().clients.insert("a".to_owned());
        assert_eq!(host.ask("2", &delete(false)), OperationState::Failed);
        assert_eq!((host.served().len(), host.files().len()), (1, 1));
        assert!(host.world.daemon().lost.is_empty());
        assert_eq!(host.ask("3", &delete(true)), OperationState::Done);
        assert!(host.has_nothing());
    });
}

#[test]
fn an_agent_that_finds_a_daemon_without_its_ssds_gives_them_back_and_then_leaves_it_alone() {
    let mut host = Host::new();
    assert_eq!(host.ask("1", &create()), OperationState::Done);
    host.world.daemon().served.clear();
    let (_book, mut work) = host.agent();
    work.turn();
    assert_eq!(host.served().len(), 1);
    let before = host.world.daemon().applied;
    work.turn();
    work.turn();
    assert_eq!(host.world.daemon().applied, before);
}

#[test]
fn an_operations_id_means_one_wish() {
    let host = Host::new();
    let (book, _work) = host.agent();
    let terms = Terms { id: "x".to_owned(), if_match: None, now_ms: 1, uuid: "u".to_owned() };
    let submit =
        |ask: &Ask, terms: &Terms| book.write(|sqlite| desired::submit(sqlite, &host.place(), ask, terms));
    let first = submit(&create(), &terms).unwrap();
    assert_eq!(submit(&create(), &terms).unwrap(), first);
    assert_eq!(submit(&delete(false), &terms).unwrap_err().code(), "conflict");
    let other = Terms { id: "y".to_owned(), ..terms.clone() };
    assert_eq!(submit(&create(), &other).unwrap_err().code(), "conflict");
    assert_eq!(submit(&grow(), &other).unwrap_err().code(), "conflict", "an operation works on it");
    let evil = Terms { id: "../y".to_owned(), ..terms };
    assert_eq!(submit(&create(), &evil).unwrap_err().code(), "bad-request");
}

#[test]
fn a_change_of_another_generation_is_refused() {
    let mut host = Host::new();
    assert_eq!(host.ask("1", &create()), OperationState::Done);
    let (book, _work) = host.agent();
    let terms = |if_match| Terms { id: "2".to_owned(), if_match, now_ms: 1, uuid: "u".to_owned() };
    let submit =
        |if_match| book.write(|sqlite| desired::submit(sqlite, &host.place(), &grow(), &terms(if_match)));
    assert_eq!(submit(Some(2)).unwrap_err().code(), "precondition");
    assert_eq!(submit(Some(1)).unwrap().state, OperationState::Running);
}

#[test]
fn a_second_agent_with_the_same_state_is_refused() {
    let host = Host::new();
    let (_book, _work) = host.agent();
    let error = Store::open(&host.folder.path().join("state")).unwrap_err();
    assert!(format!("{error:#}").contains("another agent"), "{error:#}");
}

#[test]
fn a_state_of_a_later_release_is_left_as_it_is() {
    let host = Host::new();
    let path = host.folder.path().join("state");
    drop(Store::open(&path).unwrap());
    let sqlite = rusqlite::Connection::open(&path).unwrap();
    sqlite.pragma_update(None, "user_version", 99).unwrap();
    drop(sqlite);
    let error = Store::open(&path).unwrap_err();
    assert!(format!("{error:#}").contains("later release"), "{error:#}");
}
