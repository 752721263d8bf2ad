//! Ssds that move from one host to another: two keepers with engines of their own, and a network between them.

use crate::disk;
use crate::disks::connect_to;
use crate::house::House;
use crate::load::Load;
use api::control::{
    EngineRequest, MigrationStatus, MigrationTerms, PoolRequest, Request, Response, Steer, Timeline,
};
use guest::PATIENCE;
use guest::hosts::Hosts;
use guest::relay::Relay;
use state::migration::{DestinationStepV1, DestinationV1, MigrationV1, SourceStepV1, SourceV1};
use std::net::TcpListener;
use std::time::{Duration, Instant};
use transfer::tls::{Files, Identity};

/// What a host shows others.
pub(crate) fn identity_of(hosts: &Hosts, host: usize) -> Identity {
    let [certificate, key, authority] = hosts.files(host);
    Identity::read(&Files { certificate, key, authority }).unwrap()
}

pub(crate) const FILE: &str = "{ type = \"uring\", path = \"DIR/disk.img\", direct = false }";
const THIN: &str = "{ type = \"pool\", pool = \"p\", thin = true }";
const FULL: &str = "{ type = \"pool\", pool = \"p\" }";

/// Two houses with an ssd "vm", which is at the first.
fn two_houses(hosts: &Hosts, here: &str, there: &str) -> [House; 2] {
    let there = there.replace('}', "}\nincoming = true");
    [(here, 0), (&there, 1)]
        .map(|(backend, host)| House::start_with(&[("vm", backend)], 2, &hosts.sections[host]))
}

/// Until the other host listens.
pub(crate) fn migrate_soon(house: &House, to: &str, terms: MigrationTerms) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(why) = migrate(house, to, terms) {
        assert!(why.contains("cannot speak") && Instant::now() < deadline, "{why}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn migrate(house: &House, to: &str, terms: MigrationTerms) -> Result<String, String> {
    let request = EngineRequest::Migrate { ssd: "vm".to_owned(), to: to.to_owned(), terms, dry_run: false };
    // An engine says that it serves before it speaks of migrations.
    let deadline = Instant::now() + PATIENCE;
    loop {
        match house.ask(&Request::Engine(request.clone())) {
            Response::Done(text) => return Ok(text),
            Response::Error(text) if text.contains("ask again") && Instant::now() < deadline => {}
            Response::Error(text) => return Err(text),
            other => panic!("{other:?}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn terms() -> MigrationTerms {
    // A debug build on a busy machine.
    MigrationTerms { max_stun_us: 2_000_000, ..MigrationTerms::default() }
}

/// `None`: no engine knows yet.
fn migrations(house: &House) -> Option<Vec<MigrationStatus>> {
    match house.ask(&Request::Engine(EngineRequest::Migrations)) {
        Response::Migrations(list) => Some(list),
        Response::Error(_) => None,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn status(house: &House) -> MigrationStatus {
    migrations(house)
        .unwrap_or_default()
        .into_iter()
        .find(|migration| migration.ssd == "vm")
        .unwrap_or_default()
}

/// Until the migration is over at this house; `meanwhile` is done again and again.
pub(crate) fn until_over(house: &House, mut meanwhile: impl FnMut()) -> MigrationStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = status(house);
        if status.over {
            return status;
        }
        assert!(Instant::now() < deadline, "{status:?}");
        meanwhile();
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Until the house says that the ssd is so.
pub(crate) fn until_it_is(house: &House, state: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = house.status();
        let ssd = status.ssds.iter().find(|ssd| ssd.name == "vm").unwrap();
        if ssd.state == state {
            return;
        }
        assert!(Instant::now() < deadline, "{ssd:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_ssd_goes_to_another_host_while_it_is_written_and_every_acknowledged_byte_is_there() {
    let hosts = Hosts::new();
    let [a, b] = two_houses(&hosts, FILE, FILE);
    until_it_is(&b, "incoming");
    let mut load = Load::new(a.connect("vm"), 2, 16, 7);
    load.run_for(Duration::from_millis(300));
    migrate_soon(&a, &hosts.addresses[1], terms());
    let mut moved = until_over(&a, || load.run_for(Duration::from_millis(20)));
    assert_eq!((moved.state.as_str(), moved.reason.take()), ("moved", None));
    assert!(moved.stun_ns.is_some() && moved.sent_bytes > 0, "{moved:?}");
    until_it_is(&a, "gone");
    let mut load = load.leave().go_on(b.connect("vm"));
    load.run_for(Duration::from_millis(300));
    load.finish();
    // Nothing of it is left at the source.
    let left = std::fs::read(a.path("disk.img")).unwrap();
    assert!(left.iter().all(|byte| *byte == 0), "the source's copy is wiped");
    a.stop();
    b.stop();
}

#[test]
fn an_ssd_that_nobody_uses_goes_and_comes_back() {
    goes_and_comes_back(FILE, FILE);
}

#[test]
fn an_ssd_of_a_pool_goes_to_a_pool_or_a_file_and_comes_back_and_leaves_no_extent_behind() {
    goes_and_comes_back(THIN, FULL);
    goes_and_comes_back(FILE, THIN);
}

/// Extents in use in the house's pool, and how far the volume's migration is; `None`: it has no pool.
fn volume(house: &House) -> Option<(u64, String)> {
    let Response::Pool(pools) = house.ask(&Request::Pool(PoolRequest::List)) else { panic!("no list") };
    let pool = pools.first()?;
    let step = pool.volumes.iter().find(|volume| volume.name == "vm").and_then(|it| it.migration.clone());
    Some((pool.used + pool.wiping, step.unwrap_or_default()))
}

fn goes_and_comes_back(here: &str, there: &str) {
    let hosts = Hosts::new();
    let [a, b] = two_houses(&hosts, here, there);
    let mut load = Load::new(a.connect("vm"), 1, 8, 3);
    load.run_for(Duration::from_millis(100));
    let load = load.leave();
    let mut houses = [&a, &b];
    for _ in 0..3 {
        let to =
            if std::ptr::eq(houses[0], &raw const a) { &hosts.addresses[1] } else { &hosts.addresses[0] };
        migrate_soon(houses[0], to, terms());
        let moved = until_over(houses[0], || {});
        assert_eq!(moved.state, "moved", "{moved:?}");
        let deadline = Instant::now() + PATIENCE;
        while let Some(left) = volume(houses[0]).filter(|left| *left != (0, "gone".to_owned())) {
            assert!(Instant::now() < deadline, "{left:?} is left at the source");
            std::thread::sleep(Duration::from_millis(5));
        }
        houses.reverse();
    }
    let mut load = load.go_on(houses[0].connect("vm"));
    load.run_for(Duration::from_millis(100));
    load.finish();
    a.stop();
    b.stop();
}

#[test]
fn what_cannot_be_moved_is_refused_before_anything_is_on_record() {
    let hosts = Hosts::new();
    let [a, b] = two_houses(&hosts, FILE, &FILE.replace('}', "}\nserial = \"OTHER\""));
    until_it_is(&b, "incoming");
    let mut refused = migrate(&a, &hosts.addresses[1], terms()).unwrap_err();
    // It says that it serves before it listens for other hosts.
    while refused.contains("cannot speak") {
        refused = migrate(&a, &hosts.addresses[1], terms()).unwrap_err();
    }
    assert!(refused.contains("serial number is"), "{refused}");
    let nobody = migrate(&a, "127.0.0.1:1", terms()).unwrap_err();
    assert!(nobody.contains("cannot speak to 127.0.0.1:1"), "{nobody}");
    assert!(!a.path("vm.state.migration").exists());
    let served = migrate(&b, &hosts.addresses[0], terms()).unwrap_err();
    assert!(served.contains("not served here"), "{served}");
    a.stop();
    b.stop();
}

#[test]
fn a_migration_that_is_cancelled_leaves_the_ssd_where_it_is_and_nothing_of_it_elsewhere() {
    let hosts = Hosts::new();
    let [a, b] = two_houses(&hosts, FILE, FILE);
    let mut load = Load::new(a.connect("vm"), 2, 16, 7);
    load.run_for(Duration::from_millis(200));
    // So slow that it does not end by itself.
    migrate_soon(&a, &hosts.addresses[1], MigrationTerms { bandwidth: 256 << 10, ..terms() });
    load.run_for(Duration::from_millis(300));
    steer(&a, Steer::Cancel);
    let ended = until_over(&a, || load.run_for(Duration::from_millis(10)));
    assert_eq!(ended.state, "cancelled", "{ended:?}");
    load.run_for(Duration::from_millis(200));
    load.finish();
    until_it_is(&b, "dropped");
    // The source did not wait for that.
    let deadline = Instant::now() + PATIENCE;
    while !std::fs::read(b.path("disk.img")).unwrap().iter().all(|byte| *byte == 0) {
        assert!(Instant::now() < deadline, "what came is not wiped");
        std::thread::sleep(Duration::from_millis(5));
    }
    // And it may be moved after all.
    migrate_soon(&a, &hosts.addresses[1], terms());
    assert_eq!(until_over(&a, || {}).state, "moved");
    until_it_is(&b, "serving");
    a.stop();
    b.stop();
}

/// Where the ssd is served, once everything has come to rest.
fn owner(houses: [&House; 2], deadline: Instant) -> Option<&House> {
    loop {
        let is =
            houses.map(|house| house.status().ssds.into_iter().find(|ssd| ssd.name == "vm").unwrap().state);
        let serving = is.iter().filter(|state| *state == "serving").count();
        let settled =
            is.iter().all(|state| ["serving", "incoming", "gone", "dropped"].contains(&state.as_str()));
        let over = houses
            .iter()
            .all(|house| migrations(house).is_some_and(|all| all.iter().all(|migration| migration.over)));
        if settled && over && serving == 1 {
            return houses.into_iter().zip(is).find(|(_, state)| state == "serving").map(|(house, _)| house);
        }
        assert!(Instant::now() < deadline, "{is:?} {:?}", houses.map(migrations));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An engine of either host is killed at some moment of the migration: afterwards one of them has the ssd, whole, and it can be moved again.
fn killed_on_the_way(backend: &str, seed: u64) {
    let hosts = Hosts::new();
    let [a, b] = two_houses(&hosts, backend, backend);
    let mut load = Load::new(a.connect("vm"), 2, 8, seed);
    load.run_for(Duration::from_millis(100));
    migrate_soon(&a, &hosts.addresses[1], terms());
    let victim = if seed & 1 == 0 { &a } else { &b };
    load.run_for(Duration::from_millis(seed / 2 * 23 % 300));
    victim.kill();
    load.run_for(Duration::from_millis(50));
    let left = load.leave();
    let owner = owner([&a, &b], Instant::now() + PATIENCE).unwrap();
    let load = left.go_on(owner.connect("vm"));
    let left = load.leave();
    let (to, other) =
        if std::ptr::eq(owner, &raw const a) { (&hosts.addresses[1], &b) } else { (&hosts.addresses[0], &a) };
    migrate_soon(owner, to, terms());
    assert_eq!(until_over(owner, || {}).state, "moved", "seed {seed}");
    left.go_on(other.connect("vm")).finish();
    a.stop();
    b.stop();
}

#[test]
fn an_engine_that_is_killed_during_a_migration_leaves_one_owner_that_has_every_acknowledged_byte() {
    (0..8).for_each(|seed| killed_on_the_way(FILE, seed));
}

#[test]
fn an_engine_that_is_killed_during_a_migration_from_pool_to_pool_leaves_one_owner_too() {
    (0..6).for_each(|seed| killed_on_the_way(if seed % 3 == 0 { FULL } else { THIN }, 2 * seed + seed % 2));
}

/// A pool that has no space for what comes: the copy fails there instead of waiting for space, and the ssd stays where it is.
#[test]
fn an_ssd_that_finds_a_full_pool_stays_where_it_is_and_goes_when_there_is_space() {
    let hosts = Hosts::new();
    let there = THIN.replace('}', "}\nincoming = true");
    let a = House::start_with(&[("vm", FILE)], 2, &hosts.sections[0]);
    let b = House::start_with(&[("vm", &there)], 2, &hosts.sections[1]);
    let mut load = Load::new(a.connect("vm"), 2, 16, 5);
    // All of its 16 MiB, and room for less.
    load.run_for(Duration::from_millis(1500));
    let Response::Pool(pools) = b.ask(&Request::Pool(PoolRequest::List)) else { panic!("no list") };
    let mib = (pools[0].free - 4) * (pools[0].extent_bytes >> 20);
    let filled = b.config(&[("vm", &there), ("filler", FULL)], mib) + &hosts.sections[1];
    b.apply_text(filled.replacen(&format!("size = \"{mib}MiB\""), "size = \"64MiB\"", 1)).unwrap();
    migrate_soon(&a, &hosts.addresses[1], terms());
    let ended = until_over(&a, || load.run_for(Duration::from_millis(10)));
    assert_eq!(ended.state, "cancelled", "{ended:?}");
    assert!(ended.reason.as_ref().is_some_and(|why| why.contains("gives up (Drive)")), "{ended:?}");
    until_it_is(&b, "dropped");
    b.apply_text(b.config(&[("vm", &there)], 64) + &hosts.sections[1]).unwrap();
    let delete = PoolRequest::Delete { pool: "p".to_owned(), volume: "filler".to_owned() };
    let deadline = Instant::now() + PATIENCE;
    // Its doors close a moment after the change.
    while let Response::Error(why) = b.ask(&Request::Pool(delete.clone())) {
        assert!(why.contains("is served") && Instant::now() < deadline, "{why}");
        std::thread::sleep(Duration::from_millis(5));
    }
    migrate_soon(&a, &hosts.addresses[1], terms());
    let moved = until_over(&a, || load.run_for(Duration::from_millis(10)));
    assert_eq!(moved.state, "moved", "{moved:?}");
    load.leave().go_on(b.connect("vm")).finish();
    a.stop();
    b.stop();
}

fn timeline(house: &House) -> Timeline {
    match house.ask(&Request::Engine(EngineRequest::Timeline { ssd: "vm".to_owned() })) {
        Response::Timeline(line) => line,
        other => panic!("{other:?}"),
    }
}

/// A guest with a budget is looked at before its copy begins; both hosts tell how its I/O went.
#[test]
fn a_guests_io_is_looked_at_before_during_and_after_it_moves() {
    let hosts = Hosts::new();
    let [a, b] = two_houses(&hosts, FILE, FILE);
    until_it_is(&b, "incoming");
    let mut load = Load::new(a.connect("vm"), 2, 16, 7);
    load.run_for(Duration::from_millis(300));
    migrate_soon(&a, &hosts.addresses[1], MigrationTerms { latency_budget_permille: 100_000, ..terms() });
    let moved = until_over(&a, || load.run_for(Duration::from_millis(20)));
    assert_eq!(moved.state, "moved", "{moved:?}");
    assert!(moved.elapsed_ms >= 1000, "{moved:?}");
    assert!(moved.p99_before_ns.is_some() && moved.p99_ns.is_some(), "{moved:?}");
    let here = timeline(&a);
    let is_in_order = |line: &Timeline| line.points.windows(2).all(|two| two[0].at_us < two[1].at_us);
    assert!(is_in_order(&here) && here.points.len() > 20, "{here:?}");
    let ends = here.points.first().zip(here.points.last());
    assert!(ends.is_some_and(|(first, last)| first.ios < last.ios), "{here:?}");
    let states: Vec<_> = here.marks.iter().map(|mark| mark.state.as_str()).collect();
    assert_eq!(states, ["copying", "switching over", "granted", "moved"]);
    let mut load = load.leave().go_on(b.connect("vm"));
    load.run_for(Duration::from_millis(300));
    load.finish();
    let there = timeline(&b);
    assert!(
        is_in_order(&there) && there.marks.last().is_some_and(|mark| mark.state == "arrived"),
        "{there:?}"
    );
    assert!(there.points.last().is_some_and(|last| last.ios > 0), "{there:?}");
    a.stop();
    b.stop();
}

/// As soon as an engine knows of it.
pub(crate) fn steer(house: &House, steer: Steer) {
    let request = Request::Engine(EngineRequest::Steer { ssd: "vm".to_owned(), steer });
    let deadline = Instant::now() + PATIENCE;
    while let Response::Error(why) = house.ask(&request) {
        if !why.contains("ask again") {
            return;
        }
        assert!(Instant::now() < deadline, "{why}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Who asks too early is told so, and not that nothing is under way.
#[test]
fn a_migration_is_in_the_first_list_of_each_engine() {
    let hosts = Hosts::new();
    let a = House::start_with(&[("vm", FILE)], 2, &hosts.sections[0]);
    until_it_is(&a, "serving");
    write_journal(&a, &granted("127.0.0.1:1"));
    a.kill();
    until_it_is(&a, "granted");
    for _ in 0..20 {
        let killed = a.kill();
        let deadline = Instant::now() + PATIENCE;
        let first = loop {
            // What the one that was killed said last does not count.
            let answer = migrations(&a).filter(|_| a.pid() != killed);
            if let Some(list) = answer {
                break list;
            }
            assert!(Instant::now() < deadline, "no engine answers");
        };
        assert!(first.iter().any(|one| one.ssd == "vm" && !one.over), "{first:?}");
    }
    a.stop();
}

#[test]
fn an_ssd_that_is_on_its_way_is_not_moved_twice_and_does_not_grow() {
    let hosts = Hosts::new();
    let [a, b] = two_houses(&hosts, FILE, FILE);
    let mut load = Load::new(a.connect("vm"), 2, 16, 9);
    load.run_for(Duration::from_millis(100));
    let slow = MigrationTerms { bandwidth: 256 << 10, ..terms() };
    migrate_soon(&a, &hosts.addresses[1], slow);
    let again = migrate(&a, &hosts.addresses[1], terms()).unwrap_err();
    assert!(again.contains("is being moved already"), "{again}");
    let grown = a.config(&[("vm", FILE)], 128) + &hosts.sections[0];
    let refused = a.apply_text(grown.clone()).unwrap_err();
    assert!(refused.contains("is being moved: wait"), "{refused}");
    steer(&a, Steer::Cancel);
    until_over(&a, || load.run_for(Duration::from_millis(10)));
    a.apply_text(grown).unwrap();
    load.finish();
    a.stop();
    b.stop();
}

#[test]
fn an_encrypted_ssd_goes_to_a_host_with_a_key_of_its_own() {
    let hosts = Hosts::new();
    let key = |number: u8| {
        format!("}}\nencryption = {{ key_command = [\"/usr/bin/printf\", \"%0128d\", \"{number}\"] ")
    };
    let backend = |number: u8| FILE.replace('}', &key(number)) + "}";
    let there = backend(2) + "\nincoming = true";
    let a = House::start_with(&[("vm", &backend(1))], 2, &hosts.sections[0]);
    let b = House::start_with(&[("vm", &there)], 2, &hosts.sections[1]);
    let mut load = Load::new(a.connect("vm"), 2, 16, 11);
    load.run_for(Duration::from_millis(200));
    migrate_soon(&a, &hosts.addresses[1], terms());
    let moved = until_over(&a, || load.run_for(Duration::from_millis(10)));
    assert_eq!(moved.state, "moved", "{moved:?}");
    load.leave().go_on(b.connect("vm")).finish();
    a.stop();
    b.stop();
}

/// Of an ssd that was granted and is taken back in the same engine: what its guest asked for before goes on, and is not failed for want of its memory.
#[test]
fn an_ssd_that_is_taken_back_goes_on_with_its_guests_commands() {
    let hosts = Hosts::new();
    let limits = "\n[ssd.limits]\niops = 20\niops_burst = 20\n";
    let a = House::start_with(&[("vm", &format!("{FILE}{limits}"))], 2, &hosts.sections[0]);
    let mut driver = a.connect("vm");
    driver.create_queue_pair(1, 64).unwrap();
    let buffer = driver.ram().clone().alloc_with(&[0x5a; 512]).unwrap();
    // More than the burst: the last ones are taken, and wait.
    for block in 0..50 {
        let write = guest::nvme::Sqe::new(1).nsid(1).prp(buffer.iova(), 0).qword(10, block).cdw12(0);
        driver.submit(1, write).unwrap();
    }
    write_journal(&a, &granted("127.0.0.1:1"));
    a.kill();
    until_it_is(&a, "granted");
    let deadline = Instant::now() + PATIENCE;
    while a.status().ssds[0].state != "serving" {
        assert!(Instant::now() < deadline);
        steer(&a, Steer::Force);
        std::thread::sleep(Duration::from_millis(20));
    }
    // Nobody could be asked, and whoever forced it is told what that may mean.
    let reason = a.status().ssds[0].reason.clone().unwrap_or_default();
    assert!(reason.contains("it is used twice"), "{reason}");
    for _ in 0..50 {
        driver.wait_any(1, PATIENCE).unwrap().ok().unwrap();
    }
    drop(driver);
    a.stop();
}

/// Of a source that has granted its ssd.
fn granted(peer: &str) -> MigrationV1 {
    MigrationV1 {
        ssd: [7; 16],
        peer: peer.to_owned(),
        migration: [8; 16],
        epoch: 5,
        round: 1,
        source: Some(SourceV1 { held: 4, step: SourceStepV1::Granted }),
        destination: None,
        keep: None,
        closed: None,
        wiped: None,
        hypervisor: None,
        limits: None,
    }
}

fn write_journal(house: &House, record: &MigrationV1) {
    std::fs::write(house.path("vm.state.migration"), record.to_bytes().unwrap()).unwrap();
}

#[test]
fn an_ssd_that_the_other_host_says_it_owns_is_not_taken_by_force() {
    let hosts = Hosts::new();
    let address = &hosts.addresses[1];
    // Nobody listens there for hosts until it is owned there.
    let port = TcpListener::bind(address).unwrap();
    let [a, b] = two_houses(&hosts, FILE, FILE);
    until_it_is(&b, "incoming");
    write_journal(
        &b,
        &MigrationV1 {
            source: None,
            destination: Some(DestinationV1 { step: DestinationStepV1::Owned, fenced_by: None }),
            ..granted("host-0")
        },
    );
    write_journal(&a, &granted(address));
    a.kill();
    until_it_is(&a, "granted");
    drop(port);
    b.kill();
    let deadline = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    steer(&a, Steer::Force);
    until_it_is(&a, "gone");
    until_it_is(&b, "serving");
    until_over(&a, || {});
    a.stop();
    b.stop();
}

/// What its guest asked for waits for a word that does not come: a host that is told to end does not wait for it.
#[test]
fn a_host_whose_ssd_is_granted_ends_when_it_is_told_to() {
    let hosts = Hosts::new();
    let [a, b] = two_houses(&hosts, FILE, FILE);
    let relay = Relay::new(hosts.addresses[1].parse().unwrap()).unwrap();
    // A way that is long enough to see the moment.
    relay.delay(Duration::from_millis(400));
    let mut driver = a.connect("vm");
    driver.create_queue_pair(1, 64).unwrap();
    let buffer = driver.ram().clone().alloc_with(&[0x5a; 512]).unwrap();
    migrate_soon(&a, &relay.address().to_string(), MigrationTerms { max_stun_us: 10_000_000, ..terms() });
    let deadline = Instant::now() + PATIENCE;
    while status(&a).state != "granted" {
        assert!(Instant::now() < deadline && !status(&a).over, "{:?}", status(&a));
        std::thread::sleep(Duration::from_millis(5));
    }
    relay.stall();
    let write = guest::nvme::Sqe::new(1).nsid(1).prp(buffer.iova(), 0).cdw12(0);
    driver.submit(1, write).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(status(&a).state, "granted");
    a.stop();
    drop((relay, driver));
    b.stop();
}

/// A virtio-blk disk of which some requests wait for their limits when it goes.
#[test]
fn a_disk_with_requests_that_wait_for_its_limits_goes_all_the_same() {
    let hosts = Hosts::new();
    let limits = "[ssd.limits]\niops = 10\niops_burst = 70\n";
    let backend = format!("virtio-blk on {FILE}\njournal = \"DIR/vm.migration\"\n{limits}");
    let [a, b] = two_houses(&hosts, &backend, &backend);
    let mut driver = guest::vhost_user::Driver::connect(a.socket("vm"), Default::default()).unwrap();
    (0..64).for_each(|at| disk::write(&mut driver, at * 64, at as u8 + 1));
    migrate_soon(&a, &hosts.addresses[1], terms());
    let mut placed = Vec::new();
    // More than the burst: the last ones wait.
    for at in 0..20 {
        let (buffer, _) =
            disk::place(&mut driver, guest::vhost_user::request::IN, at * 64, vec![0; 4096], true);
        placed.push(buffer);
        driver.queues[0].publish().unwrap();
    }
    let moved = until_over(&a, || {});
    assert_eq!(moved.state, "moved", "{moved:?}");
    until_it_is(&a, "gone");
    // What waited is not answered any more: its guest is not told of an error.
    for buffer in &placed {
        let status = buffer.bytes(4096 + 64, 1)[0];
        assert!([guest::vhost_user::request::OK, guest::vhost_user::request::UNANSWERED].contains(&status));
    }
    drop(driver);
    until_it_is(&b, "serving");
    let mut driver = guest::vhost_user::Driver::connect(b.socket("vm"), Default::default()).unwrap();
    for at in 0..64 {
        assert_eq!(disk::read(&mut driver, at * 64), vec![at as u8 + 1; 4096], "block {at}");
    }
    drop(driver);
    a.stop();
    b.stop();
}

/// A client that was there before its disk: it is answered, what it asks of the drive waits, and it goes on with the data that came.
#[test]
fn a_hypervisor_that_waits_for_its_guest_is_answered_before_its_disk_has_come() {
    let hosts = Hosts::new();
    let backend = format!("virtio-blk on {FILE}\njournal = \"DIR/vm.migration\"\n");
    let backend = format!("{backend}hypervisor = \"DIR/qmp.sock\"\n");
    let [a, b] = two_houses(&hosts, &backend, &backend);
    let mut driver = guest::vhost_user::Driver::connect(a.socket("vm"), Default::default()).unwrap();
    (0..16).for_each(|at| disk::write(&mut driver, at * 64, at as u8 + 1));
    drop(driver);
    until_it_is(&b, "incoming");
    let mut waiting = guest::vhost_user::Driver::connect(b.socket("vm"), Default::default()).unwrap();
    assert_eq!(waiting.config().sectors, 64 << 11);
    let (first, _) = disk::place(&mut waiting, guest::vhost_user::request::IN, 3 * 64, vec![0; 4096], true);
    waiting.queues[0].publish().unwrap();
    b.kill();
    std::thread::sleep(Duration::from_millis(200));
    assert!(waiting.queues[0].ring.take().is_none(), "nothing of the drive is there yet");
    migrate_soon(&a, &hosts.addresses[1], terms());
    assert_eq!(until_over(&a, || {}).state, "moved");
    until_it_is(&b, "serving");
    disk::wait(&mut waiting);
    assert_eq!(first.bytes(0, 4096), [4; 4096]);
    for at in 0..16 {
        assert_eq!(disk::read(&mut waiting, at * 64), vec![at as u8 + 1; 4096], "block {at}");
    }
    b.kill();
    assert_eq!(disk::read(&mut waiting, 64), vec![2; 4096]);
    disk::write(&mut waiting, 64, 99);
    drop(waiting);
    // And back to where it went from, which waits as well, also after a kill. One that comes before it does is turned away.
    a.kill();
    let mut waiting = connect_to(&a, "vm", Default::default());
    migrate_soon(&b, &hosts.addresses[0], terms());
    assert_eq!(until_over(&b, || {}).state, "moved");
    assert_eq!(disk::read(&mut waiting, 64), vec![99; 4096]);
    drop(waiting);
    a.stop();
    b.stop();
}
