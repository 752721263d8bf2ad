//! What a guest sees of an ssd: a named, versioned profile (like a machine type) and the identity from its configuration.
//!
//! Nothing here depends on the host's hardware or on Godwit's own version. A profile, once released, never changes: a
//! new device model is a new name.
//!
//! ## PCI ids
//! Vendor 676Fh (the letters "go"), device 6477h ("dw"), or 6D67h ("mg") of a migration management controller. Guest drivers bind by class code 010802h. The ids are in no entry of
//! Linux's NVMe quirk table (drivers/nvme/host/pci.c), so the stock driver applies no quirk; deliberately not 1B36:0010
//! (QEMU, BOGUS_NID) nor 8086:5845 (its older id, IDENTIFY_CNS, DISABLE_WRITE_ZEROES, BOGUS_NID). PCI-SIG has assigned
//! 676Fh to nobody we know of; whoever ships Godwit under a vendor id of their own adds a profile.

use spec::nvme::registers::Vs;
use thiserror::Error;

use crate::limits;

/// Organisationally unique identifier for EUI-64 and NGUID, from the locally administered space ("GW").
pub const OUI: [u8; 3] = [0x06, 0x47, 0x57];

/// What a controller is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// I/O to its namespaces.
    Io,
    /// Moving other controllers ([`crate::management`]): an administrative controller without namespaces or I/O queues.
    Management,
}

/// A device model: everything Identify says that is not identity, configuration or state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Its name, as stored with the ssd.
    pub name: &'static str,
    /// What it is there for.
    pub role: Role,
    /// Model number, up to 40 ASCII characters.
    pub model: &'static str,
    /// Firmware revision, up to 8 ASCII characters.
    pub firmware: &'static str,
    /// PCI vendor id.
    pub vendor_id: u16,
    /// PCI device id.
    pub device_id: u16,
    /// PCI subsystem vendor id.
    pub subsystem_vendor_id: u16,
    /// PCI subsystem id.
    pub subsystem_id: u16,
    /// PCI revision.
    pub revision: u8,
    /// Version register and VER.
    pub version: Vs,
    /// Maximum data transfer size, a power of two of 4 KiB.
    pub mdts: u8,
    /// Entries of an I/O queue, 0's based.
    pub mqes_z: u16,
    /// I/O queues of each kind.
    pub io_queues: u16,
    /// Interrupt vectors.
    pub vectors: u16,
    /// Get LBA Status says which blocks are allocated (AOCS.RALBAS).
    pub tells_allocated: bool,
}

/// Profile "godwit-1".
pub const GODWIT_1: Profile = Profile {
    name: "godwit-1",
    role: Role::Io,
    model: "Godwit NVMe SSD",
    firmware: "1.0",
    vendor_id: 0x676f,
    device_id: 0x6477,
    subsystem_vendor_id: 0x676f,
    subsystem_id: 0x0001,
    revision: 1,
    version: Vs::V2_1,
    mdts: limits::MDTS,
    mqes_z: limits::MQES_Z,
    io_queues: limits::IO_QUEUES_MAX,
    vectors: limits::VECTORS_MAX,
    tells_allocated: false,
};

/// Profile "godwit-2": as "godwit-1", and says which blocks are allocated.
pub const GODWIT_2: Profile =
    Profile { name: "godwit-2", firmware: "2.0", tells_allocated: true, ..GODWIT_1 };

/// Profile "godwit-management-1".
pub const GODWIT_MANAGEMENT_1: Profile = Profile {
    name: "godwit-management-1",
    role: Role::Management,
    model: "Godwit Migration Management Controller",
    device_id: 0x6d67,
    io_queues: 0,
    ..GODWIT_1
};

impl Profile {
    /// Every profile this build can show.
    pub const ALL: [&'static Self; 3] = [&GODWIT_1, &GODWIT_2, &GODWIT_MANAGEMENT_1];

    /// The profile with this name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name == name).cloned()
    }
}

/// What tells one ssd from every other. Stays with the ssd wherever it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Serial number, ASCII, padded with spaces.
    pub serial: [u8; 20],
    /// NVM subsystem NVMe qualified name.
    pub nqn: String,
    /// Logical block size of the initial namespace.
    pub initial_lba_shift: u8,
    /// UUID of the first namespace; those of further ones are derived.
    pub uuid: [u8; 16],
    /// EUI-64 of the first namespace.
    pub eui64: [u8; 8],
    /// NGUID of the first namespace.
    pub nguid: [u8; 16],
}

/// The identity as a configuration states it; what is left out is derived from the serial number.
#[derive(Clone, Debug, Default)]
pub struct IdentityConfig<'a> {
    /// Serial number: 1 to 20 printable ASCII characters.
    pub serial: &'a str,
    /// NQN: "nqn." and up to 223 bytes in all.
    pub nqn: Option<&'a str>,
    /// UUID of the first namespace.
    pub uuid: Option<[u8; 16]>,
    /// EUI-64 of the first namespace.
    pub eui64: Option<[u8; 8]>,
    /// NGUID of the first namespace.
    pub nguid: Option<[u8; 16]>,
    /// Logical block size of the initial namespace in bytes: 512 or 4096 (0 = 512).
    pub block_bytes: u32,
}

/// Why a configured identity cannot be shown to a guest.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum IdentityError {
    /// Serial number.
    #[error(
        "a serial number is 1 to 20 printable ASCII characters without leading or trailing space: {0:?} is not"
    )]
    Serial(String),
    /// NQN.
    #[error(
        "an NQN is \"nqn.\" and more, up to 223 bytes, without spaces or control characters: {0:?} is not"
    )]
    Nqn(String),
    /// Zero or otherwise reserved identifier.
    #[error("an identifier of all zeros means \"none\": leave {0} out, or give a unique one")]
    Zero(&'static str),
    /// Block size.
    #[error("a logical block has 512 or 4096 bytes, not {0}")]
    BlockSize(u32),
}

/// The three identifiers of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceIds {
    /// EUI-64.
    pub eui64: [u8; 8],
    /// NGUID.
    pub nguid: [u8; 16],
    /// UUID.
    pub uuid: [u8; 16],
}

impl Identity {
    /// Checks and completes a configured identity.
    ///
    /// # Errors
    /// [`IdentityError`] says what to write instead.
    pub fn new(config: &IdentityConfig<'_>) -> Result<Self, IdentityError> {
        let text = config.serial;
        let printable = text.bytes().all(|b| (0x20..0x7f).contains(&b));
        if text.is_empty() || text.len() > 20 || !printable || text.trim() != text {
            return Err(IdentityError::Serial(text.to_owned()));
        }
        let mut serial = [b' '; 20];
        serial[..text.len()].copy_from_slice(text.as_bytes());
        let initial_lba_shift = match config.block_bytes {
            0 | 512 => 9,
            4096 => 12,
            other => return Err(IdentityError::BlockSize(other)),
        };
        for (name, zero) in [
            ("uuid", config.uuid == Some([0; 16])),
            ("eui64", config.eui64 == Some([0; 8])),
            ("nguid", config.nguid == Some([0; 16])),
        ] {
            if zero {
                return Err(IdentityError::Zero(name));
            }
        }
        let derived = ids_of(&serial, 0);
        let uuid = config.uuid.unwrap_or(derived.uuid);
        let nqn = match config.nqn {
            Some(nqn) => checked_nqn(nqn)?,
            None => format!("nqn.2014-08.org.nvmexpress:uuid:{}", hyphenated(ids_of(&serial, u64::MAX).uuid)),
        };
        Ok(Self {
            serial,
            nqn,
            initial_lba_shift,
            uuid,
            eui64: config.eui64.unwrap_or(derived.eui64),
            nguid: config.nguid.unwrap_or(derived.nguid),
        })
    }

    /// Identifiers of the namespace that was created as number `index` of this ssd (0 is the initial one).
    #[must_use]
    pub fn namespace_ids(&self, index: u64) -> NamespaceIds {
        if index == 0 {
            return NamespaceIds { eui64: self.eui64, nguid: self.nguid, uuid: self.uuid };
        }
        let mut seed = [0; 36];
        seed[..20].copy_from_slice(&self.serial);
        seed[20..].copy_from_slice(&self.uuid);
        ids_of(&seed, index)
    }
}

fn checked_nqn(nqn: &str) -> Result<String, IdentityError> {
    let plain = nqn.chars().all(|c| !c.is_control() && !c.is_whitespace());
    if nqn.starts_with("nqn.") && nqn.len() > 4 && nqn.len() <= 223 && plain {
        Ok(nqn.to_owned())
    } else {
        Err(IdentityError::Nqn(nqn.to_owned()))
    }
}

fn hyphenated(uuid: [u8; 16]) -> String {
    let hex: String = uuid.iter().map(|b| format!("{b:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// Identifiers that are the same for the same seed and index, for ever: this function is part of the saved format.
fn ids_of(seed: &[u8], index: u64) -> NamespaceIds {
    let word = |lane: u64| {
        let mut state = mixed(lane ^ 0x676f_6477_6974_2d31);
        for chunk in seed.chunks(8) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            state = mixed(state ^ u64::from_le_bytes(bytes));
        }
        mixed(state ^ index).to_be_bytes()
    };
    let mut eui64 = word(1);
    eui64[..3].copy_from_slice(&OUI);
    let mut nguid = [0; 16];
    nguid[..8].copy_from_slice(&word(2));
    nguid[8..].copy_from_slice(&word(3));
    nguid[8..11].copy_from_slice(&OUI);
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&word(4));
    uuid[8..].copy_from_slice(&word(5));
    // RFC 9562: version 8 (custom), variant 10b.
    uuid[6] = (uuid[6] & 0x0f) | 0x80;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    NamespaceIds { eui64, nguid, uuid }
}

/// The finalizer of SplitMix64: every input bit reaches every output bit.
const fn mixed(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(serial: &str) -> Identity {
        Identity::new(&IdentityConfig { serial, ..IdentityConfig::default() }).expect("valid")
    }

    #[test]
    fn no_two_namespaces_of_any_two_ssds_share_an_identifier() {
        let mut seen = std::collections::HashSet::new();
        for serial in ["A", "B", "godwit-0001", "godwit-0002"] {
            for index in 0..100 {
                let ids = identity(serial).namespace_ids(index);
                assert!(seen.insert(ids.eui64.to_vec()));
                assert!(seen.insert(ids.nguid.to_vec()));
                assert!(seen.insert(ids.uuid.to_vec()));
                assert_eq!((ids.uuid[6] >> 4, ids.uuid[8] >> 6), (8, 2));
            }
        }
    }

    #[test]
    fn derived_identifiers_are_part_of_the_saved_format() {
        let ids = identity("godwit-0001").namespace_ids(0);
        assert_eq!(ids, identity("godwit-0001").namespace_ids(0));
        assert_eq!(ids.eui64[..3], OUI);
        assert_eq!(ids.nguid[8..11], OUI);
    }

    #[test]
    fn an_identity_no_guest_could_be_shown_is_refused() {
        let long = "x".repeat(21);
        for serial in ["", " a", "a ", "\u{e9}", "a\n", &long] {
            let config = IdentityConfig { serial, ..IdentityConfig::default() };
            assert!(matches!(Identity::new(&config), Err(IdentityError::Serial(_))), "{serial:?}");
        }
        for nqn in ["", "nqn.", "iqn.2014", "nqn.a b", "nqn.\0"] {
            let config = IdentityConfig { serial: "A", nqn: Some(nqn), ..IdentityConfig::default() };
            assert!(matches!(Identity::new(&config), Err(IdentityError::Nqn(_))), "{nqn:?}");
        }
        let config = IdentityConfig { serial: "A", block_bytes: 520, ..IdentityConfig::default() };
        assert_eq!(Identity::new(&config), Err(IdentityError::BlockSize(520)));
    }
}
