//! What the two hosts say about a migration, over a connection of its own: lines of a length and JSON, every doubt told in one place.
//!
//! ```text
//!  source                                   destination
//!    Offer ------------------------------------>  is the ssd expected here, and the same device?
//!    <-------------------------- Welcome | No
//!    Step (commit::ToDestination), or Ping ---->
//!    <-------------- Step (commit::ToSource)      each word is answered once, by where the destination is then
//! ```
//! A connection that breaks is replaced, with the same offer, and what was not answered is said again. `docs/formats/migration-control.md` has the fields.

use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use transfer::commit::{Message, Pledge, ToDestination, ToSource};

/// Largest word.
const WORD_BYTES_MAX: usize = 64 << 10;
/// The first and the last version that is spoken.
pub(super) const VERSION: u32 = 1;

/// The first word of a connection: which ssd, and what it must be like there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Offer {
    /// Spoken by the source. A destination that speaks another says no.
    pub(super) version: u32,
    /// Identity of the migration.
    pub(super) migration: u128,
    /// Only to ask: nothing is begun.
    #[serde(default)]
    pub(super) dry_run: bool,
    /// Name of the ssd at the destination.
    pub(super) name: String,
    /// Who asks, for people.
    pub(super) from: String,
    /// What must be the same on both hosts.
    pub(super) device: Device,
    /// The guest that goes with it.
    #[serde(default)]
    pub(super) guest: Option<Guest>,
}

/// A virtual machine that moves with its ssds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Guest {
    /// Of its move.
    pub(super) id: u128,
    /// Names of all the ssds that it has, this one too.
    pub(super) ssds: Vec<String>,
    /// Of each, the `id` of its device in the hypervisor.
    pub(super) devices: Vec<Option<String>>,
}

/// The first word of a connection for a guest's memory, said by the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    /// The [`Guest::id`].
    pub(super) guest: u128,
    /// `false`: it carries what is said to the destination, comes first, and is answered [`FromDestination::Noted`]. `true`: it carries what is said to the
    /// source, and is answered [`FromDestination::Welcome`] when the guest is expected.
    pub(super) back: bool,
}

/// What a guest knows its ssd by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Device {
    pub(super) size_bytes: u64,
    pub(super) door: String,
    pub(super) profile: String,
    pub(super) serial: String,
    pub(super) nqn: String,
    pub(super) uuid: String,
    pub(super) lba_bytes: u32,
}

impl Device {
    /// The first thing that is not as `other` has it, told for people. `None`: they are the same.
    pub(super) fn differs(&self, other: &Self) -> Option<String> {
        let text = |what: &str, here: &dyn std::fmt::Display, there: &dyn std::fmt::Display| {
            format!("its {what} is {there} at the source and {here} at the destination: make them the same")
        };
        let Self { size_bytes, door, profile, serial, nqn, uuid, lba_bytes } = self;
        if *size_bytes != other.size_bytes {
            return Some(text("size in bytes", size_bytes, &other.size_bytes));
        }
        if *lba_bytes != other.lba_bytes {
            return Some(text("block size", lba_bytes, &other.lba_bytes));
        }
        [
            ("door", door, &other.door),
            ("profile", profile, &other.profile),
            ("serial number", serial, &other.serial),
            ("NQN", nqn, &other.nqn),
            ("UUID", uuid, &other.uuid),
        ]
        .into_iter()
        .find(|(_, here, there)| here != there)
        .map(|(what, here, there)| text(what, here, there))
    }
}

/// What the source says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FromSource {
    Offer(Box<Offer>),
    Step {
        epoch: u64,
        word: SourceWord,
    },
    /// Nothing new: how is it there?
    Ping,
}

/// What the destination says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FromDestination {
    Welcome,
    No {
        why: String,
    },
    Step {
        epoch: u64,
        word: DestinationWord,
    },
    /// Heard, and nothing is to be said to it.
    Noted,
}

/// [`ToDestination`] on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum SourceWord {
    Open { round: u32 },
    Seal { round: u32 },
    Grant { round: u32 },
    Cancel,
    Closed,
    Fenced { epoch: u64 },
}

/// [`ToSource`] on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum DestinationWord {
    Opened { round: u32 },
    Ready { round: u32 },
    Owned,
    Dropped,
}

impl FromSource {
    pub(super) fn step(message: Message<ToDestination>) -> Self {
        let word = match message.word {
            ToDestination::Open { round } => SourceWord::Open { round },
            ToDestination::Seal { round } => SourceWord::Seal { round },
            ToDestination::Grant { round } => SourceWord::Grant { round },
            ToDestination::Cancel => SourceWord::Cancel,
            ToDestination::Closed => SourceWord::Closed,
            ToDestination::Fenced { epoch } => SourceWord::Fenced { epoch },
        };
        Self::Step { epoch: message.pledge.epoch, word }
    }
}

impl FromDestination {
    pub(super) fn step(message: Message<ToSource>) -> Self {
        let word = match message.word {
            ToSource::Opened { round } => DestinationWord::Opened { round },
            ToSource::Ready { round } => DestinationWord::Ready { round },
            ToSource::Owned => DestinationWord::Owned,
            ToSource::Dropped => DestinationWord::Dropped,
        };
        Self::Step { epoch: message.pledge.epoch, word }
    }
}

/// A step that came, in the migration that the connection's offer named.
pub(super) fn to_destination(migration: u128, epoch: u64, word: SourceWord) -> Message<ToDestination> {
    let word = match word {
        SourceWord::Open { round } => ToDestination::Open { round },
        SourceWord::Seal { round } => ToDestination::Seal { round },
        SourceWord::Grant { round } => ToDestination::Grant { round },
        SourceWord::Cancel => ToDestination::Cancel,
        SourceWord::Closed => ToDestination::Closed,
        SourceWord::Fenced { epoch } => ToDestination::Fenced { epoch },
    };
    Message { pledge: Pledge { migration: migration.to_be_bytes(), epoch }, word }
}

/// As [`to_destination`].
pub(super) fn to_source(migration: [u8; 16], epoch: u64, word: DestinationWord) -> Message<ToSource> {
    let word = match word {
        DestinationWord::Opened { round } => ToSource::Opened { round },
        DestinationWord::Ready { round } => ToSource::Ready { round },
        DestinationWord::Owned => ToSource::Owned,
        DestinationWord::Dropped => ToSource::Dropped,
    };
    Message { pledge: Pledge { migration, epoch }, word }
}

/// Sends one word.
///
/// # Errors
/// The connection's.
pub(super) fn send<W: Serialize>(to: &mut impl Write, word: &W) -> io::Result<()> {
    let body = serde_json::to_vec(word)?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= WORD_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::other("a word of a migration is too long"))?;
    // In one piece: the other side is to read it at once.
    let mut whole = length.to_le_bytes().to_vec();
    whole.extend_from_slice(&body);
    to.write_all(&whole)?;
    to.flush()
}

/// Takes one word.
///
/// # Errors
/// The connection's; or what came is none.
pub(super) fn receive<W: for<'a> Deserialize<'a>>(from: &mut impl Read) -> io::Result<W> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    let unsound = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    if length > WORD_BYTES_MAX {
        return Err(unsound(format!("a word of {length} bytes came: at most {WORD_BYTES_MAX} can be")));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    serde_json::from_slice(&body)
        .map_err(|error| unsound(format!("what came is no word of a migration: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_comes_over_as_it_was_and_what_is_none_is_refused() {
        let pledge = Pledge { migration: 7u128.to_be_bytes(), epoch: 9 };
        let round = 3;
        for word in [
            ToDestination::Open { round },
            ToDestination::Seal { round },
            ToDestination::Grant { round },
            ToDestination::Cancel,
            ToDestination::Closed,
            ToDestination::Fenced { epoch: 11 },
        ] {
            let mut wire = Vec::new();
            send(&mut wire, &FromSource::step(Message { pledge, word })).unwrap();
            let FromSource::Step { epoch, word: back } = receive(&mut &wire[..]).unwrap() else {
                panic!("no step")
            };
            assert_eq!(to_destination(7, epoch, back), Message { pledge, word });
            wire.truncate(wire.len() - 1);
            assert!(receive::<FromSource>(&mut &wire[..]).is_err());
        }
        for word in
            [ToSource::Opened { round }, ToSource::Ready { round }, ToSource::Owned, ToSource::Dropped]
        {
            let mut wire = Vec::new();
            send(&mut wire, &FromDestination::step(Message { pledge, word })).unwrap();
            let FromDestination::Step { epoch, word: back } = receive(&mut &wire[..]).unwrap() else {
                panic!("no step")
            };
            assert_eq!(to_source(pledge.migration, epoch, back), Message { pledge, word });
        }
        let error = receive::<FromSource>(&mut &[255, 255, 255, 255, 0][..]).unwrap_err();
        assert!(error.to_string().contains("at most"), "{error}");
        assert!(receive::<FromSource>(&mut &[2, 0, 0, 0, b'{', b'}'][..]).is_err());
    }

    #[test]
    fn a_device_that_is_not_the_same_is_told_by_what_differs() {
        let device = Device {
            size_bytes: 1 << 30,
            door: "vfio-user".to_owned(),
            profile: "gen1".to_owned(),
            serial: "GW1".to_owned(),
            nqn: "nqn.2014-08.org.nvmexpress:uuid:1".to_owned(),
            uuid: "1".to_owned(),
            lba_bytes: 512,
        };
        assert_eq!(device.differs(&device.clone()), None);
        let there = Device { serial: "GW2".to_owned(), ..device.clone() };
        assert!(device.differs(&there).unwrap().contains("serial number is GW2 at the source and GW1"));
        assert!(device.differs(&Device { size_bytes: 1, ..device.clone() }).is_some());
    }
}
