//! Which blocks are allocated, as a guest is told by Get LBA Status (NVM 1.1, 4.2.1): a whole engine in this process, driven by the user-space guest.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

mod host;

use guest::nvme::{Driver, Sqe};
use host::{Host, read, write};

/// Of an ssd here.
const BLOCKS: u64 = 64 << 11;
/// What deallocated is given back in: an extent, in blocks.
const EXTENT: u64 = 2048;
const COMPLETE: u8 = 2;

fn on(backend: &str) -> String {
    format!("{backend}\nprofile = \"godwit-2\"")
}

fn get(slba: u64, dwords: u32) -> Sqe {
    let (low, high) = (slba as u32, (slba >> 32) as u32);
    Sqe::new(0x86).nsid(1).cdw10(low).cdw11(high).cdw12(dwords - 1).cdw13(0x0200_0000)
}

/// All runs, asked for in lists of so many dwords.
fn allocated(driver: &mut Driver, dwords: u32) -> Vec<(u64, u64)> {
    let (mut at, mut all) = (0, Vec::<(u64, u64)>::new());
    loop {
        let list = driver.admin_read(get(at, dwords), dwords as usize * 4).unwrap();
        let word = |at: usize| u64::from_le_bytes(list[at..at + 8].try_into().unwrap());
        let count = (word(0) & 0xffff_ffff) as usize;
        for entry in (0..count).map(|entry| 8 + 16 * entry) {
            let run = (word(entry), word(entry) + (word(entry + 8) & 0xffff_ffff) + 1);
            assert_eq!(list[entry + 13], 0b010, "allocated");
            assert!(at <= run.0 && run.0 < run.1 && run.1 <= BLOCKS, "{run:?} after {at}");
            at = run.1;
            all.push(run);
        }
        if list[4] == COMPLETE {
            return all;
        }
        assert!(count > 0, "more, and none told");
    }
}

fn is_told(runs: &[(u64, u64)], block: u64) -> bool {
    runs.iter().any(|(start, end)| (*start..*end).contains(&block))
}

/// The finalizer of SplitMix64.
fn dice(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn whatever_was_written_is_told_and_what_is_not_told_reads_as_zeros() {
    let kinds = [
        ("file", on("{ type = \"uring\", path = \"DIR/file.img\" }")),
        ("thin", on("{ type = \"pool\", pool = \"p\", thin = true }")),
        ("full", on("{ type = \"pool\", pool = \"p\" }")),
        ("ram", on("{ type = \"ram\" }")),
    ];
    let ssds: Vec<(&str, &str)> = kinds.iter().map(|(name, backend)| (*name, backend.as_str())).collect();
    let mut host = Host::start(&ssds, 2);
    for (seed, (name, _)) in (1..).zip(&kinds) {
        let mut driver = host.connect(name);
        driver.create_queue_pair(1, 64).unwrap();
        let (mut state, mut written) = (seed, vec![false; BLOCKS as usize]);
        assert_eq!(allocated(&mut driver, 64).is_empty(), *name != "full", "{name}: nothing was written");
        for turn in 0..36 {
            let slba = dice(&mut state) % (BLOCKS - 4096);
            let run = if dice(&mut state).is_multiple_of(4) {
                let run = slba..slba + 1 + dice(&mut state) % 4096;
                driver.deallocate(1, 1, &[(run.start, (run.end - run.start) as u32)]).unwrap().ok().unwrap();
                run.clone().for_each(|block| written[block as usize] = false);
                run
            } else {
                let run = slba..slba + 1 + dice(&mut state) % 64;
                write(&mut driver, 1, run.start, &vec![1; (run.end - run.start) as usize * 512]);
                run.clone().for_each(|block| written[block as usize] = true);
                run
            };
            if turn % 6 > 0 {
                continue;
            }
            // Room for one descriptor and for many.
            let runs = allocated(&mut driver, [6, 24, 1024][turn / 6 % 3]);
            for (block, _) in (0..).zip(&written).filter(|(_, written)| **written) {
                assert!(is_told(&runs, block), "{name}: block {block} of {run:?} is not told: {runs:?}");
            }
            for slba in (0..BLOCKS).step_by(EXTENT as usize) {
                let bytes = read(&mut driver, 1, slba, EXTENT as usize * 512);
                let blocks = (slba..).zip(bytes.chunks(512)).filter(|(block, _)| !is_told(&runs, *block));
                for (block, bytes) in blocks {
                    assert!(bytes.iter().all(|byte| *byte == 0), "{name}: block {block} was not told");
                }
            }
            if *name == "full" {
                assert_eq!(runs, [(0, BLOCKS)], "all its space is its own from the start");
            }
        }
        // All is given back.
        driver.deallocate(1, 1, &[(0, BLOCKS as u32)]).unwrap().ok().unwrap();
        assert_eq!(allocated(&mut driver, 64).is_empty(), *name != "full", "{name}: all was deallocated");
        write(&mut driver, 1, 5 * EXTENT, &[7; 4096]);
    }
    // And of another life.
    host = Host::start_in(host.stop(), &ssds, 1);
    for name in ["file", "thin"] {
        let runs = allocated(&mut host.connect(name), 64);
        assert!(is_told(&runs, 5 * EXTENT) && !is_told(&runs, 20 * EXTENT), "{name}: {runs:?}");
    }
    host.stop();
}

#[test]
fn questions_of_two_ssds_are_answered_while_both_are_at_work_and_leave() {
    let file = |name: &str| on(&format!("{{ type = \"uring\", path = \"DIR/{name}.img\" }}"));
    let (a, b) = (file("a"), file("b"));
    let host = Host::start(&[("a", &a), ("b", &b)], 1);
    for _ in 0..20 {
        let mut drivers = ["a", "b"].map(|name| host.connect(name));
        for driver in &mut drivers {
            driver.create_queue_pair(1, 64).unwrap();
            write(driver, 1, 8, &[1; 4096]);
            assert_eq!(allocated(driver, 1024).first(), Some(&(8, 16)));
        }
    }
    host.stop();
}

/// NVM 1.1, 4.1.5.4, 4.1.5.3, and what an ssd without a word about it has.
#[test]
fn an_ssd_without_a_profile_tells_nobody_what_is_allocated() {
    let ram = on("{ type = \"ram\" }");
    let host = Host::start(&[("old", "{ type = \"ram\" }"), ("new", &ram)], 1);
    let (mut old, mut new) = (host.connect("old"), host.connect("new"));
    assert_eq!((old.identify(6, 0).unwrap()[18], new.identify(6, 0).unwrap()[18]), (0, 1), "RALBAS");
    assert_eq!(new.identify(5, 1).unwrap()[292..296], [0; 4], "TLBAAG is not reported");
    assert!(old.admin_read(get(0, 64), 256).is_err());
    assert!(new.admin_read(get(0, 64), 256).is_ok());
    host.stop();
}
