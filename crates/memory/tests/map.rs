//! The map against a naive model, and what it promises about faults.
#![expect(unsafe_code, reason = "memfds and copies for tests")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
// UNSAFETY: one system call that makes a file descriptor, and one copy between buffers of a test.

use memory::{Access, DoorbellPage, Fault, Hint, Iova, MapError, Mapping, MappingError, MemoryMap};
use memory::{REGIONS_MAX, Remote, Segment, SharedRegion, Window};
use proptest::prelude::*;
use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

const PAGE: u64 = 4096;

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

fn fd(file: &File) -> OwnedFd {
    file.try_clone().unwrap().into()
}

fn mapping(file: &File, offset: u64, len: u64) -> Arc<Mapping> {
    Mapping::new(fd(file), offset, len, Access::BOTH).unwrap()
}

/// A file of `pages` pages mapped whole at `iova`.
fn simple(iova: u64, pages: u64) -> (File, Arc<MemoryMap>) {
    let file = memfd(pages * PAGE);
    let mapping = mapping(&file, 0, pages * PAGE);
    let map = MemoryMap::empty().with(Iova(iova), pages * PAGE, Access::BOTH, Some((mapping, 0))).unwrap();
    (file, Arc::new(map))
}

proptest! {
    /// Whatever the alignment and the length, and nothing beside it.
    #[test]
    fn what_is_streamed_arrives_as_what_is_copied(
        from in 0_usize..80,
        to in prop_oneof![0_usize..80, (0_usize..5).prop_map(|line| line * 16)],
        len in prop_oneof![0_usize..3000, (0_usize..48).prop_map(|lines| lines * 64)],
    ) {
        let mut source: Vec<u8> = (0..=250).cycle().take(4096).collect();
        let mut drive = vec![0xEE; 4096];
        let mut expected = drive.clone();
        expected[to..to + len].copy_from_slice(&source[from..from + len]);
        // SAFETY: two buffers of this test, both alive.
        unsafe { Segment::of(&mut source[from..from + len]).stream_into(Segment::of(&mut drive[to..to + len])) };
        prop_assert_eq!(drive, expected);
    }
}

#[test]
fn what_the_guest_stored_is_read_and_what_is_written_reaches_the_guest() {
    let (file, map) = simple(0x10000, 4);
    file.write_all_at(&[1, 2, 3, 4, 5, 6, 7, 8], 4092).unwrap();
    assert_eq!(map.read::<[u8; 8]>(Iova(0x10000 + 4092)), Ok([1, 2, 3, 4, 5, 6, 7, 8]));
    assert_eq!(map.read::<u64>(Iova(0x10000 + 4092)), Ok(0x0807_0605_0403_0201));
    let mut large = vec![0; 2 * 4096 + 3];
    map.read_bytes(Iova(0x10001), &mut large).unwrap();
    assert_eq!(large[4091..4099], [1, 2, 3, 4, 5, 6, 7, 8]);
    for (byte, at) in (0..=255).cycle().zip(&mut large) {
        *at = byte;
    }
    map.write_bytes(Iova(0x10003), &large).unwrap();
    let mut back = vec![0; large.len()];
    file.read_exact_at(&mut back, 3).unwrap();
    assert_eq!(back, large);
}

#[test]
fn every_wrong_map_request_is_refused_and_changes_nothing() {
    let (file, map) = simple(0x10000, 4);
    let with = |iova, len| map.with(Iova(iova), len, Access::BOTH, None).map(|_| ());
    assert_eq!(with(0x20000, 0), Err(MapError::Empty));
    assert_eq!(with(u64::MAX - 10, 10), Ok(()));
    assert_eq!(with(u64::MAX - 10, 11), Err(MapError::Wraps));
    assert_eq!(with(u64::MAX, u64::MAX), Err(MapError::Wraps));
    for (iova, len) in
        [(0x10000, 1), (0xffff, 2), (0x13fff, 9), (0, u64::MAX), (0x11000, 0x1000), (0x10000, 0x4000)]
    {
        assert_eq!(with(iova, len), Err(MapError::Overlap(Iova(0x10000))), "{iova:x} {len:x}");
    }
    assert_eq!(with(0xffff, 1), Ok(()));
    assert_eq!(with(0x14000, 1), Ok(()));
    let half = mapping(&file, 0, PAGE);
    let outside = |offset, len| map.with(Iova(0), len, Access::BOTH, Some((Arc::clone(&half), offset))).err();
    assert_eq!(outside(0, PAGE + 1), Some(MapError::OutsideMapping));
    assert_eq!(outside(1, PAGE), Some(MapError::OutsideMapping));
    assert_eq!(outside(u64::MAX, 2), Some(MapError::OutsideMapping));
    let read_only = Mapping::new(fd(&file), 0, PAGE, Access::READ).unwrap();
    let more = map.with(Iova(0), PAGE, Access::BOTH, Some((read_only, 0))).err();
    assert_eq!(more, Some(MapError::OutsideMapping));
}

#[test]
fn an_unmap_takes_whole_regions_or_nothing() {
    let (_file, map) = simple(0x10000, 4);
    let map = map.with(Iova(0x20000), PAGE, Access::READ, None).unwrap();
    let without = |iova, len| map.without(Iova(iova), len).map(|map| map.regions().len());
    assert_eq!(without(0x10000, 0x4000), Ok(1));
    assert_eq!(without(0, 0x30000), Ok(0));
    assert_eq!(without(0x10000, 0x3fff), Err(MapError::Partial(Iova(0x10000))));
    assert_eq!(without(0x10001, 0x30000), Err(MapError::Partial(Iova(0x10000))));
    assert_eq!(without(0x14000, 0x1000), Err(MapError::NotMapped));
    assert_eq!(without(0, 0), Err(MapError::Empty));
    assert_eq!(without(1, u64::MAX), Err(MapError::Wraps));
    let cleared = map.cleared();
    assert_eq!((cleared.regions().len(), map.regions().len()), (0, 2));
    assert!(cleared.generation() > map.generation());
}

#[test]
fn the_number_of_regions_is_bounded() {
    let mut map = MemoryMap::empty();
    for index in 0..REGIONS_MAX as u64 {
        map = map.with(Iova(index * 2 * PAGE), PAGE, Access::BOTH, None).unwrap();
    }
    assert_eq!(map.with(Iova(PAGE), PAGE, Access::BOTH, None).err(), Some(MapError::TooMany));
}

#[test]
fn rights_are_the_devices_and_are_kept() {
    let (file, _) = simple(0, 1);
    let mapping = mapping(&file, 0, PAGE);
    let map = MemoryMap::empty().with(Iova(0), PAGE, Access::READ, Some((mapping, 0))).unwrap();
    assert_eq!(map.write_bytes(Iova(0), &[1]), Err(Fault::Denied));
    assert_eq!(map.store_u32(Iova(0), 1), Err(Fault::Denied));
    assert_eq!(map.segment(&mut Hint::default(), Iova(0), 1, Access::BOTH), Err(Fault::Denied));
    assert_eq!(map.load_u32(Iova(0)), Ok(0));
    let map = Arc::new(map);
    assert_eq!(Window::new(&map, Iova(0), 8, Access::WRITE).err(), Some(Fault::Denied));
    let window = Window::new(&map, Iova(0), 8, Access::READ).unwrap();
    assert_eq!(window.write(0, &[1]), Err(Fault::Denied));
    assert_eq!(window.store_u32(0, 1), Err(Fault::Denied));
    assert_eq!(window.write_completion(0, 0).err(), Some(Fault::Unmapped));
}

#[test]
fn files_that_are_not_memory_or_too_short_are_refused() {
    let new = |file: &File, offset, len| Mapping::new(fd(file), offset, len, Access::BOTH).err();
    let file = memfd(2 * PAGE);
    assert!(matches!(new(&file, 0, 0), Some(MappingError::Empty)));
    assert!(matches!(new(&file, 1, u64::MAX), Some(MappingError::Wraps { .. })));
    assert!(matches!(new(&file, PAGE, PAGE + 1), Some(MappingError::TooShort { size: 8192, end: 8193 })));
    assert!(new(&file, PAGE, PAGE).is_none());
    let zero = File::options().read(true).write(true).open("/dev/zero").unwrap();
    assert!(matches!(new(&zero, 0, PAGE), Some(MappingError::NotMemory("character device"))));
    let status = File::open("/proc/self/exe").and(File::open("/proc/self/status")).unwrap();
    assert!(new(&status, 0, 1).is_some());
    let read_only = File::open("/proc/self/exe").unwrap();
    assert!(new(&read_only, 0, 1).is_some(), "a read-only file cannot be written by a device");
}

#[test]
fn a_mapping_may_begin_in_mid_page() {
    let file = memfd(2 * PAGE);
    file.write_all_at(b"hello", 4095).unwrap();
    let mapping = Mapping::new(fd(&file), 4095, 5, Access::BOTH).unwrap();
    let map = MemoryMap::empty().with(Iova(3), 5, Access::BOTH, Some((mapping, 0))).unwrap();
    assert_eq!(map.read::<[u8; 5]>(Iova(3)), Ok(*b"hello"));
    assert_eq!(map.load_u32(Iova(3)), Ok(u32::from_le_bytes(*b"hell")));
    map.store_u32(Iova(4), u32::from_le_bytes(*b"ELLO")).unwrap();
    assert_eq!(map.read::<[u8; 5]>(Iova(3)), Ok(*b"hELLO"));
    let window = Window::new(&Arc::new(map), Iova(3), 5, Access::BOTH).unwrap();
    assert_eq!(window.load_u32(1), Ok(u32::from_le_bytes(*b"ELLO")));
}

#[test]
fn adjacent_regions_of_one_mapping_are_one_segment_and_others_are_not() {
    let file = memfd(8 * PAGE);
    let whole = mapping(&file, 0, 8 * PAGE);
    let other = mapping(&file, 0, PAGE);
    let map = MemoryMap::empty()
        .with(Iova(PAGE), PAGE, Access::BOTH, Some((Arc::clone(&whole), PAGE)))
        .and_then(|map| map.with(Iova(0), PAGE, Access::BOTH, Some((whole, 0))))
        .and_then(|map| map.with(Iova(2 * PAGE), PAGE, Access::BOTH, Some((other, 0))))
        .unwrap();
    let mut hint = Hint::default();
    assert_eq!(map.segment(&mut hint, Iova(1), 8190, Access::BOTH).unwrap().len(), 8190);
    assert_eq!(map.segment(&mut hint, Iova(PAGE), 4097, Access::BOTH), Err(Fault::Unmapped));
    let mut lens = vec![];
    map.segments(&mut hint, Iova(100), 8292, Access::BOTH, &mut |segment| lens.push(segment.len())).unwrap();
    assert_eq!(lens, [8092, 200]);
    let window = Window::new(&Arc::new(map), Iova(8000), 400, Access::BOTH).unwrap();
    assert!(!window.is_direct());
    window.write(100, &[7; 200]).unwrap();
    assert_eq!(window.read::<[u8; 200]>(100), Ok([7; 200]));
    window.write_completion(184, 0x4_0000_0003_0000_0002_0000_0001).unwrap();
    assert_eq!(window.read::<[u32; 4]>(184), Ok([1, 2, 3, 4]));
    assert_eq!(window.read::<[u8; 200]>(201), Err(Fault::Unmapped));
    assert_eq!(window.load_u32(usize::MAX), Err(Fault::Unmapped));
}

struct Far(Mutex<Vec<u8>>);

impl Remote for Far {
    fn read(&self, iova: Iova, dst: &mut [u8]) -> Result<(), Fault> {
        let at = usize::try_from(iova.0).unwrap();
        dst.copy_from_slice(&self.0.lock().unwrap()[at..at + dst.len()]);
        Ok(())
    }
    fn write(&self, iova: Iova, src: &[u8]) -> Result<(), Fault> {
        let at = usize::try_from(iova.0).unwrap();
        self.0.lock().unwrap()[at..at + src.len()].copy_from_slice(src);
        Ok(())
    }
}

#[test]
fn a_region_without_fd_is_reached_only_by_a_map_that_may_block() {
    let (_file, map) = simple(PAGE, 1);
    let map = Arc::new(map.with(Iova(0), PAGE, Access::BOTH, None).unwrap());
    assert_eq!(map.read::<u64>(Iova(0)), Err(Fault::Remote));
    assert_eq!(map.read_bytes(Iova(4090), &mut [0; 12]), Err(Fault::Remote));
    assert_eq!(Window::new(&map, Iova(0), 64, Access::BOTH).err(), Some(Fault::Remote));
    let map = Arc::new(map.with_remote(Arc::new(Far(Mutex::new(vec![9; 4096])))));
    assert!(map.is_remote_reachable());
    assert_eq!(map.read::<[u8; 4]>(Iova(4094)), Ok([9, 9, 0, 0]));
    map.write_bytes(Iova(4094), &[1, 2, 3, 4]).unwrap();
    assert_eq!(map.read::<[u8; 4]>(Iova(4094)), Ok([1, 2, 3, 4]));
    let window = Window::new(&map, Iova(4032), 64, Access::BOTH).unwrap();
    assert!(!window.is_direct());
    window.write_completion(0, 0x8_0000_0007_0000_0006_0000_0005).unwrap();
    assert_eq!(window.read::<[u32; 4]>(0), Ok([5, 6, 7, 8]));
    let no = map.segment(&mut Hint::default(), Iova(0), 8, Access::BOTH);
    assert_eq!(no, Err(Fault::Remote));
}

#[test]
fn a_shrunk_file_reads_as_zeros_and_is_poisoned_and_the_process_lives() {
    let (file, map) = simple(0, 4);
    let (healthy_file, healthy) = simple(0, 1);
    healthy_file.write_all_at(&[3; 8], 0).unwrap();
    file.write_all_at(&[7; 4096], 0).unwrap();
    let window = Window::new(&map, Iova(0), 4096, Access::BOTH).unwrap();
    assert_eq!(window.read::<[u8; 64]>(0), Ok([7; 64]));
    file.set_len(0).unwrap();
    assert!(!map.is_poisoned());
    assert_eq!(window.read::<[u8; 64]>(0), Ok([0; 64]));
    assert!(map.is_poisoned());
    assert_eq!(map.read::<u64>(Iova(4096)), Err(Fault::Poisoned));
    assert_eq!(map.write_bytes(Iova(0), &[1]), Err(Fault::Poisoned));
    assert_eq!(Window::new(&map, Iova(0), 8, Access::READ).err(), Some(Fault::Poisoned));
    window.store_u32(0, 5).unwrap();
    // Everybody else is untouched.
    assert!(!healthy.is_poisoned());
    assert_eq!(healthy.read::<[u8; 8]>(Iova(0)), Ok([3; 8]));
}

#[test]
fn threads_that_touch_a_file_while_it_shrinks_all_live() {
    for _ in 0..20 {
        let (file, map) = simple(0, 64);
        std::thread::scope(|scope| {
            for thread in 0..3_u64 {
                let map = &map;
                scope.spawn(move || {
                    for round in 0..2000 {
                        let at = Iova((round * 7 + thread * 13) % 64 * PAGE);
                        if map.store_u32(at, 1) == Err(Fault::Poisoned) {
                            break;
                        }
                        let mut bytes = [0; 1000];
                        let _ = map.read_bytes(at, &mut bytes);
                    }
                });
            }
            std::thread::yield_now();
            file.set_len(PAGE).unwrap();
            let _ = map.read::<u64>(Iova(63 * PAGE));
        });
        assert!(map.is_poisoned());
    }
}

#[test]
fn a_completion_is_whole_when_its_last_dword_is_seen() {
    let (_file, map) = simple(0, 1);
    let window = Window::new(&map, Iova(0), 4096, Access::BOTH).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1..200_000_u128 {
                window.write_completion(48, n * 0x1_0000_0001_0000_0001_0000_0001).unwrap();
            }
            stop.store(true, Ordering::Release);
        });
        while !stop.load(Ordering::Acquire) {
            let phase = window.load_u32(60).unwrap();
            for dword in [48, 52, 56] {
                assert!(window.load_u32(dword).unwrap() >= phase);
            }
        }
    });
}

#[test]
fn a_shared_region_is_one_memory_for_all_who_map_it() {
    let here = SharedRegion::<DoorbellPage>::memfd("doorbells").unwrap();
    let there =
        SharedRegion::<DoorbellPage>::from_fd(here.fd().unwrap().try_clone_to_owned().unwrap()).unwrap();
    here.store(2, 77);
    assert_eq!((there.sq_tail(1), there.cq_head(1), there.load(4096)), (77, 0, 0));
    let file = File::from(here.fd().unwrap().try_clone_to_owned().unwrap());
    assert!(file.set_len(0).is_err(), "whoever holds the fd cannot take the memory away");
    assert!(SharedRegion::<AtomicU32>::from_fd(memfd(PAGE).into()).is_err(), "a file that can shrink");
    assert!(SharedRegion::<[AtomicU32; 4096]>::from_fd(file.into()).is_err(), "too small");
    let private = SharedRegion::<DoorbellPage>::private();
    private.store(0, 1);
    assert_eq!((private.sq_tail(0), private.fd().is_none()), (1, true));
}

/// (page, pages, read-only, remote)
type Wish = (u64, u64, bool, bool);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The model holds an answer for each byte of a small address space.
    #[test]
    fn any_sequence_of_maps_and_unmaps_translates_as_the_naive_model(
        wishes in prop::collection::vec((0_u64..24, 1_u64..6, any::<bool>(), any::<bool>()), 1..40),
        unmaps in prop::collection::vec((0_u64..24, 1_u64..12), 40),
        looks in prop::collection::vec((0_u64..30 * PAGE, 0_usize..20_000), 20),
    ) {
        let file = memfd(32 * PAGE);
        let bytes: Vec<u8> = (0..32 * PAGE).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect();
        file.write_all_at(&bytes, 0).unwrap();
        let whole = mapping(&file, 0, 32 * PAGE);
        let mut map = MemoryMap::empty();
        let mut model: Vec<Wish> = vec![];
        for (wish, (gone, gone_len)) in wishes.into_iter().zip(unmaps) {
            let (page, pages, read_only, remote) = wish;
            let overlaps = model.iter().any(|m| m.0 < page + pages && page < m.0 + m.1);
            let access = if read_only { Access::READ } else { Access::BOTH };
            let at = (!remote).then(|| (Arc::clone(&whole), page * PAGE));
            match map.with(Iova(page * PAGE), pages * PAGE, access, at) {
                Ok(next) => { prop_assert!(!overlaps); model.push(wish); map = next; }
                Err(error) => prop_assert!(overlaps, "{error}"),
            }
            let inside = |m: &Wish| m.0 >= gone && m.0 + m.1 <= gone + gone_len;
            let touches = |m: &Wish| m.0 < gone + gone_len && gone < m.0 + m.1;
            let whole_only = model.iter().all(|m| inside(m) || !touches(m)) && model.iter().any(touches);
            if gone % 3 == 0 {
                match map.without(Iova(gone * PAGE), gone_len * PAGE) {
                    Ok(next) => { prop_assert!(whole_only); model.retain(|m| !inside(m)); map = next; }
                    Err(_) => prop_assert!(!whole_only),
                }
            }
        }
        let at_page = |page: u64| model.iter().find(|m| m.0 <= page && page < m.0 + m.1);
        let mut hint = Hint::default();
        for (at, len) in looks {
            let pages = at / PAGE..(at + len as u64).div_ceil(PAGE);
            let mut all = if len == 0 { 0..0 } else { pages };
            let ok = all.clone().all(|page| at_page(page).is_some_and(|m| !m.3));
            let writable = ok && all.all(|page| at_page(page).is_some_and(|m| !m.2));
            let mut got = vec![0; len];
            let read = map.read_bytes(Iova(at), &mut got);
            prop_assert_eq!(read.is_ok(), ok);
            if ok {
                let from = usize::try_from(at).unwrap();
                prop_assert_eq!(&got[..], &bytes[from..from + len]);
            }
            let mut total = 0;
            let walk = map.segments(&mut hint, Iova(at), len, Access::WRITE, &mut |s| total += s.len());
            if len > 0 {
                prop_assert_eq!(walk.is_ok(), writable);
                if writable { prop_assert_eq!(total, len); }
                if let Ok(one) = map.segment(&mut hint, Iova(at), len, Access::WRITE) {
                    prop_assert!(writable);
                    prop_assert_eq!(one.len(), len);
                }
            }
        }
    }

    /// Copies of any length at any two alignments move exactly their bytes.
    #[test]
    fn any_copy_moves_exactly_its_bytes(at in 0_u64..70, len in 0_usize..700, skew in 0_usize..9) {
        let (file, map) = simple(0, 1);
        let source: Vec<u8> = (0..len + skew).map(|n| u8::try_from(n % 255 + 1).unwrap()).collect();
        map.write_bytes(Iova(at), &source[skew..]).unwrap();
        let mut all = vec![0; 4096];
        file.read_exact_at(&mut all, 0).unwrap();
        let from = usize::try_from(at).unwrap();
        prop_assert!(all[..from].iter().all(|byte| *byte == 0));
        prop_assert_eq!(&all[from..from + len], &source[skew..]);
        prop_assert!(all[from + len..].iter().all(|byte| *byte == 0));
        let mut back = vec![0; len + skew];
        map.read_bytes(Iova(at), &mut back[skew..]).unwrap();
        prop_assert_eq!(&back[skew..], &source[skew..]);
    }
}
