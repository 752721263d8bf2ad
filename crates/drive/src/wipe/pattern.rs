//! Known bytes: where the witnesses of an erase lie, and what an overwrite writes. From a seed alone, so that a successor knows them too.

/// A witness.
pub(super) const WITNESS_BYTES: usize = 4096;

/// SplitMix64's mixing: every bit of the input reaches every bit of the output.
fn mix(number: u64) -> u64 {
    let a = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let b = (a ^ (a >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let c = (b ^ (b >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    c ^ (c >> 31)
}

/// Fills `into`, which lies at `offset` (a multiple of 8).
pub(super) fn fill(seed: u64, offset: u64, into: &mut [u8]) {
    for (place, word) in (offset / 8..).zip(into.chunks_mut(8)) {
        let bytes = mix(seed ^ mix(place)).to_le_bytes();
        for (to, from) in word.iter_mut().zip(bytes) {
            *to = from;
        }
    }
}

/// Where the witnesses lie in a range of `len` bytes: the first block, the last, and others drawn.
pub(super) fn places(seed: u64, len: u64, count: u32) -> Vec<u64> {
    let blocks = len / WITNESS_BYTES as u64;
    if blocks == 0 {
        return Vec::new();
    }
    let drawn = (0..u64::from(count.saturating_sub(2))).map(|index| mix(seed ^ mix(index)) % blocks);
    let mut places: Vec<u64> = [0, blocks - 1]
        .into_iter()
        .take(usize::try_from(count).unwrap_or(2))
        .chain(drawn)
        .map(|block| block * WITNESS_BYTES as u64)
        .collect();
    places.sort_unstable();
    places.dedup();
    places
}
