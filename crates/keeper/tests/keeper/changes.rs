//! Another configuration while all goes on.

use crate::harness::{House, Running};
use crate::manager::Manager;
use api::control::{Request, Response};
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;

fn apply(config: String, force: bool) -> Request {
    Request::Apply { config, path: Some("new.toml".into()), dry_run: false, force }
}

fn done(answer: &Response) {
    assert!(matches!(answer, Response::Done(_)), "{answer:?}");
}

fn error(answer: Response) -> String {
    match answer {
        Response::Error(text) => text,
        other => panic!("{other:?}"),
    }
}

fn names(house: &House) -> Vec<String> {
    house.status().ssds.into_iter().map(|ssd| ssd.name).collect()
}

#[test]
fn ssds_come_and_go_while_another_ones_client_goes_on() {
    let running = Running::start("");
    running.serving();
    let mut a = running.client("a");
    let mut count = 0;
    for round in 0..10 {
        let set: &[&str] = if round % 2 == 0 { &["c", "a"] } else { &["a", "b", "d"] };
        a.send("sleep 5");
        a.send("count");
        count += 1;
        done(&running.ask(&apply(running.config_of(set), false)));
        assert!(a.receive().expect("a reply").text.starts_with("sleep"));
        assert_eq!(a.receive().expect("a reply").text, format!("count 1 {count}"));
        assert_eq!(names(&running), set, "in the order of the configuration");
        for name in ["b", "c", "d"] {
            assert_eq!(running.path(name).exists(), set.contains(&name), "{name}");
        }
        // Each time it comes it is a new one.
        let other = if round % 2 == 0 { "c" } else { "d" };
        assert_eq!(running.client(other).call("count"), "count 1 1");
    }
    running.stop().expect("all durable");
}

#[test]
fn an_engine_that_is_killed_at_any_moment_of_a_change_costs_nothing() {
    for habit in
        ["die-at-prepare@1", "die-at-prepare@1 die-at-prepare@2", "die-at-commit@1", "die-in-commit@1"]
    {
        let running = Running::start(habit);
        running.serving();
        let mut a = running.client("a");
        assert_eq!(a.call("count"), "count 1 1");
        done(&running.ask(&apply(running.config_of(&["a", "c"]), false)));
        let generation = running.serving().engine.generation;
        assert_eq!(generation, 1 + habit.split(' ').count() as u64, "{habit}");
        assert_eq!(a.call("count"), format!("count {generation} 2"));
        assert_eq!(names(&running), ["a", "c"]);
        assert_eq!(running.client("c").call("count"), format!("count {generation} 1"));
        assert!(!running.path("b").exists());
        // And whoever comes later begins with it.
        running.kill();
        assert_eq!(running.client("c").call("count"), format!("count {} 1", generation + 1));
    }
}

#[test]
fn a_change_that_engine_after_engine_dies_of_is_given_up_and_nothing_has_changed() {
    let running = Running::start("die-at-prepare");
    running.serving();
    let mut a = running.client("a");
    let said = error(running.ask(&apply(running.config_of(&["a", "c"]), false)));
    assert!(said.contains("engine after engine") && said.ends_with("nothing has changed"), "{said}");
    running.serving();
    assert_eq!(a.call("count"), "count 4 1");
    assert_eq!((names(&running), running.path("c").exists()), (vec!["a".to_owned(), "b".to_owned()], false));
}

#[test]
fn a_refused_change_changes_nothing() {
    let running = Running::start("refuse-change");
    running.serving();
    let before = running.status();
    let said = error(running.ask(&apply(running.config_of(&["a", "c"]), false)));
    assert_eq!(said, "the drive is in use; nothing has changed");
    std::fs::write(running.path("d"), "precious").expect("written");
    for (config, expected) in [
        (running.config_of(&["a", "c", "d"]), "ssd \"d\": cannot listen"),
        (
            running.config_of(&["a", "b"]).replace("1MiB", "2MiB").replacen("2MiB", "1KiB", 1),
            "multiple of 1MiB",
        ),
        (
            running.config_of(&["a", "b"]).replace("name = \"b\"", "name = \"b\"\nlba = 4096"),
            "its lba cannot",
        ),
        (running.config_of(&["a"]).replace("/control", "/other"), "`control` cannot"),
        ("nonsense".to_owned(), "new.toml:1:"),
    ] {
        let said = error(running.ask(&apply(config, true)));
        assert!(said.contains(expected) && said.contains("nothing has changed"), "{said}");
    }
    assert!(!running.path("c").exists() && running.path("b").exists());
    let after = running.status();
    assert_eq!((after.ssds, after.engine.pid), (before.ssds, before.engine.pid));
}

#[test]
fn a_client_loses_its_device_by_force_only() {
    let running = Running::start("");
    running.serving();
    let (mut a, mut b) = (running.client("a"), running.client("b"));
    a.call("count");
    b.call("count");
    let config = running.config_of(&["a"]);
    let said = error(running.ask(&apply(config.clone(), false)));
    assert!(said.contains("a client is connected to \"b\"") && said.contains("--force"), "{said}");
    assert_eq!(b.call("count"), "count 1 2");
    done(&running.ask(&apply(config, true)));
    assert!(b.receive().is_none());
    assert_eq!(a.call("count"), "count 1 2");
    assert!(!running.path("b").exists());
    // It comes back as another one, and is found empty.
    done(&running.ask(&apply(running.config_of(&["b", "a"]), false)));
    assert_eq!(running.client("b").call("count"), "count 1 1");
    assert_eq!(running.serving().engine.generation, 1);
}

#[test]
fn a_dry_run_says_what_would_be_done_and_does_nothing() {
    let running = Running::start("");
    running.serving();
    let ask = |names: &[&str]| {
        let config = running.config_of(names);
        running.ask(&Request::Apply { config, path: None, dry_run: true, force: false })
    };
    assert_eq!(ask(&["b", "a"]), Response::Done("nothing to change".to_owned()));
    assert_eq!(ask(&["a", "c"]), Response::Done("- ssd \"b\"\n+ ssd \"c\"".to_owned()));
    assert_eq!(names(&running), ["a", "b"]);
    let question = running.question(&apply(running.config_of(&["a", "c"]), false));
    let said: Vec<Response> = BufReader::new(question)
        .lines()
        .map(|line| serde_json::from_str(&line.expect("a line")).expect("a response"))
        .collect();
    let plan = Response::Progress("- ssd \"b\"\n+ ssd \"c\"".to_owned());
    assert_eq!(said, [plan, Response::Done("done".to_owned())]);
}

#[test]
fn what_was_applied_outlives_keepers_and_engines() {
    let mut manager = Manager::start("");
    let mut a = manager.client("a");
    a.call("count");
    // `b` was 1; `c` is 2 and stands where `b` stood.
    done(&manager.ask(&apply(manager.config_of(&["c", "a"]), false)));
    let mut c = manager.client("c");
    c.call("count");
    done(&manager.ask(&Request::Upgrade { binary: None, keeper: true, no_wait: false }));
    assert_eq!((a.call("count"), c.call("count")), ("count 1 2".to_owned(), "count 1 2".to_owned()));
    manager.kill_and_restart();
    manager.back();
    assert_eq!(names(&manager), ["c", "a"]);
    assert_eq!((a.call("count"), c.call("count")), ("count 2 3".to_owned(), "count 2 3".to_owned()));
    done(&manager.ask(&apply(manager.config_of(&["a", "c", "e"]), false)));
    manager.kill_and_restart();
    manager.back();
    assert_eq!(names(&manager), ["a", "c", "e"]);
    assert_eq!((a.call("count"), c.call("count")), ("count 3 4".to_owned(), "count 3 4".to_owned()));
    assert!(UnixStream::connect(manager.path("b")).is_err());
}

#[test]
fn an_engine_that_is_ready_for_a_change_nobody_waits_for_is_told_to_forget_it() {
    let running = Running::start("answer-late");
    running.serving();
    done(&running.ask(&apply(running.config_of(&["a", "c"]), false)));
    assert_eq!(names(&running), ["a", "c"]);
}
