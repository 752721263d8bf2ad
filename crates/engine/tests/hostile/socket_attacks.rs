//! Rows 19 and 20: clients that do not speak as they should, or not at all.

use crate::host::{FILE, Host, RAM};
use crate::siege::{Siege, page_io};
use guest::PATIENCE;
use guest::nvme::{Driver, Options};
use guest::ram::Buffer;
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
        let deadline = Instant::now() + PATIENCE;
        let mut slow = Client::connect_raw(siege.host().socket("victim")).unwrap();
        // A message that is never whole: it has no end but by the clock.
        slow.send_bytes(&Header::command(1, command::VERSION, 4096).to_bytes(), &[]).unwrap();
        while slow.send_bytes(&[1], &[]).is_ok() {
            assert!(Instant::now() < deadline, "one byte at a time for ever");
            std::thread::sleep(Duration::from_millis(200));
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
        let deadline = Instant::now() + PATIENCE;
        // Fails when the engine has hung up; blocks while it reads nothing more of us.
        driver.client().stream().set_write_timeout(Some(PATIENCE)).unwrap();
        while driver.client().send_command(command::REGION_READ, &payload, &[]).is_ok() {
            assert!(Instant::now() < deadline);
        }
        assert!(Instant::now() < deadline);
    });
}

/// Less than the five seconds after which a client is given up.
const SOON: Duration = Duration::from_secs(3);

/// A busy machine is late once or twice; who waits for what does not come is late each time.
fn is_soon(what: &str, mut attempt: impl FnMut() -> Duration) {
    let mut times = Vec::new();
    while times.len() < 5 {
        let time = attempt();
        if time < SOON {
            return;
        }
        times.push(time);
    }
    panic!("{what}: {times:?}");
}

/// Stops the engine while `attacker` has a client connected.
fn stop(host: Host, attacker: impl Sized) -> Duration {
    let start = Instant::now();
    host.stop();
    let time = start.elapsed();
    drop(attacker);
    time
}

/// A client whose commands need DMA that it does not answer, behind so many messages that it does not read.
fn hung(mut client: Driver, opcode: u8, flood: usize) -> (Driver, Buffer) {
    client.create_queue_pair(1, 64).unwrap();
    let data = client.ram().clone().alloc(4096).unwrap();
    (0..40).for_each(|at| _ = client.place(1, page_io(opcode, data.iova(), at * 8)).unwrap());
    client.ring(1).unwrap();
    client.client().stream().set_write_timeout(Some(Duration::from_millis(1))).unwrap();
    let payload = [0x14_u64.to_le_bytes().to_vec(), [0; 4].to_vec(), 4_u32.to_le_bytes().to_vec()].concat();
    for _ in 0..flood {
        // Until nobody reads them any more.
        let _ = client.client().send_command(command::REGION_READ, &payload, &[]);
    }
    (client, data)
}

#[test]
fn an_engine_stops_soon_whatever_its_clients_do() {
    let start = || Host::start(&[("victim", FILE)], 2);
    is_soon("half a frame", || {
        let host = start();
        let mut silent = Client::connect_raw(host.socket("victim")).unwrap();
        silent.send_bytes(&[1, 2, 3], &[]).unwrap();
        stop(host, silent)
    });
    is_soon("I/O in flight", || {
        let host = start();
        let mut busy = host.connect("victim");
        busy.create_queue_pair(1, 256).unwrap();
        let data = busy.ram().clone().alloc(4096).unwrap();
        (0..200).for_each(|at| _ = busy.place(1, page_io(2, data.iova(), at * 8)).unwrap());
        busy.ring(1).unwrap();
        stop(host, (busy, data))
    });
    for flood in [0, 300] {
        is_soon("a client that answers no DMA", || {
            let host = start();
            let client = host.connect_with("victim", Options { share_ram: false, ..Options::default() });
            let hung = hung(client, 2, flood);
            std::thread::sleep(Duration::from_millis(200));
            stop(host, hung)
        });
    }
}

#[test]
fn a_client_that_answers_no_dma_leaves_at_once_when_it_hangs_up() {
    Siege::run(FILE, 2, |siege| {
        for flood in [0, 300] {
            is_soon("the next client is served", || {
                let options = Options { share_ram: false, ram_bytes: 4 << 20, ..Options::default() };
                let hung = hung(siege.host().connect_with("victim", options), 1, flood);
                std::thread::sleep(Duration::from_millis(50));
                let start = Instant::now();
                drop(hung);
                drop(siege.connect());
                start.elapsed()
            });
        }
    });
}
