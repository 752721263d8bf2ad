use super::file::File;
use super::{Away, Passage, Standing, Store};
use crate::migration::Migrations;
use crate::pool::{Pools, Purpose};
use crate::run::House;
use api::config::Config;
use api::control::{EngineRequest, PoolRequest, Response};
use guest::PATIENCE;
use link::control::{Change, Link, Received, ToKeeper};
use link::frame::Wait;
use state::migration::{DestinationStepV1, DestinationV1, MigrationV1, SourceStepV1, SourceV1};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn record(source: Option<SourceStepV1>, destination: Option<DestinationStepV1>) -> MigrationV1 {
    let taken_back = matches!(source, Some(SourceStepV1::TakenBack | SourceStepV1::TakenBackHeard));
    let superseded = destination == Some(DestinationStepV1::Superseded);
    MigrationV1 {
        ssd: [7; 16],
        peer: "host-b".to_owned(),
        migration: [8; 16],
        epoch: 5,
        round: 1,
        source: source.map(|step| SourceV1 { held: if taken_back { 6 } else { 4 }, step }),
        destination: destination.map(|step| DestinationV1 { step, fenced_by: superseded.then_some(6) }),
        keep: None,
        closed: None,
        wiped: None,
        hypervisor: None,
        limits: None,
    }
}

fn config_text(folder: &Path, more: &str) -> String {
    let dir = folder.display();
    format!(
        "[[ssd]]\nname = \"a\"\nsize = \"16MiB\"\nsocket = \"{dir}/a.sock\"\nstate = \"{dir}/a.state\"\n\
         backend = {{ type = \"uring\", path = \"{dir}/a.img\", direct = false }}\n{more}"
    )
}

fn config(folder: &Path, more: &str) -> Config {
    Config::parse(Path::new("test"), &config_text(folder, more)).unwrap()
}

fn standing(folder: &Path, more: &str) -> Standing {
    let config = config(folder, more);
    Passage::of(&config.ssds[0], &Pools::open(&[], |_| None, None)).standing()
}

fn away(standing: Standing) -> Away {
    match standing {
        Standing::Away(away) => away,
        Standing::Here(_) => panic!("it may be opened"),
    }
}

/// docs/formats/migration-journal.md, its two tables.
#[test]
fn an_ssd_is_opened_at_the_steps_whose_owner_is_here_and_at_no_other() {
    use DestinationStepV1 as D;
    use SourceStepV1 as S;
    let folder = tempfile::tempdir().unwrap();
    let file = File::new(&folder.path().join("a.state.migration"));
    let source = |step| record(Some(step), None);
    let destination = |step| record(None, Some(step));
    for (record, word, holds) in [
        (source(S::Offered), None, false),
        (source(S::Granted), Some("granted"), true),
        (source(S::Gone), Some("gone"), false),
        (source(S::Cancelling), None, false),
        (source(S::Cancelled), None, false),
        (source(S::TakenBack), None, false),
        (source(S::TakenBackHeard), None, false),
        (source(S::Superseded), Some("superseded"), false),
        (destination(D::Incoming), Some("incoming"), true),
        (destination(D::Ready), Some("ready"), true),
        (destination(D::Owned), None, false),
        (destination(D::Forced), None, false),
        (destination(D::Dropped), Some("dropped"), false),
        (destination(D::Superseded), Some("superseded"), false),
    ] {
        file.replace(&record.to_bytes().unwrap()).unwrap();
        // Once there is a record, the configuration's word means nothing.
        for more in ["", "incoming = true\n"] {
            match (standing(folder.path(), more), word) {
                (Standing::Here(Some(found)), None) => assert_eq!(*found, record),
                (Standing::Away(away), Some(word)) => {
                    assert_eq!((away.word, away.holds), (word, holds), "{record:?}");
                    assert!(away.why.contains("\"host-b\""), "{}", away.why);
                }
                _ => panic!("{record:?}"),
            }
        }
    }
}

#[test]
fn without_a_journal_an_ssd_is_here_unless_the_configuration_says_that_it_comes() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(standing(folder.path(), ""), Standing::Here(None)));
    assert!(matches!(standing(folder.path(), "incoming = false\n"), Standing::Here(None)));
    let away = away(standing(folder.path(), "incoming = true\n"));
    assert_eq!((away.word, away.holds), ("incoming", true));
    // A record that never was the record.
    std::fs::write(folder.path().join("a.state.migration.new"), "half").unwrap();
    assert!(matches!(standing(folder.path(), ""), Standing::Here(None)));
}

#[test]
fn a_journal_that_says_nothing_certain_opens_nothing_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.state.migration");
    let good = record(None, Some(DestinationStepV1::Owned)).to_bytes().unwrap();
    let newer = state::envelope::seal(state::migration::MAGIC, 2, b"?").unwrap();
    let long = [good.clone(), vec![0; 9000]].concat();
    for (bytes, part) in [
        (&b""[..], "cut short"),
        (&good[..good.len() - 1], "cut short"),
        (&newer, "newer build"),
        (&long, "longer than any journal"),
        (&[7; 40], "not a record"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let away = away(standing(folder.path(), ""));
        assert_eq!((away.word, away.holds), ("doubtful", false));
        assert!(away.why.contains(part) && away.why.contains("a.state.migration"), "{}", away.why);
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_eq!(away(standing(folder.path(), "")).word, "doubtful");
    std::fs::remove_dir(&path).unwrap();
    // Nobody writes into it: who waited for that would wait for ever.
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert_eq!(away(standing(folder.path(), "")).word, "doubtful");
}

fn pooled(folder: &Path, more: &str) -> Config {
    let dir = folder.display();
    let text = format!(
        "[[pool]]\nname = \"p\"\npath = \"{dir}/pool.img\"\nsize = \"64MiB\"\ndirect = false\n\
         [[ssd]]\nname = \"a\"\nsize = \"16MiB\"\nsocket = \"{dir}/a.sock\"\n\
         backend = {{ type = \"pool\", pool = \"p\" }}\n{more}"
    );
    Config::parse(Path::new("test"), &text).unwrap()
}

/// The same promises as of a file: docs/decisions/0034-commit.md, "Where the record lies".
#[test]
fn in_a_pool_the_journal_is_kept_with_the_volume_and_the_pool_itself_obeys_it() {
    use DestinationStepV1 as D;
    use SourceStepV1 as S;
    let folder = tempfile::tempdir().unwrap();
    let config = pooled(folder.path(), "incoming = true\n");
    let ssd = &config.ssds[0];
    let pools = || Pools::open(&config.pools, |_| None, None);
    let open = pools();
    let passage = Passage::of(ssd, &open);
    assert_eq!(away(passage.standing()).word, "incoming");
    let store = passage.store().unwrap();
    assert!(store.read().unwrap().is_none());
    store.replace(&record(None, Some(D::Incoming)).to_bytes().unwrap()).unwrap_err();
    super::reserve(ssd, &open).unwrap();
    assert!(store.read().unwrap().is_none(), "made, and never moved");
    let serve = |open: &Pools| open.volume(ssd, "p", false, Purpose::Serve).map(drop);
    let land = |open: &Pools| open.volume(ssd, "p", false, Purpose::Land);
    for (source, destination, word) in [
        (None, Some(D::Incoming), Some("incoming")),
        (None, Some(D::Ready), Some("ready")),
        (None, Some(D::Owned), None),
        (Some(S::Gone), None, Some("gone")),
    ] {
        // By an epoch that goes on from the one before.
        let record =
            MigrationV1 { epoch: if source.is_some() { 9 } else { 5 }, ..record(source, destination) };
        let record = match record.source {
            Some(source) => MigrationV1 { source: Some(SourceV1 { held: 5, ..source }), ..record },
            None => record,
        };
        let landing = land(&open);
        store.replace(&record.to_bytes().unwrap()).unwrap();
        drop(landing);
        store.replace(&record.to_bytes().unwrap()[1..]).unwrap_err();
        match (passage.standing(), word) {
            (Standing::Here(Some(found)), None) => assert_eq!(*found, record),
            (Standing::Away(away), Some(word)) => assert_eq!(away.word, word),
            _ => panic!("{record:?}"),
        }
        assert_eq!(serve(&open).is_ok(), word.is_none(), "{word:?}");
        assert_eq!(land(&open).is_ok(), matches!(word, Some("incoming" | "gone")), "{word:?}");
    }
    // What was kept of it can be copied, and what was not kept is nothing, whether or not it is emptied yet.
    let copy = |name: &str| {
        let (pool, volume, name) = ("p".to_owned(), "a".to_owned(), name.to_owned());
        open.ask(PoolRequest::Clone { pool, volume, name })
    };
    let gone = store.read().unwrap().unwrap();
    let kept = MigrationV1 { keep: Some(true), ..MigrationV1::from_bytes(&gone).unwrap() };
    store.replace(&kept.to_bytes().unwrap()).unwrap();
    assert!(matches!(copy("kept"), Response::Done(_)));
    store.replace(&gone).unwrap();
    for when in ["stale", "emptied"] {
        let refused = copy(when);
        assert!(
            matches!(&refused, Response::Error(why) if why.contains("nothing of it is left")),
            "{refused:?}"
        );
        open.vacate(ssd, "p").unwrap();
    }
    drop(passage);
    open.rest();
    // After a restart it is as it was.
    let again = pools();
    assert_eq!(away(Passage::of(ssd, &again).standing()).word, "gone");
    serve(&again).unwrap_err();
    let Response::Pool(listed) = again.ask(PoolRequest::List) else { panic!("no list") };
    let volume = &listed[0].volumes[0];
    assert_eq!((volume.migration.as_deref(), volume.mapped_bytes, volume.epoch), (Some("gone"), 0, 5));
    again.rest();
    // Its pool cannot be had: its ssds cannot either, and say why when they are opened.
    std::fs::write(folder.path().join("pool.img"), vec![1; 1 << 20]).unwrap();
    assert!(Passage::of(&pooled(folder.path(), "").ssds[0], &pools()).store().is_none());
}

#[test]
fn what_could_not_be_read_again_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = File::new(&folder.path().join("j"));
    let good = record(Some(SourceStepV1::Offered), None).to_bytes().unwrap();
    file.replace(&good).unwrap();
    file.replace(&good[1..]).unwrap_err();
    assert_eq!(file.read().unwrap(), Some(good));
    let nowhere = File::new(&folder.path().join("missing/j"));
    assert!(nowhere.read().unwrap().is_none());
    let error = nowhere.replace(&record(Some(SourceStepV1::Granted), None).to_bytes().unwrap());
    assert!(format!("{:#}", error.unwrap_err()).contains("missing/j cannot be written"));
}

/// A house that serves nobody yet, and what it tells its keeper.
fn house(config: &Config) -> (Arc<House>, std::sync::mpsc::Receiver<ToKeeper>) {
    let (theirs, ours) = Link::pair().unwrap();
    let house = Arc::new(House::for_test(config, theirs));
    let (tell, told) = std::sync::mpsc::channel();
    let acknowledge = Arc::clone(&house);
    std::thread::spawn(move || {
        while let Ok(Received::Message(message, _)) = ours.receive::<ToKeeper>(Wait::Block) {
            if let ToKeeper::Ring { number } = message {
                acknowledge.keeper.ring_kept(number, true);
            }
            let _ = tell.send(message);
        }
    });
    (house, told)
}

#[test]
fn an_ssd_that_has_come_is_served_when_its_journal_says_so_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "incoming = true\n");
    let ssd = &config.ssds[0];
    let (house, told) = house(&config);
    let away = house.away(ssd).unwrap().unwrap();
    assert_eq!(std::fs::metadata(folder.path().join("a.img")).unwrap().len(), 16 << 20, "its place is made");
    house.stay_away(3, super::Absent::new(ssd), &away);
    // The last word that is said, whenever those before it are heard.
    let comes_to = |step: Option<DestinationStepV1>, word: Option<&str>| {
        if let Some(step) = step {
            let file = File::new(&folder.path().join("a.state.migration"));
            file.replace(&record(None, Some(step)).to_bytes().unwrap()).unwrap();
        }
        house.arrive(3).unwrap();
        let until = Instant::now() + PATIENCE;
        let standing = |message| match message {
            ToKeeper::Standing { ssd: 3, standing } => Some(standing.map(|standing| standing.word)),
            _ => None,
        };
        while told.try_iter().filter_map(standing).last().is_none_or(|last| last.as_deref() != word) {
            assert!(Instant::now() < until, "{word:?} is not said");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    comes_to(None, Some("incoming"));
    comes_to(Some(DestinationStepV1::Ready), Some("ready"));
    assert!(house.slots.lock().unwrap().open.is_empty());
    comes_to(Some(DestinationStepV1::Owned), None);
    let served = house.slots.lock().unwrap().open.remove(&3).unwrap();
    house.arrive(3).unwrap_err();
    served.stop();
    served.join().unwrap();
}

/// A list without what is under way would be believed.
#[test]
fn who_asks_for_migrations_before_they_are_known_is_not_told_that_there_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "");
    let (house, _told) = house(&config);
    let migrations = house.migrations.get_or_init(|| Migrations::new(None));
    let list = || house.answer(EngineRequest::Migrations);
    let early = list();
    assert!(matches!(&early, Response::Error(why) if why.contains("ask again")), "{early:?}");
    migrations.open(&house, None).unwrap();
    assert_eq!(list(), Response::Migrations(Vec::new()));
}

#[test]
fn an_ssd_that_is_about_to_change_begins_no_migration_until_the_change_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "incoming = true\n");
    let (house, told) = house(&config);
    let away = house.away(&config.ssds[0]).unwrap().unwrap();
    house.stay_away(3, super::Absent::new(&config.ssds[0]), &away);
    let without = "[engine]\nreactors = 1\n".to_owned();
    let text = config_text(folder.path(), "incoming = true\nhypervisor = \"/q\"\n");
    for (change, (text, removed, word)) in
        (1..).zip([(without, vec![3], "about to go"), (text, Vec::new(), "ask again")])
    {
        drop(house.hold_changes(3).unwrap());
        let wanted = Change { change, config: text, removed, ..Change::default() };
        house.prepare("test", &wanted);
        let refused = told.iter().find_map(|message| match message {
            ToKeeper::Prepared(prepared) => Some(prepared.refused),
            _ => None,
        });
        assert_eq!(refused, Some(None));
        let why = format!("{:#}", house.hold_changes(3).map(drop).unwrap_err());
        assert!(why.contains(word), "{why}");
        drop(house.hold_changes(4).unwrap());
        house.forget_change(change + 1);
        assert!(house.hold_changes(3).is_err());
        house.forget_change(change);
    }
    drop(house.hold_changes(3).unwrap());
}
