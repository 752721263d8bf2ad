//! The project's own front-end, which knows the layouts by itself, against the back-end.

use std::os::unix::net::UnixStream;

use frontend::vfio_user::Shutdown;
use frontend::vhost_user::{EndReason, Limits, SessionEnd, serve};
use guest::vhost_user::{Client, Driver, Options};

use crate::harness::Fake;

fn against(options: Options, then: impl FnOnce(&Driver)) -> (SessionEnd, Fake) {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let shutdown = Shutdown::new().expect("eventfd");
    let stop = shutdown.clone();
    let server = std::thread::spawn(move || {
        let mut blk = Fake::new();
        (serve(theirs, &mut blk, &Limits::default(), &stop), blk)
    });
    let driver = Driver::start(Client::new(ours), options).expect("a device");
    then(&driver);
    drop(driver);
    server.join().expect("no panic")
}

#[test]
fn a_driver_finds_its_rings_running_whatever_it_asks_for() {
    let all = [false, true];
    for packed in all {
        for (inflight, mem_slots) in [(false, false), (true, false), (false, true), (true, true)] {
            let queue_size = if packed { 100 } else { 128 };
            let options = Options {
                queues: 3,
                queue_size,
                packed,
                inflight,
                mem_slots,
                kick: mem_slots,
                ..Options::default()
            };
            let (end, blk) = against(options, |driver| {
                driver.share_memory().map(|()| assert!(!mem_slots)).unwrap_or_else(|_| assert!(mem_slots));
            });
            assert_eq!((end.reason, end.running), (EndReason::Disconnected, vec![0, 1, 2]));
            assert_eq!(blk.inflight.map(|(_, size, own)| (size, own)), {
                Some(if inflight { (queue_size, false) } else { (256, true) })
            });
            for (queue, ring) in &blk.running {
                assert_eq!((ring.size, ring.packed), (queue_size, packed), "ring {queue}");
                assert_eq!(ring.base, if packed { 0x8000_8000 } else { 0 });
            }
            assert_eq!(blk.events.contains(&("kick", 2)), mem_slots);
        }
    }
}

#[test]
fn a_driver_reads_the_configuration_and_stops_a_ring() {
    against(Options { queues: 2, ..Options::default() }, |driver| {
        // The device's bytes count up from 1; features decide what they mean.
        assert_eq!(driver.config().sectors, 0x0807_0605_0403_0201);
        assert_eq!(driver.config().num_queues, 0x2423);
        assert_eq!(driver.stop(1).expect("an answer"), 0);
        driver.go_on(1, 0).expect("it runs again");
    });
}
