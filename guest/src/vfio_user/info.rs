//! What the server says of its device.

use std::os::fd::OwnedFd;

use serde_json::Value;

use super::frame::Fields;
use crate::{Error, Result};

/// Region indexes of a PCI device (`linux/vfio.h`).
pub mod region {
    #![expect(missing_docs, reason = "the specification's own names")]
    pub const BAR0: u32 = 0;
    pub const BAR1: u32 = 1;
    pub const BAR2: u32 = 2;
    pub const BAR3: u32 = 3;
    pub const BAR4: u32 = 4;
    pub const BAR5: u32 = 5;
    pub const ROM: u32 = 6;
    pub const CONFIG: u32 = 7;
    pub const VGA: u32 = 8;
}

/// Interrupt indexes of a PCI device (`linux/vfio.h`).
pub mod irq {
    #![expect(missing_docs, reason = "the specification's own names")]
    pub const INTX: u32 = 0;
    pub const MSI: u32 = 1;
    pub const MSIX: u32 = 2;
    pub const ERR: u32 = 3;
    pub const REQ: u32 = 4;
}

/// Flags of SET_IRQS (vfio-user.rst, "VFIO_USER_DEVICE_SET_IRQS").
pub mod set_irqs {
    #![expect(missing_docs, reason = "the specification's own names")]
    pub const DATA_NONE: u32 = 1;
    pub const DATA_BOOL: u32 = 2;
    pub const DATA_EVENTFD: u32 = 4;
    pub const ACTION_MASK: u32 = 8;
    pub const ACTION_UNMASK: u32 = 16;
    pub const ACTION_TRIGGER: u32 = 32;
}

/// The server's answer to VERSION.
#[derive(Clone, Debug)]
pub struct Version {
    /// Major.
    pub major: u16,
    /// Minor.
    pub minor: u16,
    /// The JSON behind it, if any.
    pub data: Option<Value>,
}

impl Version {
    pub(super) fn parse(payload: &[u8]) -> Result<Self> {
        let fields = Fields(payload);
        let (major, minor) = (fields.u16(0)?, fields.u16(2)?);
        let data = match &payload[4..] {
            [] => None,
            [json @ .., 0] => {
                Some(serde_json::from_slice(json).map_err(|error| Error::Protocol(error.to_string()))?)
            }
            _ => return Err(Error::Protocol("version data does not end with NUL".into())),
        };
        Ok(Version { major, minor, data })
    }

    /// A capability of the server, if it names it.
    #[must_use]
    pub fn capability(&self, name: &str) -> Option<&Value> {
        self.data.as_ref()?.get("capabilities")?.get(name)
    }
}

/// The answer to DEVICE_GET_INFO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Bytes of a full reply.
    pub argsz: u32,
    /// Bit 0: resettable, bit 1: PCI.
    pub flags: u32,
    /// Regions.
    pub num_regions: u32,
    /// Interrupt types.
    pub num_irqs: u32,
}

impl DeviceInfo {
    pub(super) fn parse(payload: &[u8]) -> Result<Self> {
        let fields = Fields(payload);
        let (argsz, flags) = (fields.u32(0)?, fields.u32(4)?);
        Ok(DeviceInfo { argsz, flags, num_regions: fields.u32(8)?, num_irqs: fields.u32(12)? })
    }
}

/// The answer to DEVICE_GET_IRQ_INFO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqInfo {
    /// Bytes of a full reply.
    pub argsz: u32,
    /// Bit 0: eventfd, 1: maskable, 2: automasked, 3: noresize.
    pub flags: u32,
    /// The index asked for.
    pub index: u32,
    /// Interrupts of this type.
    pub count: u32,
}

impl IrqInfo {
    pub(super) fn parse(payload: &[u8]) -> Result<Self> {
        let fields = Fields(payload);
        let (argsz, flags) = (fields.u32(0)?, fields.u32(4)?);
        Ok(IrqInfo { argsz, flags, index: fields.u32(8)?, count: fields.u32(12)? })
    }
}

/// A mappable part of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseArea {
    /// From the start of the region.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// The answer to DEVICE_GET_REGION_INFO.
#[derive(Debug)]
pub struct RegionInfo {
    /// Bytes of a full reply.
    pub argsz: u32,
    /// Bit 0: read, 1: write, 2: mmap, 3: capabilities.
    pub flags: u32,
    /// The index asked for.
    pub index: u32,
    /// Where the first capability stands, or 0.
    pub cap_offset: u32,
    /// Bytes of the region.
    pub size: u64,
    /// Added to an area's offset to give mmap's offset.
    pub offset: u64,
    /// The sparse areas, if the server names any.
    pub areas: Vec<SparseArea>,
    /// What to map.
    pub fds: Vec<OwnedFd>,
}

impl RegionInfo {
    /// Flags: the region can be mapped.
    pub const MMAP: u32 = 4;
    /// Flags: capabilities follow.
    pub const CAPS: u32 = 8;
    const SPARSE_MMAP: u16 = 1;
    const CAPS_MAX: usize = 16;
    const AREAS_MAX: u32 = 1024;

    pub(super) fn parse(payload: &[u8], fds: Vec<OwnedFd>) -> Result<Self> {
        let fields = Fields(payload);
        let mut info = RegionInfo {
            argsz: fields.u32(0)?,
            flags: fields.u32(4)?,
            index: fields.u32(8)?,
            cap_offset: fields.u32(12)?,
            size: fields.u64(16)?,
            offset: fields.u64(24)?,
            areas: Vec::new(),
            fds,
        };
        if info.flags & Self::CAPS != 0 && info.argsz as usize <= payload.len() {
            info.areas = Self::areas(&fields, info.cap_offset)?;
        }
        Ok(info)
    }

    fn areas(fields: &Fields<'_>, first: u32) -> Result<Vec<SparseArea>> {
        let mut areas = Vec::new();
        let mut at = first as usize;
        for _ in 0..Self::CAPS_MAX {
            if at == 0 {
                return Ok(areas);
            }
            if fields.u16(at)? == Self::SPARSE_MMAP {
                let count = fields.u32(at + 8)?;
                if count > Self::AREAS_MAX {
                    return Err(Error::Protocol(format!("{count} sparse areas")));
                }
                for index in 0..count as usize {
                    let area = at + 16 + index * 16;
                    areas.push(SparseArea { offset: fields.u64(area)?, size: fields.u64(area + 8)? });
                }
            }
            at = fields.u32(at + 4)? as usize;
        }
        Err(Error::Protocol("the capability list loops".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::Payload;
    use super::*;

    fn bar0() -> Payload {
        Payload::default().u32(64).u32(0xF).u32(0).u32(32).u64(0x4000).u64(0)
    }

    #[test]
    fn a_sparse_area_is_found_behind_the_region_info() {
        let payload = bar0().u16(1).u16(1).u32(0).u32(1).u32(0).u64(0x1000).u64(0x1000).0;
        let info = RegionInfo::parse(&payload, Vec::new()).unwrap();
        assert_eq!(info.size, 0x4000);
        assert_eq!(info.areas, [SparseArea { offset: 0x1000, size: 0x1000 }]);
    }

    #[test]
    fn a_reply_cut_short_by_argsz_has_no_areas() {
        assert!(RegionInfo::parse(&bar0().0, Vec::new()).unwrap().areas.is_empty());
    }

    #[test]
    fn a_capability_list_that_loops_is_refused() {
        let payload = bar0().u16(9).u16(1).u32(32).bytes(&[0; 24]).0;
        assert!(matches!(RegionInfo::parse(&payload, Vec::new()), Err(Error::Protocol(_))));
    }

    #[test]
    fn version_data_is_optional_and_ends_with_nul() {
        assert!(Version::parse(&[0, 0, 1, 0]).unwrap().data.is_none());
        let version = Version::parse(b"\0\0\x01\0{\"capabilities\":{\"max_msg_fds\":8}}\0").unwrap();
        assert_eq!(version.capability("max_msg_fds").unwrap(), 8);
        assert!(Version::parse(b"\0\0\x01\0{}").is_err());
    }
}
