//! What loom goes through: `RUSTFLAGS="--cfg loom" cargo test -p dirty --lib models`.

use std::sync::Arc;

use loom::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{BLOCK_PAGES, Map, settle};

/// Once, since a second mark would make up for a first that is half lost; and twice, for one that finds what the first left.
fn no_mark_is_lost(before: &'static [u64]) {
    (1..=2).for_each(|marks| no_mark_of(marks, before));
}

/// A writer writes data and marks its page, so many times, while a harvester copies what it finds marked. Whoever copies last, after the
/// writer has ended, has the newest data.
fn no_mark_of(marks: u64, before: &'static [u64]) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let map = Arc::new(Map::new(BLOCK_PAGES).expect("memory"));
        before.iter().for_each(|page| map.mark(*page, 1));
        let data = Arc::new(AtomicU64::new(0));
        let writer = {
            let (map, data) = (Arc::clone(&map), Arc::clone(&data));
            loom::thread::spawn(move || {
                for value in 1..=marks {
                    data.store(value, Relaxed);
                    settle();
                    map.mark(7, 1);
                }
            })
        };
        let mut copy = 0;
        let mut copy_what_is_marked = || {
            let mut found = false;
            map.take(|_, marks| marks.runs(|first, len| found |= (first..first + len).contains(&7)));
            if found {
                copy = data.load(Relaxed);
            }
        };
        copy_what_is_marked();
        writer.join().expect("the writer ends");
        copy_what_is_marked();
        assert_eq!(copy, marks);
    });
}

#[test]
fn a_mark_among_few_is_in_this_harvest_or_the_next() {
    no_mark_is_lost(&[]);
}

#[test]
fn a_mark_that_was_there_already_is_in_this_harvest_or_the_next() {
    no_mark_is_lost(&[7]);
}

#[test]
fn a_mark_that_a_head_has_no_room_for_is_in_this_harvest_or_the_next() {
    no_mark_is_lost(&[1, 2, 3, 4, 5]);
}

#[test]
fn a_mark_that_was_in_a_part_already_is_in_this_harvest_or_the_next() {
    no_mark_is_lost(&[1, 2, 3, 4, 5, 7]);
}

#[test]
fn a_mark_that_a_part_has_no_room_for_is_in_this_harvest_or_the_next() {
    no_mark_is_lost(&[1, 2, 3, 4, 5, 11, 12, 13, 14, 15, 16]);
}

#[test]
fn a_mark_that_was_a_bit_already_is_in_this_harvest_or_the_next() {
    no_mark_is_lost(&[1, 2, 3, 4, 5, 11, 12, 13, 14, 15, 16, 7]);
}

#[test]
fn a_mark_beside_others_in_parts_is_in_this_harvest_or_the_next() {
    no_mark_is_lost(&[1, 2, 3, 4, 5, 600]);
}

#[test]
fn a_mark_beside_other_bits_is_in_this_harvest_or_the_next() {
    no_mark_is_lost(&[1, 2, 3, 4, 5, 11, 12, 13, 14, 15, 16, 70]);
}
