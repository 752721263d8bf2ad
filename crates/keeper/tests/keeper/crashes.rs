//! Engines die; clients notice nothing.

use crate::double::frame;
use crate::harness::{Running, limits};
use api::control::{Request, Response};
use keeper::Limits;
use std::time::{Duration, Instant};

#[test]
fn a_command_in_a_dying_engines_hands_is_given_to_the_next() {
    let running = Running::start("");
    let mut client = running.client("a");
    assert_eq!(client.call("count"), "count 1 1");
    for (at, verb) in ["die", "kill", "half"].into_iter().enumerate() {
        let generation = at + 1;
        assert_eq!(client.call(&format!("{verb} {generation}")), format!("{verb} {} 1", generation + 1));
    }
    assert_eq!(client.call("count"), "count 4 2");
    let status = running.status();
    assert_eq!(status.restarts.len(), 3);
    assert_eq!(status.restarts[0].reason, "killed by SIGABRT");
    assert_eq!(status.restarts[1].reason, "killed by SIGKILL");
    assert!(status.restarts.iter().all(|restart| restart.blackout_us.is_some() && restart.replayed == 7));
    assert_eq!(status.engine.crashes, 3);
}

#[test]
fn what_was_answered_is_never_carried_out_again() {
    let running = Running::start("");
    let mut client = running.client("a");
    for count in 1..=20 {
        client.send("count");
        // Dies right after its answer is written; the answer counts.
        client.send(&format!("after {count}"));
        assert_eq!(client.receive().expect("a reply").text, format!("count {count} {count}"));
        assert_eq!(client.receive().expect("a reply").text, format!("after {count} {count}"));
        running
            .wait("succeeded", |status| status.engine.generation > count && status.engine.state == "serving");
    }
}

#[test]
fn commands_behind_a_deadly_one_keep_their_order() {
    let running = Running::start("");
    let mut client = running.client("a");
    client.send("kill 3");
    for _ in 0..100 {
        client.send("count");
    }
    assert_eq!(client.receive().expect("a reply").text, "kill 4 0");
    for count in 1..=100 {
        assert_eq!(client.receive().expect("a reply").text, format!("count 4 {count}"));
    }
}

#[test]
fn kills_from_outside_are_replaced_and_blame_nobody() {
    let running = Running::start("");
    let mut clients = [running.client("a"), running.client("b")];
    for round in 1..=15 {
        for client in &mut clients {
            let reply = client.call("count");
            assert!(reply.ends_with(&format!(" {round}")), "{reply}");
        }
        running.kill();
    }
    assert!(running.status().ssds.iter().all(|ssd| ssd.state == "serving" && ssd.crashes == 0));
}

#[test]
fn a_ring_that_was_waited_for_is_let_go_so_that_the_next_engine_can_lock_the_drive() {
    let folder = tempfile::tempdir().expect("directory");
    let running = Running::start(&format!("lock={}", folder.path().join("drive").display()));
    for _ in 0..3 {
        running.kill();
    }
}

#[test]
fn a_reply_to_a_dead_engines_request_is_dropped() {
    let running = Running::start("");
    let mut client = running.client("a");
    let id = client.send("ask 1");
    let dead = client.receive().expect("the first engine's request");
    let living = client.receive().expect("the second engine's request");
    assert_ne!(dead.id, living.id);
    client.raw(&frame(dead.id, 11, 1, b"for the dead"), &[]);
    client.raw(&frame(living.id, 11, 1, b"for the living"), &[]);
    let reply = client.receive().expect("a reply");
    assert_eq!((reply.id, reply.text.as_str()), (id, "for the living"));
}

#[test]
fn a_client_that_comes_or_goes_while_no_engine_runs_is_taken_care_of_by_the_next() {
    let (backoff_first, short_life) = (Duration::from_millis(300), Duration::from_secs(60));
    let slow = Limits { backoff_after: 0, backoff_first, short_life, ..limits() };
    let running = Running::start_with("", slow);
    let mut client = running.client("a");
    client.call("count");
    client.send("kill 1");
    // A busy machine may not see it before there is the next one, which is as good.
    running.wait("down", |status| status.engine.state == "down" || status.engine.generation > 1);
    drop(client);
    let mut next = running.client("a");
    let mut other = running.client("b");
    assert_eq!(other.call("count"), "count 2 1");
    assert_eq!(next.call("count"), "count 2 1");
    running.stop().expect("stopped");
}

#[test]
fn an_engine_that_dies_while_a_client_leaves_lets_the_next_one_take_leave() {
    let running = Running::start("die-at-farewell@1");
    let mut client = running.client("a");
    client.call("count");
    drop(client);
    let mut next = running.client("a");
    assert_eq!(next.call("count"), "count 2 1");
}

#[test]
fn a_crash_loop_backs_off_and_is_reported() {
    let habits = "die-at-start@2 die-at-start@3 die-at-start@4";
    let running = Running::start_with(habits, Limits { backoff_after: 1, ..limits() });
    let mut client = running.client("a");
    let begun = Instant::now();
    assert_eq!(client.call("kill 1"), "kill 5 0");
    // The first of the three is followed at once.
    assert!(begun.elapsed() > Duration::from_millis(10 + 20));
    let status = running.status();
    let reasons: Vec<_> = status.restarts.iter().map(|restart| restart.reason.as_str()).collect();
    assert_eq!(reasons, ["killed by SIGKILL", "killed by SIGABRT", "killed by SIGABRT", "killed by SIGABRT"]);
    let blackouts: Vec<_> = status.restarts.iter().map(|restart| restart.blackout_us.is_some()).collect();
    assert_eq!(blackouts, [false, false, false, true]);
}

#[test]
fn a_poisoned_ssd_is_quarantined_and_the_others_are_served_until_it_is_released() {
    let running = Running::start("");
    let mut poisoned = running.client("a");
    let mut neighbour = running.client("b");
    assert_eq!(neighbour.call("count"), "count 1 1");
    poisoned.send("poison 3");
    let status = running.wait("quarantined", |status| status.ssds[0].state == "quarantined");
    assert!(status.ssds[0].reason.as_ref().is_some_and(|reason| reason.contains("3 engines crashed")));
    assert_eq!(neighbour.call("count"), "count 4 2");
    // It is not let go: its client is there, its command waits. Another client is turned away.
    poisoned.send("count");
    let status = running.wait("waiting", |status| status.ssds[0].unanswered == 2);
    assert!(status.ssds[0].client);
    assert!(matches!(running.ask(&Request::Resume { ssd: "b".into() }), Response::Error(_)));
    assert!(
        matches!(running.ask(&Request::Resume { ssd: "c".into() }), Response::Error(text) if text.contains("a, b"))
    );
    let answer = running.ask(&Request::Resume { ssd: "a".into() });
    assert!(matches!(&answer, Response::Done(_)), "{answer:?}");
    assert_eq!(poisoned.receive().expect("a reply").text, "poison 5 0");
    assert_eq!(poisoned.receive().expect("a reply").text, "count 5 1");
    assert_eq!(neighbour.call("count"), "count 5 3");
    assert!(running.status().ssds.iter().all(|ssd| ssd.state == "serving"));
}

#[test]
fn an_ssd_that_no_engine_can_take_up_again_is_quarantined_and_the_others_go_on() {
    let running = Running::start("refuse-ssd-1@2");
    let mut client = running.client("a");
    assert_eq!(client.call("kill 1"), "kill 3 0");
    let status = running.serving();
    assert_eq!(status.ssds[1].state, "quarantined");
    assert!(status.ssds[1].reason.as_ref().is_some_and(|reason| reason.contains("its region is torn")));
    assert!(running.client("b").receive().is_none());
}

#[test]
fn a_first_engine_that_refuses_ends_the_daemon_with_its_reason() {
    let mut running = Running::start("refuse-start");
    let error = running.end().expect_err("it cannot serve");
    assert_eq!(format!("{error:#}"), "the drive is not there");
    assert!(!running.path("a").exists(), "its sockets are gone");
}

#[test]
fn a_stop_waits_for_the_engine_and_reports_what_it_could_not_make_durable() {
    let running = Running::start("");
    let mut client = running.client("a");
    client.call("count");
    running.stop().expect("stopped");
    assert!(client.receive().is_none());
    let running = Running::start("fail-stop");
    running.serving();
    let error = running.stop().expect_err("not durable");
    assert!(error.to_string().contains("exited with status 3"), "{error}");
}
