//! Any bytes behind a sound beginning as a compact map, added to a map that has marks: refused, or a map that is written and read again as the
//! same. No page beyond the map is ever marked, and none that was marked is lost.
#![no_main]

use arbitrary::Arbitrary;
use dirty::Map;
use dirty::codec::{decode, encode};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    pages: u16,
    more: u8,
    marks: Vec<(u16, u8)>,
    bytes: Vec<u8>,
}

fn runs_of(map: &Map) -> Vec<(u64, u64)> {
    let mut runs = Vec::new();
    map.look(|block, marks| {
        let base = block as u64 * dirty::BLOCK_PAGES;
        let mut count = 0;
        marks.runs(|first, pages| {
            runs.push((base + u64::from(first), u64::from(pages)));
            count += pages;
        });
        assert_eq!(count, marks.count());
    });
    runs
}

fuzz_target!(|input: Input| {
    let pages = u64::from(input.pages) + u64::from(input.more % 8) * 64 * dirty::BLOCK_PAGES;
    let mut bytes = encode(&Map::new(pages).expect("small"));
    // Its end.
    bytes.pop();
    bytes.extend(&input.bytes);
    let mut map = Map::new(pages).expect("small");
    input.marks.iter().for_each(|(first, count)| map.mark((*first).into(), (*count).into()));
    let before = runs_of(&map);
    let decoded = decode(&bytes, &mut map);
    let after = runs_of(&map);
    assert!(after.last().is_none_or(|(first, count)| first + count <= pages));
    let all = Map::new(pages).expect("small");
    before.iter().chain(&after).for_each(|(first, count)| all.mark(*first, *count));
    assert_eq!(all.count(), map.count(), "a mark was lost");
    if decoded.is_ok() {
        let mut again = Map::new(pages).expect("small");
        assert_eq!(decode(&encode(&map), &mut again), Ok(()));
        assert_eq!(runs_of(&again), after);
    }
});
