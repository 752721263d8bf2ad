//! A small certificate authority for hosts that trust each other: for a start, and for a few hosts. Larger houses have one.
//!
//! `ca.pem` and `ca.key` lie in one folder; each host gets a certificate by all the names that others use for it. Nothing is ever replaced.

use anyhow::{Context, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

#[derive(clap::Subcommand)]
pub(crate) enum TlsCommand {
    /// Make an authority: ca.pem, which every host has, and ca.key, which none needs. Keep the key where nobody else reads it.
    Init {
        /// Where.
        #[arg(long, value_name = "FOLDER", default_value = ".")]
        folder: PathBuf,
    },
    /// Make a host's certificate and key, signed by the authority: NAME.pem and NAME.key.
    Host {
        /// What others call the host: names and addresses, the first for the files.
        #[arg(required = true)]
        names: Vec<String>,
        /// Where the authority lies, and the files are written.
        #[arg(long, value_name = "FOLDER", default_value = ".")]
        folder: PathBuf,
    },
}

pub(crate) fn run(command: &TlsCommand) -> anyhow::Result<String> {
    match command {
        TlsCommand::Init { folder } => init(folder),
        TlsCommand::Host { names, folder } => host(names, folder),
    }
}

fn init(folder: &Path) -> anyhow::Result<String> {
    // What lies there is nobody else's to read.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("{}: cannot be made", folder.display()))?;
    let (certificate, key) = (folder.join("ca.pem"), folder.join("ca.key"));
    let pair = KeyPair::generate()?;
    let made = authority().self_signed(&pair)?;
    write_new(&key, &pair.serialize_pem(), 0o600)?;
    write_new(&certificate, &made.pem(), 0o644)?;
    let folder = folder.display();
    Ok(format!(
        "{} is for all hosts; keep {} to yourself.\nNext, for each host: godwit tls host NAME ADDRESS --folder {folder}\n",
        certificate.display(),
        key.display()
    ))
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Godwit hosts");
    // It signs hosts, and nobody who signs.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn host(names: &[String], folder: &Path) -> anyhow::Result<String> {
    let Some(first) = names.first() else { bail!("a host has a name") };
    // It becomes a file's name.
    let is_plain = |name: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-:_".contains(&byte);
        !name.starts_with('.') && !name.is_empty() && name.bytes().all(allowed)
    };
    if let Some(odd) = names.iter().find(|name| !is_plain(name)) {
        bail!("\"{odd}\" is no name or address of a host; write for example host-b, or 192.0.2.2");
    }
    let key = std::fs::read_to_string(folder.join("ca.key")).with_context(|| {
        format!("{}: no authority is there; `godwit tls init` makes one", folder.join("ca.key").display())
    })?;
    let issuer = Issuer::new(authority(), KeyPair::from_pem(&key).context("ca.key is no key")?);
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name.push(DnType::CommonName, first.clone());
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // It brings ssds and takes them.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let pair = KeyPair::generate()?;
    let made = params.signed_by(&pair, &issuer)?;
    let file = |what: &str| folder.join(format!("{first}.{what}"));
    write_new(&file("key"), &pair.serialize_pem(), 0o600)?;
    write_new(&file("pem"), &made.pem(), 0o644)?;
    Ok(format!(
        "[migration]                    # in the configuration of {first}\nlisten = \"[::]:8010\"\ncertificate = \"/etc/godwit/{first}.pem\"\nkey = \"/etc/godwit/{first}.key\"\n\
         authority = \"/etc/godwit/ca.pem\"\n"
    ))
}

/// A key that is overwritten is one that somebody still needs.
fn write_new(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).with_context(|| {
        format!("{}: cannot be written; what is there is not replaced: move it away first", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_host_has_a_certificate_of_the_authority_and_nothing_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = &folder.path().join("pki");
        let names = ["host-b".to_owned(), "192.0.2.2".to_owned()];
        assert!(host(&names, path).unwrap_err().to_string().contains("godwit tls init"));
        init(path).unwrap();
        let text = host(&names, path).unwrap();
        assert!(text.contains("certificate = \"/etc/godwit/host-b.pem\""), "{text}");
        for key in ["ca.key", "host-b.key"] {
            let mode = std::fs::metadata(path.join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
        let before = std::fs::read(path.join("ca.key")).unwrap();
        assert!(init(path).unwrap_err().to_string().contains("not replaced"));
        assert!(host(&names, path).is_err());
        assert_eq!(std::fs::read(path.join("ca.key")).unwrap(), before);
        for odd in ["../x", "", "a b", ".hidden"] {
            assert!(host(&[odd.to_owned()], path).unwrap_err().to_string().contains("no name"), "{odd}");
        }
    }
}
