//! What names an ssd to its guest: given in the configuration, or derived from the ssd's name. Never the host's hardware.

/// The identity of an ssd as configured. What is `None` follows from the serial number by the ssd's profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Serial number: 1 to 20 printable ASCII characters.
    pub serial: String,
    /// NVM subsystem qualified name.
    pub nqn: Option<String>,
    /// UUID of the first namespace.
    pub uuid: Option<[u8; 16]>,
}

/// The serial number of an ssd for which the configuration gives none: a function of `name` alone, so that it stays the
/// same over restarts and on another host. Two FNV-1a hashes: stable, not secret.
#[must_use]
pub fn serial_of_name(name: &str) -> String {
    let hash = |seed: u64| {
        name.bytes().fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
    };
    let (low, high) = (hash(0xcbf2_9ce4_8422_2325), hash(0x9e37_79b9_7f4a_7c15));
    format!("GW{:016X}{:02X}", low, high & 0xff)
}

/// Reads a UUID's canonical text form.
#[must_use]
pub fn uuid_of_text(text: &str) -> Option<[u8; 16]> {
    let parts: Vec<&str> = text.split('-').collect();
    if parts.iter().map(|part| part.len()).ne([8, 4, 4, 4, 12]) {
        return None;
    }
    let digits = parts.concat();
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(digits.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| !pair.starts_with('+'))?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_serial_depends_on_the_name_alone_and_never_changes() {
        assert_eq!(serial_of_name("a"), "GWAF63DC4C8601EC8C1C");
        assert_ne!(serial_of_name("a"), serial_of_name("b"));
        assert_eq!(serial_of_name("").len(), 20);
    }

    #[test]
    fn a_uuid_is_read_in_its_canonical_form_only() {
        assert_eq!(
            uuid_of_text("00112233-4455-6677-8899-aabbccddeeff"),
            Some([
                0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff
            ])
        );
        for bad in ["", "0", "zz345678-1234-1234-1234-123456789012", "+1345678-1234-1234-1234-12345678901é"]
        {
            assert_eq!(uuid_of_text(bad), None, "{bad}");
        }
    }
}
