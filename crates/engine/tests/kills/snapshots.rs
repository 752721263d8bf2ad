//! Snapshots that go along with their ssd: what each has is there, what they share they share, and nothing of them stays where it is not to be.

use crate::along::{dry_run, incoming, start};
use crate::crossing::{migrate, migrate_soon, status, steer, terms, until_it_is, until_over};
use crate::house::House;
use api::control::{MigrationTerms, PoolRequest, PoolStatus, Request, Response, Steer};
use guest::PATIENCE;
use guest::hosts::Hosts;
use guest::nvme::{Driver, Sqe};
use std::time::{Duration, Instant};

const THIN: &str = "{ type = \"pool\", pool = \"p\", thin = true }";
const FULL: &str = "{ type = \"pool\", pool = \"p\" }";
/// Of the pool's, at its size.
const EXTENT_BLOCKS: u64 = 2048;
/// Written of an extent.
const BLOCKS: u64 = 128;
const EXTENTS: usize = 14;
const SNAPSHOTS: [&str; 3] = ["monday", "tuesday", "wednesday"];

/// What each extent has, by the seed of its bytes; 0: zeros.
type State = [u8; EXTENTS];

const MONDAY: State = [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0];
const TUESDAY: State = [1, 1, 2, 1, 1, 1, 1, 1, 0, 2, 0, 0, 0, 0];
const WEDNESDAY: State = [1, 1, 2, 0, 1, 1, 1, 1, 0, 2, 0, 0, 3, 0];
const LAST: State = [1, 1, 2, 5, 4, 1, 0, 1, 0, 2, 4, 0, 3, 0];
/// Extents that the ssd and its snapshots have, each counted once.
const DISTINCT: u64 = 8 + 2 + 1 + 3;

/// With a key of its own.
fn encrypted(backend: &str, key: u8) -> String {
    let key = format!("}}\nencryption = {{ key_command = [\"/usr/bin/printf\", \"%0128d\", \"{key}\"] }}");
    backend.replacen('}', &key, 1)
}

fn content(seed: u8, extent: usize) -> Vec<u8> {
    let mut state = u64::from(seed) << 8 | extent as u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if seed == 0 { 0 } else { (state >> 56) as u8 }
    };
    (0..BLOCKS * 512).map(|_| next()).collect()
}

/// Brings an ssd from one state to another.
fn write(driver: &mut Driver, from: &State, to: &State) {
    for (extent, (was, is)) in from.iter().zip(to).enumerate().filter(|(_, (was, is))| was != is) {
        let block = extent as u64 * EXTENT_BLOCKS;
        if *is == 0 && *was != 0 {
            let zeroes = Sqe::new(8).nsid(1).qword(10, block).cdw12((1 << 25) | (EXTENT_BLOCKS as u32 - 1));
            driver.submit(1, zeroes).unwrap();
            driver.wait_any(1, PATIENCE).unwrap().ok().unwrap();
            continue;
        }
        let buffer = driver.ram().clone().alloc_with(&content(*is, extent)).unwrap();
        driver.write(1, 1, block, BLOCKS as u32, &buffer).unwrap().ok().unwrap();
    }
}

fn assert_has(house: &House, name: &str, state: &State) {
    let mut driver = house.connect(name);
    driver.create_queue_pair(1, 16).unwrap();
    let len = usize::try_from(BLOCKS * 512).unwrap();
    let buffer = driver.ram().clone().alloc(len).unwrap();
    for (extent, seed) in state.iter().enumerate() {
        driver.read(1, 1, extent as u64 * EXTENT_BLOCKS, BLOCKS as u32, &buffer).unwrap().ok().unwrap();
        assert!(buffer.bytes(0, len) == content(*seed, extent), "extent {extent} of {name}");
    }
}

fn ask(house: &House, request: PoolRequest) -> Result<String, String> {
    match house.ask(&Request::Pool(request)) {
        Response::Done(text) => Ok(text),
        Response::Error(text) => Err(text),
        other => panic!("{other:?}"),
    }
}

fn snapshot(house: &House, name: &str) -> Result<String, String> {
    let (pool, volume, name) = ("p".to_owned(), "vm".to_owned(), name.to_owned());
    ask(house, PoolRequest::Snapshot { pool, volume, name })
}

fn delete(house: &House, volume: &str) -> Result<String, String> {
    ask(house, PoolRequest::Delete { pool: "p".to_owned(), volume: volume.to_owned() })
}

/// `None`: no engine says it now.
fn pool(house: &House) -> Option<PoolStatus> {
    match house.ask(&Request::Pool(PoolRequest::List)) {
        Response::Pool(mut pools) => pools.pop().filter(|pool| pool.state == "serving"),
        Response::Error(_) => None,
        other => panic!("{other:?}"),
    }
}

fn volumes(house: &House) -> Vec<String> {
    pool(house).into_iter().flat_map(|pool| pool.volumes).map(|volume| volume.name).collect()
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The house has its ssd's volume, and no extent of anything.
fn until_nothing_is_left(house: &House) {
    until("something is left", || {
        pool(house).is_some_and(|pool| pool.used + pool.wiping == 0 && pool.volumes.len() == 1)
    });
}

/// An ssd with its three snapshots.
fn with_snapshots(house: &House) -> Driver {
    let mut driver = house.connect("vm");
    driver.create_queue_pair(1, 16).unwrap();
    let mut before = [0; EXTENTS];
    for (name, state) in SNAPSHOTS.into_iter().zip([MONDAY, TUESDAY, WEDNESDAY]) {
        write(&mut driver, &before, &state);
        snapshot(house, name).unwrap();
        before = state;
    }
    write(&mut driver, &before, &LAST);
    driver
}

/// Serves a clone of each snapshot, and reads it.
fn assert_all_there(house: &House, hosts: &Hosts, host: usize, vm: &str, clone: &str) {
    let mut ssds = vec![("vm", vm)];
    for (name, as_ssd) in SNAPSHOTS.into_iter().zip(["c-monday", "c-tuesday", "c-wednesday"]) {
        let (pool, volume) = ("p".to_owned(), name.to_owned());
        ask(house, PoolRequest::Clone { pool, volume, name: as_ssd.to_owned() }).unwrap();
        ssds.push((as_ssd, clone));
    }
    house.apply_text(house.config(&ssds, 64) + &hosts.sections[host]).unwrap();
    assert_has(house, "vm", &LAST);
    assert_has(house, "c-monday", &MONDAY);
    assert_has(house, "c-tuesday", &TUESDAY);
    assert_has(house, "c-wednesday", &WEDNESDAY);
}

#[test]
fn each_snapshot_has_there_what_it_had_here_and_shares_what_it_shared_and_nothing_is_left_here() {
    for (here, there) in [(THIN.to_owned(), THIN.to_owned()), (encrypted(THIN, 5), encrypted(THIN, 6))] {
        let hosts = Hosts::new();
        let b_text = incoming(&there);
        let (a, b) = (start(&hosts, 0, &here), start(&hosts, 1, &b_text));
        let mut driver = with_snapshots(&a);
        let before = pool(&a).unwrap().used;
        let plan = dry_run(&a, &hosts.addresses[1], terms()).unwrap();
        assert!(plan.contains("Its snapshots go along: \"monday\", \"tuesday\", \"wednesday\""), "{plan}");
        assert!(plan.contains(&format!(" {before} MiB of 64 MiB are in use, with what only")), "{plan}");
        let begun = migrate(&a, &hosts.addresses[1], terms()).unwrap();
        assert!(!begun.contains("snapshots"), "{begun}");
        // It is written meanwhile: the same, as far as anybody sees later.
        let mut moved = until_over(&a, || {
            let buffer = driver.ram().clone().alloc_with(&content(1, 7)).unwrap();
            let write = Sqe::new(1).nsid(1).prp(buffer.iova(), 0).qword(10, 7 * EXTENT_BLOCKS).cdw12(0);
            let _may_have_gone = driver.submit(1, write);
            let _may_have_gone = driver.wait_any(1, Duration::from_millis(20));
        });
        assert_eq!((moved.state.as_str(), moved.reason.take()), ("moved", None));
        drop(driver);
        until_it_is(&b, "serving");
        until_nothing_is_left(&a);
        let used = pool(&b).unwrap().used;
        // An extent that it shared was written meanwhile.
        assert!((DISTINCT..=before + 1).contains(&used), "{used} there, {before} here");
        assert_all_there(&b, &hosts, 1, &b_text, &there);
        delete(&b, "monday").unwrap();
        a.stop();
        b.stop();
    }
}

#[test]
fn snapshots_go_to_an_ssd_that_has_all_its_space_and_one_with_a_clone_stays_here_too() {
    let hosts = Hosts::new();
    let b_text = incoming(FULL);
    let (a, b) = (start(&hosts, 0, THIN), start(&hosts, 1, &b_text));
    drop(with_snapshots(&a));
    let (pool, volume, name) = ("p".to_owned(), "tuesday".to_owned(), "other".to_owned());
    ask(&a, PoolRequest::Clone { pool, volume, name }).unwrap();
    migrate_soon(&a, &hosts.addresses[1], terms());
    let moved = until_over(&a, || {});
    assert_eq!(moved.state, "moved");
    let why = moved.reason.unwrap_or_default();
    assert!(why.ends_with("stay here, with what they contain, and are not wiped: \"tuesday\""), "{why}");
    assert_eq!(volumes(&a), ["vm", "tuesday", "other"]);
    until_it_is(&b, "serving");
    assert_all_there(&b, &hosts, 1, &b_text, THIN);
    a.stop();
    b.stop();
}

#[test]
fn snapshots_of_what_is_kept_at_the_source_stay_and_their_names_are_refused_when_it_comes_back() {
    let hosts = Hosts::new();
    let (a, b) = (start(&hosts, 0, THIN), start(&hosts, 1, &incoming(THIN)));
    drop(with_snapshots(&a));
    migrate_soon(&a, &hosts.addresses[1], MigrationTerms { keep_source: true, ..terms() });
    assert_eq!(until_over(&a, || {}).state, "moved");
    until_it_is(&b, "serving");
    assert_eq!(volumes(&a), ["vm", "monday", "tuesday", "wednesday"]);
    assert_eq!(volumes(&b), ["vm", "monday", "tuesday", "wednesday"]);
    let refused = dry_run(&b, &hosts.addresses[0], terms()).unwrap_err();
    assert!(refused.contains("pool \"p\" here has a volume of that name already"), "{refused}");
    assert_eq!(migrate(&b, &hosts.addresses[0], terms()).unwrap_err(), refused);
    a.stop();
    b.stop();
}

/// As soon as the one before is over.
fn again(house: &House, to: &str, terms: MigrationTerms) {
    until("it does not begin", || match migrate(house, to, terms) {
        Ok(_) => true,
        Err(now) => {
            let is_before = now.contains("moved already") || now.contains("on its way here");
            assert!(is_before || now.contains("cannot speak") || now.contains("ask again"), "{now}");
            false
        }
    });
}

/// Its second snapshot is under way.
fn amid(a: &House, b: &House, to: &str) {
    again(a, to, MigrationTerms { bandwidth: 128 << 10, ..terms() });
    until("no snapshot comes", || volumes(b).contains(&"monday".to_owned()));
    assert!(!status(a).over && !volumes(b).contains(&"tuesday".to_owned()));
}

#[test]
fn while_they_are_on_their_way_nobody_takes_or_deletes_one_and_whoever_is_killed_it_can_begin_again() {
    let hosts = Hosts::new();
    let b_text = incoming(THIN);
    let (a, b) = (start(&hosts, 0, THIN), start(&hosts, 1, &b_text));
    drop(with_snapshots(&a));
    let to = &hosts.addresses[1];
    for end in ["cancel here", "cancel there", "kill here", "kill there"] {
        amid(&a, &b, to);
        for refused in
            [snapshot(&a, "new"), delete(&a, "wednesday"), delete(&a, "monday"), delete(&b, "monday")]
        {
            let why = refused.expect_err("it is on its way");
            assert!(why.contains("its migration is not over"), "{why}");
        }
        match end {
            "cancel here" => steer(&a, Steer::Cancel),
            "cancel there" => steer(&b, Steer::Cancel),
            "kill here" => _ = a.kill(),
            _ => _ = b.kill(),
        }
        until("it goes on", || volumes(&a).len() == 4 && snapshot(&a, "new").is_ok());
        delete(&a, "new").unwrap();
        until_nothing_is_left(&b);
        until_it_is(&a, "serving");
        assert_has(&a, "vm", &LAST);
    }
    // And once more, with the source killed when it has been granted: the next engine wipes what went.
    again(&a, to, terms());
    until("it does not get there", || {
        let step = pool(&a).and_then(|pool| pool.volumes.into_iter().next()?.migration);
        matches!(step.as_deref(), Some("granted" | "gone"))
    });
    a.kill();
    until_it_is(&b, "serving");
    until_nothing_is_left(&a);
    assert_all_there(&b, &hosts, 1, &b_text, THIN);
    a.stop();
    b.stop();
}

#[test]
fn where_there_is_no_room_for_the_snapshots_nothing_comes_and_the_ssd_stays() {
    let hosts = Hosts::new();
    let (a, b) = (start(&hosts, 0, THIN), start(&hosts, 1, &incoming(THIN)));
    let others = [("vm", &*incoming(THIN)), ("x", FULL), ("y", FULL), ("z", FULL)];
    b.apply_text(b.config(&others, 64) + &hosts.sections[1]).unwrap();
    let free = pool(&b).unwrap().free;
    let room = u64::try_from(EXTENTS).unwrap();
    assert!(free > room, "{free}");
    let mut driver = a.connect("vm");
    driver.create_queue_pair(1, 16).unwrap();
    let mut before = [0; EXTENTS];
    for round in 0..=free / room {
        let state = [round as u8 + 1; EXTENTS];
        write(&mut driver, &before, &state);
        snapshot(&a, &format!("s{round}")).unwrap();
        before = state;
    }
    migrate_soon(&a, &hosts.addresses[1], terms());
    let over = until_over(&a, || {});
    assert_eq!(over.state, "cancelled", "{over:?}");
    drop(driver);
    assert_has(&a, "vm", &before);
    until("something is left", || {
        pool(&b).is_some_and(|pool| pool.free == free && pool.volumes.len() == others.len())
    });
    a.stop();
    b.stop();
}
