//! The agent is ended between any two effects, and the next one goes on.

mod along;
mod changes;
mod keys;
mod moves;
mod world;

use crate::book::Book;
use crate::desired::{self, Ask, Terms};
use crate::place::Place;
use crate::plane::Plane;
use crate::store::{self, Store};
use crate::work::{Base, Work};
use api::rest::{
    OperationState, Phase, PoolCreate, SnapshotCreate, SsdChange, SsdCreate, Verdict, WipedKind,
};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use world::{Drive, World};

/// What an agent that is ended unwinds with.
struct Ended;

/// What the agent calls what has no identity.
const NEW_UUID: &str = "99999999-0000-4000-8000-000000000001";

/// More than any operation needs.
const TURNS_MAX: u32 = 1000;

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
        for name in ["ssds", "keys"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        Self { folder, world: Arc::default(), ends: 0 }
    }

    fn place(&self) -> Place {
        let folder = self.folder.path();
        Place { ssds: folder.join("ssds"), sockets: folder.to_owned(), keys: folder.join("keys") }
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
            uuid: || NEW_UUID.to_owned(),
            trouble: Arc::default(),
            told: None,
            between: Box::new(move || world.effect()),
        };
        (book, work)
    }

    /// One agent's life: it is asked, works until nothing is left to do, and may be ended at any effect.
    fn live(&mut self, id: &str, ask: &Ask) -> bool {
        self.unless_ended(|host| {
            let (book, mut work) = host.agent();
            let uuid = format!("{id:0>8}-0000-4000-8000-000000000001");
            let terms = Terms { id: id.to_owned(), if_match: None, now_ms: 1, uuid };
            book.write(|sqlite| desired::submit(sqlite, &host.place(), ask, &terms)).unwrap();
            host.world.effect();
            let mut turns = 0;
            while !book.read(store::running).unwrap().is_empty() {
                work.turn();
                turns += 1;
                assert!(turns < TURNS_MAX, "operation {id} comes to no end");
            }
            work.turn();
        })
    }

    /// One agent's life, which may be ended at any effect. Whether it was not.
    fn unless_ended(&mut self, life: impl FnOnce(&Self)) -> bool {
        match catch_unwind(AssertUnwindSafe(|| life(self))) {
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
    Ask::SsdCreate { body: Box::new(body) }
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

fn create_pool() -> Ask {
    let body = PoolCreate { name: "p".to_owned(), path: "/drive".to_owned(), ..PoolCreate::default() };
    Ask::PoolCreate { body }
}

fn create_in_pool(name: &str, from_snapshot: Option<&str>) -> Ask {
    let body = SsdCreate {
        name: name.to_owned(),
        size_bytes: Some(1 << 20),
        pool: Some("p".to_owned()),
        from_snapshot: from_snapshot.map(str::to_owned),
        ..SsdCreate::default()
    };
    Ask::SsdCreate { body: Box::new(body) }
}

fn snapshot() -> Ask {
    Ask::SnapshotCreate { body: SnapshotCreate { name: "s".to_owned(), ssd: "a".to_owned() } }
}

impl Host {
    /// What is in the pool on a drive: the names of the volumes without the identities, and what they contain.
    fn volumes(&self, path: &str) -> Vec<(String, String)> {
        let daemon = self.world.daemon();
        let short = |name: &String| name.split('.').next().unwrap().to_owned();
        let of = |drive: &Drive| {
            drive.volumes.iter().map(|(name, (text, _))| (short(name), text.clone())).collect()
        };
        daemon.drives.get(Path::new(path)).map(of).unwrap_or_default()
    }

    /// Somebody writes to an ssd in the pool.
    fn write(&self, ssd: &str, text: &str) {
        let mut daemon = self.world.daemon();
        let volumes = daemon.drives.values_mut().flat_map(|drive| &mut drive.volumes);
        let own = volumes.filter(|(name, _)| name.starts_with(&format!("{ssd}.")));
        own.for_each(|(_, (content, _))| *content = text.to_owned());
    }

    fn operation(&self, id: &str) -> api::rest::Operation {
        self.agent().0.read(|sqlite| store::operation(sqlite, id)).unwrap().unwrap().shown
    }
}

#[test]
fn a_pools_whole_life_happens_exactly_once_wherever_the_agent_is_killed() {
    at_every_effect(|host| {
        assert_eq!(host.ask("1", &create_pool()), OperationState::Done);
        assert_eq!(host.ask("2", &create_in_pool("a", None)), OperationState::Done);
        host.write("a", "the guest's");
        assert_eq!(host.ask("3", &snapshot()), OperationState::Done);
        host.write("a", "newer");
        assert_eq!(host.ask("4", &create_in_pool("b", Some("s"))), OperationState::Done);
        let pair = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        let all = [pair("a", "newer"), pair("b", "the guest's"), pair("s", "the guest's")];
        assert_eq!(host.volumes("/drive"), all);
        let size = 1 << 20;
        assert_eq!(host.served(), [("a".to_owned(), size), ("b".to_owned(), size)]);
        assert_eq!(host.ask("5", &delete(false)), OperationState::Done);
        assert_eq!(host.ask("6", &Ask::SnapshotDelete { name: "s".to_owned() }), OperationState::Done);
        // Under its name another one, which never sees the first one's data.
        assert_eq!(host.ask("7", &create_in_pool("a", None)), OperationState::Done);
        assert_eq!(host.volumes("/drive"), [pair("a", "zeros"), pair("b", "the guest's")]);
        for (id, name) in [("8", "a"), ("9", "b")] {
            let ask = Ask::SsdDelete { name: name.to_owned(), force: false };
            assert_eq!(host.ask(id, &ask), OperationState::Done);
        }
        assert_eq!(host.ask("10", &Ask::PoolDelete { name: "p".to_owned() }), OperationState::Done);
        assert!(host.has_nothing() && host.volumes("/drive").is_empty());
        let (book, _work) = host.agent();
        let certificates = book.read(|sqlite| store::certificates(sqlite, 10)).unwrap();
        let told: Vec<_> = certificates.iter().map(|one| (one.id.as_str(), one.verdict)).collect();
        let wiped = ["9", "8", "6", "5"].map(|id| (id, Verdict::Wiped));
        assert_eq!(told, wiped);
        assert_eq!(certificates[3].snapshots, ["s"]);
        assert!(certificates.iter().all(|one| one.ended_ms.is_some() && one.mapped_bytes == 1 << 20));
        let daemon = host.world.daemon();
        assert!(daemon.pools.is_empty());
        let drive = &daemon.drives[Path::new("/drive")];
        assert_eq!(drive.formatted, 1);
        assert!(drive.made.len() == 4 && drive.made.values().all(|made| *made == 1), "{:?}", drive.made);
    });
}

#[test]
fn a_pool_on_a_taken_drive_is_refused_and_what_is_on_it_stays_wherever_the_agent_is_killed() {
    at_every_effect(|host| {
        host.world.daemon().taken.insert("/drive".into());
        assert_eq!(host.ask("1", &create_pool()), OperationState::Failed);
        assert!(host.world.daemon().drives.is_empty());
        let (book, _work) = host.agent();
        assert_eq!(book.read(|sqlite| store::pool(sqlite, "p")).unwrap(), None);
        drop((book, _work));
        assert!(host.operation("1").message.unwrap().contains("taken"));
        let body = PoolCreate {
            name: "p".to_owned(),
            path: "/drive".to_owned(),
            force_destroy_data: Some("SERIAL".to_owned()),
            ..PoolCreate::default()
        };
        assert_eq!(host.ask("2", &Ask::PoolCreate { body }), OperationState::Done);
        assert_eq!(host.world.daemon().drives[Path::new("/drive")].formatted, 1);
    });
}

#[test]
fn an_ssd_that_its_pool_cannot_hold_leaves_nothing_wherever_the_agent_is_killed() {
    at_every_effect(|host| {
        assert_eq!(host.ask("1", &create_pool()), OperationState::Done);
        assert_eq!(host.ask("2", &create_in_pool("a", None)), OperationState::Done);
        assert_eq!(host.ask("3", &snapshot()), OperationState::Done);
        host.world.daemon().refused = Some(("b".to_owned(), 0));
        assert_eq!(host.ask("4", &create_in_pool("b", Some("s"))), OperationState::Failed);
        let names: Vec<String> = host.volumes("/drive").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "s"]);
        assert_eq!(host.served().len(), 1);
    });
}

#[test]
fn what_cannot_be_wiped_is_quarantined_and_certified_as_that_wherever_the_agent_is_killed() {
    at_every_effect(|host| {
        assert_eq!(host.ask("1", &create_pool()), OperationState::Done);
        assert_eq!(host.ask("2", &create_in_pool("a", None)), OperationState::Done);
        host.world.daemon().broken = true;
        assert_eq!(host.ask("3", &delete(false)), OperationState::Failed);
        let (book, _work) = host.agent();
        let ssd = book.read(|sqlite| store::ssd(sqlite, "a")).unwrap().unwrap();
        assert_eq!((ssd.phase, ssd.operation), (Phase::Quarantined, None));
        let certificate = book.read(|sqlite| store::certificate(sqlite, "3")).unwrap().unwrap();
        assert_eq!((certificate.verdict, certificate.kind), (Verdict::Quarantined, WipedKind::Ssd));
        assert_eq!(certificate.quarantined_bytes, [0, 1 << 20]);
        drop((book, _work));
        // A person has looked: its name is free again, and nobody claims that it was wiped.
        assert_eq!(host.ask("4", &delete(false)), OperationState::Done);
        let (book, _work) = host.agent();
        assert_eq!(book.read(|sqlite| store::ssd(sqlite, "a")).unwrap(), None);
        let certificate = book.read(|sqlite| store::certificate(sqlite, "4")).unwrap().unwrap();
        assert_eq!(certificate.verdict, Verdict::Absent);
    });
}

#[test]
fn a_volume_that_an_older_drive_brings_back_is_deleted_once_more_wherever_the_agent_is_killed() {
    at_every_effect(|host| {
        assert_eq!(host.ask("1", &create_pool()), OperationState::Done);
        assert_eq!(host.ask("2", &create_in_pool("a", None)), OperationState::Done);
        let mut daemon = host.world.daemon();
        let volume = daemon.drives[Path::new("/drive")].volumes.keys().next().cloned();
        daemon.put_back = volume;
        drop(daemon);
        assert_eq!(host.ask("3", &delete(false)), OperationState::Done);
        assert!(host.world.daemon().put_back.is_none() && host.volumes("/drive").is_empty());
    });
}

#[test]
fn a_drive_that_died_keeps_no_other_ssd_from_being_served() {
    let mut host = Host::new();
    assert_eq!(host.ask("1", &create_pool()), OperationState::Done);
    assert_eq!(host.ask("2", &create_in_pool("b", None)), OperationState::Done);
    assert_eq!(host.ask("3", &create()), OperationState::Done);
    let dead = {
        let mut daemon = host.world.daemon();
        daemon.served.clear();
        daemon.pools.clear();
        daemon.drives.remove(Path::new("/drive")).unwrap()
    };
    let (_book, mut work) = host.agent();
    assert!(work.turn(), "it is tried again");
    assert_eq!(host.served(), [("a".to_owned(), 1 << 20)]);
    // Nothing of what is served goes while the rest cannot come.
    work.turn();
    assert_eq!(host.served().len(), 1);
    assert!(!host.world.daemon().lost.contains("a"));
    host.world.daemon().drives.insert("/drive".into(), dead);
    assert!(!work.turn());
    assert_eq!(host.served().len(), 2);
}

#[test]
fn a_pool_with_ssds_or_snapshots_stays() {
    let mut host = Host::new();
    assert_eq!(host.ask("1", &create_pool()), OperationState::Done);
    assert_eq!(host.ask("2", &create_in_pool("a", None)), OperationState::Done);
    assert_eq!(host.ask("3", &snapshot()), OperationState::Done);
    let refused = |host: &Host, ask: &Ask| {
        let (book, _work) = host.agent();
        let terms = Terms { id: "x".to_owned(), if_match: None, now_ms: 1, uuid: "u".to_owned() };
        book.write(|sqlite| desired::submit(sqlite, &host.place(), ask, &terms))
            .unwrap_err()
            .code()
            .to_owned()
    };
    let pool = Ask::PoolDelete { name: "p".to_owned() };
    assert_eq!(refused(&host, &pool), "conflict");
    assert_eq!(host.ask("4", &delete(false)), OperationState::Done);
    assert_eq!(refused(&host, &pool), "conflict", "its snapshot is there");
    assert_eq!(host.ask("5", &Ask::SnapshotDelete { name: "s".to_owned() }), OperationState::Done);
    assert_eq!(host.ask("6", &pool), OperationState::Done);
    assert_eq!(refused(&host, &create_in_pool("a", None)), "not-found");
}

#[test]
fn a_snapshot_that_was_refused_after_it_was_made_is_not_left_in_the_pool() {
    let mut host = Host::new();
    assert_eq!(host.ask("1", &create_pool()), OperationState::Done);
    assert_eq!(host.ask("2", &create_in_pool("a", None)), OperationState::Done);
    host.world.daemon().spoils = true;
    assert_eq!(host.ask("3", &snapshot()), OperationState::Failed);
    assert_eq!(host.volumes("/drive").len(), 1, "{:?}", host.volumes("/drive"));
    assert_eq!(host.ask("4", &snapshot()), OperationState::Done);
    assert_eq!(host.volumes("/drive").len(), 2);
}

#[test]
fn a_state_of_the_first_layout_is_carried_on() {
    let host = Host::new();
    let path = host.folder.path().join("state");
    drop(Store::open(&path).unwrap());
    let sqlite = rusqlite::Connection::open(&path).unwrap();
    sqlite
        .execute_batch(
            "DROP TABLE snapshots; DROP TABLE attachments; DROP TABLE certificates; PRAGMA user_version = 1;",
        )
        .unwrap();
    drop(sqlite);
    let store = Store::open(&path).unwrap();
    assert_eq!(store::flavors(store.read()).unwrap().len(), 4);
    assert!(store::snapshots(store.read()).unwrap().is_empty());
}

#[test]
fn a_new_agent_has_the_flavors_of_whole_slices() {
    let host = Host::new();
    let store = Store::open(&host.folder.path().join("state")).unwrap();
    let flavors = store::flavors(store.read()).unwrap();
    let told: Vec<_> =
        flavors.iter().map(|one| (one.name.as_str(), one.size_bytes >> 30, one.limits.weight)).collect();
    let expected = [
        ("local-1500", 1395, Some(300)),
        ("local-2500", 2325, Some(500)),
        ("local-3500", 3255, Some(700)),
        ("local-4500", 4185, Some(900)),
    ];
    assert_eq!(told, expected);
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
