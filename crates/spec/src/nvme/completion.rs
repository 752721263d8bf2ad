//! The completion queue entry (Base 2.1, 4.2.1, figure 96).

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::status::Status;

/// Bytes in a completion queue entry of the admin queue and of the NVM command set.
pub const COMPLETION_BYTES: usize = 16;

/// A completion queue entry (Base 2.1, 4.2.1).
///
/// Dword 3 (`cid` and `status` with the phase tag) must reach guest memory last.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct Completion {
    /// Command-specific result, dword 0.
    pub dw0: u32,
    /// Command-specific result, dword 1.
    pub dw1: u32,
    /// Submission queue head pointer at the time of completion.
    pub sqhd: u16,
    /// Submission queue identifier.
    pub sqid: u16,
    /// Command identifier.
    pub cid: u16,
    /// Status field and, in bit 0, the phase tag.
    pub status: Status,
}

const _: () = assert!(size_of::<Completion>() == COMPLETION_BYTES);
const _: () = assert!(offset_of!(Completion, sqhd) == 8);
const _: () = assert!(offset_of!(Completion, sqid) == 10);
const _: () = assert!(offset_of!(Completion, cid) == 12);
const _: () = assert!(offset_of!(Completion, status) == 14);

impl Completion {
    /// The entry as its four dwords, in order.
    pub fn dwords(self) -> [u32; 4] {
        zerocopy::transmute!(self)
    }

    /// The entry as one little-endian number. Put together from its fields, never read back from where they were stored one by one:
    /// a wide load that follows narrow stores waits for all of them.
    #[inline]
    pub fn bits(self) -> u128 {
        let low = u64::from(self.dw1) << 32 | u64::from(self.dw0);
        let [sqhd, sqid, cid, status] =
            [self.sqhd, self.sqid, self.cid, self.status.into_bits()].map(u64::from);
        u128::from(status << 48 | cid << 32 | sqid << 16 | sqhd) << 64 | u128::from(low)
    }

    /// The phase tag as a bit of [`Completion::bits`] (dword 3, bit 16).
    #[inline]
    pub const fn phase_bit(phase: bool) -> u128 {
        (phase as u128) << 112
    }

    /// The entry made of four dwords.
    pub fn from_dwords(dwords: [u32; 4]) -> Self {
        zerocopy::transmute!(dwords)
    }
}
