//! A guest goes from one daemon to another though its hypervisor knows nothing of its device's state and of what it has written: the engines stop,
//! save, load and run the device, and have the client take pages for written.

use crate::FILE;
use crate::house::House;
use crate::load::Load;
use crate::travel::{connect, copy_disk};
use ::state::controller::ControllerV1;
use guest::nvme::{Driver, Options, Sqe};
use guest::ram::Ram;
use guest::vfio_user::{DmaMemory, region, state};
use guest::{Error, PATIENCE};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;
const BUSY: u32 = 16;
const SSDS: [(&str, &str); 1] = [("disk", FILE)];

/// Where a journey is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Halted,
    Saved,
    Loading(u64),
    Loaded,
    Running,
}

/// Of the next engine, if the one that was asked is killed: all may be asked again.
fn tell(house: &House, what: &str, bytes: &[u8]) -> Vec<u8> {
    loop {
        match house.tell(what, "disk", bytes) {
            Ok(answer) => return answer,
            Err(why) => assert!(why == "killed", "{what}: {why}"),
        }
    }
}

fn bytes_of(ram: &Ram) -> Vec<u8> {
    let mut bytes = vec![0; ram.len()];
    ram.mapping().read(0, &mut bytes);
    bytes
}

/// A state but for its time of day.
fn timeless(bytes: &[u8]) -> ControllerV1 {
    let mut state = ControllerV1::from_bytes(bytes).unwrap();
    state.admin.timestamp_ms = 0;
    state
}

fn small(house: &House) -> Driver {
    let options = Options { ram_bytes: 8 << 20, ..Options::default() };
    house.connect_with("disk", options)
}

fn driver_of(house: &House) -> Driver {
    let mut driver = small(house);
    driver.create_queue_pair(1, 64).unwrap();
    driver
}

/// Brings the guest over. The memory comes between "load" and "run", and nobody looks at it before. Whether it is there: a source whose engine
/// was killed has its device running again.
fn travel(driver: &mut Driver, from: &House, to: &House, kill: Option<At>) -> bool {
    let is = |at: At| kill == Some(at);
    tell(from, "halt", b"");
    if is(At::Halted) {
        from.kill();
        return false;
    }
    let state = tell(from, "save", b"");
    assert!(timeless(&state) == timeless(&tell(from, "save", b"")), "it stands still");
    if is(At::Saved) {
        from.kill();
        return false;
    }
    copy_disk(from, to);
    let source = driver.move_to(connect(to)).unwrap();
    let ram = driver.ram().clone();
    let memory = bytes_of(&ram);
    ram.mapping().fill(0, ram.len(), 0xee);
    if let Some(At::Loading(micros)) = kill {
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_micros(micros));
                to.kill();
            });
            let _ = to.tell("load", "disk", &state);
        });
    }
    tell(to, "load", &state);
    if is(At::Loaded) {
        to.kill();
    }
    restore_config(driver);
    std::thread::sleep(Duration::from_millis(10));
    assert!(bytes_of(&ram).iter().all(|byte| *byte == 0xee), "the memory was not there yet");
    ram.mapping().write(0, &memory);
    tell(to, "run", b"");
    if is(At::Running) {
        to.kill();
    }
    drop(source);
    true
}

/// As a hypervisor does that restores its own configuration space: the server hears all of it.
fn restore_config(driver: &mut Driver) {
    let client = driver.client();
    let mut command = [0; 2];
    client.region_read(region::CONFIG, 4, &mut command).unwrap();
    assert_eq!(command, 0x0406_u16.to_le_bytes(), "it came with the state");
    client.region_write(region::CONFIG, 4, &command).unwrap();
    let mut bar = [0; 8];
    client.region_read(region::CONFIG, 0x10, &mut bar).unwrap();
    client.region_write(region::CONFIG, 0x10, &bar).unwrap();
    client.region_write(region::CONFIG, 0x3c, &[10]).unwrap();
}

#[test]
fn a_guest_whose_hypervisor_asks_nothing_goes_to_another_daemon_whoever_is_killed_on_the_way() {
    let loading = [0, 300, 1000, 3000].map(|micros| Some(At::Loading(micros)));
    let points = [None, Some(At::Halted), Some(At::Saved), Some(At::Loaded), Some(At::Running), None];
    let houses = [House::start(&SSDS, 2), House::start(&SSDS, 2)];
    let mut load = Load::new(small(&houses[0]), 3, 64, 5);
    let mut here = 0;
    for point in points.into_iter().chain(loading) {
        load.run_for(Duration::from_millis(20));
        println!("{point:?}");
        tell(&houses[here], "halt", b"");
        // Rung and not fetched: a device that ran too early would take what is not there yet for commands.
        load.run_for(Duration::from_millis(2));
        if travel(load.driver(), &houses[here], &houses[1 - here], point) {
            here = 1 - here;
        }
        load.run_until_progress();
    }
    println!("{} operations", load.finish());
    houses.into_iter().for_each(House::stop);
}

#[test]
fn a_migration_that_comes_to_nothing_costs_its_guest_nothing() {
    let house = House::start(&SSDS, 2);
    let mut load = Load::new(small(&house), 3, 64, 5);
    for round in 0..20 {
        load.run_for(Duration::from_millis(5));
        tell(&house, "halt", b"");
        if round % 2 == 0 {
            tell(&house, "halt", b"");
            tell(&house, "save", b"");
            let refused = house.tell("load", "disk", b"nonsense").unwrap_err();
            assert!(refused.contains("state that came"), "{refused}");
        }
        tell(&house, "run", b"");
        tell(&house, "run", b"");
        load.run_until_progress();
    }
    load.finish();
    house.stop();
}

#[test]
fn who_speaks_to_a_device_that_is_held_is_answered_and_nothing_is_lost() {
    let house = House::start(&SSDS, 1);
    let mut driver = driver_of(&house);
    let buffer = driver.ram().clone().alloc_with(&[7; 4096]).unwrap();
    for not_held in ["save", "touch"] {
        let refused = house.tell(not_held, "disk", b"").unwrap_err();
        assert!(refused.contains("does not stand still"), "{refused}");
    }
    tell(&house, "halt", b"");
    // It is the engine's affair.
    assert_eq!(driver.client().migration_state().unwrap(), state::RUNNING);
    let refused = driver.client().set_migration_state(state::STOP);
    assert!(matches!(refused, Err(Error::Refused { errno: BUSY, .. })), "{refused:?}");
    assert_eq!(driver.read_u32(0x1c).unwrap() & 1, 1, "ready");
    let cid = driver.place(1, Sqe::new(1).nsid(1).prp(buffer.iova(), 0).qword(10, 8).cdw12(7)).unwrap();
    driver.ring(1).unwrap();
    let more = Ram::new(1 << 20, 1 << 40).unwrap();
    driver.client().dma_map(more.iova(), more.len() as u64, Some((more.fd(), 0))).unwrap();
    assert!(driver.poll(1).unwrap().is_none(), "nothing is fetched");
    // What needs a device at work waits for it: a disabled controller drops the command.
    let told = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let house = &house;
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            told.store(true, Ordering::SeqCst);
            tell(house, "run", b"");
        });
        driver.write_u32(0x0c, 0).unwrap();
        assert!(told.load(Ordering::SeqCst));
    });
    driver.wait(1, cid).unwrap().ok().unwrap();
    // The memory that came meanwhile is used.
    let sqe = Sqe::new(2).nsid(1).prp(more.iova(), 0).qword(10, 8).cdw12(7);
    driver.io(1, sqe).unwrap().ok().unwrap();
    // But not for ever, and then it goes on as before.
    tell(&house, "halt", b"");
    let refused = driver.client().reset();
    assert!(matches!(refused, Err(Error::Refused { errno: BUSY, .. })), "{refused:?}");
    tell(&house, "run", b"");
    driver.write(1, 1, 0, 8, &buffer).unwrap().ok().unwrap();
    // A client that has stopped its device is not interfered with.
    driver.client().set_migration_state(state::STOP).unwrap();
    for order in ["halt", "run"] {
        let refused = house.tell(order, "disk", b"").unwrap_err();
        assert!(refused.contains("its client has stopped"), "{refused}");
    }
    driver.client().set_migration_state(state::RUNNING).unwrap();
    drop(driver);
    house.stop();
}

/// The ssd may have another owner by then.
#[test]
fn a_client_that_leaves_a_device_that_is_held_leaves_nothing_that_is_still_carried_out() {
    let house = House::start(&SSDS, 1);
    let mut driver = driver_of(&house);
    tell(&house, "halt", b"");
    let buffer = driver.ram().clone().alloc_with(&[0x5a; 4096]).unwrap();
    driver.place(1, Sqe::new(1).nsid(1).prp(buffer.iova(), 0).qword(10, 0).cdw12(7)).unwrap();
    driver.ring(1).unwrap();
    drop(driver);
    let mut next = driver_of(&house);
    let buffer = next.ram().clone().alloc_with(&[1; 4096]).unwrap();
    next.read(1, 1, 0, 8, &buffer).unwrap().ok().unwrap();
    assert_eq!(buffer.to_vec(), [0; 4096]);
    drop(next);
    // The engine hears of it by its keeper, in a moment.
    let until = Instant::now() + PATIENCE;
    let gone = loop {
        match house.tell("halt", "disk", b"") {
            Err(gone) => break gone,
            Ok(_) => assert!(Instant::now() < until, "its client has left, and it can be halted"),
        }
    };
    assert!(gone.contains("no client") || gone.contains("has left"), "{gone}");
    house.stop();
}

/// A hypervisor's eyes: which pages the device stored to by messages. Refuses if it is told to.
struct Eyes {
    ram: Arc<Ram>,
    touched: Mutex<BTreeSet<u64>>,
    refuses: AtomicBool,
}

impl DmaMemory for Eyes {
    fn dma_read(&self, iova: u64, target: &mut [u8]) -> bool {
        !self.refuses.load(Ordering::SeqCst) && self.ram.dma_read(iova, target)
    }

    fn dma_write(&self, iova: u64, source: &[u8]) -> bool {
        let refuses = self.refuses.load(Ordering::SeqCst);
        if !refuses {
            let mut there = vec![0; source.len()];
            assert!(self.ram.dma_read(iova, &mut there) && there == source, "{iova:#x} is another byte now");
            let (first, last) = (iova / PAGE, (iova + source.len() as u64 - 1) / PAGE);
            self.touched.lock().unwrap().extend((first..=last).map(|page| page * PAGE));
        }
        !refuses
    }
}

impl Eyes {
    fn of(driver: &mut Driver) -> Arc<Self> {
        let ram = driver.ram().clone();
        let eyes = Arc::new(Self { ram, touched: Mutex::default(), refuses: AtomicBool::new(false) });
        driver.client().set_dma_memory(eyes.clone());
        eyes
    }

    fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.touched.lock().unwrap()).into_iter().collect()
    }
}

/// Has the written pages touched, while the client reads its socket. How many the engine says there were.
fn touch(house: &House, driver: &mut Driver) -> Result<u64, String> {
    std::thread::scope(|scope| {
        let told = scope.spawn(|| house.tell("touch", "disk", b""));
        while !told.is_finished() {
            driver.client().serve_dma(Duration::from_millis(2)).unwrap();
        }
        let count = told.join().unwrap()?;
        Ok(String::from_utf8(count).unwrap().parse().unwrap())
    })
}

fn halt_and_touch(house: &House, driver: &mut Driver) -> u64 {
    tell(house, "halt", b"");
    touch(house, driver).unwrap()
}

#[test]
fn the_client_is_told_of_exactly_the_pages_that_the_device_has_written() {
    let house = House::start(&SSDS, 2);
    let mut driver = driver_of(&house);
    let eyes = Eyes::of(&mut driver);
    let data = driver.ram().clone().alloc_with(&[9; 3 * PAGE as usize]).unwrap();
    driver.write(1, 1, 0, 24, &data).unwrap().ok().unwrap();
    tell(&house, "halt", b"");
    assert!(touch(&house, &mut driver).unwrap_err().contains("nvalid argument"), "it is not logged");
    tell(&house, "run", b"");
    tell(&house, "log", b"");
    assert_eq!(halt_and_touch(&house, &mut driver), 0);
    assert_eq!(eyes.take(), [0; 0]);
    tell(&house, "run", b"");
    let buffer = driver.ram().clone().alloc(3 * PAGE as usize).unwrap();
    let cq = driver.cq(1).unwrap().ring().iova();
    for round in 0..3 {
        driver.read(1, 1, 0, 24, &buffer).unwrap().ok().unwrap();
        if round == 1 {
            house.kill();
        }
        assert_eq!(halt_and_touch(&house, &mut driver), 4);
        let at = buffer.iova();
        let mut expected = [at, at + PAGE, at + 2 * PAGE, cq];
        expected.sort_unstable();
        assert_eq!(eyes.take(), expected, "round {round}");
        assert_eq!(touch(&house, &mut driver).unwrap(), 0, "once");
        tell(&house, "run", b"");
    }
    tell(&house, "end", b"");
    driver.read(1, 1, 0, 24, &buffer).unwrap().ok().unwrap();
    tell(&house, "halt", b"");
    assert!(touch(&house, &mut driver).is_err());
    tell(&house, "run", b"");
    drop(driver);
    house.stop();
}

#[test]
fn pages_that_a_client_refuses_or_does_not_answer_for_are_told_again() {
    let house = House::start(&SSDS, 2);
    let mut driver = driver_of(&house);
    let eyes = Eyes::of(&mut driver);
    tell(&house, "log", b"");
    let buffer = driver.ram().clone().alloc(8 * PAGE as usize).unwrap();
    driver.read(1, 1, 0, 64, &buffer).unwrap().ok().unwrap();
    tell(&house, "halt", b"");
    eyes.refuses.store(true, Ordering::SeqCst);
    let refused = touch(&house, &mut driver).unwrap_err();
    assert!(refused.contains("Bad address"), "{refused}");
    eyes.refuses.store(false, Ordering::SeqCst);
    // Nobody reads.
    let silent = house.tell("touch", "disk", b"").unwrap_err();
    assert!(silent.contains("timed out"), "{silent}");
    // What it was sent lies there, and would be stored whenever it reads it: the guest must not run before.
    std::thread::scope(|scope| {
        let told = scope.spawn(|| tell(&house, "barrier", b""));
        while !told.is_finished() {
            driver.client().serve_dma(Duration::from_millis(2)).unwrap();
        }
    });
    assert_eq!(eyes.take().len(), 9);
    assert_eq!(touch(&house, &mut driver).unwrap(), 9);
    assert_eq!(eyes.take().len(), 9);
    // It leaves in the middle.
    tell(&house, "run", b"");
    driver.read(1, 1, 0, 64, &buffer).unwrap().ok().unwrap();
    tell(&house, "halt", b"");
    std::thread::scope(|scope| {
        let told = scope.spawn(|| house.tell("touch", "disk", b""));
        std::thread::sleep(Duration::from_millis(50));
        drop(driver);
        assert!(told.join().unwrap().is_err());
    });
    drop(driver_of(&house));
    house.stop();
}

#[test]
fn an_engine_that_is_killed_while_pages_are_told_costs_none_of_them() {
    let house = House::start(&SSDS, 2);
    let options = Options { ram_bytes: 128 << 20, ..Options::default() };
    let mut driver = house.connect_with("disk", options);
    driver.create_queue_pair(1, 64).unwrap();
    let eyes = Eyes::of(&mut driver);
    tell(&house, "log", b"");
    let pages = 16_384_u64;
    let buffer = driver.ram().clone().alloc((pages * PAGE) as usize).unwrap();
    for kill in [None, Some(0), Some(2), Some(5), Some(10), Some(20), Some(40)] {
        // Many at once: one after the other, a busy machine takes minutes.
        for first in (0..pages).step_by(64) {
            for page in (first..first + 64).step_by(2) {
                let at = buffer.iova() + page * PAGE;
                driver.place(1, Sqe::new(2).nsid(1).prp(at, at + PAGE).cdw12(15)).unwrap();
            }
            driver.ring(1).unwrap();
            (0..32).for_each(|_| _ = driver.wait_any(1, PATIENCE).unwrap().ok().unwrap());
        }
        tell(&house, "halt", b"");
        let start = Instant::now();
        match kill {
            None => {
                let count = touch(&house, &mut driver).unwrap();
                println!("{count} pages in {:?}", start.elapsed());
            }
            Some(millis) => std::thread::scope(|scope| {
                let house = &house;
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(millis));
                    house.kill();
                });
                let first = touch(house, &mut driver);
                tell(house, "halt", b"");
                println!("killed after {millis} ms: {first:?}, then {:?}", touch(house, &mut driver));
            }),
        }
        let touched = eyes.take();
        let missing = (0..pages).map(|page| buffer.iova() + page * PAGE).filter(|at| !touched.contains(at));
        assert_eq!(missing.count(), 0, "{kill:?}");
        tell(&house, "run", b"");
    }
    drop(driver);
    house.stop();
}

/// As while the ssd's blocks are on their way: what waits at the gate has not begun.
#[test]
fn a_device_whose_commands_wait_for_its_limits_is_stopped_at_once_and_takes_them_along() {
    let limited = format!("{FILE}\n[ssd.limits]\niops = 10\niops_burst = 24\n");
    let houses = [House::start(&[("disk", &limited)], 2), House::start(&SSDS, 2)];
    let mut driver = driver_of(&houses[0]);
    let buffer = driver.ram().clone().alloc(PAGE as usize).unwrap();
    let read = Sqe::new(2).nsid(1).prp(buffer.iova(), 0).cdw12(7);
    let mut out: Vec<u16> = (0..60).map(|_| driver.place(1, read).unwrap()).collect();
    let start = Instant::now();
    driver.ring(1).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    tell(&houses[0], "halt", b"");
    while let Some(done) = driver.poll(1).unwrap() {
        out.retain(|cid| *cid != done.cid);
    }
    // All that there are take three seconds and a half.
    assert!(!out.is_empty() || start.elapsed() > Duration::from_secs(3), "it waited for its limits");
    assert!(travel(&mut driver, &houses[0], &houses[1], None));
    while !out.is_empty() {
        let cid = driver.wait_any(1, PATIENCE).unwrap().cid;
        let at = out.iter().position(|other| *other == cid).expect("each once");
        out.swap_remove(at);
    }
    drop(driver);
    houses.into_iter().for_each(House::stop);
}
