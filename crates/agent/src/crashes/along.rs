//! Snapshots come and go with their ssd, and the agent learns of it late.

use super::keys::{certificate, encrypted, keys};
use super::moves::{UUID, accept};
use super::*;
use api::rest::KeyFate;

/// The identities of snapshots at the host that they come from.
const FIRST: &str = "11111111-2fa1-11d2-883f-0016d3cca427";
const SECOND: &str = "22222222-2fa1-11d2-883f-0016d3cca427";

impl Host {
    fn snapshots(&self) -> Vec<store::SnapshotRow> {
        self.agent().0.read(store::snapshots).unwrap()
    }

    /// What is listed, and what the pool calls it.
    fn listed(&self) -> Vec<(String, String)> {
        self.snapshots().into_iter().map(|one| (one.name.clone(), one.volume())).collect()
    }

    fn arrives_with(&mut self, snapshots: &[&str]) {
        let mut daemon = self.world.daemon();
        daemon.coming = snapshots.iter().map(|one| (*one).to_owned()).collect();
        daemon.arrive("a");
        drop(daemon);
        self.look();
    }
}

fn pair(name: &str, volume: &str) -> (String, String) {
    (name.to_owned(), volume.to_owned())
}

fn delete_snapshot(name: &str) -> Ask {
    Ask::SnapshotDelete { name: name.to_owned() }
}

#[test]
fn snapshots_come_and_go_with_their_ssd_and_their_records_with_them_wherever_the_agent_is_killed() {
    at_every_effect(|host| {
        host.expecting();
        assert_eq!(host.ask("2", &accept()), OperationState::Done);
        let (monday, tuesday) = (format!("monday.{FIRST}"), format!("tuesday.{SECOND}"));
        host.arrives_with(&[&monday, &tuesday]);
        assert_eq!(host.listed(), [pair("monday", &monday), pair("tuesday", &tuesday)]);
        let row = &host.snapshots()[0];
        assert_eq!((&*row.uuid, &*row.spec.ssd_uuid, &*row.spec.ssd), (FIRST, UUID, "a"));
        assert_eq!((row.spec.size_bytes, row.phase, &*row.spec.pool), (1 << 20, Phase::Ready, "p"));
        assert_eq!(host.ask("3", &create_in_pool("b", Some("tuesday"))), OperationState::Done);
        assert_eq!(host.ask("4", &delete_snapshot("monday")), OperationState::Done);
        let names =
            |host: &Host| host.volumes("/drive").into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(host), ["a", "b", "tuesday"]);
        assert_eq!(host.ask("5", &snapshot()), OperationState::Done);
        // Somebody has a clone of it: it stays.
        host.world.daemon().staying.insert(tuesday.clone());
        host.world.daemon().leave("a");
        host.look();
        assert_eq!((host.phase("a"), host.listed()), (Some(Phase::Gone), vec![pair("tuesday", &tuesday)]));
        // It comes back with one more.
        host.arrives_with(&[&monday]);
        assert_eq!(host.listed(), [pair("monday", &monday), pair("tuesday", &tuesday)]);
        assert_eq!(host.ask("6", &delete_snapshot("tuesday")), OperationState::Done);
        assert_eq!(host.ask("7", &delete_snapshot("monday")), OperationState::Done);
        assert_eq!(names(host), ["a", "b"]);
        let told = ["4", "6", "7"].map(|id| certificate(host, id).verdict);
        assert_eq!(told, [Verdict::Wiped; 3]);
    });
}

/// In the pool they have other names; in the list each has to have one.
#[test]
fn a_snapshot_that_comes_under_a_name_that_is_taken_gets_another_and_is_the_one_that_is_deleted() {
    at_every_effect(|host| {
        host.expecting();
        assert_eq!(host.ask("2", &create_in_pool("b", None)), OperationState::Done);
        let body = SnapshotCreate { name: "s".to_owned(), ssd: "b".to_owned() };
        assert_eq!(host.ask("3", &Ask::SnapshotCreate { body }), OperationState::Done);
        let own = host.listed()[0].1.clone();
        assert_eq!(host.ask("4", &accept()), OperationState::Done);
        let layout = |host: &Host| -> i64 {
            let (book, _work) = host.agent();
            book.read(|sqlite| sqlite.pragma_query_value(None, "user_version", |row| row.get(0))).unwrap()
        };
        assert_eq!(layout(host), 2);
        // One of an agent, and one of a host without.
        let came = format!("s.{FIRST}");
        host.arrives_with(&[&came, "before it"]);
        let all = [pair("before-it", "before it"), pair("s", &own), pair("s-2", &came)];
        assert_eq!((host.listed(), layout(host)), (all.to_vec(), 4));
        assert_eq!(host.snapshots()[0].uuid, NEW_UUID);
        for (id, name) in [("5", "s-2"), ("6", "before-it")] {
            assert_eq!(host.ask(id, &delete_snapshot(name)), OperationState::Done);
            assert_eq!(certificate(host, id).verdict, Verdict::Wiped);
        }
        assert_eq!(host.listed(), [pair("s", &own)]);
        assert!(host.world.daemon().drives[Path::new("/drive")].volumes.contains_key(&own));
    });
}

#[test]
fn what_went_keeps_no_key_and_what_came_has_that_of_its_ssd_wherever_the_agent_is_killed() {
    for (looks, slow) in [(true, false), (false, false), (true, true), (false, true)] {
        at_every_effect(|host| {
            host.world.daemon().slow = slow;
            host.expecting();
            let Ask::SsdCreate { mut body } = accept() else { panic!() };
            body.encrypted = Some(true);
            assert_eq!(host.ask("2", &Ask::SsdCreate { body }), OperationState::Done);
            host.arrives_with(&[&format!("monday.{FIRST}")]);
            assert_eq!(host.ask("3", &snapshot()), OperationState::Done);
            let all = host.snapshots();
            assert!(all.len() == 2 && all[0].spec.key.is_some() && all[0].spec.key == all[1].spec.key);
            host.world.daemon().leave("a");
            if looks {
                host.look();
                // What the pool has is listed.
                assert_eq!(host.listed().len(), if slow { 2 } else { 0 });
            }
            assert_eq!(host.ask("4", &delete(false)), OperationState::Done);
            let told = certificate(host, "4");
            assert_eq!((told.key, told.key_users), (Some(KeyFate::Destroyed), Vec::new()));
            assert_eq!(told.snapshots.len(), if slow { 2 } else { 0 });
            assert!(host.listed().is_empty() && keys(host).is_empty());
        });
    }
}

#[test]
fn the_key_of_what_went_is_kept_for_what_stayed_wherever_the_agent_is_killed() {
    at_every_effect(|host| {
        assert_eq!(host.ask("1", &create_pool()), OperationState::Done);
        assert_eq!(host.ask("2", &encrypted("a", Some("p"), None)), OperationState::Done);
        for (id, name) in [("3", "s"), ("4", "t")] {
            let body = SnapshotCreate { name: name.to_owned(), ssd: "a".to_owned() };
            assert_eq!(host.ask(id, &Ask::SnapshotCreate { body }), OperationState::Done);
        }
        let stays = host.snapshots()[0].volume();
        host.world.daemon().slow = true;
        host.world.daemon().staying.insert(stays.clone());
        host.world.daemon().leave("a");
        host.look();
        assert_eq!(host.ask("5", &delete(false)), OperationState::Done);
        let told = certificate(host, "5");
        assert_eq!((told.key, told.key_users), (Some(KeyFate::Kept), vec!["s".to_owned()]));
        assert_eq!((host.listed(), keys(host).len()), (vec![pair("s", &stays)], 1));
        assert_eq!(host.ask("6", &delete_snapshot("s")), OperationState::Done);
        assert!(keys(host).is_empty() && host.listed().is_empty());
    });
}

/// A host without an agent calls its snapshots as it likes.
#[test]
fn a_snapshot_that_comes_with_the_identity_of_its_ssd_in_its_name_keeps_their_key() {
    at_every_effect(|host| {
        host.expecting();
        let Ask::SsdCreate { mut body } = accept() else { panic!() };
        body.encrypted = Some(true);
        assert_eq!(host.ask("2", &Ask::SsdCreate { body }), OperationState::Done);
        let came = format!("odd.{UUID}");
        host.arrives_with(&[&came]);
        assert_eq!((host.listed(), &*host.snapshots()[0].uuid), (vec![pair("odd", &came)], NEW_UUID));
        assert_eq!(host.ask("3", &delete(false)), OperationState::Done);
        let told = certificate(host, "3");
        assert_eq!((told.key, told.key_users), (Some(KeyFate::Kept), vec!["odd".to_owned()]));
        assert_eq!(keys(host).len(), 1);
        assert_eq!(host.ask("4", &delete_snapshot("odd")), OperationState::Done);
        assert!(keys(host).is_empty());
    });
}

/// It is read with the key of the ssd before.
#[test]
fn a_snapshot_of_an_ssd_that_was_accepted_anew_is_not_that_ones() {
    let mut host = Host::new();
    assert_eq!(host.ask("1", &create_pool()), OperationState::Done);
    assert_eq!(host.ask("2", &encrypted("a", Some("p"), None)), OperationState::Done);
    assert_eq!(host.ask("3", &snapshot()), OperationState::Done);
    let (row, kept) = (host.snapshots()[0].clone(), host.listed());
    host.world.daemon().staying.insert(row.volume());
    host.world.daemon().leave("a");
    host.look();
    assert_eq!(host.ask("4", &delete(false)), OperationState::Done);
    let Ask::SsdCreate { mut body } = accept() else { panic!() };
    body.encrypted = Some(true);
    body.incoming.as_mut().unwrap().uuid.clone_from(&row.spec.ssd_uuid);
    assert_eq!(host.ask("5", &Ask::SsdCreate { body }), OperationState::Done);
    host.arrives_with(&[]);
    // Its volume is lost with the drive, say.
    host.world.daemon().drives.get_mut(Path::new("/drive")).unwrap().volumes.remove(&row.volume());
    host.world.daemon().leave("a");
    host.look();
    assert_eq!((host.phase("a"), host.listed()), (Some(Phase::Gone), kept));
    assert_eq!(host.ask("6", &delete_snapshot("s")), OperationState::Done);
    assert_eq!(certificate(&host, "6").key, Some(KeyFate::Destroyed));
    assert_eq!(keys(&host).len(), 1);
}

#[test]
fn a_snapshot_whose_ssd_is_on_its_way_is_not_deleted_and_is_what_it_was_wherever_the_agent_is_killed() {
    at_every_effect(|host| {
        assert_eq!(host.ask("1", &create_pool()), OperationState::Done);
        assert_eq!(host.ask("2", &create_in_pool("a", None)), OperationState::Done);
        assert_eq!(host.ask("3", &snapshot()), OperationState::Done);
        let before = host.snapshots();
        host.world.daemon().moving_is("offered");
        assert_eq!(host.ask("4", &delete_snapshot("s")), OperationState::Failed);
        let why = host.operation("4").message.unwrap();
        assert!(why.contains("being moved") && why.contains("cancel"), "{why}");
        assert_eq!(host.snapshots(), before);
        assert!(host.agent().0.read(|sqlite| store::certificate(sqlite, "4")).unwrap().is_none());
        host.world.daemon().moving_is("taken back");
        assert_eq!(host.ask("5", &delete_snapshot("s")), OperationState::Done);
        assert_eq!(certificate(host, "5").verdict, Verdict::Wiped);
    });
}

#[test]
fn a_snapshot_whose_ssd_sets_out_while_it_is_deleted_is_never_quarantined() {
    let (mut done, mut failed, mut waited) = (0, 0, 0);
    for at in 1..8 {
        let mut host = Host::new();
        assert_eq!(host.ask("1", &create_pool()), OperationState::Done);
        assert_eq!(host.ask("2", &create_in_pool("a", None)), OperationState::Done);
        assert_eq!(host.ask("3", &snapshot()), OperationState::Done);
        host.world.until_offer.store(at, Ordering::Relaxed);
        let (book, mut work) = host.agent();
        let terms = Terms { id: "4".to_owned(), if_match: None, now_ms: 1, uuid: String::new() };
        let ask = delete_snapshot("s");
        book.write(|sqlite| desired::submit(sqlite, &host.place(), &ask, &terms)).unwrap();
        host.world.effect();
        for _ in 0..5 {
            work.turn();
        }
        // Where it was begun it waits for the end of the migration.
        if !book.read(store::running).unwrap().is_empty() {
            waited += 1;
            host.world.daemon().moving_is("cancelled");
            for _ in 0..5 {
                work.turn();
            }
        }
        drop((book, work));
        match host.operation("4").state {
            OperationState::Done => {
                done += 1;
                assert_eq!(certificate(&host, "4").verdict, Verdict::Wiped);
                assert!(host.listed().is_empty());
            }
            OperationState::Failed => {
                failed += 1;
                assert_eq!(host.snapshots()[0].phase, Phase::Ready);
            }
            OperationState::Running => panic!("at {at}: there is no end to it"),
        }
    }
    assert!(done > 0 && failed > 0 && waited > 0, "{done} {failed} {waited}");
}
