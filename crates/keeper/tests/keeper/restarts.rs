//! A keeper that is killed, and its successor that goes on from what the service manager kept.

use crate::client::Client;
use crate::double::frame;
use crate::manager::Manager;
use api::control::{Request, Response};
use guest::PATIENCE;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[test]
fn a_killed_keeper_costs_no_client_its_session_and_no_command() {
    let mut manager = Manager::start("");
    let mut clients = [manager.client("a"), manager.client("b")];
    for round in 1..=5 {
        for client in &mut clients {
            let reply = client.call("count");
            assert!(reply.ends_with(&format!(" {round}")), "round {round}: {reply}");
        }
        manager.kill_and_restart();
    }
    let status = manager.back();
    assert_eq!((status.keeper_generation, status.engine.generation), (6, 6));
    assert!(status.restarts.iter().all(|end| end.reason == "its keeper ended"), "{:?}", status.restarts);
    assert_eq!(manager.names().len(), 3, "{:?}", manager.names());
    assert_eq!(manager.ready(), 6);
}

#[test]
fn keepers_killed_at_any_moment_under_load_lose_and_repeat_nothing() {
    let mut manager = Manager::start("");
    let enough = AtomicBool::new(false);
    let load = |mut client: Client| {
        let mut count = 0;
        while !enough.load(Ordering::Relaxed) {
            let ids: Vec<u16> = (0..8).map(|_| client.send("count")).collect();
            for id in ids {
                count += 1;
                let reply = client.receive().expect("a reply");
                assert_eq!(reply.id, id);
                assert!(reply.text.ends_with(&format!(" {count}")), "{count}: {}", reply.text);
            }
        }
        count
    };
    let clients = ["a", "b"].map(|ssd| manager.client(ssd));
    std::thread::scope(|scope| {
        let loads = clients.map(|client| scope.spawn(|| load(client)));
        let mut moment = 1_u64;
        for _ in 0..30 {
            manager.back();
            moment = moment.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            std::thread::sleep(Duration::from_micros(moment >> 33 & 0x7FFF));
            manager.kill_and_restart();
        }
        manager.back();
        enough.store(true, Ordering::Relaxed);
        for load in loads {
            println!("{} commands", load.join().expect("no fault"));
        }
    });
}

#[test]
fn a_reply_that_is_half_written_is_written_to_its_end_after_a_kill() {
    let mut manager = Manager::start("");
    let mut client = manager.client("a");
    let ids: Vec<u16> = (0..3).map(|_| client.send("big")).collect();
    manager.wait("answered", |status| status.ssds[0].unanswered == 0);
    manager.kill_and_restart();
    manager.back();
    manager.kill_and_restart();
    for id in ids {
        let reply = client.receive().expect("a reply");
        assert_eq!((reply.id, reply.text.len()), (id, 1 << 20));
        assert!(reply.text.bytes().all(|byte| byte == b'x'));
    }
    assert!(client.call("count").ends_with(" 1"));
}

#[test]
fn a_command_that_is_half_read_keeps_its_descriptors_after_a_kill() {
    let mut manager = Manager::start("");
    let mut client = manager.client("a");
    let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).expect("eventfd");
    let bytes = frame(9, 9, 0, b"keep 0");
    client.raw(&bytes[..5], &[eventfd.as_fd()]);
    std::thread::sleep(Duration::from_millis(50));
    manager.kill_and_restart();
    client.raw(&bytes[5..18], &[]);
    manager.back();
    std::thread::sleep(Duration::from_millis(50));
    manager.kill();
    client.raw(&bytes[18..], &[]);
    manager.restart();
    assert!(client.receive().expect("a reply").text.starts_with("keep"));
    manager.kill_and_restart();
    assert_eq!(client.call("ring"), "ring 1");
    let mut rung = [0; 8];
    rustix::io::read(&eventfd, &mut rung).expect("rung");
}

#[test]
fn an_engines_request_to_a_client_is_asked_again_by_the_next_one() {
    let mut manager = Manager::start("");
    let mut client = manager.client("a");
    client.send("ask");
    let asked = client.receive().expect("a request");
    manager.kill_and_restart();
    // Too late: who asked this is dead. The next engine asks itself.
    client.raw(&frame(asked.id, 11, 1, b"to the dead"), &[]);
    let again = client.receive().expect("a request");
    assert_ne!(again.id, asked.id);
    client.raw(&frame(again.id, 11, 1, b"the answer"), &[]);
    assert_eq!(client.receive().expect("a reply").text, "the answer");
}

#[test]
fn many_descriptors_come_and_go_and_the_vault_is_renewed() {
    let mut manager = Manager::start("");
    let mut client = manager.client("a");
    let eventfd = || rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).expect("eventfd");
    for _ in 0..20 {
        for _ in 0..20 {
            client.send_with("keep", 0, &[eventfd().as_fd()]);
        }
        for _ in 0..20 {
            assert!(client.receive().expect("a reply").text.starts_with("keep"));
        }
        client.call("drop");
    }
    let bell = eventfd();
    client.send_with("keep", 0, &[bell.as_fd()]);
    client.receive().expect("a reply");
    assert!(!manager.names().iter().any(|name| name.contains("vault-0")), "{:?}", manager.names());
    manager.kill_and_restart();
    assert_eq!(client.call("ring"), "ring 1");
    let mut rung = [0; 8];
    rustix::io::read(&bell, &mut rung).expect("rung");
}

#[test]
fn a_client_that_leaves_while_there_is_no_keeper_frees_the_ssd() {
    let mut manager = Manager::start("");
    let mut client = manager.client("a");
    client.call("count");
    manager.kill();
    drop(client);
    manager.restart();
    manager.back();
    let begun = Instant::now();
    loop {
        // The next one may come before the first was taken leave of.
        let mut next = manager.client("a");
        next.send("count");
        if let Some(reply) = next.receive() {
            assert!(reply.text.ends_with(" 1"), "{}", reply.text);
            return;
        }
        assert!(begun.elapsed() < PATIENCE);
    }
}

#[test]
fn re_execs_and_kills_go_together() {
    let mut manager = Manager::start("");
    let mut client = manager.client("a");
    for round in 0..4 {
        assert!(client.call("count").ends_with(&format!(" {}", 2 * round + 1)));
        let request = Request::Upgrade { binary: None, keeper: true, no_wait: false };
        let answer = manager.ask(&request);
        assert!(matches!(&answer, Response::Done(_)), "{answer:?}");
        assert!(client.call("count").ends_with(&format!(" {}", 2 * round + 2)));
        manager.kill_and_restart();
        manager.back();
    }
    assert_eq!(manager.status().keeper_generation, 9);
    assert_eq!(manager.names().len(), 3, "{:?}", manager.names());
}
