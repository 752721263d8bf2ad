//! A map names what was marked, whatever was marked and harvested, and so does its compact form.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use dirty::codec::{Damage, decode, encode};
use dirty::{BLOCK_PAGES, Map, Marks, PAGES_MAX};
use proptest::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Runs of pages that do not touch, in order.
type Runs = Vec<(u64, u64)>;

fn add(runs: &mut Runs, first: u64, len: u64) {
    match runs.last_mut() {
        Some((from, count)) if *from + *count >= first => {
            *count = (*count).max(first + len - *from);
        }
        _ => runs.push((first, len)),
    }
}

fn runs_of(block: usize, marks: &Marks<'_>, into: &mut Runs) {
    let mut count = 0;
    marks.runs(|first, len| {
        add(into, block as u64 * BLOCK_PAGES + u64::from(first), u64::from(len));
        count += len;
    });
    assert_eq!(count, marks.count());
}

fn taken(map: &Map) -> Runs {
    let mut runs = Runs::new();
    map.take(|block, marks| runs_of(block, &marks, &mut runs));
    runs
}

fn seen(map: &Map) -> Runs {
    let mut runs = Runs::new();
    map.look(|block, marks| runs_of(block, &marks, &mut runs));
    runs
}

/// What was marked, and how many pages that is.
fn modelled(mut marks: Vec<(u64, u64)>) -> (Runs, u64) {
    marks.sort_unstable();
    let mut runs = Runs::new();
    for (first, count) in marks {
        let end = (first + count).min(PAGES);
        if end > first {
            add(&mut runs, first, end - first);
        }
    }
    let count = runs.iter().map(|(_, count)| count).sum();
    (runs, count)
}

/// Over three regions and a bit, the last block not whole.
const PAGES: u64 = 3 * 64 * BLOCK_PAGES + 5 * BLOCK_PAGES + 77;

/// Where pages are marked: close together, at the edges of blocks and regions, anywhere.
fn place() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..50_u64,
        BLOCK_PAGES - 4..BLOCK_PAGES + 4,
        64 * BLOCK_PAGES - 4..64 * BLOCK_PAGES + 4,
        PAGES - 10..PAGES + 10,
        0..PAGES,
    ]
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![Just(1_u64), 1..8_u64, 1..300_u64, 4000..9000_u64, 0..2_u64]
}

proptest! {
    #[test]
    fn a_harvest_names_what_was_marked_since_the_last(
        rounds in prop::collection::vec(prop::collection::vec((place(), length()), 0..40), 1..5),
    ) {
        let map = Map::new(PAGES).unwrap();
        for round in rounds {
            round.iter().for_each(|(first, count)| map.mark(*first, *count));
            let (runs, count) = modelled(round);
            prop_assert_eq!(map.count(), count);
            prop_assert!(seen(&map) == runs);
            prop_assert!(taken(&map) == runs);
            prop_assert_eq!(map.count(), 0);
        }
    }

    #[test]
    fn the_compact_form_is_the_map_and_not_larger(marks in prop::collection::vec((place(), length()), 0..200)) {
        let map = Map::new(PAGES).unwrap();
        for (first, count) in marks {
            map.mark(first, count);
        }
        let bytes = encode(&map);
        prop_assert!((bytes.len() as u64) <= PAGES.div_ceil(8) * 101 / 100 + 16);
        let mut other = Map::new(PAGES).unwrap();
        prop_assert_eq!(decode(&bytes, &mut other), Ok(()));
        prop_assert!(seen(&other) == seen(&map));
        // Added to what is there.
        prop_assert_eq!(decode(&bytes, &mut other), Ok(()));
        prop_assert!(taken(&other) == seen(&map));
        for end in 0..bytes.len().min(20) {
            let mut part = Map::new(PAGES).unwrap();
            prop_assert!(decode(&bytes[..end], &mut part).is_err());
        }
    }

    #[test]
    fn any_bytes_are_a_map_or_an_error(
        mut bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0xc0..0xc8_u8, 0..8_u8, Just(0xff_u8)], 0..600),
        pages in prop_oneof![0..10_u64, 4000..5000_u64, Just(PAGES)],
    ) {
        let mut whole = encode(&Map::new(pages).unwrap());
        whole.pop();
        whole.append(&mut bytes);
        let mut map = Map::new(pages).unwrap();
        if decode(&whole, &mut map).is_ok() {
            prop_assert!(seen(&map).last().is_none_or(|(first, count)| first + count <= pages));
            let mut again = Map::new(pages).unwrap();
            prop_assert_eq!(decode(&encode(&map), &mut again), Ok(()));
            prop_assert!(seen(&again) == seen(&map));
        }
    }
}

/// Few pages in each of many parts, in an order that no name is next to its neighbour: each level gets some.
#[test]
fn a_page_is_found_on_whichever_level_it_stands() {
    for pages in 1..200_u64 {
        let map = Map::new(PAGES).unwrap();
        let places: Vec<u64> = (0..pages).map(|at| at * 611 % 1021 + BLOCK_PAGES).collect();
        for twice in places.iter().chain(&places) {
            map.mark(*twice, 1);
        }
        let (runs, count) = modelled(places.iter().map(|page| (*page, 1)).collect());
        assert_eq!((map.count(), count), (pages, pages));
        assert_eq!(seen(&map), runs);
        let mut other = Map::new(PAGES).unwrap();
        decode(&encode(&map), &mut other).unwrap();
        assert_eq!(taken(&other), runs);
        assert_eq!(taken(&map), runs);
        assert!(seen(&map).is_empty() && taken(&map).is_empty());
    }
}

/// Pages spread by a fixed generator: every `one_in`th, more or less.
fn scattered(pages: u64, one_in: u64) -> (Map, u64) {
    let map = Map::new(pages).unwrap();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for _ in 0..pages / one_in {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        map.mark(state % pages, 1);
    }
    let count = map.count();
    (map, count)
}

#[test]
fn scattered_pages_take_two_and_a_half_bytes_and_clusters_far_less() {
    let pages = 1 << 24;
    for one_in in [10_000, 1000, 100, 10, 2] {
        let (map, count) = scattered(pages, one_in);
        let bytes = encode(&map).len() as u64;
        assert!(bytes * 10 <= count * 25, "1 in {one_in}: {bytes} bytes for {count} pages");
        assert!(bytes <= pages / 8 * 101 / 100 + 16);
    }
    let map = Map::new(pages).unwrap();
    (0..pages).step_by(1 << 16).for_each(|at| map.mark(at, 1000));
    let (bytes, count) = (encode(&map).len() as u64, map.count());
    assert!(bytes * 100 < count, "{bytes} bytes for {count} pages in clusters");
    map.mark(0, pages);
    assert!(encode(&map).len() < 16, "a map that is full is short");
}

#[test]
fn what_is_not_a_map_of_this_size_is_refused_with_the_reason() {
    let mut map = Map::new(5000).unwrap();
    let start = |rest: &[u8]| [&[2, 0x88, 0x27], rest].concat();
    // The columns of its one region, with marks in block 0, in block 1.
    let first = |rest: &[u8]| start(&[&[1, 1, 1], rest].concat());
    let second = |rest: &[u8]| start(&[&[1, 1, 2], rest].concat());
    assert_eq!(decode(&start(&[0]), &mut map), Ok(()));
    assert_eq!(decode(&start(&[2, 1, 0]), &mut map), Ok(()));
    assert_eq!(map.count(), 5000);
    for (bytes, damage) in [
        (vec![], Damage::Truncated),
        (vec![1], Damage::Version(1)),
        (vec![2, 8, 0], Damage::Size { found: 8, expected: 5000 }),
        (start(&[]), Damage::Truncated),
        (start(&[0, 7, 7]), Damage::Trailing(2)),
        // An end that skips, no such kind.
        (start(&[4]), Damage::Item(4)),
        (start(&[3]), Damage::Item(3)),
        // A region, a block, regions that are not there.
        (start(&[5, 1, 1, 1]), Damage::Beyond(64)),
        (start(&[1, 1, 4]), Damage::Beyond(2)),
        (start(&[2, 2]), Damage::Beyond(64)),
        (start(&[6, 1]), Damage::Beyond(64)),
        (start(&[0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), Damage::Beyond(u64::MAX)),
        (start(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), Damage::Beyond(u64::MAX)),
        // No regions at all, which would count up past the last number there is.
        (start(&[2, 0, 0]), Damage::Item(2)),
        (start(&[2, 1, 0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1]), Damage::Beyond(u64::MAX)),
        (start(&[1]), Damage::Truncated),
        (start(&[1, 3, 1]), Damage::Truncated),
        // Names: none, one cut off, too many.
        (first(&[]), Damage::Truncated),
        (first(&[1, 5]), Damage::Truncated),
        (first(&[6, 1, 2, 3, 4, 5, 6, 7, 8, 9]), Damage::Item(6)),
        (first(&[15, 1, 2, 3, 4, 5, 6, 7, 8, 9]), Damage::Item(15)),
        // Parts: none, a name cut off, seven, what there are none of below.
        (first(&[8, 1, 0, 0]), Damage::Truncated),
        (first(&[8, 1, 0, 0, 0, 9]), Damage::Truncated),
        (first(&[8, 7, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]), Damage::Item(7)),
        (first(&[8, 9, 0, 0, 0, 1, 0]), Damage::Item(9)),
        // The last block has 904 pages: page 904 by a head, by its second part, and page 0 of its third.
        (second(&[1, 0x88, 3, 0]), Damage::Item(1)),
        (second(&[8, 0x10, 0, 0, 0, 0x88, 1, 0]), Damage::Item(1)),
        (second(&[8, 0, 1, 0, 0, 0, 0, 0]), Damage::Item(1)),
        // Another form: none, no such.
        (first(&[0]), Damage::Truncated),
        (first(&[0, 0xc6]), Damage::Item(0xc6)),
        // A list that falls, a run that ends before it begins, more than a block has.
        (first(&[0, 0xc3, 2, 7, 0x60, 0, 0]), Damage::Item(0xc3)),
        (first(&[0, 0xc4, 1, 7, 0x60, 0, 0]), Damage::Item(0xc4)),
        (first(&[0, 0xc3, 0x81, 0x20]), Damage::Item(0xc3)),
        (first(&[0, 0xc5, 1]), Damage::Truncated),
        // Page 904 again: alone, with one before it, at a run's end.
        (second(&[0, 0xc3, 1, 0x88, 3, 0]), Damage::Item(0xc3)),
        (second(&[0, 0xc3, 2, 0x87, 0x83, 0x38, 0]), Damage::Item(0xc3)),
        (second(&[0, 0xc4, 1, 0x87, 0x83, 0x38, 0]), Damage::Item(0xc4)),
    ] {
        let found = decode(&bytes, &mut map);
        assert_eq!(found, Err(damage), "{bytes:x?}");
        assert!(!damage.to_string().is_empty());
    }
    assert!(Map::new(PAGES_MAX + 1).unwrap_err().to_string().contains("at most"));
}

#[test]
fn a_bit_behind_the_last_page_is_refused_and_the_last_is_not() {
    // One block, the last byte of its bits has three.
    for (last, sound) in [(0b100, true), (0b1000, false), (0x80, false)] {
        let mut map = Map::new(11).unwrap();
        let found = decode(&[2, 11, 1, 1, 1, 0, 0xc5, 0, last, 0], &mut map);
        assert_eq!(found, if sound { Ok(()) } else { Err(Damage::Item(0xc5)) }, "{last:#x}");
        assert_eq!(seen(&map), if sound { vec![(10, 1)] } else { vec![] });
    }
}

#[test]
fn regions_that_are_full_are_counted_wherever_they_stand() {
    let region = 64 * BLOCK_PAGES;
    for (full, others) in [(0..5, 0), (1..3, 1), (2..6, 2), (0..0, 3)] {
        let mut marks: Vec<u64> = full.map(|at| at * region).collect();
        marks.push(8 * region);
        let (map, mut other) = (Map::new(10 * region + 9).unwrap(), Map::new(10 * region + 9).unwrap());
        marks.iter().for_each(|first| map.mark(*first, region));
        (0..others).for_each(|at| map.mark((5 + at) * region + 9, 3 * at));
        let bytes = encode(&map);
        assert!(bytes.len() < 80, "{}", bytes.len());
        decode(&bytes, &mut other).unwrap();
        assert_eq!(seen(&other), seen(&map));
    }
}

#[test]
fn what_is_decoded_is_added_to_what_a_map_has() {
    let few = |map: &Map| [3, 70, 4095].iter().for_each(|page| map.mark(*page, 1));
    let many = |map: &Map| (0..4000).step_by(9).for_each(|page| map.mark(page, 2));
    let runs = |map: &Map| map.mark(100, 1000);
    let parts = |map: &Map| (0..9000).step_by(200).for_each(|page| map.mark(page + 7, 1));
    // So few below each head that one word holds their names.
    let scarce = |map: &Map| (0..9000).step_by(600).for_each(|page| map.mark(page + 3, 1));
    let marks: [&dyn Fn(&Map); 5] = [&few, &many, &runs, &parts, &scarce];
    for (first, second) in marks.iter().flat_map(|first| marks.map(|second| (first, second))) {
        let (mut map, both, other) =
            (Map::new(9000).unwrap(), Map::new(9000).unwrap(), Map::new(9000).unwrap());
        first(&map);
        first(&both);
        second(&both);
        second(&other);
        decode(&encode(&other), &mut map).unwrap();
        assert_eq!(taken(&map), taken(&both));
    }
}

/// Written a bit at a time, as `docs/formats/compact-map.md` has it: up to six names are written and read another way than more.
#[test]
fn the_names_of_a_block_with_parts_stand_in_the_same_bits_however_many_there_are() {
    let mut chance = 7_u64;
    for below in (1..=14_usize).flat_map(|below| [below; 40]) {
        let (mut map, mut pages) = (Map::new(BLOCK_PAGES).unwrap(), Vec::new());
        let mut parts = vec![Vec::new(); 8];
        while pages.len() < 5 + below {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // The last part and the last page of each often.
            let page = ((chance >> 40) % 4100) | [0, 511, 0xe00, 0][(chance >> 60) as usize & 3];
            let part = (page / 512) as usize;
            if page < BLOCK_PAGES
                && !pages.contains(&page)
                && parts.get(part).is_some_and(|part| part.len() < 6)
            {
                map.mark(page, 1);
                if pages.len() >= 5 {
                    parts[part].push(page % 512);
                }
                pages.push(page);
            }
        }
        let mut bits = Vec::new();
        let mut push = |value: u64, count: u32| bits.extend((0..count).map(|at| (value >> at & 1) as u8));
        // Version, pages, a region in columns, its first block; five names and parts.
        [2, 0x80, 0x20, 1, 1, 1, 5 | 8].iter().for_each(|byte| push(*byte, 8));
        pages[..5].iter().for_each(|page| push(*page, 12));
        push(0, 4);
        parts.iter().for_each(|part| push(part.len() as u64, 4));
        parts.iter().flatten().for_each(|page| push(*page, 9));
        bits.resize(bits.len().next_multiple_of(8) + 8, 0);
        let bytes: Vec<u8> =
            bits.chunks(8).map(|bits| bits.iter().rev().fold(0, |byte, bit| byte << 1 | bit)).collect();
        assert_eq!(encode(&map), bytes, "{pages:?}");
        let mut other = Map::new(BLOCK_PAGES).unwrap();
        assert_eq!(decode(&bytes, &mut other), Ok(()));
        assert_eq!(seen(&other), seen(&map));
        assert_eq!(decode(&bytes, &mut map), Ok(()));
        assert_eq!(seen(&other), seen(&map));
    }
}

#[test]
fn the_largest_map_takes_no_memory_where_nothing_is_marked() {
    let map = Map::new(PAGES_MAX).unwrap();
    for page in [0, 1 << 20, PAGES_MAX / 2, PAGES_MAX - 1] {
        map.mark(page, 9);
    }
    map.mark(PAGES_MAX - 1, u64::MAX);
    assert_eq!(taken(&map).iter().map(|(_, count)| count).sum::<u64>(), 9 * 3 + 1);
}

#[test]
fn every_mark_is_in_this_harvest_or_in_the_next() {
    let map = Map::new(PAGES).unwrap();
    // Each thread counts its page up before it marks it; the harvester must not miss the last count.
    let counts: Vec<_> = (0..64).map(|_| AtomicU64::new(0)).collect();
    let page = |at: usize| (at as u64 % 8) * 3 + at as u64 / 8 * 40;
    let mut known = vec![0; counts.len()];
    let mut harvest = |map: &Map| {
        for (first, len) in taken(map) {
            for at in (0..counts.len()).filter(|at| (first..first + len).contains(&page(*at))) {
                known[at] = counts[at].load(Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        let (map, counts) = (&map, &counts);
        let markers: Vec<_> = (0..2)
            .map(|thread| {
                scope.spawn(move || {
                    for round in 0..200_000_usize {
                        let at = (round * 7 + thread * 32) % 32 + thread * 32;
                        let count = &counts[at];
                        count.store(count.load(Relaxed) + 1, Relaxed);
                        dirty::settle();
                        map.mark(page(at), 1);
                    }
                })
            })
            .collect();
        while markers.iter().any(|marker| !marker.is_finished()) {
            harvest(map);
        }
    });
    harvest(&map);
    for (at, count) in counts.iter().enumerate() {
        assert_eq!(known[at], count.load(Relaxed), "page {}", page(at));
    }
}
