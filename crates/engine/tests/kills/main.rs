//! The engine is killed, again and again, and its guests notice nothing: keeper in this process, engines in processes of their
//! own (this program once more), guests that verify what they read.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

mod along;
mod arrival;
mod aside;
mod changes;
mod crossing;
#[path = "../disk/mod.rs"]
mod disk;
mod disks;
mod growth;
mod house;
mod load;
mod management;
mod many;
mod memory;
mod metrics;
mod parked;
mod passage;
mod passengers;
mod reactors;
mod snapshots;
mod travel;
mod written;

use guest::PATIENCE;
use guest::nvme::{Options, Sqe};
use house::{House, KILLED};
use load::Load;
use std::time::Duration;

const RAM: &str = "{ type = \"ram\" }";
const FILE: &str = "{ type = \"uring\", path = \"DIR/disk.img\", direct = false }";

/// The engine's process.
#[test]
#[ignore = "a process of the tests here"]
fn engine_process() {
    house::be_an_engine();
}

#[test]
fn what_is_written_is_read_back_through_keeper_and_engine() {
    let house = House::start(&[("ram", RAM), ("file", FILE)], 2);
    for name in ["ram", "file"] {
        let mut load = Load::new(house.connect(name), 2, 32, 7);
        load.run_for(Duration::from_millis(200));
        load.finish();
    }
    house.stop();
}

fn killed_under_load(backend: &str, seed: u64, kills: u64) {
    let house = House::start(&[("victim", backend)], 2);
    let mut load = Load::new(house.connect("victim"), 3, 64, seed);
    let mut longest = Vec::new();
    for kill in 0..kills {
        load.run_for(Duration::from_micros(20_000 + (seed ^ kill).wrapping_mul(7919) % 60_000));
        house.kill();
        longest.push(load.run_until_progress());
    }
    load.run_for(Duration::from_millis(100));
    let operations = load.finish();
    longest.sort_unstable();
    println!(
        "{kills} kills, {operations} operations; pause: half below {:?}, longest {:?}",
        longest[longest.len() / 2],
        longest.last().unwrap()
    );
    house.stop();
}

#[test]
fn an_engine_killed_under_load_on_a_ram_drive_costs_no_command_and_no_byte() {
    killed_under_load(RAM, 1, 20);
}

#[test]
fn an_engine_killed_under_load_on_a_file_costs_no_command_and_no_byte() {
    killed_under_load(FILE, 2, 20);
}

/// A key that can be had once: who takes over has it from the keeper.
#[test]
fn an_engine_killed_under_load_on_an_encrypted_file_needs_no_second_look_at_the_key() {
    let once = r#"["/bin/sh", "-c", "mkdir DIR/once && printf %0128d 1"]"#;
    killed_under_load(&format!("{FILE}\nencryption = {{ key_command = {once} }}"), 3, 5);
}

#[test]
fn an_engine_killed_while_its_guest_is_held_at_its_limits_costs_no_command_and_no_byte() {
    killed_under_load(&format!("{RAM}\n{}", disk::LIMITS), 3, 4);
    killed_under_load(&format!("{FILE}\n{}", disk::LIMITS), 4, 2);
}

#[test]
fn an_engine_killed_under_load_on_a_pool_costs_no_command_and_no_byte() {
    killed_under_load("{ type = \"pool\", pool = \"p\", thin = true }", 3, 15);
    killed_under_load("{ type = \"pool\", pool = \"p\" }", 4, 5);
}

#[test]
fn admin_commands_registers_and_queues_go_on_over_kills() {
    let house = House::start(&[("victim", RAM)], 2);
    let mut driver = house.connect("victim");
    let before = driver.identify(0, 1).unwrap();
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            for _ in 0..10 {
                std::thread::sleep(Duration::from_millis(60));
                house.kill();
            }
        });
        let mut round = 0_u16;
        while !killer.is_finished() {
            round += 1;
            let qid = round % 4 + 1;
            driver.create_queue_pair(qid, 16).unwrap();
            let buffer = driver.ram().clone().alloc_with(&[round as u8; 512]).unwrap();
            driver.write(qid, 1, u64::from(qid), 1, &buffer).unwrap().ok().unwrap();
            driver.read(qid, 1, u64::from(qid), 1, &buffer).unwrap().ok().unwrap();
            assert_eq!(buffer.bytes(0, 512), [round as u8; 512]);
            driver.delete_queue_pair(qid).unwrap();
            assert_eq!(driver.identify(0, 1).unwrap(), before);
            let extra = guest::ram::Ram::new(1 << 20, 0x80_0000_0000).unwrap();
            driver
                .client()
                .dma_map(extra.iova(), extra.len() as u64, Some((std::os::fd::AsFd::as_fd(&extra.fd()), 0)))
                .unwrap();
            driver.client().dma_unmap(extra.iova(), extra.len() as u64).unwrap();
            if round.is_multiple_of(8) {
                driver.enable().unwrap();
                driver.set_queue_count(16).unwrap();
            }
        }
        killer.join().unwrap();
        println!("{round} rounds");
    });
    // A stop that meets an engine just killed says, rightly, that it could not make all durable.
    assert_eq!(driver.identify(0, 1).unwrap(), before);
    house.stop();
}

#[test]
fn interrupts_reach_the_guest_of_a_new_engine() {
    let house = House::start(&[("victim", RAM)], 2);
    let mut driver = house.connect("victim");
    driver.enable_msix(4).unwrap();
    for qid in 1..=2_u16 {
        driver.create_cq(qid, 16, Some(qid)).unwrap();
        driver.create_sq(qid, qid, 16).unwrap();
    }
    let buffer = driver.ram().clone().alloc(4096).unwrap();
    for round in 0..5 {
        house.kill();
        for qid in 1..=2_u16 {
            while driver.wait_interrupt(usize::from(qid), Duration::ZERO).unwrap().is_some() {}
            driver.submit(qid, Sqe::new(2).nsid(1).prp(buffer.iova(), 0).cdw12(7)).unwrap();
            let fired = driver.wait_interrupt(usize::from(qid), PATIENCE).unwrap();
            assert!(fired.is_some(), "round {round} vector {qid}");
            driver.wait_any(qid, PATIENCE).unwrap().ok().unwrap();
        }
    }
    house.stop();
}

#[test]
fn a_guest_reached_by_messages_only_goes_on_too() {
    let house = House::start(&[("far", RAM)], 2);
    let mut driver = house.connect_with("far", Options { share_ram: false, ..Options::default() });
    driver.create_queue_pair(1, 16).unwrap();
    let data: Vec<u8> = (0..16384_u32).map(|at| at as u8).collect();
    let buffer = driver.ram().clone().alloc_with(&data).unwrap();
    for round in 0..5_u64 {
        driver.write(1, 1, round * 32, 32, &buffer).unwrap().ok().unwrap();
        house.kill();
        let back = driver.ram().clone().alloc(16384).unwrap();
        driver.read(1, 1, round * 32, 32, &back).unwrap().ok().unwrap();
        assert_eq!(back.bytes(0, 16384), data, "round {round}");
    }
    house.stop();
}

#[test]
fn a_client_that_leaves_while_the_engine_is_dead_frees_the_ssd() {
    let house = House::start(&[("victim", RAM)], 1);
    for round in 0..3 {
        let mut driver = house.connect("victim");
        driver.create_queue_pair(1, 16).unwrap();
        let buffer = driver.ram().clone().alloc_with(&[round; 512]).unwrap();
        driver.write(1, 1, 0, 1, &buffer).unwrap().ok().unwrap();
        house.kill();
        drop(driver);
        let mut next = house.connect("victim");
        next.create_queue_pair(1, 16).unwrap();
        let back = next.ram().clone().alloc(512).unwrap();
        next.read(1, 1, 0, 1, &back).unwrap().ok().unwrap();
        assert_eq!(back.bytes(0, 512), [round; 512]);
    }
    house.stop();
}

#[test]
fn a_killed_engine_is_back_soon() {
    let house = House::start(&[("victim", RAM)], 1);
    let mut load = Load::new(house.connect("victim"), 1, 16, 3);
    let mut pauses = Vec::new();
    for _ in 0..10 {
        load.run_for(Duration::from_millis(150));
        house.kill();
        pauses.push(load.run_until_progress());
    }
    println!("pauses {pauses:?}");
    // A busy machine is late often; an engine that waits for what does not come is so each time.
    assert!(*pauses.iter().min().unwrap() < KILLED, "{pauses:?}");
    load.finish();
    house.stop();
}
