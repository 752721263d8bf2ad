//! Ssds come from other hosts and go there, and the agent learns of it late.

use super::world::{Double, Drive};
use super::*;
use api::control::SsdStatus;
use api::rest::Incoming;
use state::migration::{MigrationV1, SourceStepV1, SourceV1};

pub(super) const UUID: &str = "1b4e28ba-2fa1-11d2-883f-0016d3cca427";

/// As the daemon does it.
pub(super) fn is_here(journal: Option<&str>, incoming: bool) -> bool {
    match journal {
        None => !incoming,
        Some(word) => matches!(word, "owned" | "offered" | "taken back"),
    }
}

impl Double {
    /// How the ssds stand.
    pub(super) fn stand(&self) -> Vec<SsdStatus> {
        let state = |name: &String, path: &PathBuf| {
            let volume = path.file_name().unwrap().to_str().unwrap();
            let of = |drive: &Drive| drive.volumes.get(volume).map(|(_, served)| *served);
            let is_served = path.is_absolute() || self.drives.values().find_map(of).unwrap_or(false);
            let word = match (self.journals.get(volume), is_served) {
                (_, true) => "serving",
                (Some(word), false) => word,
                (None, false) => "incoming",
            };
            let reason = (self.full && !is_served).then(|| "there is no room for it".to_owned());
            SsdStatus { name: name.clone(), state: word.to_owned(), reason, ..SsdStatus::default() }
        };
        self.served.iter().map(|(name, (path, _))| state(name, path)).collect()
    }

    fn moves(&mut self, ssd: &str, word: &'static str, content: &str) -> Option<String> {
        let (path, _) = self.served.get(ssd)?;
        let volume = path.file_name()?.to_str()?.to_owned();
        let there = self.drives.values_mut().find_map(|drive| drive.volumes.get_mut(&volume))?;
        *there = (content.to_owned(), word == "owned");
        self.journals.insert(volume.clone(), word);
        Some(volume)
    }

    /// It comes, if it is expected.
    pub(super) fn arrive(&mut self, ssd: &str) {
        if let Some(volume) = self.moves(ssd, "owned", "what came") {
            self.elsewhere.remove(&volume);
            for snapshot in self.coming.clone() {
                let drive = self.drive("p").unwrap();
                drive.volumes.insert(snapshot.clone(), ("what came".to_owned(), false));
                drive.snapshots.insert(snapshot, volume.clone());
            }
        }
    }

    pub(super) fn leave(&mut self, ssd: &str) {
        let volume = self.moves(ssd, "gone", "").unwrap();
        if !self.slow {
            self.vacate(&volume);
        }
        self.elsewhere.insert(volume);
        self.left_with = Some((self.served[ssd].1, self.said[ssd].clone()));
    }

    /// The snapshots that went with a volume are no more.
    pub(super) fn vacate(&mut self, volume: &str) {
        let staying = self.staying.clone();
        for drive in self.drives.values_mut() {
            let went = |one: &String, of: &String| *of == volume && !staying.contains(one);
            let went: Vec<_> = drive.snapshots.extract_if(.., |one, of| went(one, of)).collect();
            went.iter().for_each(|(one, _)| drop(drive.volumes.remove(one)));
        }
    }

    /// What the journal of "a" says while it is here.
    pub(super) fn moving_is(&mut self, word: &'static str) {
        if let Some((path, _)) = self.served.get("a") {
            let volume = path.file_name().unwrap().to_str().unwrap().to_owned();
            self.journals.insert(volume, word);
        }
    }

    pub(super) fn has_gone(&self, volume: &str) -> bool {
        self.journals.get(volume) == Some(&"gone")
    }
}

impl Host {
    /// One agent's life, of so many turns at most. Whether it was not ended.
    fn turns(&mut self, most: u32) -> bool {
        self.unless_ended(|host| {
            let (_book, mut work) = host.agent();
            let over = (0..most).any(|_| !work.turn());
            assert!(over || most < super::TURNS_MAX, "there is no end to it");
        })
    }

    /// Agents look at the daemon until one has seen all there is to see.
    pub(super) fn look(&mut self) {
        while !self.turns(super::TURNS_MAX) {}
    }

    pub(super) fn phase(&self, ssd: &str) -> Option<Phase> {
        let row = self.agent().0.read(|sqlite| store::ssd(sqlite, ssd)).unwrap();
        row.map(|row| row.phase)
    }

    /// A host with a pool, to which "a" is to come.
    pub(super) fn expecting(&mut self) {
        assert_eq!(self.ask("1", &create_pool()), OperationState::Done);
        self.world.daemon().elsewhere.insert(format!("a.{UUID}"));
    }

    fn volume(&self, content: Option<&str>) {
        let mut daemon = self.world.daemon();
        let volumes = &mut daemon.drives.get_mut(Path::new("/drive")).unwrap().volumes;
        match content {
            Some(content) => volumes.insert(format!("a.{UUID}"), (content.to_owned(), false)),
            None => volumes.remove(&format!("a.{UUID}")),
        };
    }
}

pub(super) fn accept() -> Ask {
    let incoming = Incoming { uuid: UUID.to_uppercase(), serial: Some("S 1".to_owned()), nqn: None };
    let body = SsdCreate {
        name: "a".to_owned(),
        size_bytes: Some(1 << 20),
        pool: Some("p".to_owned()),
        incoming: Some(incoming),
        ..SsdCreate::default()
    };
    Ask::SsdCreate { body: Box::new(body) }
}

fn what_came() -> Vec<(String, String)> {
    vec![("a".to_owned(), "what came".to_owned())]
}

#[test]
fn an_ssd_comes_goes_and_comes_back_and_one_host_serves_it_wherever_the_agent_is_killed() {
    at_every_effect(|host| {
        host.expecting();
        assert_eq!(host.ask("2", &accept()), OperationState::Done);
        assert_eq!(host.phase("a"), Some(Phase::Incoming));
        for _ in 0..2 {
            host.world.daemon().arrive("a");
            host.look();
            assert_eq!((host.phase("a"), host.volumes("/drive")), (Some(Phase::Ready), what_came()));
            host.world.daemon().leave("a");
            host.look();
            assert_eq!(host.phase("a"), Some(Phase::Gone));
        }
        // A daemon that is started anew is told of it, and so is one that has lost the journal.
        host.world.daemon().served.clear();
        host.world.daemon().journals.clear();
        host.look();
        assert_eq!((host.served().len(), host.phase("a")), (1, Some(Phase::Gone)));
        assert_eq!(host.ask("3", &delete(false)), OperationState::Done);
        assert!(host.has_nothing() && host.volumes("/drive").is_empty());
        let daemon = host.world.daemon();
        let made = &daemon.drives[Path::new("/drive")].made;
        assert!(made.len() == 1 && made.values().all(|made| *made == 1), "{made:?}");
    });
}

#[test]
fn an_ssd_that_left_before_it_was_seen_to_have_come_has_gone_and_nothing_is_done_with_it_here() {
    let mut host = Host::new();
    host.expecting();
    assert_eq!(host.ask("2", &accept()), OperationState::Done);
    host.world.daemon().arrive("a");
    host.world.daemon().leave("a");
    host.look();
    assert_eq!(host.phase("a"), Some(Phase::Gone));
    for ask in [grow(), snapshot(), accept()] {
        let (book, _work) = host.agent();
        let terms = Terms { id: "x".to_owned(), if_match: None, now_ms: 1, uuid: UUID.to_owned() };
        let said = book.write(|sqlite| desired::submit(sqlite, &host.place(), &ask, &terms));
        assert_eq!(said.unwrap_err().code(), "conflict", "{ask:?}");
    }
}

#[test]
fn an_ssd_that_has_gone_unheard_is_neither_changed_nor_copied() {
    let body = SsdCreate { name: "b".to_owned(), from_ssd: Some("a".to_owned()), ..SsdCreate::default() };
    for ask in [grow(), snapshot(), Ask::SsdCreate { body: Box::new(body) }] {
        let mut host = Host::new();
        host.expecting();
        assert_eq!(host.ask("2", &accept()), OperationState::Done);
        host.world.daemon().arrive("a");
        host.look();
        host.world.daemon().leave("a");
        assert_eq!(host.phase("a"), Some(Phase::Ready));
        assert_eq!(host.ask("3", &ask), OperationState::Failed, "{ask:?}");
        assert!(host.operation("3").message.unwrap().contains("not here any more"));
        assert_eq!(host.phase("a"), Some(Phase::Gone));
        assert_eq!(host.volumes("/drive"), [("a".to_owned(), String::new())], "{ask:?}");
        assert_eq!(host.served(), [("a".to_owned(), 1 << 20)]);
    }
}

/// It may have here what it has nowhere else: whoever wants it replaced deletes it, and accepts it anew.
#[test]
fn an_ssd_that_was_taken_elsewhere_by_force_is_spared_wherever_the_agent_is_killed() {
    at_every_effect(|host| {
        host.expecting();
        assert_eq!(host.ask("2", &accept()), OperationState::Done);
        host.world.daemon().arrive("a");
        host.look();
        let mut daemon = host.world.daemon();
        let volume = daemon.moves("a", "superseded", "written after that").unwrap();
        daemon.elsewhere.insert(volume);
        drop(daemon);
        let said = |host: &Host| {
            let daemon = host.world.daemon();
            (daemon.expected.contains("a"), daemon.spared.contains("a"))
        };
        for _ in 0..2 {
            host.look();
            assert_eq!((host.phase("a"), said(host)), (Some(Phase::Gone), (true, true)));
            // A daemon that is started anew.
            host.world.daemon().served.clear();
        }
        host.look();
        host.world.daemon().arrive("a");
        host.look();
        assert_eq!((host.phase("a"), said(host)), (Some(Phase::Ready), (false, false)));
        host.world.daemon().leave("a");
        host.look();
        assert_eq!((host.phase("a"), said(host)), (Some(Phase::Gone), (true, false)));
        // It came and was taken by force while nobody looked.
        host.world.daemon().moves("a", "superseded", "written after that");
        host.look();
        assert_eq!((host.phase("a"), said(host)), (Some(Phase::Gone), (true, true)));
    });
}

#[test]
fn the_promise_of_an_ssd_to_a_guest_goes_with_it() {
    let mut host = Host::new();
    host.expecting();
    assert_eq!(host.ask("2", &accept()), OperationState::Done);
    host.world.daemon().arrive("a");
    host.look();
    let promise = |host: &Host| host.agent().0.read(|sqlite| store::attachment(sqlite, "a")).unwrap();
    let row = store::AttachmentRow { ssd: "a".to_owned(), guest: "g".to_owned(), created_ms: 1 };
    host.agent().0.write(|sqlite| store::put_attachment(sqlite, &row)).unwrap();
    host.look();
    assert!(promise(&host).is_some());
    host.world.daemon().leave("a");
    host.look();
    assert!(promise(&host).is_none());
}

/// "a" comes at each effect of a story, with an end of the agent at each of them.
fn with_an_arrival(story: impl Fn(&mut Host, usize, usize)) {
    let (mut came, mut stayed_away) = (0, 0);
    for at in 1..14 {
        for end in 0..14 {
            let mut host = Host::new();
            host.expecting();
            story(&mut host, at, end);
            host.world.left.store(0, Ordering::Relaxed);
            host.world.until_arrival.store(0, Ordering::Relaxed);
            host.look();
            let is_here = !host.world.daemon().elsewhere.contains(&format!("a.{UUID}"));
            let (volumes, phase) = (host.volumes("/drive"), host.phase("a"));
            if is_here {
                assert_eq!((volumes, phase), (what_came(), Some(Phase::Ready)), "at {at}, ended at {end}");
                came += 1;
            } else {
                assert_eq!((volumes, phase), (Vec::new(), None), "at {at}, ended at {end}");
                stayed_away += 1;
            }
        }
    }
    assert!(came > 10 && stayed_away > 10, "{came} {stayed_away}");
}

#[test]
fn an_ssd_that_comes_while_it_is_given_up_is_not_lost_wherever_the_agent_is_killed() {
    with_an_arrival(|host, at, end| {
        assert_eq!(host.ask("2", &accept()), OperationState::Done);
        host.world.left.store(end, Ordering::Relaxed);
        host.world.until_arrival.store(at, Ordering::Relaxed);
        // Refused if it came, and done if it did not.
        host.ask("3", &delete(false));
    });
}

#[test]
fn an_ssd_that_comes_while_its_deletion_waits_for_the_daemon_is_not_lost() {
    for busy in 1..4 {
        with_an_arrival(|host, at, end| {
            assert_eq!(host.ask("2", &accept()), OperationState::Done);
            host.world.daemon().busy = busy;
            host.world.left.store(end, Ordering::Relaxed);
            host.world.until_arrival.store(at, Ordering::Relaxed);
            host.ask("3", &delete(false));
        });
    }
}

#[test]
fn an_ssd_that_comes_between_its_deletions_request_and_its_work_is_not_lost() {
    let mut host = Host::new();
    host.expecting();
    assert_eq!(host.ask("2", &accept()), OperationState::Done);
    let (book, mut work) = host.agent();
    host.world.daemon().arrive("a");
    let terms = Terms { id: "3".to_owned(), if_match: None, now_ms: 1, uuid: UUID.to_owned() };
    book.write(|sqlite| desired::submit(sqlite, &host.place(), &delete(true), &terms)).unwrap();
    // A look that had begun before it was asked for.
    let status = work.plane.status().unwrap();
    work.follow(&status).unwrap();
    drop((book, work));
    host.look();
    assert_eq!(host.operation("3").state, OperationState::Failed);
    host.look();
    assert_eq!((host.volumes("/drive"), host.phase("a")), (what_came(), Some(Phase::Ready)));
}

#[test]
fn an_ssd_that_comes_while_its_place_is_refused_is_not_lost_wherever_the_agent_is_killed() {
    with_an_arrival(|host, at, end| {
        // The daemon accepts it once, before an agent that is ended hears of it; then it does not, for a while.
        host.world.daemon().refused = Some(("a".to_owned(), 1));
        // Its guest's QEMU is at its socket already.
        host.world.daemon().clients.insert("a".to_owned());
        host.world.left.store(end, Ordering::Relaxed);
        host.world.until_arrival.store(at, Ordering::Relaxed);
        if !host.live("2", &accept()) {
            for again in [end, 0] {
                host.world.left.store(again, Ordering::Relaxed);
                host.turns(3);
            }
        }
        host.world.daemon().refused = None;
        host.world.left.store(0, Ordering::Relaxed);
        host.ask("2", &accept());
        host.world.until_arrival.store(0, Ordering::Relaxed);
        host.world.daemon().clients.clear();
        if host.phase("a") == Some(Phase::Incoming) {
            host.ask("3", &delete(false));
        }
    });
}

#[test]
fn what_is_there_before_an_ssd_is_to_come_stays_and_where_there_is_no_room_nothing_does() {
    at_every_effect(|host| {
        host.expecting();
        host.volume(Some("somebody's"));
        assert_eq!(host.ask("2", &accept()), OperationState::Failed);
        assert!(host.operation("2").message.unwrap().contains("already"));
        assert_eq!(host.volumes("/drive"), [("a".to_owned(), "somebody's".to_owned())]);
        host.volume(None);
        host.world.daemon().full = true;
        assert_eq!(host.ask("3", &accept()), OperationState::Failed);
        assert!(host.operation("3").message.unwrap().contains("no room"));
        assert!(host.has_nothing() && host.phase("a").is_none() && host.volumes("/drive").is_empty());
    });
}

#[test]
fn the_journal_of_an_ssd_in_a_file_is_read_before_its_file_goes_and_goes_with_it() {
    let mut host = Host::new();
    assert_eq!(host.ask("1", &create()), OperationState::Done);
    let row = host.agent().0.read(|sqlite| store::ssd(sqlite, "a")).unwrap().unwrap();
    let journal = host.place().journal(&row);
    let mut refuses = |id: &str, bytes: &[u8]| {
        std::fs::write(&journal, bytes).unwrap();
        assert_eq!(host.ask(id, &delete(false)), OperationState::Failed);
        assert_eq!((host.served().len(), host.files().len()), (1, 2));
    };
    refuses("2", b"damaged");
    refuses("3", &record(SourceStepV1::Granted));
    std::fs::write(&journal, record(SourceStepV1::Gone)).unwrap();
    assert_eq!(host.ask("4", &delete(false)), OperationState::Done);
    assert!(host.has_nothing(), "{:?}", host.files());
}

fn record(step: SourceStepV1) -> Vec<u8> {
    let record = MigrationV1 {
        ssd: [1; 16],
        peer: "b".to_owned(),
        migration: [2; 16],
        epoch: 2,
        round: 1,
        source: Some(SourceV1 { held: 1, step }),
        destination: None,
        keep: None,
        closed: None,
        wiped: None,
        hypervisor: None,
        limits: None,
    };
    record.to_bytes().unwrap()
}
