//! Rows 19 and 20: clients that do not speak as they should, or not at all.

use crate::host::{FILE, Host, RAM};
use crate::siege::{Siege, page_io};
use guest::nvme::Options;
use guest::vfio_user::{Client, Header, command};
use std::io::Write;
use std::time::{Duration, Instant};

#[test]
fn row_20_a_second_client_is_turned_away_and_the_first_does_not_notice() {
    Siege::run(RAM, 2, |siege| {
        let mut driver = siege.connect();
        driver.create_queue_pair(1, 16).unwrap();
        let data = driver.ram().clone().alloc(4096).unwrap();
        for round in 0..50 {
            assert!(Client::connect(siege.host().socket("victim")).is_err());
            driver.io(1, page_io(2, data.iova(), round)).unwrap().ok().unwrap();
        }
    });
}

#[test]
fn row_19_half_frames_and_frames_of_nonsense() {
    Siege::run(RAM, 2, |siege| {
        let connect = || loop {
            // The one before may still be leaving.
            if let Ok(client) = Client::connect(siege.host().socket("victim")) {
                return client;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let whole = [Header::command(7, command::DMA_MAP, 32).to_bytes().to_vec(), vec![0xff; 32]].concat();
        for len in 1..whole.len() {
            connect().send_bytes(&whole[..len], &[]).unwrap();
        }
        for size in [0_u32, 15, 16, 17, 1 << 31, u32::MAX] {
            let mut header = Header::command(1, command::REGION_WRITE, 0).to_bytes();
            header[4..8].copy_from_slice(&size.to_le_bytes());
            let mut client = connect();
            let _ = client.send_bytes(&header, &[]);
            let _ = client.stream().write_all(&[0xa5; 100]);
        }
        for id in 0..64_u16 {
            let mut client = connect();
            for len in [0_usize, 1, 8, 16, 20, 32, 40, 64] {
                let payload = vec![[0, 0xff, id as u8][usize::from(id % 3)]; len];
                if client.send_frame(Header::command(id, id, len), &payload, &[]).is_err() {
                    break;
                }
            }
        }
    });
}

#[test]
fn row_19_a_byte_now_and_then_ends_a_session_in_bounded_time() {
    Siege::run(FILE, 2, |siege| {
        let deadline = Instant::now() + Duration::from_secs(8);
        let mut slow = Client::connect_raw(siege.host().socket("victim")).unwrap();
        while slow.send_bytes(&[1], &[]).is_ok() {
            assert!(Instant::now() < deadline, "one byte at a time for ever");
            std::thread::sleep(Duration::from_millis(400));
        }
    });
}

#[test]
fn row_19_a_client_that_never_reads_its_replies_is_hung_up_on() {
    Siege::run(FILE, 2, |siege| {
        let mut driver = siege.connect();
        driver.create_queue_pair(1, 64).unwrap();
        let payload =
            [0_u64.to_le_bytes().to_vec(), 0_u32.to_le_bytes().to_vec(), 0x1000_u32.to_le_bytes().to_vec()];
        let payload = payload.concat();
        let deadline = Instant::now() + Duration::from_secs(12);
        // Fails when the engine has hung up; blocks while it reads nothing more of us.
        driver.client().stream().set_write_timeout(Some(Duration::from_secs(10))).unwrap();
        while driver.client().send_command(command::REGION_READ, &payload, &[]).is_ok() {
            assert!(Instant::now() < deadline);
        }
        assert!(Instant::now() < deadline);
    });
}

/// Stops the engine while `attacker` has a client connected.
fn stops_soon(host: Host, what: &str, attacker: impl Sized) {
    let start = Instant::now();
    host.stop();
    assert!(start.elapsed() < Duration::from_secs(3), "{what}: {:?}", start.elapsed());
    drop(attacker);
}

#[test]
fn an_engine_stops_soon_whatever_its_clients_do() {
    let start = || Host::start(&[("victim", FILE)], 2);
    let host = start();
    let mut silent = Client::connect_raw(host.socket("victim")).unwrap();
    silent.send_bytes(&[1, 2, 3], &[]).unwrap();
    stops_soon(host, "half a frame", silent);

    let host = start();
    let mut busy = host.connect("victim");
    busy.create_queue_pair(1, 256).unwrap();
    let data = busy.ram().clone().alloc(4096).unwrap();
    (0..200).for_each(|at| _ = busy.place(1, page_io(2, data.iova(), at * 8)).unwrap());
    busy.ring(1).unwrap();
    stops_soon(host, "I/O in flight", (busy, data));

    for flood in [0, 300] {
        let host = start();
        let mut hung = host.connect_with("victim", Options { share_ram: false, ..Options::default() });
        hung.create_queue_pair(1, 64).unwrap();
        let data = hung.ram().clone().alloc(4096).unwrap();
        (0..40).for_each(|at| _ = hung.place(1, page_io(2, data.iova(), at * 8)).unwrap());
        hung.ring(1).unwrap();
        hung.client().stream().set_write_timeout(Some(Duration::from_millis(1))).unwrap();
        let payload =
            [0x14_u64.to_le_bytes().to_vec(), [0; 4].to_vec(), 4_u32.to_le_bytes().to_vec()].concat();
        for _ in 0..flood {
            // Until nobody reads them any more.
            let _ = hung.client().send_command(command::REGION_READ, &payload, &[]);
        }
        std::thread::sleep(Duration::from_millis(200));
        stops_soon(host, "a client that answers no DMA", (hung, data));
    }
}

#[test]
fn a_client_that_answers_no_dma_leaves_at_once_when_it_hangs_up() {
    Siege::run(FILE, 2, |siege| {
        for flood in [0, 300] {
            let options = Options { share_ram: false, ram_bytes: 4 << 20, ..Options::default() };
            let mut hung = siege.host().connect_with("victim", options);
            hung.create_queue_pair(1, 64).unwrap();
            let data = hung.ram().clone().alloc(4096).unwrap();
            (0..40).for_each(|at| _ = hung.place(1, page_io(1, data.iova(), at * 8)).unwrap());
            hung.ring(1).unwrap();
            hung.client().stream().set_write_timeout(Some(Duration::from_millis(1))).unwrap();
            let payload =
                [0x14_u64.to_le_bytes().to_vec(), [0; 4].to_vec(), 4_u32.to_le_bytes().to_vec()].concat();
            for _ in 0..flood {
                // Until nobody reads them any more.
                let _ = hung.client().send_command(command::REGION_READ, &payload, &[]);
            }
            std::thread::sleep(Duration::from_millis(50));
            let start = Instant::now();
            drop(hung);
            drop(siege.connect());
            assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        }
    });
}
