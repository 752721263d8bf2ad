//! Where a command's data lies: PRPs (Base 2.1, 4.3.1) and SGLs (Base 2.1, 4.3.2).

use std::sync::Arc;

use crate::Result;
use crate::ram::{Buffer, PAGE_BYTES, Ram};

const PAGE: u64 = PAGE_BYTES as u64;
const ENTRIES_A_LIST: usize = PAGE_BYTES / 8;

/// PRP1 and PRP2 and the list pages behind them. Keep it until the command has completed.
#[derive(Debug)]
pub struct Prp {
    /// The first entry; may lie inside a page.
    pub prp1: u64,
    /// The second entry, or the list's address, or zero.
    pub prp2: u64,
    /// The pages of the list, chained by their last entries.
    pub lists: Vec<Buffer>,
}

impl Prp {
    /// Describes `len` contiguous bytes at `iova`.
    ///
    /// # Errors
    /// No RAM for the list.
    pub fn new(ram: &Arc<Ram>, iova: u64, len: usize) -> Result<Self> {
        let first = PAGE_BYTES - usize::try_from(iova % PAGE).unwrap_or(0);
        let pages: Vec<u64> = (0..len.saturating_sub(first).div_ceil(PAGE_BYTES) as u64)
            .map(|n| (iova / PAGE + 1 + n) * PAGE)
            .collect();
        Self::from_entries(ram, iova, &pages)
    }

    /// Describes a first entry and any further ones, right or wrong.
    ///
    /// # Errors
    /// No RAM for the list.
    pub fn from_entries(ram: &Arc<Ram>, first: u64, rest: &[u64]) -> Result<Self> {
        let (prp2, lists) = match rest {
            [] => (0, Vec::new()),
            [second] => (*second, Vec::new()),
            _ => {
                let lists = Self::lists(ram, rest)?;
                (lists[0].iova(), lists)
            }
        };
        Ok(Prp { prp1: first, prp2, lists })
    }

    fn lists(ram: &Arc<Ram>, mut rest: &[u64]) -> Result<Vec<Buffer>> {
        let mut lists: Vec<Buffer> = Vec::new();
        while !rest.is_empty() {
            let list = ram.alloc(PAGE_BYTES)?;
            if let Some(previous) = lists.last() {
                previous.store_u64(PAGE_BYTES - 8, list.iova());
            }
            let here = if rest.len() > ENTRIES_A_LIST { ENTRIES_A_LIST - 1 } else { rest.len() };
            for (index, entry) in rest[..here].iter().enumerate() {
                list.store_u64(index * 8, *entry);
            }
            rest = &rest[here..];
            lists.push(list);
        }
        Ok(lists)
    }
}

/// One 16-byte SGL descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SglDescriptor(pub [u8; 16]);

impl SglDescriptor {
    /// Any type and subtype (byte 15).
    #[must_use]
    pub fn new(kind: u8, address: u64, length: u32) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[15] = kind;
        SglDescriptor(bytes)
    }

    /// Type 0h: data.
    #[must_use]
    pub fn data_block(address: u64, length: u32) -> Self {
        Self::new(0x00, address, length)
    }

    /// Type 1h: data read that is thrown away.
    #[must_use]
    pub fn bit_bucket(length: u32) -> Self {
        Self::new(0x10, 0, length)
    }

    /// Type 2h: another segment, not the last.
    #[must_use]
    pub fn segment(address: u64, length: u32) -> Self {
        Self::new(0x20, address, length)
    }

    /// Type 3h: the last segment.
    #[must_use]
    pub fn last_segment(address: u64, length: u32) -> Self {
        Self::new(0x30, address, length)
    }

    pub(crate) fn words(self) -> (u64, u64) {
        let [a, b, c, d, e, f, g, h, rest @ ..] = self.0;
        (u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes(rest))
    }
}

/// A descriptor for the command and the segments behind it. Keep it until the command has completed.
#[derive(Debug)]
pub struct Sgl {
    /// What goes into the command.
    pub first: SglDescriptor,
    /// The segments.
    pub segments: Vec<Buffer>,
}

impl Sgl {
    /// Chains `descriptors` in segments of at most `per_segment` descriptors (each but the last ends with a pointer). A
    /// single one goes into the command itself.
    ///
    /// # Errors
    /// No RAM for the segments.
    pub fn new(ram: &Arc<Ram>, descriptors: &[SglDescriptor], per_segment: usize) -> Result<Self> {
        if let [only] = descriptors {
            return Ok(Sgl { first: *only, segments: Vec::new() });
        }
        let data_per_segment = per_segment.max(2) - 1;
        let mut segments = Vec::new();
        let mut next: Option<SglDescriptor> = None;
        for chunk in descriptors.chunks(data_per_segment).rev() {
            let bytes: Vec<u8> =
                chunk.iter().chain(next.iter()).flat_map(|descriptor| descriptor.0).collect();
            let length = u32::try_from(bytes.len()).expect("a segment of a test is small");
            let segment = ram.alloc_with(&bytes)?;
            next = Some(match next {
                None => SglDescriptor::last_segment(segment.iova(), length),
                Some(_) => SglDescriptor::segment(segment.iova(), length),
            });
            segments.push(segment);
        }
        let first = next.unwrap_or(SglDescriptor::data_block(0, 0));
        Ok(Sgl { first, segments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x10_0000;

    fn ram() -> Arc<Ram> {
        Ram::new(64 * PAGE_BYTES, BASE).unwrap()
    }

    #[test]
    fn one_page_needs_one_entry_and_two_pages_need_two() {
        let ram = ram();
        let one = Prp::new(&ram, 0x5000, PAGE_BYTES).unwrap();
        assert_eq!((one.prp1, one.prp2, one.lists.len()), (0x5000, 0, 0));
        let two = Prp::new(&ram, 0x5200, PAGE_BYTES).unwrap();
        assert_eq!((two.prp1, two.prp2, two.lists.len()), (0x5200, 0x6000, 0));
    }

    #[test]
    fn three_pages_need_a_list() {
        let prp = Prp::new(&ram(), 0x5010, 2 * PAGE_BYTES).unwrap();
        assert_eq!(prp.prp2, prp.lists[0].iova());
        assert_eq!((prp.lists[0].load_u64(0), prp.lists[0].load_u64(8)), (0x6000, 0x7000));
        assert_eq!(prp.lists[0].load_u64(16), 0);
    }

    #[test]
    fn a_list_of_512_entries_fills_its_page_and_513_chain() {
        let ram = ram();
        let full = Prp::from_entries(&ram, 0, &vec![0x9000; 512]).unwrap();
        assert_eq!(full.lists.len(), 1);
        assert_eq!(full.lists[0].load_u64(511 * 8), 0x9000);
        let chained = Prp::from_entries(&ram, 0, &vec![0x9000; 513]).unwrap();
        assert_eq!(chained.lists.len(), 2);
        assert_eq!(chained.lists[0].load_u64(511 * 8), chained.lists[1].iova());
        assert_eq!((chained.lists[1].load_u64(8), chained.lists[1].load_u64(16)), (0x9000, 0));
    }

    #[test]
    fn five_descriptors_in_segments_of_three_chain_twice() {
        let data: Vec<_> = (0..5).map(|n| SglDescriptor::data_block(0x1000 * n, 512)).collect();
        let sgl = Sgl::new(&ram(), &data, 3).unwrap();
        assert_eq!(sgl.segments.len(), 3);
        assert_eq!(sgl.first.0[15], 0x20);
        // Built from the end: the last of the vector is the first segment, and it points at a further one.
        assert_eq!(sgl.segments[2].to_vec()[47], 0x20);
        assert_eq!(sgl.segments[1].to_vec()[47], 0x30);
        assert_eq!(sgl.segments[0].len(), 16);
    }

    #[test]
    fn a_single_descriptor_needs_no_segment() {
        let block = SglDescriptor::data_block(0x1234, 0x200);
        let sgl = Sgl::new(&ram(), &[block], 2).unwrap();
        assert!(sgl.segments.is_empty());
        assert_eq!(sgl.first.words(), (0x1234, 0x200));
    }
}
