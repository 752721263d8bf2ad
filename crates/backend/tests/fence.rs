//! A process is killed with writes at the drive: once its ring is idle, none of them lands any more.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(unsafe_code, reason = "submits memory to a backend")]
// UNSAFETY: one call of `Backend::submit`, whose memory is leaked.

use backend::uring::Rings;
use backend::uring::fence::OldRing;
use backend::{Config, Drive, RingHolder};
use block::{Op, Outcome, Range, Request, Token};
use memory::Segment;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open, pidfd_send_signal};
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SIZE: u64 = 64 << 20;
const BLOCK: usize = 64 << 10;

struct Tell;

impl RingHolder for Tell {
    fn opened(&self, ring: BorrowedFd<'_>) -> std::io::Result<()> {
        println!("ring {}", ring.as_raw_fd());
        // Until the parent has its duplicate.
        std::io::stdin().read_line(&mut String::new()).map(drop)
    }

    fn closing(&self, _ring: BorrowedFd<'_>) {}
}

fn drive(path: &Path) -> Config {
    let mut config = backend::uring::Config::new(path);
    config.size_bytes = Some(SIZE);
    config.direct = backend::uring::Direct::Auto;
    Config::Uring(config)
}

/// The process that is killed: writes for ever, every block with the number of the write in each word.
#[test]
#[ignore = "a process of the tests below"]
fn victim() {
    let Some(path) = std::env::var_os("GODWIT_VICTIM") else { return };
    let drive = Drive::open(&drive(Path::new(&path))).unwrap();
    let mut door = drive.door(&Rings::new(Some(Arc::new(Tell)))).unwrap();
    let mut done = Vec::with_capacity(256);
    let blocks = SIZE / BLOCK as u64;
    let buffers: Vec<&'static mut [u64]> =
        (0..256).map(|_| &mut *Box::leak(vec![0_u64; BLOCK / 8 + 512].into_boxed_slice())).collect();
    let mut buffers: Vec<(*mut u64, usize)> = buffers
        .into_iter()
        .map(|buffer| (buffer.as_mut_ptr().map_addr(|at| at.next_multiple_of(4096)), BLOCK))
        .collect();
    let mut free: Vec<usize> = (0..256).collect();
    for number in 1_u64.. {
        while free.is_empty() {
            door.kick();
            door.poll(&mut done);
            for (token, outcome) in done.drain(..) {
                assert_eq!(outcome, Outcome::Done);
                free.push(usize::try_from(token.0).unwrap());
            }
        }
        let slot = free.pop().unwrap();
        let (at, len) = buffers[slot];
        for word in 0..len / 8 {
            // SAFETY: inside a leaked buffer that no request uses now.
            unsafe { at.add(word).write(number) };
        }
        let range =
            Range { start_bytes: number.wrapping_mul(37) % blocks * BLOCK as u64, len_bytes: BLOCK as u64 };
        let data = [Segment::from_raw(at.cast(), len)];
        let token = Token(slot as u64);
        // SAFETY: a leaked buffer.
        unsafe { door.submit(&Request { token, op: Op::Write { fua: false }, range, data: &data }) };
        buffers[slot] = (at, len);
        door.kick();
    }
}

fn start(path: &Path) -> (Child, OwnedFd, OwnedFd) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--ignored", "--nocapture"])
        .env("GODWIT_VICTIM", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ring = lines
        .map(Result::unwrap)
        .find_map(|line| line.split_once("ring ").map(|(_, number)| number.trim().parse::<i32>().unwrap()))
        .unwrap();
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
    let ring = pidfd_getfd(&pidfd, ring, PidfdGetfdFlags::empty()).unwrap();
    drop(child.stdin.take());
    (child, pidfd, ring)
}

#[test]
fn no_write_of_a_killed_process_lands_once_its_ring_is_idle() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("disk.img");
    let (mut most, mut longest) = (0, Duration::ZERO);
    for round in 0..10 {
        let (mut child, pidfd, ring) = start(&path);
        std::thread::sleep(Duration::from_millis(20 + round * 7));
        pidfd_send_signal(&pidfd, Signal::KILL).unwrap();
        child.wait().unwrap();
        let old = OldRing::new(std::process::id(), ring.as_raw_fd()).unwrap();
        let start = Instant::now();
        most = most.max(old.wait(Duration::from_secs(30)).unwrap());
        longest = longest.max(start.elapsed());
        let after = std::fs::read(&path).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert!(after == std::fs::read(&path).unwrap(), "round {round}: a write landed after the fence");
    }
    println!("at most {most} writes were in flight at the end of a process, ended within {longest:?}");
}

#[test]
fn what_is_no_ring_is_refused() {
    let file = tempfile::tempfile().unwrap();
    assert!(OldRing::new(std::process::id(), file.as_raw_fd()).is_err());
}
