//! Frames: the 16-byte header and what follows it (vfio-user.rst, "Header").

use std::os::fd::OwnedFd;

use crate::{Error, Result};

/// Bytes of the header of every message.
pub const HEADER_BYTES: usize = 16;

/// Command numbers (vfio-user.rst, "Commands").
pub mod command {
    #![expect(missing_docs, reason = "the specification's own names")]
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const DEVICE_GET_INFO: u16 = 4;
    pub const DEVICE_GET_REGION_INFO: u16 = 5;
    pub const DEVICE_GET_REGION_IO_FDS: u16 = 6;
    pub const DEVICE_GET_IRQ_INFO: u16 = 7;
    pub const DEVICE_SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const DMA_READ: u16 = 11;
    pub const DMA_WRITE: u16 = 12;
    pub const DEVICE_RESET: u16 = 13;
    pub const REGION_WRITE_MULTI: u16 = 15;
    pub const DEVICE_FEATURE: u16 = 16;
    pub const MIG_DATA_READ: u16 = 17;
    pub const MIG_DATA_WRITE: u16 = 18;
}

/// The header, any value allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Message id, echoed in the reply.
    pub id: u16,
    /// One of [`command`].
    pub command: u16,
    /// Size of the whole message, header included.
    pub size: u32,
    /// Type (bits 0-3), No_reply, Error.
    pub flags: u32,
    /// The errno of an error reply.
    pub errno: u32,
}

impl Header {
    /// Flags: the message is a reply.
    pub const REPLY: u32 = 1;
    /// Flags: no reply is wanted.
    pub const NO_REPLY: u32 = 0x10;
    /// Flags: the reply reports an error.
    pub const ERROR: u32 = 0x20;

    /// The header of a well-formed command with `payload_bytes` behind it.
    ///
    /// # Panics
    /// When the message would not fit in 32 bits.
    #[must_use]
    pub fn command(id: u16, command: u16, payload_bytes: usize) -> Self {
        let size = u32::try_from(HEADER_BYTES + payload_bytes).expect("a message fits in 32 bits");
        Header { id, command, size, flags: 0, errno: 0 }
    }

    /// As on the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..2].copy_from_slice(&self.id.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.command.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.size.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.flags.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.errno.to_le_bytes());
        bytes
    }

    /// From the wire.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        let [i0, i1, c0, c1, rest @ ..] = *bytes;
        let [s0, s1, s2, s3, f0, f1, f2, f3, e0, e1, e2, e3] = rest;
        Header {
            id: u16::from_le_bytes([i0, i1]),
            command: u16::from_le_bytes([c0, c1]),
            size: u32::from_le_bytes([s0, s1, s2, s3]),
            flags: u32::from_le_bytes([f0, f1, f2, f3]),
            errno: u32::from_le_bytes([e0, e1, e2, e3]),
        }
    }

    /// The type is Reply.
    #[must_use]
    pub fn is_reply(self) -> bool {
        self.flags & 0xF == Self::REPLY
    }

    /// The No_reply flag is set.
    #[must_use]
    pub fn wants_no_reply(self) -> bool {
        self.flags & Self::NO_REPLY != 0
    }

    /// The Error flag is set.
    #[must_use]
    pub fn is_error(self) -> bool {
        self.flags & Self::ERROR != 0
    }
}

/// A received message.
#[derive(Debug)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// The bytes behind the header.
    pub payload: Vec<u8>,
    /// File descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// Reads little-endian fields at offsets of a payload.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, offset: usize) -> Result<[u8; N]> {
        offset
            .checked_add(N)
            .and_then(|end| self.0.get(offset..end))
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| Error::Protocol(format!("{} bytes of payload, field at {offset}", self.0.len())))
    }

    pub(crate) fn u16(&self, offset: usize) -> Result<u16> {
        self.array(offset).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&self, offset: usize) -> Result<u32> {
        self.array(offset).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&self, offset: usize) -> Result<u64> {
        self.array(offset).map(u64::from_le_bytes)
    }
}

/// Builds a payload field by field.
#[derive(Default)]
pub(crate) struct Payload(pub(crate) Vec<u8>);

impl Payload {
    pub(crate) fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_wire() {
        let header = Header { id: 0x0201, command: 0x0403, size: 0x0807_0605, flags: 0x21, errno: 22 };
        assert_eq!(header.to_bytes()[..8], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(Header::from_bytes(&header.to_bytes()), header);
        assert!(header.is_reply() && header.is_error());
    }

    #[test]
    fn a_field_beyond_the_payload_is_a_protocol_error() {
        assert!(matches!(Fields(&[0; 7]).u64(0), Err(Error::Protocol(_))));
        assert!(matches!(Fields(&[0; 7]).u32(usize::MAX), Err(Error::Protocol(_))));
        assert_eq!(Fields(&[0, 1, 2]).u16(1).unwrap(), 0x0201);
    }
}
