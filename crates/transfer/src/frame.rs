//! The wire format (`docs/formats/transfer.md`): what two hosts say on one stream of a migration, and the one place where bytes from the other
//! side become checked types.
//!
//! ```text
//!  0      kind          1 byte, then 3 zeros
//!  4      length        4 bytes, of the body
//!  8      sequence      8 bytes: 0, 1, 2 ... in each direction of a connection
//! 16      body check    CRC-32C of the body; of a data frame's first 20 bytes only, its pages have their own
//! 20      head check    CRC-32C of the 20 bytes before
//! 24      body
//! ```
//! All numbers are little-endian.

mod fields;
#[cfg(test)]
mod tests;

use crate::source::Run;
use dirty::{BLOCK_PAGES, PAGE_BYTES, PAGES_MAX};
use fields::{Input, cancel, data, hello, part, plan, welcome};

/// The versions this build speaks.
pub const VERSION_MIN: u16 = 1;
/// See [`VERSION_MIN`].
pub const VERSION_MAX: u16 = 1;
/// Bytes of a frame before its body.
pub const HEAD_BYTES: usize = 24;
/// Most pages of a frame that carries their bytes: 1 MiB.
pub const DATA_PAGES_MAX: u16 = 256;
/// Pages of a stripe: stripe `n` travels on stream `n % streams`, so that versions of one page arrive in order. No frame crosses from one into the next.
pub const STRIPE_PAGES: u64 = BLOCK_PAGES;
/// Most streams of a migration.
pub const STREAMS_MAX: u16 = 64;
/// Longest name of what is moved, and of its profile.
pub const NAME_BYTES_MAX: usize = 255;
/// Most bytes of the settings that a plan carries.
pub const SETTINGS_BYTES_MAX: usize = 64 << 10;
/// Most bytes of a piece of a map or of a state.
pub const PART_BYTES_MAX: usize = 1 << 20;
/// Most bytes of a whole state.
pub const STATE_BYTES_MAX: usize = 16 << 20;
/// Largest compact map.
pub const MAP_BYTES_MAX: usize = 64 << 20;
/// Longest text of a cancel.
pub const TEXT_BYTES_MAX: usize = 256;
/// Room for what later versions add to the end of hello and welcome.
const GREETING_BYTES_MAX: usize = 1024;
/// Bytes of a data frame before its pages.
const DATA_BYTES: usize = 20;
const MAGIC: [u8; 8] = *b"GODWITMV";
pub(crate) const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_BYTES);

/// Zeros are sent as such.
pub const FEATURE_ZEROS: u32 = 1;
/// Pages may be compressed with LZ4.
pub const FEATURE_LZ4: u32 = 2;
/// What this build offers.
pub const FEATURES: u32 = FEATURE_ZEROS | FEATURE_LZ4;

/// What came is no frame of this stream at this point.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The head does not match its check.
    #[error("the head of frame {0} does not match its checksum")]
    Head(u64),
    /// The body does not.
    #[error("the body of frame {0} does not match its checksum")]
    Body(u64),
    /// The pages do not.
    #[error("{pages} pages from page {first} on do not match their checksum")]
    Pages {
        /// The first.
        first: u64,
        /// How many.
        pages: u32,
    },
    /// A kind that this build does not know.
    #[error("a frame of the unknown kind {0}")]
    Kind(u8),
    /// Larger than its kind may be, or too small for its fields.
    #[error("a {kind:?} frame of {bytes} bytes: it has between {min} and {max}")]
    Size {
        /// Its kind.
        kind: Kind,
        /// What it says or has.
        bytes: usize,
        /// The least.
        min: usize,
        /// The most.
        max: usize,
    },
    /// Repeated, left out, or in the wrong order.
    #[error("frame {found} where frame {expected} was expected: repeated, lost or out of order")]
    Sequence {
        /// Its number.
        found: u64,
        /// The next.
        expected: u64,
    },
    /// A known frame that has no place here.
    #[error("a {0:?} frame has no place here")]
    Order(Kind),
    /// No hello of ours.
    #[error("whoever is on the other side does not speak this protocol")]
    Magic,
    /// No version in common.
    #[error(
        "the other side speaks versions {min} to {max}, this build {VERSION_MIN} to {VERSION_MAX}: update the older host first"
    )]
    Version {
        /// Its first.
        min: u16,
        /// Its last.
        max: u16,
    },
    /// Pages that are not part of what is moved.
    #[error("{pages} pages from page {first} on are not inside the {total} pages that are moved")]
    Outside {
        /// The first.
        first: u64,
        /// How many.
        pages: u32,
        /// What there is.
        total: u64,
    },
    /// Pages of another stream.
    #[error("page {first} does not travel on stream {stream}")]
    Stripe {
        /// The first.
        first: u64,
        /// Where it came.
        stream: u16,
    },
    /// A field with a value that it cannot have.
    #[error("a {kind:?} frame whose {field} is not sound")]
    Field {
        /// The frame's kind.
        kind: Kind,
        /// Which field.
        field: &'static str,
    },
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "see the variants of Frame")]
pub enum Kind {
    Hello = 1,
    Welcome = 2,
    Plan = 3,
    Data = 4,
    Map = 5,
    State = 6,
    Barrier = 7,
    Ack = 8,
    Pace = 9,
    End = 10,
    Cancel = 11,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Hello,
        Self::Welcome,
        Self::Plan,
        Self::Data,
        Self::Map,
        Self::State,
        Self::Barrier,
        Self::Ack,
        Self::Pace,
        Self::End,
        Self::Cancel,
    ];

    fn of(byte: u8) -> Result<Self, Damage> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte).ok_or(Damage::Kind(byte))
    }

    /// The least and the most bytes of a body.
    fn bytes(self) -> (usize, usize) {
        match self {
            Self::Hello => (48, GREETING_BYTES_MAX),
            Self::Welcome => (32, GREETING_BYTES_MAX),
            Self::Plan => (16, 16 + 2 * NAME_BYTES_MAX + SETTINGS_BYTES_MAX),
            Self::Data => (DATA_BYTES, DATA_BYTES + DATA_PAGES_MAX as usize * PAGE),
            Self::Map | Self::State => (4, 4 + PART_BYTES_MAX),
            Self::Barrier | Self::Ack => (16, 16),
            Self::Pace | Self::End => (8, 8),
            Self::Cancel => (2, 2 + TEXT_BYTES_MAX),
        }
    }

    fn sized(self, bytes: usize) -> Result<(), Damage> {
        let (min, max) = self.bytes();
        if (min..=max).contains(&bytes) { Ok(()) } else { Err(Damage::Size { kind: self, bytes, min, max }) }
    }

    /// Bytes of the body that its check covers.
    fn checked(self, body: &[u8]) -> &[u8] {
        match self {
            Self::Data => body.get(..DATA_BYTES).unwrap_or(body),
            _ => body,
        }
    }
}

/// The largest sizes one side takes, and how much may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of frames sent and not answered.
    pub window_bytes: u32,
    /// Pages of a frame that carries their bytes.
    pub data_pages: u16,
}

impl Limits {
    /// The smallest window: one largest frame and some.
    pub const WINDOW_BYTES_MIN: u32 = 1 << 16;

    /// What both sides take.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            window_bytes: self.window_bytes.min(other.window_bytes),
            data_pages: self.data_pages.min(other.data_pages),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { window_bytes: 64 << 20, data_pages: 64 }
    }
}

/// The first frame of who sends pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The first version it speaks.
    pub version_min: u16,
    /// The last.
    pub version_max: u16,
    /// What it can do.
    pub features: u32,
    /// Which migration.
    pub migration: [u8; 16],
    /// Which stream of it.
    pub stream: u16,
    /// How many streams there are.
    pub streams: u16,
    /// Counts the connections of this stream, from 1 on.
    pub attempt: u32,
    /// What it sends at most.
    pub limits: Limits,
}

/// The first frame of who receives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version that is spoken.
    pub version: u16,
    /// What both can do.
    pub features: u32,
    /// Everything of this stream up to this barrier is durable. 0: nothing.
    pub durable: u64,
    /// What both take.
    pub limits: Limits,
}

/// What is moved. The same on every connection of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its pages, of 4 KiB.
    pub pages: u64,
    /// Its name, for people.
    pub name: String,
    /// The profile by which a guest knows it.
    pub profile: String,
    /// What else the other host must know; not interpreted here.
    pub settings: Vec<u8>,
}

/// How pages are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// As they are.
    Raw(&'a [u8]),
    /// As one LZ4 block.
    Lz4(&'a [u8]),
    /// All zeros.
    Zeros,
    /// All zeros, without space.
    Hole,
}

/// Pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data<'a> {
    /// Which.
    pub run: Run,
    /// How.
    pub payload: Payload<'a>,
    /// CRC-32C of the plain bytes; 0 for zeros and holes.
    pub check: u32,
}

impl<'a> Data<'a> {
    /// The plain bytes, verified; `None`: zeros. `space` is where compressed ones are put.
    ///
    /// # Errors
    /// [`Damage::Pages`].
    pub fn plain<'b>(&self, space: &'b mut Vec<u8>) -> Result<Option<&'b [u8]>, Damage>
    where
        'a: 'b,
    {
        let damage = Damage::Pages { first: self.run.first(), pages: self.run.pages() };
        let plain = match self.payload {
            Payload::Zeros | Payload::Hole => return Ok(None),
            Payload::Raw(bytes) => bytes,
            Payload::Lz4(bytes) => {
                let len = self.run.pages() as usize * PAGE;
                space.resize(len, 0);
                let found = lz4_flex::block::decompress_into(bytes, space).map_err(|_| damage.clone())?;
                if found != len {
                    return Err(damage);
                }
                &space[..]
            }
        };
        if crc32c::crc32c(plain) == self.check { Ok(Some(plain)) } else { Err(damage) }
    }
}

/// A piece of something larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// Nothing follows.
    pub last: bool,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// A place in a stream. Acknowledged when all before it was written; with `flush`, when it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Barrier {
    /// Rises with each barrier of a stream, over all its connections. The first is 1.
    pub id: u64,
    /// Asks for what was written to be durable, or says that it is.
    pub flush: bool,
}

/// The end of a pass on one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The first is 0.
    pub pass: u32,
    /// No pass follows: the next barrier ends the stream.
    pub last: bool,
}

/// Why a migration is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Somebody wanted it so.
    Wish,
    /// The plan does not fit: space, profile, identity.
    Refused,
    /// No version in common.
    Version,
    /// A drive failed.
    Drive,
    /// One that this build does not know.
    Other(u16),
}

/// Gives up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancel {
    /// Why.
    pub reason: Reason,
    /// For people.
    pub text: String,
}

/// Everything that can be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// See [`Hello`].
    Hello(Hello),
    /// See [`Welcome`].
    Welcome(Welcome),
    /// See [`Plan`].
    Plan(Plan),
    /// See [`Data`].
    Data(Data<'a>),
    /// A piece of the compact map of pages that are still missing.
    Map(Part<'a>),
    /// A piece of the device's state.
    State(Part<'a>),
    /// See [`Barrier`].
    Barrier(Barrier),
    /// The answer to one.
    Ack(Barrier),
    /// The speaker takes, or sends, so many bytes a second. 0: it pauses; all ones: no limit. Also says that it is still there.
    Pace(u64),
    /// See [`End`].
    End(End),
    /// See [`Cancel`].
    Cancel(Cancel),
}

/// What data frames are checked against.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// Pages of what is moved.
    pub pages: u64,
    /// The stream.
    pub stream: u16,
    /// Of so many.
    pub streams: u16,
    /// What was agreed upon.
    pub data_pages: u16,
}

/// The stream on which a page travels.
#[must_use]
pub fn stream_of(page: u64, streams: u16) -> u16 {
    u16::try_from(page / STRIPE_PAGES % u64::from(streams.max(1))).unwrap_or(0)
}

/// A frame's head, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    kind: Kind,
    bytes: usize,
    sequence: u64,
    check: u32,
}

impl Head {
    /// Reads a head that must have this sequence number.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn parse(head: &[u8; HEAD_BYTES], expected: u64) -> Result<Self, Damage> {
        let mut input = Input::of(head, Kind::Hello);
        let (kind, zeros) = (input.u8()?, input.take(3)? == [0; 3]);
        let (bytes, found, check) = (input.u32()?, input.u64()?, input.u32()?);
        if crc32c::crc32c(&head[..HEAD_BYTES - 4]) != input.u32()? {
            return Err(Damage::Head(expected));
        }
        let kind = Kind::of(kind)?;
        if !zeros {
            return Err(Damage::Field { kind, field: "reserved bytes" });
        }
        if found != expected {
            return Err(Damage::Sequence { found, expected });
        }
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        kind.sized(bytes)?;
        Ok(Self { kind, bytes, sequence: found, check })
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Bytes of the body that follows; bounded.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Reads the body. `scope`: what data must lie in; without one there can be no data yet.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn body<'a>(&self, body: &'a [u8], scope: Option<&Scope>) -> Result<Frame<'a>, Damage> {
        if body.len() != self.bytes || crc32c::crc32c(self.kind.checked(body)) != self.check {
            return Err(Damage::Body(self.sequence));
        }
        let mut input = Input::of(body, self.kind);
        let frame = match self.kind {
            Kind::Hello => Frame::Hello(hello(&mut input)?),
            Kind::Welcome => Frame::Welcome(welcome(&mut input)?),
            Kind::Plan => Frame::Plan(plan(&mut input)?),
            Kind::Data => Frame::Data(data(&mut input, scope.ok_or(Damage::Order(self.kind))?)?),
            Kind::Map => Frame::Map(part(&mut input)?),
            Kind::State => Frame::State(part(&mut input)?),
            Kind::Barrier => Frame::Barrier(Barrier { id: input.u64()?, flush: input.flag("flush", 8)? }),
            Kind::Ack => Frame::Ack(Barrier { id: input.u64()?, flush: input.flag("flush", 8)? }),
            Kind::Pace => Frame::Pace(input.u64()?),
            Kind::End => Frame::End(End { pass: input.u32()?, last: input.flag("last", 4)? }),
            Kind::Cancel => Frame::Cancel(cancel(&mut input)?),
        };
        match self.kind {
            // Later versions add to the end.
            Kind::Hello | Kind::Welcome => Ok(frame),
            _ => input.end().map(|()| frame),
        }
    }
}

impl<'a> Frame<'a> {
    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Welcome(_) => Kind::Welcome,
            Self::Plan(_) => Kind::Plan,
            Self::Data(_) => Kind::Data,
            Self::Map(_) => Kind::Map,
            Self::State(_) => Kind::State,
            Self::Barrier(_) => Kind::Barrier,
            Self::Ack(_) => Kind::Ack,
            Self::Pace(_) => Kind::Pace,
            Self::End(_) => Kind::End,
            Self::Cancel(_) => Kind::Cancel,
        }
    }

    /// Puts head and fields into `out`, which is emptied before. The bytes that are returned follow them on the wire, and are not copied.
    ///
    /// # Errors
    /// [`Damage::Size`]: it would be larger than the other side takes.
    pub fn encode(&self, sequence: u64, out: &mut Vec<u8>) -> Result<&'a [u8], Damage> {
        let kind = self.kind();
        out.clear();
        out.resize(HEAD_BYTES, 0);
        let tail = fields::put(self, out)?;
        let fixed = out.get(HEAD_BYTES..).unwrap_or(&[]);
        let bytes = fixed.len() + tail.len();
        kind.sized(bytes)?;
        let check = match self {
            Frame::Data(_) => crc32c::crc32c(fixed),
            _ => crc32c::crc32c_append(crc32c::crc32c(fixed), tail),
        };
        let mut head = [0; HEAD_BYTES];
        head[0] = kind as u8;
        head[4..8].copy_from_slice(&u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes());
        head[8..16].copy_from_slice(&sequence.to_le_bytes());
        head[16..20].copy_from_slice(&check.to_le_bytes());
        let check = crc32c::crc32c(&head[..HEAD_BYTES - 4]);
        head[20..].copy_from_slice(&check.to_le_bytes());
        out[..HEAD_BYTES].copy_from_slice(&head);
        Ok(tail)
    }
}
