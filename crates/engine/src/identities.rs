//! What names the ssds to their guests, compared: an identifier that the configuration gives to one may be what another has derived
//! from its serial number, and the configuration's own check knows no derived ones.

use anyhow::bail;
use api::config::{self, Config, Door};
use nvme::profile::{Identity, IdentityConfig, IdentityError};
use std::collections::HashMap;

/// The identity of an ssd: as configured, and derived.
pub(crate) fn identity_of(config: &config::Ssd) -> Result<Identity, IdentityError> {
    Identity::new(&IdentityConfig {
        serial: &config.identity.serial,
        nqn: config.identity.nqn.as_deref(),
        uuid: config.identity.uuid,
        block_bytes: config.lba_bytes,
        ..IdentityConfig::default()
    })
}

/// Two NVMe ssds with one identifier would be two paths to one drive to a guest that has both. Disks show no more than their serial.
///
/// # Errors
/// Names the identifier, both ssds, and what to write.
pub(crate) fn check_distinct(config: &Config) -> anyhow::Result<()> {
    let mut seen: HashMap<(&str, Vec<u8>), &str> = HashMap::new();
    for ssd in config.ssds.iter().filter(|ssd| ssd.door == Door::VfioUser) {
        let identity = identity_of(ssd)?;
        let ids = identity.namespace_ids(0);
        for (what, value, hint) in [
            ("NQN", identity.nqn.into_bytes(), "`nqn`"),
            ("UUID", ids.uuid.to_vec(), "`uuid`"),
            ("EUI64", ids.eui64.to_vec(), "`serial`"),
            ("NGUID", ids.nguid.to_vec(), "`serial`"),
        ] {
            if let Some(other) = seen.insert((what, value), &ssd.name) {
                bail!(
                    "ssd \"{}\" would have the {what} of ssd \"{other}\" (what is not configured follows from the serial \
                     number): write another {hint} for one of them",
                    ssd.name
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config(second: &str) -> Config {
        let ssd = |name: &str, more: &str| {
            format!(
                "[[ssd]]\nname = \"{name}\"\nsocket = \"/tmp/{name}.sock\"\nsize = \"1MiB\"\n{more}\n\
                 [ssd.backend]\ntype = \"null\"\n"
            )
        };
        let text = ssd("a", "serial = \"S1\"") + &ssd("b", second);
        Config::parse(Path::new("test"), &text).unwrap()
    }

    /// Ours: docs/guide/configuration.md. Base 2.1, 4.5.1 and 4.7.1: what names a subsystem or a namespace names it alone.
    #[test]
    fn an_ssd_cannot_be_given_what_another_has_derived() {
        let plain = config("serial = \"S2\"");
        check_distinct(&plain).unwrap();
        let derived = identity_of(&plain.ssds[0]).unwrap();
        let hex = format!("{:032x}", u128::from_be_bytes(derived.uuid));
        let uuid = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
        for (line, expected) in [
            (format!("uuid = \"{uuid}\""), "the UUID of ssd \"a\""),
            (format!("nqn = \"{}\"", derived.nqn), "the NQN of ssd \"a\""),
        ] {
            let text = check_distinct(&config(&line)).unwrap_err().to_string();
            assert!(text.contains("\"b\"") && text.contains(expected), "{text}");
        }
    }
}
