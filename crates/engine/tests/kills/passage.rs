//! Ssds whose owner is on another host: whatever engine starts, it opens none of them, and serves the others.

use super::crossing::{migrate, migrate_soon, terms, until_it_is, until_over};
use super::disk;
use super::house::House;
use super::load::Load;
use super::{FILE, RAM};
use api::control::MigrationTerms;
use guest::PATIENCE;
use guest::hosts::Hosts;
use guest::nvme::{Driver, Options};
use state::migration::{DestinationStepV1, DestinationV1, MigrationV1, SourceStepV1, SourceV1};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

fn at_source(step: SourceStepV1) -> MigrationV1 {
    let held = if step == SourceStepV1::TakenBack { 6 } else { 4 };
    MigrationV1 {
        ssd: [7; 16],
        peer: "host-b".to_owned(),
        migration: [8; 16],
        epoch: 5,
        round: 1,
        source: Some(SourceV1 { held, step }),
        destination: None,
        keep: None,
        closed: None,
        wiped: None,
        hypervisor: None,
        limits: None,
    }
}

fn at_destination(step: DestinationStepV1) -> MigrationV1 {
    let destination = Some(DestinationV1 { step, fenced_by: None });
    MigrationV1 { source: None, destination, ..at_source(SourceStepV1::Offered) }
}

fn journal(house: &House, name: &str, record: &MigrationV1) {
    std::fs::write(house.path(&format!("{name}.state.migration")), record.to_bytes().unwrap()).unwrap();
}

/// As soon as the keeper says that it is so: its state, and why.
fn await_state(house: &House, name: &str, state: &str) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        let status = house.status();
        let ssd = status.ssds.iter().find(|ssd| ssd.name == name).unwrap();
        if ssd.state == state && status.engine.state == "serving" {
            return ssd.reason.clone().unwrap_or_default();
        }
        assert!(Instant::now() < until, "{ssd:?} is not {state}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The next engine sees what the journals say by now.
fn next_engine(house: &House) {
    let before = house.status().engine.generation;
    house.kill();
    let until = Instant::now() + PATIENCE;
    loop {
        let engine = house.status().engine;
        if engine.generation > before && engine.state == "serving" {
            return;
        }
        assert!(Instant::now() < until, "{engine:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn is_turned_away(house: &House, name: &str) -> bool {
    let mut socket = UnixStream::connect(house.socket(name)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    matches!(socket.read(&mut [0]), Ok(0))
}

#[test]
fn what_was_granted_is_not_served_by_whatever_engine_starts_and_goes_on_when_it_is_taken_back() {
    let house = House::start(&[("victim", RAM), ("moved", FILE)], 2);
    let mut load = Load::new(house.connect("victim"), 2, 32, 3);
    let mut driver = house.connect("moved");
    let bytes = [0x5a; 512];
    let buffer = driver.ram().clone().alloc_with(&bytes).unwrap();
    driver.create_queue_pair(1, 16).unwrap();
    driver.write(1, 1, 9, 1, &buffer).unwrap().ok().unwrap();
    journal(&house, "moved", &at_source(SourceStepV1::Offered));
    next_engine(&house);
    driver.read(1, 1, 9, 1, &buffer).unwrap().ok().unwrap();
    journal(&house, "moved", &at_source(SourceStepV1::Granted));
    next_engine(&house);
    assert!(await_state(&house, "moved", "granted").contains("host-b"));
    load.run_for(Duration::from_millis(50));
    // Its guest's command waits; it is neither answered nor failed.
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            driver.write(1, 1, 10, 1, &buffer).unwrap().ok().unwrap();
            driver.read(1, 1, 9, 1, &buffer).unwrap().ok().unwrap();
        });
        for _ in 0..3 {
            load.run_for(Duration::from_millis(100));
            next_engine(&house);
            load.run_until_progress();
            await_state(&house, "moved", "granted");
        }
        assert!(!waits.is_finished());
        journal(&house, "moved", &at_source(SourceStepV1::TakenBack));
        house.kill();
        load.run_until_progress();
        waits.join().unwrap();
    });
    assert_eq!(await_state(&house, "moved", "serving"), "");
    assert_eq!(buffer.bytes(0, 512), bytes);
    load.finish();
    drop(driver);
    house.stop();
}

#[test]
fn what_is_gone_turns_clients_away_and_its_data_is_not_touched() {
    let house = House::start(&[("victim", RAM), ("moved", FILE)], 1);
    let mut load = Load::new(house.connect("victim"), 1, 16, 4);
    journal(&house, "moved", &at_source(SourceStepV1::Gone));
    next_engine(&house);
    let why = await_state(&house, "moved", "gone");
    assert!(why.contains("it is at \"host-b\" now"), "{why}");
    assert!(is_turned_away(&house, "moved"));
    // The keeper goes on with what it was told, whoever reads the journal next.
    journal(&house, "moved", &at_source(SourceStepV1::Cancelled));
    next_engine(&house);
    await_state(&house, "moved", "serving");
    house.connect("moved").identify(0, 1).unwrap();
    let path = house.path("moved.state.migration");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    next_engine(&house);
    let why = await_state(&house, "moved", "doubtful");
    assert!(why.contains("moved.state.migration") && why.contains("damaged"), "{why}");
    assert!(is_turned_away(&house, "moved"));
    load.run_for(Duration::from_millis(20));
    load.finish();
    house.stop();
}

#[test]
fn what_is_to_come_has_its_place_and_its_client_waits_for_it() {
    let house = House::start(&[("victim", RAM)], 1);
    let comes = format!("{FILE}\nincoming = true");
    house.apply(&[("victim", RAM), ("moved", &comes)]).unwrap();
    assert!(await_state(&house, "moved", "incoming").contains("has not begun"));
    assert_eq!(std::fs::metadata(house.path("disk.img")).unwrap().len(), 64 << 20);
    let waits = std::thread::spawn({
        let socket = house.socket("moved");
        let options = Options::default();
        move || Driver::connect_with(&socket, options).unwrap().identify(0, 1).unwrap()
    });
    for step in [DestinationStepV1::Incoming, DestinationStepV1::Ready] {
        journal(&house, "moved", &at_destination(step));
        next_engine(&house);
        await_state(&house, "moved", if step == DestinationStepV1::Ready { "ready" } else { "incoming" });
    }
    assert!(!waits.is_finished());
    // As it was left here by a migration; a device that opened it would have made it longer.
    assert!(!house.path("moved.state").exists());
    journal(&house, "moved", &at_destination(DestinationStepV1::Owned));
    next_engine(&house);
    await_state(&house, "moved", "serving");
    waits.join().unwrap();
    // The word means nothing any more.
    house.apply(&[("victim", RAM), ("moved", FILE)]).unwrap();
    house.stop();
}

#[test]
fn what_was_gone_and_is_in_a_changed_configuration_again_is_not_served_and_the_rest_of_the_change_is() {
    let house = House::start(&[("victim", RAM)], 1);
    journal(&house, "moved", &at_source(SourceStepV1::Gone));
    let other = "{ type = \"uring\", path = \"DIR/other.img\", direct = false }";
    house.apply(&[("victim", RAM), ("moved", FILE), ("other", other)]).unwrap();
    await_state(&house, "moved", "gone");
    assert!(is_turned_away(&house, "moved"));
    assert!(!house.path("disk.img").exists(), "nothing of it was opened");
    house.connect("other").identify(0, 1).unwrap();
    house.apply(&[("victim", RAM)]).unwrap();
    assert!(!house.socket("moved").exists());
    // And once more, to come back.
    journal(&house, "moved", &at_destination(DestinationStepV1::Owned));
    house.apply(&[("victim", RAM), ("moved", FILE)]).unwrap();
    await_state(&house, "moved", "serving");
    house.connect("moved").identify(0, 1).unwrap();
    house.stop();
}

/// A client that left while its disk stood away has left something undone: that is not done to the disk that comes here later.
#[test]
fn what_a_former_life_left_undone_is_not_done_in_the_next() {
    let backend = format!("virtio-blk on {FILE}\njournal = \"DIR/moved.state.migration\"\n");
    for packed in [false, true] {
        let house = House::start(&[("victim", RAM), ("moved", &backend)], 1);
        let options = guest::vhost_user::Options { packed, ..Default::default() };
        let connect = || guest::vhost_user::Driver::connect(house.socket("moved"), options).unwrap();
        let mut driver = connect();
        disk::write(&mut driver, 0, 1);
        journal(&house, "moved", &at_source(SourceStepV1::Granted));
        next_engine(&house);
        await_state(&house, "moved", "granted");
        disk::place(&mut driver, guest::vhost_user::request::OUT, 0, vec![2; 4096], false);
        driver.queues[0].publish().unwrap();
        driver.client().hang_up();
        // It is gone, whether the client left before an engine knew of it or after.
        std::thread::sleep(Duration::from_millis(50));
        journal(&house, "moved", &at_source(SourceStepV1::Gone));
        next_engine(&house);
        await_state(&house, "moved", "gone");
        journal(&house, "moved", &at_destination(DestinationStepV1::Owned));
        next_engine(&house);
        await_state(&house, "moved", "serving");
        assert!(
            disk::read(&mut connect(), 0) == [1; 4096],
            "packed {packed}: it was written after it had come"
        );
        drop(driver);
        house.stop();
    }
}

#[test]
fn an_ssd_that_is_on_its_way_is_not_removed_by_an_engine_that_has_just_begun() {
    let hosts = Hosts::new();
    let house = House::start_with(&[("victim", RAM), ("moved", FILE)], 2, &hosts.sections[0]);
    drop(house.connect("moved"));
    let peer = hosts.addresses[1].clone();
    for step in [SourceStepV1::Granted, SourceStepV1::Gone] {
        journal(&house, "moved", &MigrationV1 { peer: peer.clone(), ..at_source(step) });
        for _ in 0..4 {
            house.kill();
            // The next engine is asked as soon as it serves.
            let refused = house.apply_text(house.config(&[("victim", RAM)], 64) + &hosts.sections[0]);
            let why = refused.expect_err("nobody would go on with its migration");
            assert!(why.contains("ask again") || why.contains("is being moved"), "{why}");
        }
    }
    let over = MigrationV1 { peer, closed: Some(true), wiped: Some(true), ..at_source(SourceStepV1::Gone) };
    journal(&house, "moved", &over);
    next_engine(&house);
    house.apply_text(house.config(&[("victim", RAM)], 64) + &hosts.sections[0]).unwrap();
    house.stop();
}

/// Whether a client of a disk that is not here hears anything.
fn is_answered(house: &House, name: &str) -> bool {
    let stream = UnixStream::connect(house.socket(name)).unwrap();
    let mut client = guest::vhost_user::Client::new(stream);
    client.set_timeout(Duration::from_millis(200));
    // GET_FEATURES
    client.ask(1, &[]).is_ok()
}

fn until_answered(house: &House, name: &str, answered: bool) {
    let until = Instant::now() + PATIENCE;
    while is_answered(house, name) != answered {
        assert!(Instant::now() < until, "{answered} does not become so");
    }
}

#[test]
fn that_its_guest_comes_with_an_ssd_is_said_and_taken_back_while_the_daemon_runs() {
    let comes = format!("virtio-blk on {FILE}\njournal = \"DIR/moved.migration\"\nincoming = true\n");
    let with_guest = format!("{comes}hypervisor = \"DIR/qmp.sock\"\n");
    let (plain, awaited) =
        ([("victim", RAM), ("moved", &*comes)], [("victim", RAM), ("moved", &*with_guest)]);
    let house = House::start(&plain, 1);
    await_state(&house, "moved", "incoming");
    let mut load = Load::new(house.connect("victim"), 1, 8, 5);
    assert!(!is_answered(&house, "moved"));
    for _ in 0..2 {
        house.apply(&awaited).unwrap();
        until_answered(&house, "moved", true);
        next_engine(&house);
        until_answered(&house, "moved", true);
        house.apply(&plain).unwrap();
        until_answered(&house, "moved", false);
        await_state(&house, "moved", "incoming");
        load.run_until_progress();
    }
    load.finish();
    house.stop();
}

#[test]
fn what_is_said_of_an_ssds_coming_stays_as_it_is_while_it_is_on_its_way_or_here_and_nowhere_else() {
    let hosts = Hosts::new();
    let text = |house: &House, more: &str| {
        let moved = format!("{FILE}\n{more}");
        house.config(&[("moved", &*moved)], 64) + &hosts.sections[0]
    };
    let house = House::start_with(&[("moved", FILE)], 1, &hosts.sections[0]);
    await_state(&house, "moved", "serving");
    let refused = house.apply_text(text(&house, "incoming = true\n")).unwrap_err();
    assert!(refused.contains("was never elsewhere"), "{refused}");
    // Where it comes to when it comes back may be said early.
    house.apply_text(text(&house, "hypervisor = \"/q1\"\n")).unwrap();
    let peer = hosts.addresses[1].clone();
    journal(&house, "moved", &MigrationV1 { peer: peer.clone(), ..at_source(SourceStepV1::Granted) });
    for _ in 0..3 {
        // It is asked as soon as it serves.
        next_engine(&house);
        let refused = house.apply_text(text(&house, "hypervisor = \"/q2\"\n")).unwrap_err();
        assert!(refused.contains("ask again") || refused.contains("is being moved"), "{refused}");
    }
    let over = MigrationV1 { peer, closed: Some(true), wiped: Some(true), ..at_source(SourceStepV1::Gone) };
    journal(&house, "moved", &over);
    next_engine(&house);
    house.apply_text(text(&house, "hypervisor = \"/q2\"\nincoming = true\n")).unwrap();
    await_state(&house, "moved", "gone");
    house.stop();
}

#[test]
fn an_ssd_that_has_gone_is_said_to_be_larger_only_if_it_is_said_to_come_back() {
    let house = House::start(&[("moved", FILE)], 1);
    await_state(&house, "moved", "serving");
    let over = MigrationV1 { closed: Some(true), wiped: Some(true), ..at_source(SourceStepV1::Gone) };
    journal(&house, "moved", &over);
    next_engine(&house);
    await_state(&house, "moved", "gone");
    let refused = house.apply_text(house.config(&[("moved", FILE)], 128)).unwrap_err();
    assert!(
        refused.contains("not here any more (gone)") && refused.contains("nothing has changed"),
        "{refused}"
    );
    let back = format!("{FILE}\nincoming = true\n");
    house.apply_text(house.config(&[("moved", &*back)], 128)).unwrap();
    house.stop();
}

#[test]
fn a_copy_that_was_kept_is_replaced_by_the_ssds_return_as_soon_as_that_is_said_and_not_before() {
    let hosts = Hosts::new();
    let start = |backend: &str, host: usize| House::start_with(&[("vm", backend)], 2, &hosts.sections[host]);
    let back = format!("{FILE}\nincoming = true\n");
    let (a, b) = (start(FILE, 0), start(&back, 1));
    until_it_is(&b, "incoming");
    let mut load = Load::new(a.connect("vm"), 1, 8, 9);
    load.run_for(Duration::from_millis(100));
    migrate_soon(&a, &hosts.addresses[1], MigrationTerms { keep_source: true, ..terms() });
    assert_eq!(until_over(&a, || load.run_for(Duration::from_millis(20))).state, "moved");
    until_it_is(&a, "gone");
    let kept = std::fs::read(a.path("disk.img")).unwrap();
    let mut load = load.leave().go_on(b.connect("vm"));
    load.run_for(Duration::from_millis(200));
    let refused = migrate(&b, &hosts.addresses[0], terms()).unwrap_err();
    assert!(refused.contains("nowhere else"), "{refused}");
    assert!(std::fs::read(a.path("disk.img")).unwrap() == kept, "it is as it was kept");
    let engine = a.status().engine.pid;
    let spared = format!("{back}spared = true\n");
    a.apply_text(a.config(&[("vm", &*spared)], 64) + &hosts.sections[0]).unwrap();
    assert!(migrate(&b, &hosts.addresses[0], terms()).unwrap_err().contains("nowhere else"));
    a.apply_text(a.config(&[("vm", &*back)], 64) + &hosts.sections[0]).unwrap();
    migrate_soon(&b, &hosts.addresses[0], terms());
    assert_eq!(until_over(&b, || load.run_for(Duration::from_millis(20))).state, "moved");
    until_it_is(&a, "serving");
    assert_eq!(a.status().engine.pid, engine, "by the engine that had it refused");
    load.leave().go_on(a.connect("vm")).finish();
    a.stop();
    b.stop();
}
