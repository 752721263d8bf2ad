//! Rows 16 and 18: guest memory that is not what it is said to be.

use crate::host::{FILE, RAM};
use crate::siege::{Siege, create_rings, page_io};
use guest::PATIENCE;
use guest::ram::Ram;
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

fn open(path: &str, flags: OFlags) -> OwnedFd {
    rustix::fs::open(path, flags, Mode::empty()).unwrap()
}

#[test]
fn row_16_a_descriptor_that_is_no_memory_is_refused() {
    Siege::run(RAM, 2, |siege| {
        let mut driver = siege.connect();
        driver.create_queue_pair(1, 16).unwrap();
        let (small, (pipe, _end)) = (Ram::new(4096, 0).unwrap(), rustix::pipe::pipe().unwrap());
        let socket = std::os::unix::net::UnixStream::pair().unwrap();
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
        let (directory, null) = (open("/tmp", OFlags::RDONLY), open("/dev/null", OFlags::RDWR));
        let read_only = open("/proc/self/exe", OFlags::RDONLY);
        let wrong: [(&str, std::os::fd::BorrowedFd<'_>, u64); 8] = [
            ("too small", small.fd(), 8192),
            ("offset past its end", small.fd(), 4096),
            ("a pipe", pipe.as_fd(), 4096),
            ("a socket", socket.0.as_fd(), 4096),
            ("an eventfd", event.as_fd(), 4096),
            ("a directory", directory.as_fd(), 4096),
            ("a device", null.as_fd(), 4096),
            ("a file that cannot be written", read_only.as_fd(), 4096),
        ];
        let at = 0x50_0000_0000;
        for (what, fd, len) in wrong {
            let offset = if what.starts_with("offset") { 4096 } else { 0 };
            assert!(driver.client().dma_map(at, len, Some((fd, offset))).is_err(), "{what}");
        }
        // And after all that the address is free.
        driver.client().dma_map(at, 4096, Some((small.fd(), 0))).unwrap();
        driver.io(1, page_io(2, at, 0)).unwrap().ok().unwrap();
    });
}

#[test]
fn row_16_rings_in_a_file_that_is_cut_off_end_the_session_and_nothing_else() {
    Siege::run(FILE, 3, |siege| {
        for round in 0..3 {
            let mut driver = siege.connect();
            let file = tempfile::tempfile_in("/dev/shm").unwrap();
            file.set_len(1 << 20).unwrap();
            let at = 0x70_0000_0000;
            driver.client().dma_map(at, 1 << 20, Some((file.as_fd(), 0))).unwrap();
            for qid in 1..=3 {
                let base = at + u64::from(qid) * 0x8000;
                create_rings(&mut driver, qid, 64, base, base + 0x4000).unwrap();
            }
            (1..=3).for_each(|qid| driver.write_doorbell(qid * 2, 40).unwrap());
            file.set_len([0, 4096, 0x9000][round]).unwrap();
            (1..=3).for_each(|qid| driver.write_doorbell(qid * 2, 20).unwrap());
            assert!(driver.client().is_closed(PATIENCE), "round {round}");
        }
    });
}

#[test]
fn row_18_hundreds_of_regions_that_overlap_wrap_and_go_under_io() {
    Siege::run(FILE, 3, |siege| {
        let mut driver = siege.connect();
        (1..=3).for_each(|qid| driver.create_queue_pair(qid, 256).unwrap());
        let (base, size, count) = (0x60_0000_0000_u64, 4096_u64, 500_u64);
        let ram = Ram::new((count * size) as usize, base).unwrap();
        // Every other page, so that nothing merges.
        for at in 0..count {
            driver.client().dma_map(base + at * 2 * size, size, Some((ram.fd(), at * size))).unwrap();
        }
        let bad: [(u64, u64); 7] = [
            (base, size),
            (base - size, 2 * size),
            (base, 1000 * size),
            (u64::MAX - 4095, 8192),
            (!4095, u64::MAX),
            (0, 0),
            (base + 1, 4096),
        ];
        for (iova, len) in bad {
            assert!(driver.client().dma_map(iova, len, Some((ram.fd(), 0))).is_err(), "{iova:#x} {len:#x}");
        }
        for (iova, len) in [(base, 2 * size), (base + size, size), (base, 0), (u64::MAX, 4096), (0, u64::MAX)]
        {
            assert!(driver.client().dma_unmap(iova, len).is_err(), "{iova:#x} {len:#x}");
        }
        for at in 0..count {
            let qid = (at % 3 + 1) as u16;
            driver.place(qid, page_io(2, base + at * 2 * size, at * 8)).unwrap();
            if at % 50 == 49 {
                (1..=3).for_each(|qid| driver.ring(qid).unwrap());
            }
        }
        // All go while their I/O may still run; whoever comes too late for its page gets an error.
        for at in 0..count {
            driver.client().dma_unmap(base + at * 2 * size, size).unwrap();
        }
        let mut ended = 0;
        for qid in 1..=3 {
            while driver.wait_any(qid, Duration::from_millis(if ended < count { 5000 } else { 10 })).is_ok() {
                ended += 1;
                if driver.sq(qid).unwrap().outstanding().is_empty() {
                    break;
                }
            }
        }
        assert_eq!(ended, count, "each command is answered once");
        ram.mapping().fill(0, ram.len(), 0x5a);
        std::thread::sleep(Duration::from_millis(20));
        let mut bytes = vec![0; ram.len()];
        ram.mapping().read(0, &mut bytes);
        assert!(bytes.iter().all(|byte| *byte == 0x5a), "nothing is written after an unmap");
    });
}
