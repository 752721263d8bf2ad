//! The engine as a client sees it: a whole engine in this process, driven by the user-space guest over its sockets.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

mod host;

use guest::PATIENCE;
use guest::nvme::{Driver, Options, Sqe};
use guest::vfio_user::state;
use host::{FILE, Host, RAM, pattern, read, write};
use std::os::fd::AsFd;

#[test]
fn what_is_written_is_read_back_on_every_backend_with_data() {
    let host = Host::start(&[("ram", RAM), ("file", FILE)], 1);
    for name in ["ram", "file"] {
        let mut driver = host.connect(name);
        driver.create_queue_pair(1, 64).unwrap();
        for (at, len) in [(0, 512), (8, 4096), (1000, 65536), (4096, 1 << 20)] {
            write(&mut driver, 1, at, &pattern(at, len));
        }
        for (at, len) in [(0, 512), (8, 4096), (1000, 65536), (4096, 1 << 20)] {
            assert_eq!(read(&mut driver, 1, at, len), pattern(at, len), "{name} at {at}");
        }
        assert!(read(&mut driver, 1, 50_000, 4096).iter().all(|byte| *byte == 0));
    }
    host.stop();
}

#[test]
fn encrypted_data_is_noise_without_its_key_and_no_other_key_is_taken_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    std::fs::create_dir(&keys).unwrap();
    for (name, digit) in [("right", 'a'), ("wrong", 'b')] {
        std::fs::write(keys.join(name), format!("{}{}\n", "0".repeat(127), digit)).unwrap();
    }
    let with = |key: &str| format!("{FILE}\nencryption = {{ key_file = \"DIR/keys/{key}\" }}");
    let host = Host::start_in(directory, &[("file", &with("right"))], 1);
    let mut driver = host.connect("file");
    driver.create_queue_pair(1, 16).unwrap();
    let text = b"nobody reads this on the drive: ".repeat(4096);
    write(&mut driver, 1, 64, &text);
    assert_eq!(read(&mut driver, 1, 64, text.len()), text);
    assert!(read(&mut driver, 1, 4096, 8192).iter().all(|byte| *byte == 0), "never written");
    drop(driver);
    let directory = host.stop();
    let raw = std::fs::read(directory.path().join("disk.img")).unwrap();
    assert!(raw.iter().any(|byte| *byte != 0) && !raw.windows(32).any(|bytes| bytes == &text[..32]));

    for (backend, reason) in [(with("wrong"), "not the key"), (FILE.to_owned(), "is encrypted")] {
        let error = format!(
            "{:#}",
            Host::try_start(&host::text(&directory, &[("file", &backend)], 1)).err().unwrap()
        );
        assert!(error.contains(reason), "{error}");
    }
    let host = Host::start_in(directory, &[("file", &with("right"))], 1);
    let mut driver = host.connect("file");
    driver.create_queue_pair(1, 16).unwrap();
    assert_eq!(read(&mut driver, 1, 64, text.len()), text);
    host.stop();
}

#[test]
fn queue_pairs_on_several_reactors_serve_one_namespace() {
    let host = Host::start(&[("file", FILE)], 3);
    let mut driver = host.connect("file");
    for qid in 1..=8 {
        driver.create_queue_pair(qid, 32).unwrap();
    }
    for qid in 1..=8 {
        write(&mut driver, qid, u64::from(qid) * 64, &pattern(u64::from(qid), 16384));
    }
    for qid in 1..=8 {
        let other = qid % 8 + 1;
        assert_eq!(read(&mut driver, other, u64::from(qid) * 64, 16384), pattern(u64::from(qid), 16384));
    }
    for qid in 1..=8 {
        driver.delete_queue_pair(qid).unwrap();
    }
    driver.create_queue_pair(5, 16).unwrap();
    assert_eq!(read(&mut driver, 5, 64, 16384), pattern(1, 16384));
    host.stop();
}

#[test]
fn a_client_that_vanishes_leaves_the_ssd_to_the_next_with_all_it_had_written() {
    let host = Host::start(&[("file", FILE)], 2);
    for round in 0..5 {
        let mut driver = host.connect("file");
        driver.create_queue_pair(1, 256).unwrap();
        driver.create_queue_pair(2, 256).unwrap();
        for before in 0..round {
            assert_eq!(read(&mut driver, 2, before * 8, 4096), pattern(before, 4096));
        }
        write(&mut driver, 1, round * 8, &pattern(round, 4096));
        // Reads in flight while the client goes.
        let buffer = driver.ram().clone().alloc(1 << 20).unwrap();
        for at in 0..64 {
            let sqe = Sqe::new(2).nsid(1).prp(buffer.iova(), 0).qword(10, at * 8).cdw12(7);
            driver.place(1, sqe).unwrap();
        }
        driver.ring(1).unwrap();
    }
    host.stop();
}

#[test]
fn namespaces_and_data_outlive_the_engine() {
    let host = Host::start(&[("file", FILE)], 1);
    let mut driver = host.connect("file");
    let before = driver.identify(0, 1).unwrap();
    driver.create_queue_pair(1, 16).unwrap();
    write(&mut driver, 1, 0, &pattern(7, 8192));
    drop(driver);
    let directory = host.stop();
    let host = Host::start_in(directory, &[("file", FILE)], 2);
    let mut driver = host.connect("file");
    assert_eq!(driver.identify(0, 1).unwrap(), before);
    driver.create_queue_pair(1, 16).unwrap();
    assert_eq!(read(&mut driver, 1, 0, 8192), pattern(7, 8192));
    host.stop();
}

#[test]
fn a_guest_whose_memory_has_no_descriptor_is_served_by_messages_and_disturbs_nobody() {
    let host = Host::start(&[("near", RAM), ("far", RAM)], 1);
    let mut far = host.connect_with("far", Options { share_ram: false, ..Options::default() });
    let mut near = host.connect("near");
    near.create_queue_pair(1, 16).unwrap();
    far.create_queue_pair(1, 16).unwrap();
    write(&mut far, 1, 16, &pattern(3, 16384));
    assert_eq!(read(&mut far, 1, 16, 16384), pattern(3, 16384));
    assert!(far.client().dma_served() > 0);
    // The far client stalls with a command outstanding: it answers no message. The near one goes on.
    let buffer = far.ram().clone().alloc(4096).unwrap();
    far.submit(1, Sqe::new(2).nsid(1).prp(buffer.iova(), 0).qword(10, 0).cdw12(7)).unwrap();
    for at in 0..100 {
        write(&mut near, 1, at, &pattern(at, 512));
        assert_eq!(read(&mut near, 1, at, 512), pattern(at, 512));
    }
    drop(far);
    let mut far = host.connect("far");
    far.create_queue_pair(1, 16).unwrap();
    assert_eq!(read(&mut far, 1, 16, 16384), pattern(3, 16384));
    host.stop();
}

#[test]
fn completions_interrupt_by_msix() {
    let host = Host::start(&[("ram", RAM)], 2);
    let mut driver = host.connect("ram");
    driver.enable_msix(4).unwrap();
    for qid in 1..=3_u16 {
        driver.create_cq(qid, 16, Some(qid)).unwrap();
        driver.create_sq(qid, qid, 16).unwrap();
    }
    for qid in 1..=3_u16 {
        read(&mut driver, qid, 0, 4096);
        let fired = driver.wait_interrupt(usize::from(qid), PATIENCE).unwrap();
        assert!(fired.is_some(), "vector {qid}");
    }
    host.stop();
}

#[test]
fn an_unmap_waits_for_the_io_that_uses_the_memory() {
    let host = Host::start(&[("file", FILE)], 2);
    let mut driver = host.connect("file");
    driver.create_queue_pair(1, 256).unwrap();
    driver.create_queue_pair(2, 256).unwrap();
    for round in 0..20_u64 {
        let extra = guest::ram::Ram::new(1 << 20, 0x80_0000_0000).unwrap();
        driver.client().dma_map(extra.iova(), extra.len() as u64, Some((extra.fd(), 0))).unwrap();
        for at in 0..128_u64 {
            let qid = u16::try_from(at % 2 + 1).unwrap();
            let sqe = Sqe::new(2).nsid(1).prp(extra.iova() + at * 4096, 0).qword(10, at * 8).cdw12(7);
            driver.place(qid, sqe).unwrap();
        }
        driver.ring(1).unwrap();
        driver.ring(2).unwrap();
        driver.client().dma_unmap(extra.iova(), extra.len() as u64).unwrap();
        // From here on nothing may write to that memory.
        extra.mapping().fill(0, extra.len(), 0xa5);
        for _ in 0..128 {
            while driver.poll(1).unwrap().is_none() && driver.poll(2).unwrap().is_none() {}
        }
        let mut bytes = vec![0; extra.len()];
        extra.mapping().read(0, &mut bytes);
        assert!(bytes.iter().all(|byte| *byte == 0xa5), "round {round}");
    }
    host.stop();
}

#[test]
fn a_client_that_shrinks_its_memory_is_hung_up_on_and_harms_nobody() {
    let host = Host::start(&[("bad", RAM), ("good", RAM)], 1);
    let mut good = host.connect("good");
    good.create_queue_pair(1, 16).unwrap();
    let mut bad = host.connect("bad");
    bad.create_queue_pair(1, 16).unwrap();
    // A memfd of the driver's own cannot shrink; this one can.
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(1 << 20).unwrap();
    bad.client().dma_map(0x70_0000_0000, 1 << 20, Some((file.as_fd(), 0))).unwrap();
    file.set_len(0).unwrap();
    let sqe = Sqe::new(1).nsid(1).prp(0x70_0000_0000, 0).qword(10, 0).cdw12(7);
    let _ = bad.submit(1, sqe);
    let mut byte = [0];
    bad.client().stream().set_read_timeout(Some(PATIENCE)).unwrap();
    let got = std::io::Read::read(&mut bad.client().stream(), &mut byte);
    assert_eq!(got.unwrap(), 0, "the engine hung up");
    write(&mut good, 1, 0, &pattern(1, 4096));
    assert_eq!(read(&mut good, 1, 0, 4096), pattern(1, 4096));
    drop(bad);
    let mut next = host.connect("bad");
    next.create_queue_pair(1, 16).unwrap();
    write(&mut next, 1, 0, &pattern(2, 4096));
    host.stop();
}

fn take(host: &Host) -> Vec<u64> {
    let mut pages = Vec::new();
    host.engine().take_written("file", &mut |at| pages.push(at)).unwrap();
    pages
}

/// Nobody asks by a message: QEMU up to 11.1 does not.
#[test]
fn the_engine_itself_hears_what_a_controller_writes_whatever_the_client_does_meanwhile() {
    for share_ram in [true, false] {
        let host = Host::start(&[("file", FILE)], 2);
        let engine = host.engine();
        assert!(engine.take_written("file", &mut |_| ()).is_err());
        assert!(engine.log_written("other").is_err());
        let mut driver = host.connect_with("file", Options { share_ram, ..Options::default() });
        (1..=2).for_each(|qid| driver.create_queue_pair(qid, 32).unwrap());
        write(&mut driver, 1, 0, &pattern(1, 8192));
        engine.log_written("file").unwrap();
        assert!(engine.log_written("file").is_err(), "twice");
        let ram = driver.ram().clone();
        let whole = (ram.iova(), ram.len() as u64);
        assert!(driver.client().start_dma_logging(4096, &[whole]).is_err(), "the client's own");
        let buffer = ram.alloc(8192).unwrap();
        let check = |driver: &mut Driver, step: &str| {
            let found = take(&host);
            for qid in 1..=2 {
                driver.read(qid, 1, 0, 16, &buffer).unwrap().ok().unwrap();
            }
            let mut expected = vec![buffer.iova(), buffer.iova() + 4096];
            expected.extend((1..=2).map(|qid| driver.cq(qid).unwrap().ring().iova()));
            expected.sort_unstable();
            // Memory without a descriptor is written by messages, which a hypervisor logs.
            let expected = if share_ram { expected } else { vec![] };
            assert_eq!((step, take(&host)), (step, expected), "{found:x?}");
        };
        check(&mut driver, "armed");
        let extra = guest::ram::Ram::new(1 << 20, 0x80_0000_0000).unwrap();
        driver.client().dma_map(extra.iova(), extra.len() as u64, Some((extra.fd(), 0))).unwrap();
        driver.io(1, Sqe::new(2).nsid(1).prp(extra.iova() + 4096, 0).cdw12(7)).unwrap().ok().unwrap();
        assert!(take(&host).contains(&(extra.iova() + 4096)));
        check(&mut driver, "mapped");
        driver.client().set_migration_state(state::STOP).unwrap();
        driver.client().set_migration_state(state::RUNNING).unwrap();
        check(&mut driver, "stopped and run");
        driver.client().dma_unmap(extra.iova(), extra.len() as u64).unwrap();
        check(&mut driver, "unmapped");
        let far = (1 << 41) - 4096;
        driver.client().dma_map(far, extra.len() as u64, Some((extra.fd(), 0))).unwrap();
        assert!(engine.take_written("file", &mut |_| ()).is_err(), "memory that no log has");
        driver.client().dma_unmap(far, extra.len() as u64).unwrap();
        engine.end_log("file").unwrap();
        assert!(engine.take_written("file", &mut |_| ()).is_err());
        driver.client().start_dma_logging(4096, &[whole]).unwrap();
        assert!(engine.log_written("file").is_err(), "the client has one");
        driver.client().stop_dma_logging().unwrap();
        driver.client().set_migration_state(state::STOP).unwrap();
        engine.log_written("file").unwrap();
        driver.client().set_migration_state(state::RUNNING).unwrap();
        check(&mut driver, "armed while it stood still");
        drop(driver);
        let mut next = host.connect_with("file", Options { share_ram, ..Options::default() });
        (1..=2).for_each(|qid| next.create_queue_pair(qid, 32).unwrap());
        assert_eq!(read(&mut next, 2, 0, 8192), pattern(1, 8192));
        assert_eq!(take(&host).is_empty(), !share_ram, "of the next guest, too");
        engine.end_log("file").unwrap();
        drop(next);
        host.stop();
    }
}

/// The home is asked while it has the session's calls to answer.
#[test]
fn a_log_comes_and_goes_under_load_and_under_messages_that_wait() {
    let host = Host::start(&[("file", FILE)], 2);
    let mut driver = host.connect("file");
    driver.create_queue_pair(1, 64).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let arming = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                host.engine().log_written("file").unwrap();
                take(&host);
                host.engine().end_log("file").unwrap();
                rounds += 1;
            }
            rounds
        });
        let extra = guest::ram::Ram::new(1 << 20, 0x80_0000_0000).unwrap();
        for round in 0..300 {
            driver.client().dma_map(extra.iova(), extra.len() as u64, Some((extra.fd(), 0))).unwrap();
            driver.io(1, Sqe::new(2).nsid(1).prp(extra.iova(), 0).cdw12(7)).unwrap().ok().unwrap();
            driver.client().dma_unmap(extra.iova(), extra.len() as u64).unwrap();
            if round % 50 == 49 {
                driver.client().reset().unwrap();
                driver.enable().unwrap();
                driver.create_queue_pair(1, 64).unwrap();
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        println!("{} times", arming.join().unwrap());
    });
    drop(driver);
    host.stop();
}
