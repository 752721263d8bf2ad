//! What a block holds: which block of which ssd it is, which write it came from, filling, and a checksum.
//!
//! ```text
//!  word 0: block   1: version   2: ssd   3..n-1: filling made of the three   n-1: checksum of all words before
//! ```

/// Which write a block came from; versions of an ssd count up from 1. The top bit says that it wrote zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version(u64);

const ZEROS: u64 = 1 << 63;

impl std::fmt::Debug for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let zeros = if self.is_zeros() { " (zeros)" } else { "" };
        write!(f, "{}{zeros}", self.number())
    }
}

impl Version {
    /// Never written: zeros.
    pub const NEVER: Version = Version(ZEROS);

    /// Data of a write.
    #[must_use]
    pub fn data(number: u64) -> Self {
        Version(number & !ZEROS)
    }

    /// Zeros of a deallocation or of Write Zeroes.
    #[must_use]
    pub fn zeros(number: u64) -> Self {
        Version(number | ZEROS)
    }

    /// Whether the block reads as zeros.
    #[must_use]
    pub fn is_zeros(self) -> bool {
        self.0 & ZEROS != 0
    }

    /// The number alone.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0 & !ZEROS
    }
}

/// The smallest block: head and checksum.
pub const BLOCK_BYTES_MIN: usize = 64;

/// The words of a block, one after the other.
struct Words {
    head: [u64; 3],
    state: u64,
    sum: u64,
    index: usize,
    last: usize,
    zeros: bool,
}

impl Words {
    fn new(ssd: u64, block: u64, version: Version, bytes: usize) -> Self {
        let state = mix(block ^ ssd.rotate_left(17)).wrapping_add(mix(version.0));
        let head = [block, version.0, ssd];
        Words { head, state, sum: 0, index: 0, last: bytes / 8 - 1, zeros: version.is_zeros() }
    }
}

impl Iterator for Words {
    type Item = u64;

    #[inline]
    fn next(&mut self) -> Option<u64> {
        if self.zeros {
            return Some(0);
        }
        let word = match self.index {
            index if index == self.last => self.sum,
            index @ 0..3 => self.head[index],
            _ => {
                self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                (self.state ^ self.state >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9)
            }
        };
        self.sum = sum(self.sum, word);
        self.index += 1;
        Some(word)
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ value >> 31
}

#[inline]
fn sum(so_far: u64, word: u64) -> u64 {
    (so_far.rotate_left(5) ^ word).wrapping_mul(0x2545_F491_4F6C_DD1D)
}

/// Fills a block.
pub fn fill(ssd: u64, block: u64, version: Version, target: &mut [u8]) {
    let words = Words::new(ssd, block, version, target.len());
    for (bytes, word) in target.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
}

/// Whether a block holds exactly this.
#[must_use]
pub fn holds(ssd: u64, block: u64, version: Version, actual: &[u8]) -> bool {
    let words = Words::new(ssd, block, version, actual.len());
    actual.as_chunks::<8>().0.iter().zip(words).all(|(bytes, word)| u64::from_le_bytes(*bytes) == word)
}

/// How many bytes of `actual` are of none of these versions. Overlapping commands may leave a block whose bytes come from several: what they
/// move may be cut anywhere, so one command's copy can end in the middle of a word where another's goes on.
#[must_use]
pub fn strange_bytes(ssd: u64, block: u64, versions: &[Version], actual: &[u8]) -> u64 {
    let mut all: Vec<_> =
        versions.iter().map(|version| Words::new(ssd, block, *version, actual.len())).collect();
    let mut strange = 0;
    for bytes in actual.as_chunks::<8>().0 {
        let expected: Vec<_> = all.iter_mut().filter_map(Iterator::next).map(u64::to_le_bytes).collect();
        let is_known = |at: usize, byte: u8| expected.iter().any(|word| word.get(at) == Some(&byte));
        strange += bytes.iter().enumerate().filter(|(at, byte)| !is_known(*at, **byte)).count() as u64;
    }
    strange
}

/// What a reader can tell of a block's bytes without knowing what it should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// All zeros.
    Zeros,
    /// One byte over and over: memory nobody wrote to.
    Filled(u8),
    /// A whole block of some write.
    Block {
        /// Of this ssd.
        ssd: u64,
        /// This block.
        block: u64,
        /// This version.
        version: Version,
    },
    /// Neither.
    Garbage,
}

/// Looks at a block.
#[must_use]
pub fn look(actual: &[u8]) -> Seen {
    let first = actual.first().copied().unwrap_or(0);
    if actual.iter().all(|byte| *byte == first) {
        return if first == 0 { Seen::Zeros } else { Seen::Filled(first) };
    }
    let word =
        |index: usize| actual.as_chunks::<8>().0.get(index).map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let last = actual.len() / 8 - 1;
    let check = (0..last).fold(0, |so_far, index| sum(so_far, word(index)));
    if check != word(last) {
        return Seen::Garbage;
    }
    Seen::Block { block: word(0), version: Version(word(1)), ssd: word(2) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(ssd: u64, block: u64, version: u64) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        fill(ssd, block, Version::data(version), &mut bytes);
        bytes
    }

    #[test]
    fn a_block_is_recognized_and_any_changed_byte_is_seen() {
        let good = block(7, 1234, 9);
        assert!(holds(7, 1234, Version::data(9), &good));
        assert_eq!(look(&good), Seen::Block { ssd: 7, block: 1234, version: Version::data(9) });
        for at in 0..512 {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(!holds(7, 1234, Version::data(9), &bad), "byte {at}");
            assert_eq!(strange_bytes(7, 1234, &[Version::data(9)], &bad), 1);
            assert_eq!(look(&bad), Seen::Garbage);
        }
    }

    #[test]
    fn neighbours_versions_and_ssds_share_no_filling() {
        let good = block(7, 1234, 9);
        for other in [block(7, 1235, 9), block(7, 1234, 10), block(8, 1234, 9)] {
            let same = good.chunks(8).zip(other.chunks(8)).filter(|(one, two)| one == two).count();
            assert!(same <= 2, "{same} words are equal");
        }
    }

    #[test]
    fn a_mix_of_two_allowed_versions_is_not_strange_and_of_a_third_is() {
        let (old, new) = (block(1, 5, 1), block(1, 5, 2));
        let versions = [Version::data(1), Version::data(2)];
        // Also where a piece ends in the middle of a word.
        let mixed: Vec<u8> = old[..259].iter().chain(&new[259..]).copied().collect();
        assert_eq!(strange_bytes(1, 5, &versions, &mixed), 0);
        assert!(strange_bytes(1, 5, &versions[..1], &mixed) > 200);
        assert!(strange_bytes(1, 5, &[], &mixed) == 512);
    }

    #[test]
    fn zeros_and_poison_are_told_apart() {
        assert_eq!(look(&[0; 512]), Seen::Zeros);
        assert_eq!(look(&[0xA5; 512]), Seen::Filled(0xA5));
        assert!(holds(1, 1, Version::NEVER, &[0; 512]));
        assert!(holds(1, 1, Version::zeros(44), &[0; 512]));
    }
}
