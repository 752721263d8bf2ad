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

use api::config::{Limits, PROFILES, profiles};
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
    /// What goes along, and how the ssd is at the source. `None`: of an older release, or said already before the source's engine was restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) along: Option<Along>,
}

/// How an ssd is at the source, beside what its guest knows it by. Who says this is answered by [`FromDestination::Expected`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Along {
    /// By which it is held.
    pub(super) limits: Limits,
    /// Its data is encrypted at rest.
    pub(super) encrypted: bool,
    /// It may lie in the clear at the destination all the same: an operator says so.
    #[serde(default)]
    pub(super) allow_unencrypted: bool,
    /// Its snapshots that may go along, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) snapshots: Vec<String>,
}

/// How it will be at the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct There {
    /// By which it will be held.
    pub(super) limits: Limits,
    /// These are of the configuration there, whatever comes along.
    pub(super) own_limits: bool,
    /// Its data will be encrypted at rest.
    pub(super) encrypted: bool,
    /// It takes the snapshots.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) snapshots: bool,
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
    /// Why no host of this release can have it, told for people.
    pub(super) fn is_unknown(&self) -> Option<String> {
        let known = PROFILES.contains(&self.profile.as_str());
        (!known).then(|| {
            let (profile, ours) = (&self.profile, profiles());
            format!("its profile is {profile} at the source, and the destination's release knows {ours} only: upgrade the destination first")
        })
    }

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
        /// By which the ssd is held at the source by now. `None`: of an older release.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limits: Option<Limits>,
    },
    /// Nothing new: how is it there?
    Ping,
    /// These parts (first byte, and the one behind the last) are about to be written anew, or are zeros by now. To who takes snapshots.
    Empty {
        bytes: Vec<(u64, u64)>,
    },
    /// What has come so far is this snapshot of the ssd.
    Snapshot {
        name: String,
    },
}

/// What the destination says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FromDestination {
    Welcome,
    /// The same, to an offer that says what goes along.
    Expected(There),
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
    pub(super) fn step(message: Message<ToDestination>, limits: Option<Limits>) -> Self {
        let word = match message.word {
            ToDestination::Open { round } => SourceWord::Open { round },
            ToDestination::Seal { round } => SourceWord::Seal { round },
            ToDestination::Grant { round } => SourceWord::Grant { round },
            ToDestination::Cancel => SourceWord::Cancel,
            ToDestination::Closed => SourceWord::Closed,
            ToDestination::Fenced { epoch } => SourceWord::Fenced { epoch },
        };
        Self::Step { epoch: message.pledge.epoch, word, limits }
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
    use proptest::prelude::*;

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
            send(&mut wire, &FromSource::step(Message { pledge, word }, None)).unwrap();
            let FromSource::Step { epoch, word: back, limits: None } = receive(&mut &wire[..]).unwrap()
            else {
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

    /// The words as the release before this one had them, and what it said.
    mod before {
        use super::super::{Device, Guest, SourceWord};
        use serde::{Deserialize, Serialize};

        #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub(super) struct Offer {
            pub(super) version: u32,
            pub(super) migration: u128,
            #[serde(default)]
            pub(super) dry_run: bool,
            pub(super) name: String,
            pub(super) from: String,
            pub(super) device: Device,
            #[serde(default)]
            pub(super) guest: Option<Guest>,
        }

        #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub(super) enum FromSource {
            Offer(Box<Offer>),
            Step { epoch: u64, word: SourceWord },
            Ping,
        }

        pub(super) const OFFER: &str = r#"{"offer":{"version":1,"migration":5,"dry_run":false,"name":"db-1","from":"a","device":{"size_bytes":1048576,"door":"vfio-user","profile":"godwit-1","serial":"S","nqn":"n","uuid":"u","lba_bytes":512},"guest":null}}"#;
        pub(super) const GRANT: &str = r#"{"step":{"epoch":9,"word":{"grant":{"round":3}}}}"#;
        pub(super) const WELCOME: &str = r#""welcome""#;
    }

    fn framed(text: &str) -> Vec<u8> {
        [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat()
    }

    #[test]
    fn words_of_the_release_before_are_understood_and_say_nothing_of_what_goes_along() {
        let FromSource::Offer(offer) = receive(&mut &framed(before::OFFER)[..]).unwrap() else {
            panic!("no offer")
        };
        assert_eq!((offer.along.as_ref(), offer.name.as_str()), (None, "db-1"));
        let step = receive::<FromSource>(&mut &framed(before::GRANT)[..]).unwrap();
        assert_eq!(step, FromSource::Step { epoch: 9, word: SourceWord::Grant { round: 3 }, limits: None });
        // And is answered as it was: what an offer did not ask for is not said.
        let mut wire = Vec::new();
        send(&mut wire, &FromDestination::Welcome).unwrap();
        assert_eq!(wire, framed(before::WELCOME));
        assert!(matches!(receive(&mut &wire[..]), Ok(FromDestination::Welcome)));
    }

    #[test]
    fn the_release_before_skips_what_goes_along() {
        let FromSource::Offer(mut offer) = receive(&mut &framed(before::OFFER)[..]).unwrap() else {
            panic!("no offer")
        };
        let limits = Limits { weight: 7, ..Limits::default() };
        offer.along = Some(Along {
            limits,
            encrypted: true,
            allow_unencrypted: false,
            snapshots: vec!["monday".to_owned()],
        });
        let mut wire = Vec::new();
        send(&mut wire, &FromSource::Offer(offer.clone())).unwrap();
        assert_eq!(receive::<FromSource>(&mut &wire[..]).unwrap(), FromSource::Offer(offer));
        let then = serde_json::from_str::<before::FromSource>(before::OFFER).unwrap();
        assert_eq!(receive::<before::FromSource>(&mut &wire[..]).unwrap(), then);
        let step = FromSource::Step { epoch: 9, word: SourceWord::Grant { round: 3 }, limits: Some(limits) };
        wire.clear();
        send(&mut wire, &step).unwrap();
        assert_eq!(receive::<FromSource>(&mut &wire[..]).unwrap(), step);
        let then = serde_json::from_str::<before::FromSource>(before::GRANT).unwrap();
        assert_eq!(receive::<before::FromSource>(&mut &wire[..]).unwrap(), then);
    }

    /// A word that is sound but for some bytes.
    fn spoiled() -> impl Strategy<Value = Vec<u8>> {
        let words = [
            before::OFFER,
            before::GRANT,
            r#""ping""#,
            r#"{"empty":{"bytes":[[0,4096],[8192,12288]]}}"#,
            r#"{"snapshot":{"name":"monday"}}"#,
            r#"{"expected":{"limits":{"weight":100},"own_limits":false,"encrypted":true}}"#,
            r#"{"no":{"why":"full"}}"#,
        ];
        let change = (any::<prop::sample::Index>(), any::<u8>());
        (
            prop::sample::select(words.to_vec()),
            prop::collection::vec(change, 0..4),
            any::<prop::sample::Index>(),
        )
            .prop_map(|(text, changes, cut)| {
                let mut bytes = framed(text);
                for (at, byte) in changes {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
                bytes.truncate(cut.index(2 * bytes.len()).max(1));
                bytes
            })
    }

    /// Hostile inputs, row 25.
    fn refused_or_the_same_again<W>(bytes: &[u8]) -> Result<(), TestCaseError>
    where
        W: Serialize + for<'a> Deserialize<'a> + PartialEq + std::fmt::Debug,
    {
        match receive::<W>(&mut &bytes[..]) {
            Ok(word) => {
                let mut wire = Vec::new();
                send(&mut wire, &word)?;
                prop_assert_eq!(receive::<W>(&mut &wire[..])?, word);
            }
            Err(error) => prop_assert!(
                matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof),
                "{error}"
            ),
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn whatever_a_peer_sends_is_a_word_or_refused(bytes in spoiled(), noise in prop::collection::vec(any::<u8>(), 0..64)) {
            for bytes in [bytes, noise] {
                refused_or_the_same_again::<FromSource>(&bytes)?;
                refused_or_the_same_again::<FromDestination>(&bytes)?;
            }
        }
    }

    #[test]
    fn a_destination_that_says_nothing_of_snapshots_takes_none() {
        let limits = r#"{"weight":100}"#;
        let text = format!(r#"{{"expected":{{"limits":{limits},"own_limits":false,"encrypted":true}}}}"#);
        let FromDestination::Expected(there) = receive(&mut &framed(&text)[..]).unwrap() else {
            panic!("not expected")
        };
        assert!(there.encrypted && !there.snapshots);
        // And who was asked for none says nothing of them.
        let mut wire = Vec::new();
        send(&mut wire, &FromDestination::Expected(there)).unwrap();
        assert!(!String::from_utf8_lossy(&wire).contains("snapshots"));
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
        // As an older release has it, which knows one profile: the plan is refused, and its name is in the reason.
        let (old, new) = ("godwit-1".to_owned(), "godwit-2".to_owned());
        let (old, new) =
            (Device { profile: old, ..device.clone() }, Device { profile: new, ..device.clone() });
        assert!(old.differs(&new).unwrap().contains("profile is godwit-2 at the source and godwit-1 at the"));
        // And as this release has it.
        assert_eq!((old.is_unknown(), new.is_unknown()), (None, None));
        assert!(device.is_unknown().unwrap().contains("profile is gen1 at the source"));
    }

    #[test]
    fn the_profiles_of_configurations_are_those_of_the_device_model() {
        use nvme::profile::{Profile, Role};
        let shown = Profile::ALL.into_iter().filter(|profile| profile.role == Role::Io);
        assert!(shown.map(|profile| profile.name).eq(PROFILES));
    }
}
