//! A journal in a file of its own, beside the ssd's record: for ssds that are not in a pool.

use super::Store;
use crate::records::replace;
use anyhow::{Context, ensure};
use state::migration::{MigrationV1, RECORD_BYTES_MAX};
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// See the module.
pub(crate) struct File {
    path: PathBuf,
    /// Two writers would share one temporary file.
    writing: Mutex<()>,
}

impl File {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), writing: Mutex::new(()) }
    }
}

impl Store for File {
    fn read(&self) -> anyhow::Result<Option<Vec<u8>>> {
        let file = match drive::source::open(&self.path, OpenOptions::new().read(true), 0) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("it cannot be read"),
        };
        let mut bytes = Vec::new();
        let most = u64::try_from(RECORD_BYTES_MAX)? + 1;
        file.take(most).read_to_end(&mut bytes).context("it cannot be read")?;
        ensure!(bytes.len() <= RECORD_BYTES_MAX, "it is longer than any journal");
        Ok(Some(bytes))
    }

    fn replace(&self, record: &[u8]) -> anyhow::Result<()> {
        MigrationV1::from_bytes(record)?;
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        replace(&self.path, record).with_context(|| {
            format!("{} cannot be written; free space or mend the file system", self.path.display())
        })
    }

    fn is_file(&self) -> bool {
        true
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }
}
