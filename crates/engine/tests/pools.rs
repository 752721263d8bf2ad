//! Ssds in a pool, as their clients see them: a whole engine in this process, driven by the user-space guest over its sockets.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

mod host;

use api::control::{PoolRequest, PoolStatus, Response};
use guest::PATIENCE;
use guest::nvme::{Driver, Sqe};
use host::{Host, pattern, read, write};
use std::time::{Duration, Instant};

const THIN: &str = "{ type = \"pool\", pool = \"p\", thin = true }";
const FULL: &str = "{ type = \"pool\", pool = \"p\" }";
/// An extent in blocks of 512 bytes.
const EXTENT: u64 = 2048;

fn pool(host: &Host) -> PoolStatus {
    match host.ask(PoolRequest::List) {
        Response::Pool(mut pools) => pools.pop().unwrap(),
        other => panic!("{other:?}"),
    }
}

fn done(host: &Host, request: PoolRequest) {
    match host.ask(request) {
        Response::Done(_) => {}
        other => panic!("{other:?}"),
    }
}

fn names(volume: &str) -> (String, String) {
    ("p".to_owned(), volume.to_owned())
}

/// Until nothing is being wiped.
fn wiped(host: &Host) -> PoolStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let pool = pool(host);
        if pool.wiping == 0 {
            return pool;
        }
        assert!(Instant::now() < deadline, "{pool:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn connect(host: &Host, name: &str) -> Driver {
    let mut driver = host.connect(name);
    driver.create_queue_pair(1, 64).unwrap();
    driver
}

#[test]
fn what_is_written_is_read_back_also_after_a_restart_and_the_rest_reads_as_zeros() {
    let ssds = [("thin", THIN), ("full", FULL)];
    let mut host = Host::start(&ssds, 2);
    let places =
        [(0, 512), (8, 4096), (EXTENT - 8, 65536), (10 * EXTENT, 1 << 20), (20 * EXTENT - 100, 1 << 20)];
    for round in 0..2 {
        for (name, salt) in [("thin", 1), ("full", 2)] {
            let mut driver = connect(&host, name);
            for (at, len) in places {
                if round == 0 {
                    write(&mut driver, 1, at, &pattern(at + salt, len));
                }
                assert_eq!(read(&mut driver, 1, at, len), pattern(at + salt, len), "{name} at {at}");
            }
            assert!(read(&mut driver, 1, 40 * EXTENT, 1 << 20).iter().all(|byte| *byte == 0));
        }
        let pool = pool(&host);
        let of = |name: &str| pool.volumes.iter().find(|one| one.name == name).unwrap().clone();
        assert_eq!((of("full").mapped_bytes, of("thin").mapped_bytes), (64 << 20, 5 << 20), "{pool:?}");
        host = Host::start_in(host.stop(), &ssds, 1);
    }
    host.stop();
}

#[test]
fn discarded_space_is_given_back_reads_as_zeros_and_is_clean_for_the_next() {
    let host = Host::start(&[("a", THIN), ("b", THIN)], 1);
    let (mut a, mut b) = (connect(&host, "a"), connect(&host, "b"));
    let before = pool(&host).free;
    // Backwards: who writes in order is given some ahead.
    for extent in (0..8).rev() {
        write(&mut a, 1, extent * EXTENT, &vec![0xA5; 1 << 20]);
    }
    assert_eq!(pool(&host).free, before - 8);
    a.deallocate(1, 1, &[(EXTENT, 6 * EXTENT as u32)]).unwrap().ok().unwrap();
    assert!(read(&mut a, 1, EXTENT, 1 << 20).iter().all(|byte| *byte == 0));
    assert_eq!(read(&mut a, 1, 0, 4096), [0xA5; 4096]);
    assert_eq!(read(&mut a, 1, 7 * EXTENT, 4096), [0xA5; 4096]);
    assert_eq!(wiped(&host).free, before - 2);
    // All that is free becomes b's, by a block each: the rest of each extent must read as zeros.
    for extent in 0..64 {
        write(&mut b, 1, extent * EXTENT, &[1; 512]);
        let rest = read(&mut b, 1, extent * EXTENT + 1, (1 << 20) - 512);
        assert!(rest.iter().all(|byte| *byte == 0), "extent {extent}");
    }
    host.stop();
}

#[test]
fn a_deleted_ssds_bytes_are_never_read_by_the_next() {
    let host = Host::start(&[("a", FULL)], 1);
    let mut a = connect(&host, "a");
    for extent in 0..64 {
        write(&mut a, 1, extent * EXTENT, &vec![0x5A; 1 << 20]);
    }
    let (name, volume) = names("a");
    let refused = host.ask(PoolRequest::Delete { pool: name.clone(), volume: volume.clone() });
    assert!(matches!(refused, Response::Error(_)), "it is served");
    drop(a);
    let directory = host.stop();
    // Another of the same name, after the first is gone: what it was given may have been the first's.
    let host = Host::start_in(directory, &[("other", THIN)], 1);
    done(&host, PoolRequest::Delete { pool: name, volume });
    let directory = host.stop();
    std::fs::remove_file(directory.path().join("a.state")).unwrap();
    let host = Host::start_in(directory, &[("a", THIN), ("b", THIN), ("c", THIN)], 1);
    for name in ["a", "b", "c"] {
        let mut driver = connect(&host, name);
        for extent in 0..20 {
            write(&mut driver, 1, extent * EXTENT, &[1; 512]);
            let rest = read(&mut driver, 1, extent * EXTENT + 1, (1 << 20) - 512);
            assert!(rest.iter().all(|byte| *byte == 0), "{name} extent {extent}");
        }
    }
    host.stop();
}

#[test]
fn a_full_pool_parks_writes_and_lets_them_go_when_space_appears() {
    let host = Host::start_with_pool("64MiB", &[("a", THIN), ("b", THIN)], 1);
    let (mut a, mut b) = (connect(&host, "a"), connect(&host, "b"));
    let free = pool(&host).free;
    assert!(free > 10 && free < 128, "{free}");
    write(&mut b, 1, 0, &[7; 4096]);
    let mut extent = 0;
    while pool(&host).free > 0 {
        assert!(extent < 64);
        write(&mut a, 1, extent * EXTENT, &vec![9; 1 << 20]);
        extent += 1;
    }
    // No space: it waits, all else goes on, of the same ssd and of the other.
    let buffer = b.ram().clone().alloc_with(&[3; 4096]).unwrap();
    let sqe = Sqe::new(1).nsid(1).prp(buffer.iova(), 0).qword(10, 30 * EXTENT).cdw12(7);
    let parked = b.submit(1, sqe).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while pool(&host).waiting == 0 {
        assert!(Instant::now() < deadline);
    }
    b.create_queue_pair(2, 16).unwrap();
    write(&mut b, 2, 8, &[8; 4096]);
    assert_eq!(read(&mut b, 2, 8, 4096), [8; 4096]);
    assert_eq!(read(&mut a, 1, 0, 4096), [9; 4096]);
    assert!(b.poll(1).unwrap().is_none(), "answered without space");
    a.deallocate(1, 1, &[(2 * EXTENT, EXTENT as u32)]).unwrap().ok().unwrap();
    b.wait(1, parked).unwrap().ok().unwrap();
    assert_eq!(read(&mut b, 1, 30 * EXTENT, 4096), [3; 4096]);
    assert!(read(&mut b, 1, 30 * EXTENT + 8, 4096).iter().all(|byte| *byte == 0), "a's bytes");
    host.stop();
}

#[test]
fn a_guest_that_deletes_a_queue_or_resets_its_controller_waits_for_no_write_that_waits_for_space() {
    let key = "encryption = { key_command = [\"/bin/sh\", \"-c\", \"printf %0128d 1\"] }";
    let sealed = format!("{THIN}\n{key}");
    let host = Host::start_with_pool("64MiB", &[("a", THIN), ("plain", THIN), ("sealed", &sealed)], 2);
    let mut a = connect(&host, "a");
    let mut extent = 0;
    while pool(&host).free > 0 {
        write(&mut a, 1, extent * EXTENT, &[9; 512]);
        extent += 1;
    }
    for name in ["plain", "sealed"] {
        let mut driver = connect(&host, name);
        for qid in 2..=3 {
            driver.create_queue_pair(qid, 16).unwrap();
        }
        let buffer = driver.ram().clone().alloc_with(&[3; 4096]).unwrap();
        let sqe = |extent: u64| Sqe::new(1).nsid(1).prp(buffer.iova(), 0).qword(10, extent * EXTENT).cdw12(7);
        let waiting = pool(&host).waiting;
        let parked: Vec<_> = (1..=3).map(|qid| driver.submit(qid, sqe(u64::from(qid))).unwrap()).collect();
        let deadline = Instant::now() + PATIENCE;
        while pool(&host).waiting < waiting + 3 {
            assert!(Instant::now() < deadline);
        }
        driver.delete_sq(2).unwrap();
        let aborted = driver.wait(2, parked[1]).unwrap();
        assert_eq!(aborted.status.code(), (0, 0x08), "Command Aborted due to SQ Deletion");
        for qid in [1, 3] {
            assert!(driver.poll(qid).unwrap().is_none(), "the others wait on");
        }
        driver.enable().unwrap();
        driver.create_queue_pair(1, 16).unwrap();
        drop(read(&mut driver, 1, 3 * EXTENT, 4096));
    }
    host.stop();
}

#[test]
fn a_daemon_that_stops_does_not_wait_for_space() {
    let host = Host::start_with_pool("64MiB", &[("a", THIN), ("b", THIN)], 1);
    let mut a = connect(&host, "a");
    let mut extent = 0;
    while pool(&host).free > 0 {
        write(&mut a, 1, extent * EXTENT, &[9; 512]);
        extent += 1;
    }
    let mut b = connect(&host, "b");
    let buffer = b.ram().clone().alloc_with(&[3; 4096]).unwrap();
    b.submit(1, Sqe::new(1).nsid(1).prp(buffer.iova(), 0).qword(10, 0).cdw12(7)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while pool(&host).waiting == 0 {
        assert!(Instant::now() < deadline);
    }
    host.stop();
}

#[test]
fn a_snapshot_keeps_what_was_there_and_a_clone_goes_its_own_way() {
    let host = Host::start(&[("a", THIN)], 1);
    let mut a = connect(&host, "a");
    let all =
        |version: u64| (0..4).map(move |extent| (extent * EXTENT + 100, pattern(version + extent, 65536)));
    all(10).for_each(|(at, bytes)| write(&mut a, 1, at, &bytes));
    let (pool_name, volume) = names("a");
    let snapshot = PoolRequest::Snapshot { pool: pool_name.clone(), volume, name: "then".to_owned() };
    done(&host, snapshot);
    let free = pool(&host).free;
    for (at, bytes) in all(50).take(2) {
        write(&mut a, 1, at, &bytes);
        assert_eq!(read(&mut a, 1, at, 65536), bytes);
        assert!(read(&mut a, 1, at - 100, 51200).iter().all(|byte| *byte == 0), "copied with the rest");
    }
    assert_eq!(pool(&host).free, free - 2, "two extents were copied");
    let clone =
        PoolRequest::Clone { pool: pool_name.clone(), volume: "then".to_owned(), name: "b".to_owned() };
    done(&host, clone);
    drop(a);
    let host = Host::start_in(host.stop(), &[("a", THIN), ("b", THIN)], 2);
    let (mut a, mut b) = (connect(&host, "a"), connect(&host, "b"));
    for ((at, old), (_, new)) in all(10).zip(all(50)) {
        assert_eq!(read(&mut b, 1, at, 65536), old);
        assert_eq!(read(&mut a, 1, at, 65536), if at < 2 * EXTENT { new } else { old });
    }
    for (at, bytes) in all(90) {
        write(&mut b, 1, at, &bytes);
    }
    for ((at, old), (_, new)) in all(10).zip(all(50)) {
        assert_eq!(read(&mut a, 1, at, 65536), if at < 2 * EXTENT { new } else { old });
    }
    done(&host, PoolRequest::Delete { pool: pool_name, volume: "then".to_owned() });
    wiped(&host);
    for ((at, latest), (_, old)) in all(90).zip(all(10)) {
        assert_eq!(read(&mut b, 1, at, 65536), latest);
        if at >= 2 * EXTENT {
            assert_eq!(read(&mut a, 1, at, 65536), old);
        }
    }
    host.stop();
}

#[test]
fn a_volume_grows_by_itself_only_while_nobody_serves_it() {
    let host = Host::start(&[("a", THIN)], 1);
    drop(connect(&host, "a"));
    let (pool, volume) = names("a");
    let grow =
        |mib: u64| PoolRequest::Grow { pool: pool.clone(), volume: volume.clone(), size_bytes: mib << 20 };
    // The configuration, which the next engine begins with, would say less than there is.
    let Response::Error(why) = host.ask(grow(128)) else { panic!("its configuration says 64 MiB") };
    assert!(why.contains("godwit apply"), "{why}");
    let host = Host::start_in(host.stop(), &[("other", THIN)], 1);
    done(&host, grow(128));
    assert!(matches!(host.ask(grow(64)), Response::Error(_)));
    host.stop();
}
