//! Magic, version, length and checksum around every record, outside its body.
//!
//! ```text
//!  offset  0        8         12          16        20
//!          | magic  | version | body len  | crc32c  | body ...
//!          | 8 B    | u32 LE  | u32 LE    | u32 LE  |
//! ```
//! The checksum covers the first 16 bytes and the body. A reader that does not know a version says so before it looks
//! at a single byte of the body.

use thiserror::Error;

/// Bytes before the body.
pub const HEADER_BYTES: usize = 20;
/// Longest body: a record is small, and a length from a file is not trusted beyond this.
pub const BODY_BYTES_MAX: usize = 16 << 20;

/// Why bytes are not a record.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum EnvelopeError {
    /// Shorter than its header or than its header says.
    #[error("the record is cut short: {have_bytes} bytes, {need_bytes} needed")]
    Truncated {
        /// Bytes there are.
        have_bytes: usize,
        /// Bytes there should be.
        need_bytes: usize,
    },
    /// Not a record of this kind.
    #[error("this is not a record of kind {expected}: its first bytes differ")]
    Magic {
        /// The kind that was looked for.
        expected: String,
    },
    /// Written by a newer build.
    #[error("the record has version {found}, this build reads up to {newest}: use a newer build")]
    Newer {
        /// Version in the header.
        found: u32,
        /// Newest version this build reads.
        newest: u32,
    },
    /// Version 0 was never written.
    #[error("the record has version 0, which no build ever wrote")]
    VersionZero,
    /// A body of such a length was never written.
    #[error("the record says it is {len_bytes} bytes long, the most is {BODY_BYTES_MAX}")]
    TooLong {
        /// Length there is.
        len_bytes: usize,
    },
    /// More bytes than the header says.
    #[error("{extra_bytes} bytes follow the end of the record")]
    Trailing {
        /// Bytes after the body.
        extra_bytes: usize,
    },
    /// Bits changed.
    #[error("the record is damaged: checksum {found:#010x} in its header, {computed:#010x} of its bytes")]
    Checksum {
        /// Checksum in the header.
        found: u32,
        /// Checksum of the bytes.
        computed: u32,
    },
}

/// A body with its header.
///
/// # Errors
/// [`EnvelopeError::TooLong`] when the body is longer than [`BODY_BYTES_MAX`].
pub fn seal(magic: [u8; 8], version: u32, body: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
    let too_long = EnvelopeError::TooLong { len_bytes: body.len() };
    if body.len() > BODY_BYTES_MAX {
        return Err(too_long);
    }
    let len = u32::try_from(body.len()).map_err(|_| too_long)?;
    let mut record = Vec::with_capacity(HEADER_BYTES + body.len());
    record.extend_from_slice(&magic);
    record.extend_from_slice(&version.to_le_bytes());
    record.extend_from_slice(&len.to_le_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&record), body);
    record.extend_from_slice(&sum.to_le_bytes());
    record.extend_from_slice(body);
    Ok(record)
}

/// How long the record is that `bytes` begin with, as its header says: where several follow one another.
///
/// # Errors
/// There is no whole header, or it names a length that was never written.
pub fn record_bytes(bytes: &[u8]) -> Result<usize, EnvelopeError> {
    let truncated = EnvelopeError::Truncated { have_bytes: bytes.len(), need_bytes: HEADER_BYTES };
    let header = bytes.get(..HEADER_BYTES).ok_or(truncated)?;
    let len = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
    match len {
        0..=BODY_BYTES_MAX => Ok(HEADER_BYTES + len),
        len_bytes => Err(EnvelopeError::TooLong { len_bytes }),
    }
}

/// Whether a record is whole and undamaged, of whatever kind and version.
///
/// # Errors
/// See [`EnvelopeError`].
pub fn verify(record: &[u8]) -> Result<(), EnvelopeError> {
    let magic = record.first_chunk::<8>().copied().unwrap_or_default();
    open(magic, u32::MAX, record).map(|_| ())
}

/// The version and body of a record, after every check the header allows.
///
/// # Errors
/// See [`EnvelopeError`]; nothing of a damaged, foreign or newer record is returned.
pub fn open(magic: [u8; 8], newest: u32, record: &[u8]) -> Result<(u32, &[u8]), EnvelopeError> {
    let Some((header, rest)) = record.split_at_checked(HEADER_BYTES) else {
        return Err(EnvelopeError::Truncated { have_bytes: record.len(), need_bytes: HEADER_BYTES });
    };
    if header[..8] != magic {
        return Err(EnvelopeError::Magic { expected: String::from_utf8_lossy(&magic).into_owned() });
    }
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (version, len, found) = (word(8), word(12) as usize, word(16));
    if len > BODY_BYTES_MAX {
        return Err(EnvelopeError::TooLong { len_bytes: len });
    }
    if rest.len() < len {
        return Err(EnvelopeError::Truncated { have_bytes: record.len(), need_bytes: HEADER_BYTES + len });
    }
    if rest.len() > len {
        return Err(EnvelopeError::Trailing { extra_bytes: rest.len() - len });
    }
    let computed = crc32c::crc32c_append(crc32c::crc32c(&header[..16]), rest);
    if computed != found {
        return Err(EnvelopeError::Checksum { found, computed });
    }
    match version {
        0 => Err(EnvelopeError::VersionZero),
        v if v > newest => Err(EnvelopeError::Newer { found: v, newest }),
        v => Ok((v, rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAGIC: [u8; 8] = *b"GODWTEST";

    #[test]
    fn what_was_sealed_opens_to_the_same_bytes() {
        let record = seal(MAGIC, 3, b"body").expect("short");
        assert_eq!(open(MAGIC, 3, &record), Ok((3, &b"body"[..])));
        assert_eq!(open(MAGIC, 9, &record), Ok((3, &b"body"[..])));
    }

    #[test]
    fn every_single_flipped_bit_is_noticed() {
        let record = seal(MAGIC, 1, b"some body of a record").expect("short");
        for bit in 0..record.len() * 8 {
            let mut damaged = record.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(open(MAGIC, 1, &damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_truncation_and_any_trailing_byte_is_refused() {
        let mut record = seal(MAGIC, 1, b"body").expect("short");
        for len in 0..record.len() {
            assert!(matches!(open(MAGIC, 1, &record[..len]), Err(EnvelopeError::Truncated { .. })), "{len}");
        }
        record.push(0);
        assert_eq!(open(MAGIC, 1, &record), Err(EnvelopeError::Trailing { extra_bytes: 1 }));
    }

    #[test]
    fn a_newer_version_is_named_and_not_guessed_at() {
        let record = seal(MAGIC, 2, b"from the future").expect("short");
        assert_eq!(open(MAGIC, 1, &record), Err(EnvelopeError::Newer { found: 2, newest: 1 }));
    }
}
