//! Where things lie on a pool's drive.
//!
//! ```text
//!  0         1 MiB      2 MiB                                                   data_offset
//!  | header  | header   | map 0 | journal 0 | map 1 | journal 1 | (unused)      | extent 0 | extent 1 | ...
//! ```

use state::pool::HeaderV1;

use crate::PoolError;

/// Everything the pool writes for itself is in whole blocks of this size.
pub(crate) const BLOCK_BYTES: u64 = 4096;
/// The same, as a length in memory.
pub(crate) const BLOCK: usize = 4096;
/// Where the two headers are.
pub(crate) const HEADERS_AT: [u64; 2] = [0, 1 << 20];
/// Where the first map area begins.
const SLOTS_AT: u64 = 2 << 20;
/// Most extents of a pool; a larger drive needs larger extents.
const EXTENTS_MAX: u64 = 1 << 24;
/// Extents a drive is cut into when nobody chooses, at most.
const EXTENTS_CHOSEN_MAX: u64 = 1 << 18;
const EXTENT_BYTES_MIN: u64 = 1 << 20;
const EXTENT_BYTES_MAX: u64 = 1 << 30;
const MAP_BYTES_MIN: u64 = 256 << 10;
const MAP_BYTES_MAX: u64 = 1 << 30;
const JOURNAL_BYTES_MIN: u64 = 256 << 10;
const JOURNAL_BYTES_MAX: u64 = 32 << 20;
const MIB: u64 = 1 << 20;

/// Sizes and places, all checked against one another and the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) extent_bytes: u64,
    pub(crate) extents: u32,
    pub(crate) data_offset_bytes: u64,
    pub(crate) map_bytes: u64,
    pub(crate) journal_bytes: u64,
}

impl Geometry {
    /// How a drive of `len_bytes` is laid out.
    pub(crate) fn choose(len_bytes: u64, extent_bytes: Option<u64>) -> Result<Self, PoolError> {
        let extent_bytes = extent_bytes.unwrap_or_else(|| {
            let wanted = len_bytes.div_ceil(EXTENTS_CHOSEN_MAX).checked_next_power_of_two();
            wanted.unwrap_or(EXTENT_BYTES_MAX).clamp(EXTENT_BYTES_MIN, EXTENT_BYTES_MAX)
        });
        if !fits_extent(extent_bytes) {
            return Err(PoolError::Geometry(format!(
                "extents of {extent_bytes} bytes cannot be: choose a power of two from 1 MiB to 1 GiB"
            )));
        }
        let about = len_bytes / extent_bytes;
        if about > EXTENTS_MAX {
            return Err(PoolError::Geometry(format!(
                "it would have {about} extents of {extent_bytes} bytes, the most is {EXTENTS_MAX}: choose larger extents"
            )));
        }
        // Two runs an extent, so that a volume and a clone may both be as fragmented as can be; an eighth for seams.
        let map_bytes = map_bytes_for(about);
        let journal_bytes =
            (about * 64).next_multiple_of(BLOCK_BYTES).clamp(JOURNAL_BYTES_MIN, JOURNAL_BYTES_MAX);
        let data_offset_bytes = (SLOTS_AT + 2 * (map_bytes + journal_bytes)).next_multiple_of(MIB);
        let extents = len_bytes.saturating_sub(data_offset_bytes) / extent_bytes;
        match u32::try_from(extents) {
            Ok(extents) if extents > 0 => {
                Ok(Self { extent_bytes, extents, data_offset_bytes, map_bytes, journal_bytes })
            }
            _ => Err(PoolError::Geometry(format!(
                "{len_bytes} bytes are too few: {} are needed for the layout and one extent",
                data_offset_bytes + extent_bytes
            ))),
        }
    }

    /// The layout a header names, if it can be on a drive of `len_bytes`.
    pub(crate) fn of(header: &HeaderV1, len_bytes: u64) -> Result<Self, String> {
        let HeaderV1 { extent_bytes, extents, data_offset_bytes, map_bytes, journal_bytes, .. } = *header;
        let blocks = |bytes: u64, min: u64, max: u64| {
            (min..=max).contains(&bytes) && bytes.is_multiple_of(BLOCK_BYTES)
        };
        if !fits_extent(extent_bytes) || extents == 0 || u64::from(extents) > EXTENTS_MAX {
            return Err(format!("its header names {extents} extents of {extent_bytes} bytes"));
        }
        if !blocks(map_bytes, MAP_BYTES_MIN, MAP_BYTES_MAX)
            || !blocks(journal_bytes, JOURNAL_BYTES_MIN, JOURNAL_BYTES_MAX)
        {
            return Err(format!(
                "its header names a map of {map_bytes} and a journal of {journal_bytes} bytes"
            ));
        }
        if map_bytes > 2 * map_bytes_for(u64::from(extents)) {
            return Err(format!("its header names a map of {map_bytes} bytes for {extents} extents"));
        }
        if !blocks(data_offset_bytes, SLOTS_AT + 2 * (map_bytes + journal_bytes), u64::MAX) {
            return Err(format!("its header has the extents begin at {data_offset_bytes}, inside the map"));
        }
        let end = data_offset_bytes.checked_add(u64::from(extents) * extent_bytes);
        if end.is_none_or(|end| end > len_bytes) {
            return Err(format!("its extents end beyond the drive, which has {len_bytes} bytes"));
        }
        if header.slot > 1 {
            return Err(format!("its header names map {} of two", header.slot));
        }
        Ok(Self { extent_bytes, extents, data_offset_bytes, map_bytes, journal_bytes })
    }

    /// Where a map area begins.
    pub(crate) fn map_at(&self, slot: u8) -> u64 {
        SLOTS_AT + u64::from(slot) * (self.map_bytes + self.journal_bytes)
    }

    /// Where a journal begins.
    pub(crate) fn journal_at(&self, slot: u8) -> u64 {
        self.map_at(slot) + self.map_bytes
    }

    /// Most bytes of volumes and runs that surely fit a map area, seams between chunks taken off.
    pub(crate) fn map_capacity_bytes(&self) -> u64 {
        self.map_bytes / 8 * 7 - 4 * BLOCK_BYTES
    }

    /// Where a physical extent begins.
    pub(crate) fn extent_at(&self, physical: u32) -> u64 {
        self.data_offset_bytes + u64::from(physical) * self.extent_bytes
    }
}

fn map_bytes_for(extents: u64) -> u64 {
    ((extents * 32 + 2 * MIB) * 8 / 7).next_multiple_of(MIB)
}

fn fits_extent(extent_bytes: u64) -> bool {
    extent_bytes.is_power_of_two() && (EXTENT_BYTES_MIN..=EXTENT_BYTES_MAX).contains(&extent_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIB: u64 = 1 << 40;

    #[test]
    fn the_default_extent_grows_with_the_drive() {
        for (len_bytes, extent_mib) in
            [(64 * MIB, 1), (256 << 30, 1), (TIB, 4), (8 * TIB, 32), (64 * TIB, 256)]
        {
            let geometry = Geometry::choose(len_bytes, None).expect("fits");
            assert_eq!(geometry.extent_bytes, extent_mib * MIB, "{len_bytes}");
            assert!(geometry.extent_at(geometry.extents) <= len_bytes);
            let lost = len_bytes - u64::from(geometry.extents) * geometry.extent_bytes;
            assert!(
                lost < 16 * MIB + geometry.extent_bytes + len_bytes / 1000,
                "{len_bytes}: {lost} bytes are not for data"
            );
        }
    }

    #[test]
    fn a_drive_that_cannot_carry_a_pool_is_refused() {
        for (len_bytes, extent_bytes) in [
            (0, None),
            (8 * MIB, None),
            (TIB, Some(3 * MIB)),
            (TIB, Some(2 << 30)),
            (TIB, Some(512)),
            (64 * TIB, Some(MIB)),
        ] {
            assert!(Geometry::choose(len_bytes, extent_bytes).is_err(), "{len_bytes} {extent_bytes:?}");
        }
    }
}
