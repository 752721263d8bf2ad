//! All that the keeper knows of a client's protocol: where a frame ends, and which way it goes.

use link::control::Door;
use link::frame::{BadFrame, Shape};

/// A protocol of clients.
#[derive(Debug)]
pub(crate) struct Protocol {
    pub(crate) door: Door,
    pub(crate) shape: Shape,
    /// The client answers a request of the engine.
    pub(crate) is_reply: fn(&[u8]) -> bool,
    /// Whoever sent this wants no reply.
    pub(crate) wants_no_reply: fn(&[u8]) -> bool,
    /// Whether requests of the engine go over the client's own socket, and can be told apart by an id in bytes 0..2.
    pub(crate) has_ids: bool,
}

impl Protocol {
    /// What is spoken at a door of the configuration.
    pub(crate) fn at(door: api::config::Door) -> &'static Self {
        match door {
            api::config::Door::VfioUser => &VFIO_USER,
            api::config::Door::VhostUser => &VHOST_USER,
        }
    }
}

/// vfio-user (QEMU's docs/interop/vfio-user.rst, "Header"): id, command, size of the whole message at 4..8, flags at 8..12.
pub(crate) static VFIO_USER: Protocol = Protocol {
    door: Door::VFIO_USER,
    shape: Shape { header_bytes: 16, payload_bytes: vfio_user_payload_bytes, fds_max: 16 },
    is_reply: |header| word(header, 8) & 0xF == 1,
    wants_no_reply: |header| word(header, 8) & 0x10 != 0,
    has_ids: true,
};

/// vhost-user (QEMU's docs/interop/vhost-user.rst, "Message"): request, flags, size of the payload at 8..12. Requests of the
/// backend have a socket of their own, which the engine gets with the frontend's descriptors.
pub(crate) static VHOST_USER: Protocol = Protocol {
    door: Door::VHOST_USER,
    shape: Shape { header_bytes: 12, payload_bytes: vhost_user_payload_bytes, fds_max: 16 },
    is_reply: |_| false,
    wants_no_reply: |_| false,
    has_ids: false,
};

/// 1 MiB of data, and the fields before it.
const VFIO_USER_MESSAGE_BYTES_MAX: usize = 16 + 16 + (1 << 20);
/// More than any message of the specification needs.
const VHOST_USER_PAYLOAD_BYTES_MAX: usize = 16 << 10;

fn vfio_user_payload_bytes(header: &[u8]) -> Result<usize, BadFrame> {
    let size = word(header, 4);
    let message_bytes = usize::try_from(size).map_err(|_| BadFrame::TooLong(size))?;
    if message_bytes > VFIO_USER_MESSAGE_BYTES_MAX {
        return Err(BadFrame::TooLong(size));
    }
    message_bytes.checked_sub(16).ok_or(BadFrame::TooShort(size))
}

fn vhost_user_payload_bytes(header: &[u8]) -> Result<usize, BadFrame> {
    let size = word(header, 8);
    let payload_bytes = usize::try_from(size).ok().filter(|bytes| *bytes <= VHOST_USER_PAYLOAD_BYTES_MAX);
    payload_bytes.ok_or(BadFrame::TooLong(size))
}

/// A little-endian word; 0 beyond the end, which no header that came through an `Intake` has.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(size: u32, flags: u32) -> Vec<u8> {
        [&[1, 0, 2, 0][..], &size.to_le_bytes(), &flags.to_le_bytes(), &[0; 4]].concat()
    }

    #[test]
    fn a_vfio_user_message_is_found_by_its_size_and_a_hostile_size_is_refused() {
        let payload = VFIO_USER.shape.payload_bytes;
        assert_eq!(payload(&header(16, 0)), Ok(0));
        assert_eq!(payload(&header(16 + 16 + (1 << 20), 0)), Ok(16 + (1 << 20)));
        for size in [0, 1, 15] {
            assert_eq!(payload(&header(size, 0)), Err(BadFrame::TooShort(size)));
        }
        for size in [16 + 17 + (1 << 20), u32::MAX] {
            assert_eq!(payload(&header(size, 0)), Err(BadFrame::TooLong(size)));
        }
    }

    #[test]
    fn replies_are_told_from_commands_by_the_type_bits_alone() {
        assert!((VFIO_USER.is_reply)(&header(16, 1)));
        assert!((VFIO_USER.is_reply)(&header(16, 0x21)));
        for flags in [0, 0x10, 0x20, 2, 3, 0xF, 0x100] {
            assert!(!(VFIO_USER.is_reply)(&header(16, flags)), "{flags:#x}");
        }
    }

    #[test]
    fn a_vhost_user_message_is_found_by_the_size_of_its_payload() {
        let payload = VHOST_USER.shape.payload_bytes;
        let header = |size: u32| [&[1, 0, 0, 0, 1, 0, 0, 0][..], &size.to_le_bytes()].concat();
        assert_eq!(payload(&header(0)), Ok(0));
        assert_eq!(payload(&header(268)), Ok(268));
        assert_eq!(payload(&header(u32::MAX)), Err(BadFrame::TooLong(u32::MAX)));
    }
}
