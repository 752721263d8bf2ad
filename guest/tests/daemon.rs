//! The driver against a real `godwitd`, when the variable GODWITD names one.
#![expect(clippy::unwrap_used, reason = "a test's own bug may panic")]

use std::path::PathBuf;
use std::time::Duration;

use guest::load::engine::{Backing, Engine, Ssd};
use guest::nvme::{Driver, Options, Sgl, SglDescriptor, Sqe, nvm};

/// An engine with one RAM disk; `None`, with a word, when there is no daemon to start.
fn engine() -> Option<Engine> {
    let Some(binary) = std::env::var_os("GODWITD").map(PathBuf::from) else {
        eprintln!("skipped: GODWITD names no daemon");
        return None;
    };
    let ssd = Ssd { name: "disk".into(), mebibytes: 64, backing: Backing::Ram, disk: false };
    Some(Engine::start(&binary, 0, &[ssd]).unwrap())
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|index| u8::try_from((index * 7 + seed) % 253).unwrap()).collect()
}

/// Sizes from a block to MDTS, at offsets in a page that are no page's start.
fn write_then_read(driver: &mut Driver, qid: u16) {
    for (round, blocks) in [1_u32, 7, 8, 9, 17, 256, 2048].into_iter().enumerate() {
        let bytes = pattern(blocks as usize * 512, round);
        let source = driver.ram().alloc_with(&bytes).unwrap();
        let target = driver.ram().alloc(bytes.len()).unwrap();
        let slba = round as u64 * 5000;
        driver.write(qid, 1, slba, blocks, &source).unwrap().ok().unwrap();
        driver.read(qid, 1, slba, blocks, &target).unwrap().ok().unwrap();
        assert!(target.to_vec() == bytes, "{blocks} blocks came back changed");
        driver.compare(qid, 1, slba, blocks.min(256), &source).unwrap();
    }
}

#[test]
fn what_is_written_is_read_back() {
    let Some(engine) = engine() else { return };
    let mut driver = engine.connect("disk", Options::default().ram_bytes).unwrap();
    driver.create_queue_pair(1, 64).unwrap();
    write_then_read(&mut driver, 1);
    driver.flush(1, 1).unwrap().ok().unwrap();
    driver.delete_queue_pair(1).unwrap();
}

#[test]
fn memory_without_an_fd_is_reached_over_the_socket() {
    let Some(engine) = engine() else { return };
    let options = Options { share_ram: false, ..Options::default() };
    let mut driver = Driver::connect_with(engine.socket("disk"), options).unwrap();
    driver.create_queue_pair(1, 16).unwrap();
    write_then_read(&mut driver, 1);
    assert!(driver.client().dma_served() > 0);
}

#[test]
fn shadow_doorbells_carry_every_command() {
    let Some(engine) = engine() else { return };
    let mut driver = engine.connect("disk", Options::default().ram_bytes).unwrap();
    driver.create_queue_pair(1, 4).unwrap();
    driver.enable_shadow_doorbells().unwrap();
    driver.create_queue_pair(2, 4).unwrap();
    for qid in [1, 2] {
        write_then_read(&mut driver, qid);
        for _ in 0..100 {
            driver.flush(qid, 1).unwrap().ok().unwrap();
        }
    }
}

#[test]
fn an_interrupt_comes_with_a_completion() {
    let Some(engine) = engine() else { return };
    let mut driver = engine.connect("disk", Options::default().ram_bytes).unwrap();
    driver.enable_msix(3).unwrap();
    driver.create_cq(1, 16, Some(2)).unwrap();
    driver.create_sq(1, 1, 16).unwrap();
    for _ in 0..10 {
        let cid = driver.submit(1, Sqe::new(nvm::FLUSH).nsid(1)).unwrap();
        assert!(driver.wait_interrupt(2, Duration::from_secs(5)).unwrap().is_some());
        driver.wait(1, cid).unwrap().ok().unwrap();
    }
}

#[test]
fn an_sgl_of_odd_pieces_is_gathered_and_scattered() {
    let Some(engine) = engine() else { return };
    let mut driver = engine.connect("disk", Options::default().ram_bytes).unwrap();
    driver.create_queue_pair(1, 16).unwrap();
    let ram = driver.ram().clone();
    let bytes = pattern(4096, 1);
    let (source, target) = (ram.alloc_with(&bytes).unwrap(), ram.alloc(4096).unwrap());
    let pieces = |base: u64| {
        [(0, 512), (512, 4), (516, 1000), (1516, 2580)]
            .map(|(offset, length)| SglDescriptor::data_block(base + offset, length))
    };
    let (out, back) = (pieces(source.iova()), pieces(target.iova()));
    let write = Sqe::new(nvm::WRITE).nsid(1).blocks(40, 7);
    driver.transfer_sgl(1, write, &out, 3).unwrap().ok().unwrap();
    let sgl = Sgl::new(&ram, &back, 256).unwrap();
    driver.io(1, Sqe::new(nvm::READ).nsid(1).blocks(40, 7).sgl(sgl.first)).unwrap().ok().unwrap();
    assert_eq!(target.to_vec(), bytes);
}

#[test]
fn the_next_client_finds_the_data_of_the_last() {
    let Some(engine) = engine() else { return };
    let bytes = pattern(4096, 9);
    for turn in 0..5 {
        let mut driver = engine.connect("disk", 8 << 20).unwrap();
        driver.create_queue_pair(1, 16).unwrap();
        let buffer = driver.ram().alloc_with(&bytes).unwrap();
        if turn == 0 {
            driver.write(1, 1, 8, 8, &buffer).unwrap().ok().unwrap();
        }
        buffer.fill(0);
        driver.read(1, 1, 8, 8, &buffer).unwrap().ok().unwrap();
        assert_eq!(buffer.to_vec(), bytes);
    }
}
