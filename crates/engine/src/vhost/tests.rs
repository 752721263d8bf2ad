//! A disk on a drive that goes wrong. Configurations have no such drive, so the parts are put together here.

#[allow(clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]
#[path = "../../tests/disk/mod.rs"]
mod disk;

use super::disk::Disk;
use crate::clock::{Calibration, Clock};
use crate::crew::Crew;
use crate::message::Message;
use crate::reactor;
use crate::records::Records;
use crate::ssd::Ssd;
use crate::terms::{Hold, set_limits};
use api::config;
use backend::Config;
use backend::faulty::{How, On, Plan, Rule, When};
use block::{Fault, Now};
use disk::{Checked, kinds, place, read, transfer, wait, write};
use frontend::vfio_user::Shutdown;
use frontend::vhost_user::{Limits, serve};
use guest::PATIENCE;
use guest::ram::Buffer;
use guest::vhost_user::ring::Piece;
use guest::vhost_user::{Driver, Options, request};
use std::convert::Infallible;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn faulty(plan: Plan) -> Arc<Ssd> {
    crate::seat::tests::ssd(&Config::Faulty { inner: Box::new(Config::Ram { size_bytes: 64 << 20 }), plan })
}

/// Serves one client on a drive with this plan; the test is the client.
fn with_disk(plan: Plan, test: impl FnOnce(&Path)) {
    with_disk_of(&faulty(plan), |socket, _| test(socket));
}

fn with_disk_of(ssd: &Arc<Ssd>, test: impl FnOnce(&Path, &Crew)) {
    let (records, keeper) = Records::start().unwrap();
    let crew = Crew::new().unwrap();
    crew.call_up(1);
    let counters = crate::stats::Stats::open(None).unwrap().counters(0);
    let clock = Clock::calibrate(Calibration::begin());
    let options = reactor::Options { cpu: None, spin_ns: 20_000, idle_ns: 1_000_000, clock };
    let reactor = reactor::spawn(0, Arc::clone(&crew), options, records.clone(), None, counters).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("disk.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (client, _) = listener.accept().unwrap();
            let mut disk = Disk::new(Arc::clone(ssd), Arc::clone(&crew));
            serve(client, &mut disk, &Limits::default(), &Shutdown::new().unwrap());
            disk.leave();
        });
        test(&socket, &crew);
    });
    crew.address(0).send(Message::Stop);
    reactor.join().unwrap();
    drop(records);
    keeper.join().unwrap();
}

fn flush(driver: &mut Driver) -> u8 {
    let buffer = driver.ram().alloc(4096).unwrap();
    buffer.write(0, &request::header(request::FLUSH, 0));
    buffer.write(64, &[request::UNANSWERED]);
    let piece = |at: u64, len, device_writes| Piece { iova: buffer.iova() + at, len, device_writes };
    driver.queues[0].ring.add(&[piece(0, 16, false), piece(64, 1, true)]).unwrap();
    driver.queues[0].publish().unwrap();
    wait(driver);
    buffer.bytes(64, 1)[0]
}

#[test]
fn every_error_of_the_drive_is_the_status_of_its_request_and_of_no_other() {
    let rule = |on, nth, fault| Rule { on, when: When::Nth(nth), how: How::Refused, fault };
    let rules = vec![
        rule(On::Read, 2, Fault::Media),
        rule(On::Write, 3, Fault::NoSpace),
        rule(On::Write, 4, Fault::Gone),
        rule(On::Flush, 1, Fault::Media),
        rule(On::Discard, 1, Fault::Unsupported),
        rule(On::WriteZeroes, 1, Fault::Media),
    ];
    for packed in [false, true] {
        with_disk(Plan { rules: rules.clone(), ..Plan::default() }, |socket| {
            let mut driver = Driver::connect(socket, Options { packed, ..Options::default() }).unwrap();
            let mut done = |kind, sector, data, in_| transfer(&mut driver, kind, sector, data, in_).1;
            for (at, status) in (0..).zip([0, 0, IOERR, IOERR, 0]) {
                assert_eq!(done(request::OUT, at * 8, vec![7; 4096], false), status, "write {at}");
            }
            for (at, status) in (0..).zip([0, IOERR, 0]) {
                assert_eq!(done(request::IN, at * 8, vec![0; 4096], true), status, "read {at}");
            }
            let segment = request::segment(0, 8, 0).to_vec();
            assert_eq!(done(request::DISCARD, 0, segment.clone(), false), UNSUPPORTED);
            assert_eq!(done(request::WRITE_ZEROES, 0, segment.clone(), false), IOERR);
            assert_eq!(done(request::WRITE_ZEROES, 0, segment, false), 0);
            assert_eq!((flush(&mut driver), flush(&mut driver)), (IOERR, 0));
            // What was refused did nothing, and what was not did all.
            assert_eq!(read(&mut driver, 0), vec![0; 4096]);
            assert_eq!(read(&mut driver, 8), vec![7; 4096]);
            assert_eq!(read(&mut driver, 16), vec![0; 4096]);
        });
    }
}

#[test]
fn a_drive_that_fails_half_of_all_requests_at_depth_answers_each_once_with_its_own_status() {
    let rule = Rule { on: On::Read, when: When::Every(2), how: How::Refused, fault: Fault::Media };
    let plan =
        Plan { rules: vec![rule], delay: 300_000, delay_polls_max: 20, reorder: true, ..Plan::default() };
    with_disk(plan, |socket| {
        let mut driver = Driver::connect(socket, Options::default()).unwrap();
        for at in 0..64_u8 {
            write(&mut driver, u64::from(at) * 8, at + 1);
        }
        for _ in 0..20 {
            let reads: Vec<_> =
                (0..64).map(|at| place(&mut driver, request::IN, at * 8, vec![0; 4096], true)).collect();
            driver.queues[0].publish().unwrap();
            reads.iter().for_each(|_| wait(&mut driver));
            assert!(driver.queues[0].ring.take().is_none());
            let mut failed = 0;
            for (at, (buffer, _)) in (1..).zip(&reads) {
                let (data, status) = (buffer.bytes(0, 4096), buffer.bytes(4096 + 64, 1)[0]);
                failed += u8::from(status == IOERR);
                assert!(status == IOERR && data == [0; 4096] || status == 0 && data == [at; 4096], "{at}");
            }
            assert_eq!(failed, 32);
        }
    });
}

#[test]
fn a_drive_that_is_late_full_and_out_of_order_costs_no_request_and_no_byte() {
    for (seed, options) in (1..).zip(kinds().step_by(3)) {
        let plan = Plan {
            seed,
            delay: 300_000,
            delay_polls_max: 50,
            reorder: true,
            full: 100_000,
            full_submits_max: 8,
            ..Plan::default()
        };
        with_disk(plan, |socket| {
            let mut load = Checked::connect(socket, 1, 32, options, seed);
            load.run_for(Duration::from_millis(100));
            load.finish();
        });
    }
}

/// What the ssd's gate is from now on.
fn hold(ssd: &Ssd, hold: Hold, crew: &Crew) {
    ssd.terms.set_hold(hold);
    let (heard, all) = channel::<Infallible>();
    crew.tell_all(|| Message::Watch(ssd.id, heard.clone()));
    drop(heard);
    let _ = all.recv();
}

/// Its owner is elsewhere by then, where its guest finds it: an error would be believed.
#[test]
fn what_waits_at_a_gate_that_closes_is_not_answered_whenever_its_ring_is_stopped() {
    // The second would have to wait for more than an hour.
    let one = config::Rate { per_second: 1, burst: Some(4096) };
    let limits = config::Limits { bandwidth: Some(one), ..config::Limits::default() };
    for stopped_before_it_closes in [false, true] {
        let ssd = faulty(Plan::default());
        with_disk_of(&ssd, |socket, crew| {
            set_limits(&ssd, Some(limits), Now(0), crew);
            let mut driver = Driver::connect(socket, Options::default()).unwrap();
            // The first may go, and the next are taken from the ring, and wait.
            let mut place = |at: u64| place(&mut driver, request::OUT, at * 8, vec![7; 4096], false).0;
            let buffers: Vec<_> = (0..4).map(&mut place).collect();
            driver.queues[0].publish().unwrap();
            let status = |buffer: &Buffer| buffer.bytes(4096 + 64, 1)[0];
            let deadline = Instant::now() + PATIENCE;
            while status(&buffers[0]) == request::UNANSWERED {
                assert!(Instant::now() < deadline);
            }
            hold(&ssd, Hold::Frozen, crew);
            if !stopped_before_it_closes {
                hold(&ssd, Hold::Closed, crew);
            }
            std::thread::scope(|scope| {
                let stop = scope.spawn(|| driver.stop(0));
                if stopped_before_it_closes {
                    std::thread::sleep(Duration::from_millis(20));
                    assert!(!stop.is_finished(), "it waits for what was taken from the ring");
                    hold(&ssd, Hold::Closed, crew);
                }
                assert!(stop.join().unwrap().is_err());
            });
            let statuses: Vec<u8> = buffers.iter().map(status).collect();
            assert_eq!(statuses[1..], [request::UNANSWERED; 3]);
        });
    }
}
