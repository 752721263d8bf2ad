//! Requests of a block device (virtio 1.2, 5.2.6).

/// Data comes.
pub const IN: u32 = 0;
/// Data goes.
pub const OUT: u32 = 1;
/// What was written is durable.
pub const FLUSH: u32 = 4;
/// The device's name.
pub const GET_ID: u32 = 8;
/// Sectors are given back.
pub const DISCARD: u32 = 11;
/// Sectors read as zeros.
pub const WRITE_ZEROES: u32 = 13;

/// Status: success.
pub const OK: u8 = 0;
/// Status before the device wrote one.
pub const UNANSWERED: u8 = 0xA5;
/// Bytes of a sector, whatever the block size.
pub const SECTOR_BYTES: usize = 512;
/// Flag of a write-zeroes segment: the sectors may be given back.
pub const UNMAP: u32 = 1;
/// Bytes of a request's header, and of a segment of a discard.
pub const HEADER_BYTES: usize = 16;

/// The header of a request.
#[must_use]
pub fn header(kind: u32, sector: u64) -> [u8; HEADER_BYTES] {
    (u128::from(sector) << 64 | u128::from(kind)).to_le_bytes()
}

/// A segment of a discard or write-zeroes request.
#[must_use]
pub fn segment(sector: u64, sectors: u32, flags: u32) -> [u8; HEADER_BYTES] {
    (u128::from(flags) << 96 | u128::from(sectors) << 64 | u128::from(sector)).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_specification_has_them() {
        assert_eq!(header(1, 2), [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(segment(1, 2, 3), [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
    }
}
