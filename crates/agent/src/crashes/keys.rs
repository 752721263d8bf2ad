//! Keys: there before the daemon hears of the ssd, the same for its life, and gone with the last that was written with it.

use super::*;
use api::rest::KeyFate;

pub(super) fn keys(host: &Host) -> Vec<Vec<u8>> {
    let folder = std::fs::read_dir(host.place().keys).unwrap();
    folder.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
}

pub(super) fn encrypted(name: &str, pool: Option<&str>, from_snapshot: Option<&str>) -> Ask {
    let body = SsdCreate {
        name: name.to_owned(),
        size_bytes: Some(1 << 20),
        pool: pool.map(str::to_owned),
        from_snapshot: from_snapshot.map(str::to_owned),
        encrypted: from_snapshot.is_none().then_some(true),
        ..SsdCreate::default()
    };
    Ask::SsdCreate { body: Box::new(body) }
}

pub(super) fn certificate(host: &Host, id: &str) -> api::rest::Certificate {
    host.agent().0.read(|sqlite| store::certificate(sqlite, id)).unwrap().unwrap()
}

#[test]
fn an_encrypted_ssd_has_one_key_for_its_life_and_leaves_none_wherever_the_agent_is_killed() {
    at_every_effect(|host| {
        assert_eq!(host.ask("1", &encrypted("a", None, None)), OperationState::Done);
        let [key] = &keys(host)[..] else { panic!("{}", keys(host).len()) };
        assert_eq!(host.ask("2", &grow()), OperationState::Done);
        assert_eq!(&keys(host), std::slice::from_ref(key));
        assert_eq!(host.ask("3", &delete(false)), OperationState::Done);
        assert!(host.has_nothing() && keys(host).is_empty());
        // Under its name another one, with a key of its own.
        assert_eq!(host.ask("4", &encrypted("a", None, None)), OperationState::Done);
        assert_eq!(keys(host).len(), 1);
        assert_ne!(keys(host)[0], *key);
    });
}

#[test]
fn a_refused_creation_leaves_no_key_and_a_refused_deletion_keeps_it_wherever_the_agent_is_killed() {
    at_every_effect(|host| {
        host.world.daemon().refused = Some(("a".to_owned(), 0));
        assert_eq!(host.ask("1", &encrypted("a", None, None)), OperationState::Failed);
        assert!(host.has_nothing() && keys(host).is_empty());
        host.world.daemon().refused = None;
        assert_eq!(host.ask("2", &encrypted("a", None, None)), OperationState::Done);
        let before = keys(host);
        host.world.daemon().clients.insert("a".to_owned());
        assert_eq!(host.ask("3", &delete(false)), OperationState::Failed);
        assert_eq!((keys(host), host.served().len()), (before, 1));
    });
}

#[test]
fn a_key_goes_with_the_last_of_an_ssd_its_snapshot_and_its_clone_wherever_the_agent_is_killed() {
    at_every_effect(|host| {
        assert_eq!(host.ask("1", &create_pool()), OperationState::Done);
        assert_eq!(host.ask("2", &encrypted("a", Some("p"), None)), OperationState::Done);
        let before = keys(host);
        assert_eq!(host.ask("3", &snapshot()), OperationState::Done);
        assert_eq!(host.ask("4", &encrypted("b", None, Some("s"))), OperationState::Done);
        assert_eq!(host.ask("5", &delete(false)), OperationState::Done);
        let told = certificate(host, "5");
        assert_eq!((told.key, told.key_users), (Some(KeyFate::Kept), vec!["b".to_owned(), "s".to_owned()]));
        // A clone that is refused takes nothing with it.
        host.world.daemon().refused = Some(("c".to_owned(), 0));
        assert_eq!(host.ask("6", &encrypted("c", None, Some("s"))), OperationState::Failed);
        assert_eq!(host.ask("7", &Ask::SnapshotDelete { name: "s".to_owned() }), OperationState::Done);
        assert_eq!((certificate(host, "7").key, keys(host)), (Some(KeyFate::Kept), before));
        let ask = Ask::SsdDelete { name: "b".to_owned(), force: false };
        assert_eq!(host.ask("8", &ask), OperationState::Done);
        let told = certificate(host, "8");
        assert_eq!((told.key, told.verdict), (Some(KeyFate::Destroyed), Verdict::Wiped));
        assert!(told.method.contains("overwritten with zeros and removed"), "{}", told.method);
        assert!(host.has_nothing() && keys(host).is_empty());
    });
}

#[test]
fn the_key_of_what_cannot_be_zeroed_is_destroyed_all_the_same_wherever_the_agent_is_killed() {
    at_every_effect(|host| {
        assert_eq!(host.ask("1", &create_pool()), OperationState::Done);
        assert_eq!(host.ask("2", &encrypted("a", Some("p"), None)), OperationState::Done);
        host.world.daemon().broken = true;
        assert_eq!(host.ask("3", &delete(false)), OperationState::Failed);
        let told = certificate(host, "3");
        assert_eq!((told.key, told.verdict), (Some(KeyFate::Destroyed), Verdict::Quarantined));
        assert!(keys(host).is_empty());
    });
}

/// They share a key, and neither is there for the other.
#[test]
fn a_key_goes_when_the_last_two_that_have_it_are_deleted_at_once() {
    let mut host = Host::new();
    assert_eq!(host.ask("1", &create_pool()), OperationState::Done);
    assert_eq!(host.ask("2", &encrypted("a", Some("p"), None)), OperationState::Done);
    assert_eq!(host.ask("3", &snapshot()), OperationState::Done);
    let (book, mut work) = host.agent();
    for (id, ask) in [("4", delete(false)), ("5", Ask::SnapshotDelete { name: "s".to_owned() })] {
        let terms = Terms { id: id.to_owned(), if_match: None, now_ms: 1, uuid: String::new() };
        book.write(|sqlite| desired::submit(sqlite, &host.place(), &ask, &terms)).unwrap();
    }
    while !book.read(store::running).unwrap().is_empty() {
        work.turn();
    }
    assert!(keys(&host).is_empty());
    let fates = ["4", "5"].map(|id| book.read(|sqlite| store::certificate(sqlite, id)).unwrap().unwrap().key);
    assert_eq!(fates, [Some(KeyFate::Kept), Some(KeyFate::Destroyed)]);
}

#[test]
fn an_ssd_that_comes_has_a_key_of_its_own_beside_that_of_what_stayed_of_it() {
    let mut host = Host::new();
    assert_eq!(host.ask("1", &create_pool()), OperationState::Done);
    assert_eq!(host.ask("2", &encrypted("a", Some("p"), None)), OperationState::Done);
    let uuid = host.agent().0.read(|sqlite| store::ssd(sqlite, "a")).unwrap().unwrap().uuid;
    assert_eq!(host.ask("3", &snapshot()), OperationState::Done);
    assert_eq!(host.ask("4", &delete(false)), OperationState::Done);
    let stayed = keys(&host);
    let body = SsdCreate {
        name: "a".to_owned(),
        size_bytes: Some(1 << 20),
        pool: Some("p".to_owned()),
        encrypted: Some(true),
        incoming: Some(api::rest::Incoming { uuid, ..api::rest::Incoming::default() }),
        ..SsdCreate::default()
    };
    assert_eq!(host.ask("5", &Ask::SsdCreate { body: Box::new(body) }), OperationState::Done);
    assert_eq!(keys(&host).len(), 2);
    assert_eq!(host.ask("6", &delete(false)), OperationState::Done);
    assert_eq!((keys(&host), certificate(&host, "6").key), (stayed, Some(KeyFate::Destroyed)));
}

#[test]
fn a_clone_is_encrypted_as_its_source_is_and_not_otherwise() {
    let mut host = Host::new();
    assert_eq!(host.ask("1", &create_pool()), OperationState::Done);
    assert_eq!(host.ask("2", &create_in_pool("a", None)), OperationState::Done);
    assert_eq!(host.ask("3", &encrypted("b", Some("p"), None)), OperationState::Done);
    let (book, _work) = host.agent();
    for (source, wanted) in [("a", true), ("b", false)] {
        let body = SsdCreate {
            name: "c".to_owned(),
            from_ssd: Some(source.to_owned()),
            encrypted: Some(wanted),
            ..SsdCreate::default()
        };
        let terms = Terms { id: "4".to_owned(), if_match: None, now_ms: 1, uuid: String::new() };
        let ask = Ask::SsdCreate { body: Box::new(body) };
        let refused = book.read(|sqlite| desired::check(sqlite, &host.place(), &ask, &terms));
        assert!(refused.is_err(), "{source}");
    }
}

#[test]
fn a_state_file_says_that_it_has_keys_only_when_it_has() {
    let mut host = Host::new();
    let layout = |host: &Host| -> i64 {
        let pragma =
            |sqlite: &rusqlite::Connection| sqlite.pragma_query_value(None, "user_version", |row| row.get(0));
        host.agent().0.read(pragma).unwrap()
    };
    assert_eq!(host.ask("1", &create()), OperationState::Done);
    assert_eq!(layout(&host), 2);
    assert_eq!(host.ask("2", &delete(false)), OperationState::Done);
    assert_eq!(host.ask("3", &encrypted("a", None, None)), OperationState::Done);
    assert_eq!(layout(&host), 3);
}
