//! The log of written pages: against a naive model, and what it promises to who copies a guest that runs.
#![expect(unsafe_code, reason = "memfds for tests")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
// UNSAFETY: one system call that makes a file descriptor.

use memory::{Access, Fault, Hint, Iova, LogError, Mapping, MemoryMap, Remote, Window, WriteLog};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};

const PAGE: u64 = 4096;
/// The last page of all.
const LAST: u64 = u64::MAX - 4095;

fn memfd(len: u64) -> File {
    // SAFETY: a NUL-terminated name; the result is a new descriptor.
    let file = unsafe {
        let fd = libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        File::from_raw_fd(fd)
    };
    file.set_len(len).unwrap();
    file
}

fn mapping(file: &File) -> Arc<Mapping> {
    let len = file.metadata().unwrap().len();
    Mapping::new(file.try_clone().unwrap().into(), 0, len, Access::BOTH).unwrap()
}

fn flat(bytes: u64) -> (File, Arc<WriteLog>) {
    let file = memfd(bytes);
    let log = WriteLog::flat(mapping(&file)).unwrap();
    (file, Arc::new(log))
}

/// Guest memory of so many pages at an address, and the same with a log.
fn logged(iova: u64, pages: u64) -> (File, Arc<WriteLog>, Arc<MemoryMap>) {
    let file = memfd(pages * PAGE);
    let memory = Some((mapping(&file), 0));
    let map = MemoryMap::empty().with(Iova(iova), pages * PAGE, Access::BOTH, memory).unwrap();
    let (_, log) = flat((iova / PAGE + pages).div_ceil(8));
    (file, Arc::clone(&log), Arc::new(map.with_log(Some(log))))
}

fn take_all(log: &WriteLog) -> Vec<u64> {
    let mut pages = Vec::new();
    log.take(Iova(0), u64::MAX, &mut |page| pages.push(page.0 / PAGE));
    pages
}

#[test]
fn pages_in_a_row_are_one_run_and_stay_marked() {
    let (_, log) = flat(8);
    for (first, pages) in [(0, 1), (3, 2), (6, 12), (20, 4), (24, 1), (63, 1)] {
        log.mark(Iova(first * PAGE), pages * PAGE);
    }
    let runs = |from: u64, pages: u64| {
        let mut runs = Vec::new();
        log.runs(Iova(from * PAGE), pages * PAGE, &mut |first, pages| runs.push((first.0 / PAGE, pages)));
        runs
    };
    let all = [(0, 1), (3, 2), (6, 12), (20, 5), (63, 1)];
    assert_eq!(runs(0, 64), all);
    assert_eq!(runs(4, 5), [(4, 1), (6, 3)], "no page outside of what was asked for");
    assert_eq!(runs(1, 2), []);
    assert_eq!(runs(0, 64), all, "nothing was taken");
    assert_eq!(take_all(&log).len(), 21);
    assert_eq!(runs(0, 64), []);
}

/// First page and pages, apart from each other.
fn ranges() -> impl Strategy<Value = Vec<(u64, u64)>> {
    proptest::collection::vec((0_u64..20, 1_u64..40), 1..6).prop_map(|gaps| {
        let mut at = 0;
        gaps.into_iter()
            .map(|(gap, pages)| {
                let first = at + gap;
                at = first + pages;
                (first, pages)
            })
            .collect()
    })
}

proptest! {
    /// Marks, and takes of parts, in any order: as a set of pages does.
    #[test]
    fn a_log_of_ranges_has_what_was_marked_inside_of_them_until_it_is_taken(
        ranges in ranges().prop_shuffle(),
        steps in proptest::collection::vec((any::<bool>(), 0_u64..300 * PAGE, 0_u64..30 * PAGE), 1..60),
    ) {
        let wanted: Vec<(Iova, u64)> =
            ranges.iter().map(|(first, pages)| (Iova(first * PAGE), pages * PAGE)).collect();
        let file = memfd(WriteLog::bytes_of(&wanted).unwrap());
        let log = WriteLog::of_ranges(mapping(&file), &wanted).unwrap();
        let inside = |page: &u64| ranges.iter().any(|(first, pages)| (*first..first + pages).contains(page));
        let mut model = BTreeSet::new();
        for (is_mark, at, len) in steps {
            let touched = if len == 0 { 0..0 } else { at / PAGE..(at + len - 1) / PAGE + 1 };
            if is_mark {
                log.mark(Iova(at), len);
                model.extend(touched.filter(inside));
            } else {
                let mut taken = Vec::new();
                log.take(Iova(at), len, &mut |page| taken.push(page.0 / PAGE));
                let expected: Vec<u64> = touched.filter(|page| model.remove(page)).collect();
                prop_assert_eq!(taken, expected);
            }
        }
        prop_assert_eq!(take_all(&log), model.into_iter().collect::<Vec<_>>());
        prop_assert!(take_all(&log).is_empty());
    }
}

#[test]
fn a_flat_log_has_page_n_in_bit_n_mod_8_of_byte_n_over_8_and_nothing_beyond_its_end() {
    let (file, log) = flat(3);
    for (at, len) in
        [(0, 1), (PAGE * 9 - 1, 2), (PAGE * 23, u64::MAX), (PAGE * 24, PAGE), (u64::MAX, 1), (5, 0)]
    {
        log.mark(Iova(at), len);
    }
    let mut bytes = [0; 3];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [0b1, 0b11, 0b1000_0000]);
    assert_eq!(take_all(&log), [0, 8, 9, 23]);
}

#[test]
fn a_log_that_cannot_be_is_refused() {
    let file = memfd(PAGE);
    let of = |ranges: &[(u64, u64)]| {
        let ranges: Vec<_> = ranges.iter().map(|(at, len)| (Iova(*at), *len)).collect();
        WriteLog::of_ranges(mapping(&file), &ranges).map(drop)
    };
    assert_eq!(of(&[]), Err(LogError::Ranges));
    assert_eq!(of(&vec![(0, PAGE); memory::LOG_RANGES_MAX + 1]), Err(LogError::Ranges));
    for (at, len) in [(0, 0), (1, PAGE), (0, PAGE + 1), (2 * PAGE, LAST), (LAST, 2 * PAGE)] {
        assert_eq!(of(&[(at, len)]), Err(LogError::Range(Iova(at))), "{at:#x}+{len:#x}");
    }
    assert_eq!(of(&[(0, 2 * PAGE), (PAGE, PAGE)]), Err(LogError::Overlap(Iova(PAGE))));
    let bits = PAGE * 8 * PAGE;
    assert_eq!(of(&[(0, bits)]), Ok(()));
    assert_eq!(of(&[(0, bits), (bits, PAGE)]), Err(LogError::TooSmall(PAGE + 1)));
    assert_eq!(of(&[(LAST, PAGE)]), Ok(()));
    let last = WriteLog::of_ranges(mapping(&file), &[(Iova(LAST), PAGE)]).unwrap();
    last.mark(Iova(u64::MAX), 1);
    assert_eq!(take_all(&last), [u64::MAX >> 12]);
    let readable = Mapping::new(file.try_clone().unwrap().into(), 0, PAGE, Access::READ).unwrap();
    assert_eq!(WriteLog::flat(readable).err(), Some(LogError::ReadOnly));
}

/// A store through a map or a window.
type Store = fn(&MemoryMap, &Window, u64) -> Result<(), Fault>;

#[test]
fn every_store_through_a_map_or_a_window_marks_its_pages_and_no_others() {
    let (_file, log, map) = logged(16 * PAGE, 64);
    let window = Window::new(&map, Iova(16 * PAGE), 64 * 4096, Access::BOTH).unwrap();
    assert!(window.is_direct());
    let stores: [Store; 9] = [
        |_, window, at| window.write(at.try_into().unwrap(), &[1; 16]),
        |_, window, at| window.write_completion(at.try_into().unwrap(), 1),
        |_, window, at| window.store_u64(at.try_into().unwrap(), 1),
        |_, window, at| window.store_u32(at.try_into().unwrap(), 1),
        |_, window, at| window.store_u16(at.try_into().unwrap(), 1),
        |map, _, at| map.write_bytes(Iova(16 * PAGE + at), &[1; 16]),
        |map, _, at| map.store_u32(Iova(16 * PAGE + at), 1),
        |map, _, at| map.store_u8(&mut Hint::default(), Iova(16 * PAGE + at), 1),
        |map, _, at| {
            map.mark(Iova(16 * PAGE + at), 1);
            Ok(())
        },
    ];
    for (store, page) in stores.iter().zip(3..) {
        store(&map, &window, page * PAGE + 64).unwrap();
        assert_eq!(take_all(&log), [16 + page], "store {page}");
    }
    window.write(4096 - 8, &[1; 16]).unwrap();
    assert_eq!(take_all(&log), [16, 17], "over a seam");
    let past = window.store_u32(64 * 4096, 1);
    assert_eq!((past, take_all(&log)), (Err(Fault::Unmapped), vec![]));
    for _ in 0..3 {
        map.read::<u64>(Iova(16 * PAGE)).unwrap();
        window.load_u32(0).unwrap();
    }
    assert!(take_all(&log).is_empty(), "what is read is not marked");
    window.mark(2 * 4096, 2 * 4096);
    assert_eq!(take_all(&log), [18, 19]);
}

#[test]
fn a_map_without_a_log_marks_nothing_and_one_made_from_a_logged_map_has_its_log() {
    let (file, log, map) = logged(0, 4);
    let more = map.with(Iova(8 * PAGE), PAGE, Access::BOTH, Some((mapping(&memfd(PAGE)), 0))).unwrap();
    for other in [&more, &more.without(Iova(8 * PAGE), PAGE).unwrap()] {
        assert!(other.log().is_some_and(|theirs| Arc::ptr_eq(theirs, &log)));
        other.store_u32(Iova(0), 1).unwrap();
        assert_eq!(take_all(&log), [0]);
    }
    let off = Arc::new(map.with_log(None));
    assert!(off.generation() > map.generation());
    let window = Window::new(&off, Iova(0), 4096, Access::BOTH).unwrap();
    off.write_bytes(Iova(0), &[1; 8]).unwrap();
    window.store_u64(0, 1).unwrap();
    window.mark(0, 4096);
    assert!(take_all(&log).is_empty());
    drop(file);
}

struct Wire;

impl Remote for Wire {
    fn read(&self, _iova: Iova, dst: &mut [u8]) -> Result<(), Fault> {
        dst.fill(0);
        Ok(())
    }

    fn write(&self, _iova: Iova, _src: &[u8]) -> Result<(), Fault> {
        Ok(())
    }
}

#[test]
fn what_goes_through_the_client_or_over_two_regions_is_marked_too() {
    let halves = memfd(2 * PAGE);
    let half =
        |at| Some((Mapping::new(halves.try_clone().unwrap().into(), at, PAGE, Access::BOTH).unwrap(), 0));
    let map = MemoryMap::empty().with(Iova(0), PAGE, Access::BOTH, half(PAGE)).unwrap();
    let map = map.with(Iova(PAGE), PAGE, Access::BOTH, half(0)).unwrap();
    let map = map.with(Iova(2 * PAGE), PAGE, Access::BOTH, None).unwrap().with_remote(Arc::new(Wire));
    let (_, log) = flat(1);
    let map = Arc::new(map.with_log(Some(Arc::clone(&log))));
    let window = Window::new(&map, Iova(0), 3 * 4096, Access::BOTH).unwrap();
    assert!(!window.is_direct());
    window.store_u64(4092, 1).unwrap();
    assert_eq!(take_all(&log), [0, 1]);
    window.write_completion(2 * 4096, 1).unwrap();
    assert_eq!(take_all(&log), [2]);
}

#[test]
fn marks_of_several_reactors_in_one_byte_are_all_there() {
    let pages = 4_000_000;
    let (_file, log) = flat(pages / 8);
    let begin = Barrier::new(2);
    std::thread::scope(|scope| {
        for reactor in 0..2 {
            let (log, begin) = (&log, &begin);
            scope.spawn(move || {
                begin.wait();
                (reactor..pages).step_by(2).for_each(|page| log.mark(Iova(page * PAGE), 1));
            });
        }
    });
    assert_eq!(take_all(&log).len() as u64, pages);
}

/// A mark that is lost is mended by the next of the page: so there are many rounds with one store to each.
#[test]
fn who_copies_pages_by_the_log_while_they_are_written_ends_with_what_was_written() {
    const PAGES: u64 = 32;
    const ROUNDS: u64 = 10_000;
    const STORES: u64 = 16;
    let (file, log, map) = logged(0, PAGES);
    let (writing, round_over) = (AtomicU64::new(0), Barrier::new(3));
    let (mut copy, mut lost) = (vec![0_u64; 32], Vec::new());
    let copy_marked = |copy: &mut Vec<u64>| {
        let mut pages = Vec::new();
        log.take(Iova(0), PAGES * PAGE, &mut |page| pages.push(page));
        for page in pages {
            copy[usize::try_from(page.0 / PAGE).unwrap()] = map.read(page).unwrap();
        }
    };
    std::thread::scope(|scope| {
        for writer in 0..2_u64 {
            let (map, writing, round_over) = (&map, &writing, &round_over);
            scope.spawn(move || {
                let window = Window::new(map, Iova(0), 32 * 4096, Access::BOTH).unwrap();
                for n in 1..=ROUNDS * STORES {
                    // Each page has one writer; each byte of the log has both.
                    let page = (n * 7 % (PAGES / 2)) * 2 + writer;
                    window.store_u64(usize::try_from(page * PAGE).unwrap(), n).unwrap();
                    if n % STORES == 0 {
                        writing.fetch_add(1, Ordering::Release);
                        round_over.wait();
                        round_over.wait();
                    }
                }
            });
        }
        for round in 1..=ROUNDS {
            // In every other round the two that write have the processors for themselves.
            while round % 2 == 0 && writing.load(Ordering::Acquire) < 2 * round {
                copy_marked(&mut copy);
            }
            round_over.wait();
            copy_marked(&mut copy);
            for (page, copied) in (0..).zip(&copy) {
                let mut bytes = [0; 8];
                file.read_exact_at(&mut bytes, page * PAGE).unwrap();
                if u64::from_le_bytes(bytes) != *copied {
                    lost.push((page, round));
                }
            }
            round_over.wait();
        }
    });
    assert!(lost.is_empty(), "page and round: {lost:?}");
}

#[test]
fn a_log_whose_file_is_shrunk_poisons_its_map_and_harms_nobody() {
    let (file, log) = flat(2 * PAGE);
    let map = MemoryMap::empty().with_log(Some(Arc::clone(&log)));
    log.mark(Iova(0), PAGE);
    assert!(!map.is_poisoned());
    file.set_len(0).unwrap();
    log.mark(Iova(PAGE * PAGE * 8), PAGE);
    assert!(log.is_poisoned() && map.is_poisoned());
}
