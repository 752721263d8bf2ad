//! Ssds are changed while they come and go.

use super::moves::{UUID, accept};
use super::*;
use api::rest::Limits;

fn change(body: SsdChange) -> Ask {
    Ask::SsdChange { name: "a".to_owned(), body }
}

/// Its guest comes to this QEMU; to none, if it is empty.
fn comes_to(qmp: &str) -> Ask {
    change(SsdChange { hypervisor: Some(qmp.to_owned()), ..SsdChange::default() })
}

fn limit() -> Ask {
    let limits = Limits { iops: Some(500), ..Limits::default() };
    change(SsdChange { limits: Some(limits), ..SsdChange::default() })
}

impl Host {
    /// Which QEMU the daemon was told of.
    fn told(&self) -> Option<String> {
        let daemon = self.world.daemon();
        daemon.said["a"].0.as_ref().map(|path| path.display().to_string())
    }

    fn row(&self) -> store::SsdRow {
        self.agent().0.read(|sqlite| store::ssd(sqlite, "a")).unwrap().unwrap()
    }

    /// "a" has come.
    fn with_one_that_came(&mut self) {
        self.expecting();
        assert_eq!(self.ask("2", &accept()), OperationState::Done);
        self.world.daemon().arrive("a");
        self.look();
    }

    fn refuses(&self, ask: &Ask) -> String {
        let (book, _work) = self.agent();
        let terms = Terms { id: "x".to_owned(), if_match: None, now_ms: 1, uuid: UUID.to_owned() };
        let said = book.write(|sqlite| desired::submit(sqlite, &self.place(), ask, &terms));
        said.unwrap_err().code().to_owned()
    }
}

#[test]
fn where_its_guest_comes_to_is_said_of_an_ssd_that_is_here_or_not_once_wherever_the_agent_is_killed() {
    at_every_effect(|host| {
        host.expecting();
        assert_eq!(host.ask("2", &accept()), OperationState::Done);
        assert_eq!(host.ask("3", &comes_to("/q1")), OperationState::Done);
        assert_eq!((host.phase("a"), host.told().as_deref()), (Some(Phase::Incoming), Some("/q1")));
        host.world.daemon().arrive("a");
        host.look();
        host.world.daemon().leave("a");
        host.look();
        assert_eq!(host.ask("4", &comes_to("/q2")), OperationState::Done);
        assert_eq!((host.phase("a"), host.told().as_deref()), (Some(Phase::Gone), Some("/q2")));
        // A daemon that is started anew hears of it, too.
        host.world.daemon().served.clear();
        host.world.daemon().said.clear();
        host.look();
        assert_eq!(host.told().as_deref(), Some("/q2"));
        host.world.daemon().arrive("a");
        host.look();
        assert_eq!(host.ask("5", &comes_to("")), OperationState::Done);
        let row = host.row();
        assert_eq!((row.phase, row.generation, row.spec.hypervisor), (Phase::Ready, 7, None));
        assert_eq!((host.told(), row.operation), (None, None));
    });
}

#[test]
fn where_its_guest_comes_to_is_said_of_an_ssd_that_has_gone_unheard_and_nothing_else_is() {
    let mut host = Host::new();
    host.with_one_that_came();
    host.world.daemon().leave("a");
    assert_eq!(host.ask("3", &comes_to("/q")), OperationState::Done);
    assert_eq!((host.phase("a"), host.told().as_deref()), (Some(Phase::Gone), Some("/q")));
    let hypervisor = Some("/q2".to_owned());
    for body in [
        SsdChange { hypervisor: hypervisor.clone(), size_bytes: Some(2 << 20), ..SsdChange::default() },
        SsdChange { hypervisor, limits: Some(Limits::default()), ..SsdChange::default() },
    ] {
        assert_eq!(host.refuses(&change(body)), "conflict");
    }
    assert_eq!(host.refuses(&comes_to("q")), "bad-request");
    assert_eq!(host.told().as_deref(), Some("/q"));
}

#[test]
fn where_its_guest_comes_to_stays_as_it_is_while_it_comes_wherever_the_agent_is_killed() {
    at_every_effect(|host| {
        host.expecting();
        assert_eq!(host.ask("2", &accept()), OperationState::Done);
        assert_eq!(host.ask("3", &comes_to("/q1")), OperationState::Done);
        host.world.daemon().moving = true;
        assert_eq!(host.ask("4", &comes_to("/q2")), OperationState::Failed);
        assert!(host.operation("4").message.unwrap().contains("being moved"));
        let row = host.row();
        assert_eq!((row.spec.hypervisor.as_deref(), row.operation), (Some("/q1"), None));
        assert_eq!(host.told().as_deref(), Some("/q1"));
    });
}

/// "a" leaves at each effect of a change of it, with an end of the agent at each of them.
fn with_a_departure(ask: &Ask, check: impl Fn(&Host, bool)) {
    let (mut done, mut failed) = (0, 0);
    for (busy, at) in (0..3).flat_map(|busy| (1..12).map(move |at| (busy, at))) {
        for end in 0..12 {
            let mut host = Host::new();
            host.with_one_that_came();
            host.world.daemon().busy = busy;
            host.world.left.store(end, Ordering::Relaxed);
            host.world.until_departure.store(at, Ordering::Relaxed);
            let state = host.ask("3", ask);
            host.world.left.store(0, Ordering::Relaxed);
            host.world.daemon().busy = 0;
            if host.world.until_departure.swap(0, Ordering::Relaxed) > 0 {
                host.world.daemon().leave("a");
            }
            host.look();
            assert_eq!(host.phase("a"), Some(Phase::Gone), "at {at}, ended at {end}");
            assert_eq!(host.volumes("/drive"), [("a".to_owned(), String::new())]);
            check(&host, state == OperationState::Done);
            match state {
                OperationState::Done => done += 1,
                _ => failed += 1,
            }
            // Nothing of it is in the way of others, nor of its return.
            assert_eq!(host.ask("4", &create_in_pool("b", None)), OperationState::Done);
            host.world.daemon().arrive("a");
            host.look();
            assert_eq!(host.phase("a"), Some(Phase::Ready), "at {at}, ended at {end}");
        }
    }
    assert!(done > 10 && failed > 10, "{done} {failed}");
}

#[test]
fn an_ssd_that_leaves_while_it_grows_has_grown_or_the_growth_failed_wherever_the_agent_is_killed() {
    with_a_departure(&grow(), |host, done| {
        let left_with = host.world.daemon().left_with.clone().unwrap().0;
        assert_eq!(left_with, if done { 2 << 20 } else { 1 << 20 });
        assert_eq!(
            (host.row().spec.size_bytes, host.served()),
            (left_with, vec![("a".to_owned(), left_with)])
        );
    });
}

#[test]
fn an_ssd_that_leaves_while_it_is_limited_takes_that_along_or_it_failed_wherever_the_agent_is_killed() {
    with_a_departure(&limit(), |host, done| {
        let daemon = host.world.daemon();
        let (left_with, here) = (daemon.left_with.clone().unwrap().1.1, daemon.said["a"].1);
        drop(daemon);
        assert!(!done || left_with == Some(500));
        let kept = done.then_some(500);
        assert_eq!((host.row().spec.limits.iops, here), (kept, kept));
    });
}
