//! `[migration]`: how this host takes part in moving ssds to and from others.

use super::{Wrong, wrong};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use toml::Spanned;

/// How this host takes part in migrations. Both ways by TLS 1.3, with a certificate that the other host's authority signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// Where other hosts bring ssds to. `None`: none can be brought here.
    pub listen: Option<SocketAddr>,
    /// This host's certificate, and those between it and the authority (PEM).
    pub certificate: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
    /// Who signs the certificates of the hosts that take part (PEM).
    pub authority: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMigration {
    listen: Option<Spanned<String>>,
    certificate: PathBuf,
    key: PathBuf,
    authority: PathBuf,
}

pub(super) fn check(raw: RawMigration) -> Result<Migration, Wrong> {
    let parse = |text: &Spanned<String>| {
        text.get_ref().parse().map_err(|_| {
            wrong(text, "this is no address and port; write for example \"192.0.2.1:8010\", or \"[::]:8010\" for all addresses")
        })
    };
    let listen = raw.listen.as_ref().map(parse).transpose()?;
    let RawMigration { certificate, key, authority, .. } = raw;
    Ok(Migration { listen, certificate, key, authority })
}
