//! What names an ssd to its guest: given in the configuration, or derived from the ssd's name. Never the host's hardware.

/// The identity of an ssd as the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Serial number: 1 to 20 printable ASCII characters.
    pub serial: String,
    /// NVM subsystem qualified name.
    pub nqn: String,
    /// UUID that the subsystem's namespaces' identifiers are derived from.
    pub uuid: [u8; 16],
}

impl Identity {
    /// The identity of an ssd for which the configuration gives none: a function of `name` alone, so that it stays the
    /// same over restarts and on another host.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        let uuid = uuid_of_name(name);
        let serial = format!("GW{}", hex(&uuid[..9]).to_uppercase());
        Self { serial, nqn: nqn_of_uuid(uuid), uuid }
    }
}

/// The NQN form that Base 2.1, 4.7 defines for a UUID.
#[must_use]
pub fn nqn_of_uuid(uuid: [u8; 16]) -> String {
    format!("nqn.2014-08.org.nvmexpress:uuid:{}", uuid_text(uuid))
}

/// A UUID in its canonical text form.
#[must_use]
pub fn uuid_text(uuid: [u8; 16]) -> String {
    let h = hex(&uuid);
    format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
}

/// Reads the canonical text form.
#[must_use]
pub fn uuid_of_text(text: &str) -> Option<[u8; 16]> {
    let parts: Vec<&str> = text.split('-').collect();
    if parts.iter().map(|part| part.len()).ne([8, 4, 4, 4, 12]) {
        return None;
    }
    let digits = parts.concat();
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(uuid)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A version 8 UUID (RFC 9562, 5.8) from two FNV-1a hashes: stable, not secret.
fn uuid_of_name(name: &str) -> [u8; 16] {
    let hash = |seed: u64| {
        name.bytes().fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
    };
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&hash(0xcbf2_9ce4_8422_2325).to_be_bytes());
    uuid[8..].copy_from_slice(&hash(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    uuid[6] = (uuid[6] & 0x0f) | 0x80;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    uuid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_depends_on_the_name_alone() {
        assert_eq!(Identity::of_name("a"), Identity::of_name("a"));
        assert_ne!(Identity::of_name("a").serial, Identity::of_name("b").serial);
        assert_eq!(Identity::of_name("a").serial.len(), 20);
    }

    #[test]
    fn a_uuid_survives_its_text_form() {
        let uuid = Identity::of_name("x").uuid;
        assert_eq!(uuid_of_text(&uuid_text(uuid)), Some(uuid));
        for bad in ["", "0", "zz345678-1234-1234-1234-123456789012", "12345678-1234-1234-1234-12345678901é"]
        {
            assert_eq!(uuid_of_text(bad), None, "{bad}");
        }
    }
}
