//! Numbers near which things go wrong, more often than chance would give them.

use arbitrary::{Arbitrary, Result, Unstructured};

/// A 64-bit number that is often near a power of two, an end or a page boundary.
#[derive(Clone, Copy, Debug)]
pub struct Edge(pub u64);

impl Edge {
    /// The low 32 bits.
    #[must_use]
    pub fn u32(self) -> u32 {
        (self.0 & 0xffff_ffff) as u32
    }

    /// The low 16 bits.
    #[must_use]
    pub fn u16(self) -> u16 {
        (self.0 & 0xffff) as u16
    }
}

impl<'a> Arbitrary<'a> for Edge {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let kind: u8 = u.arbitrary()?;
        let value = match kind % 8 {
            0 | 1 => u64::from(u.arbitrary::<u8>()?),
            2 => (1_u64 << (u.arbitrary::<u8>()? % 64))
                .wrapping_add(u64::from(u.arbitrary::<u8>()? % 5))
                .wrapping_sub(2),
            3 => u64::MAX - u64::from(u.arbitrary::<u8>()? % 16),
            4 => u64::from(u32::MAX) - u64::from(u.arbitrary::<u8>()? % 16),
            5 => u64::from(u.arbitrary::<u16>()?),
            6 => u64::from(u.arbitrary::<u8>()?) << 12 | u64::from(u.arbitrary::<u16>()? % 4096),
            _ => u.arbitrary()?,
        };
        Ok(Self(value))
    }
}
