//! The key of an ssd's data. It is read once, when the ssd is powered on, and then kept with the rest of its state: an engine that takes
//! over must not depend on a file that has moved, or on a program that asks a service far away.

use anyhow::{Context, bail};
use api::config::{self, KeySource};
use crypt::Key;
use rustix::fs::MemfdFlags;
use state::ssd::SsdV1;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// A key, and the memory in which it is kept for a successor.
pub(crate) struct DataKey {
    key: Key,
    kept: File,
}

impl DataKey {
    /// The key that a predecessor left, or the one that the configuration names. `None`: the data is not encrypted.
    pub(crate) fn open(config: &config::Ssd, kept: Option<OwnedFd>) -> anyhow::Result<Option<Self>> {
        let Some(source) = &config.key else { return Ok(None) };
        if let Some(kept) = kept {
            let (kept, mut bytes) = (File::from(kept), [0; crypt::KEY_BYTES]);
            kept.read_exact_at(&mut bytes, 0).context("what was kept of its key cannot be read")?;
            return Ok(Some(Self { key: Key::new(bytes)?, kept }));
        }
        let key = match source {
            KeySource::File(path) => Key::from_file(path)?,
            KeySource::Command(program, arguments) => Key::from_command(program, arguments)?,
        };
        let kept = File::from(rustix::fs::memfd_create("godwit-key", MemfdFlags::CLOEXEC)?);
        kept.write_all_at(key.bytes(), 0).context("its key cannot be kept")?;
        Ok(Some(Self { key, kept }))
    }

    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// For the keeper.
    pub(crate) fn descriptor(&self) -> std::io::Result<OwnedFd> {
        Ok(self.kept.try_clone()?.into())
    }
}

/// Refuses a record of data that this key does not read, and notes the key of data that is yet to be written.
pub(crate) fn check_key(key: Option<&DataKey>, record: &mut SsdV1) -> anyhow::Result<()> {
    let check = key.map(|key| key.key.check());
    match (check, record.key_check) {
        (None, Some(_)) => bail!("its data is encrypted: give it `encryption` and its key"),
        (Some(check), None) if !record.laid_out => record.key_check = Some(check),
        (Some(_), None) => bail!(
            "its data was written in the clear: leave `encryption` out, or copy the data to an ssd that has it"
        ),
        (Some(check), Some(known)) if check != known => {
            bail!(
                "this is not the key that its data was written with: give the right one, its data is noise otherwise"
            )
        }
        _ => {}
    }
    Ok(())
}
