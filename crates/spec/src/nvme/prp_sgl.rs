//! Physical region pages and scatter gather lists (Base 2.1, 4.3.1 and 4.3.2).

use core::mem::offset_of;

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes in a PRP entry.
pub const PRP_ENTRY_BYTES: usize = 8;
/// Bytes in an SGL descriptor.
pub const SGL_DESCRIPTOR_BYTES: usize = 16;

/// An SGL descriptor (Base 2.1, 4.3.2, figure 114). Byte 15 has the same meaning in every type; the others are as in
/// the Data Block, Segment and Last Segment descriptors.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Default, Hash)]
pub struct SglDescriptor {
    /// Address of the data block, or of the next segment.
    pub address: u64,
    /// Length in bytes of the data block, or of the next segment.
    pub length: u32,
    /// Reserved.
    pub reserved: [u8; 3],
    /// Descriptor type and sub type.
    pub identifier: SglIdentifier,
}

const _: () = assert!(size_of::<SglDescriptor>() == SGL_DESCRIPTOR_BYTES);
const _: () = assert!(offset_of!(SglDescriptor, length) == 8);
const _: () = assert!(offset_of!(SglDescriptor, identifier) == 15);

impl SglDescriptor {
    /// A descriptor of this type with sub type "address".
    pub const fn new(descriptor_type: SglType, address: u64, length: u32) -> Self {
        let identifier = SglIdentifier::new().with_descriptor_type(descriptor_type.0 & 0xf);
        Self { address, length, reserved: [0; 3], identifier }
    }

    /// The descriptor type.
    pub const fn descriptor_type(&self) -> SglType {
        SglType(self.identifier.descriptor_type())
    }

    /// The descriptor sub type.
    pub const fn sub_type(&self) -> SglSubType {
        SglSubType(self.identifier.sub_type())
    }
}

/// Byte 15 of an SGL descriptor (Base 2.1, 4.3.2, figure 115).
#[bitfield(u8)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SglIdentifier {
    /// Sub type: see [`SglSubType`].
    #[bits(4)]
    pub sub_type: u8,
    /// Type: see [`SglType`].
    #[bits(4)]
    pub descriptor_type: u8,
}

/// SGL descriptor type (Base 2.1, 4.3.2, figure 115).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SglType {
    /// Data Block.
    DataBlock = 0x0,
    /// Bit Bucket: on reads, data is thrown away; on writes, ignored.
    BitBucket = 0x1,
    /// Segment: the next segment, which is not the last.
    Segment = 0x2,
    /// Last Segment.
    LastSegment = 0x3,
    /// Keyed Data Block.
    KeyedDataBlock = 0x4,
    /// Transport Data Block.
    TransportDataBlock = 0x5,
    /// Vendor specific.
    VendorSpecific = 0xf,
}

/// SGL descriptor sub type (Base 2.1, 4.3.2, figure 116).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SglSubType {
    /// The address field is an address.
    Address = 0x0,
    /// The address field is an offset.
    Offset = 0x1,
    /// Transport specific, first of six (Ah to Fh).
    TransportSpecific = 0xa,
}
