//! Where the record of a wipe survives.

use super::record::{RECORD_BYTES_MAX, Record, RecordError};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Keeps the record of a wipe.
pub trait Journal {
    /// Keeps it: when this returns, it is there after a power loss.
    ///
    /// # Errors
    /// It cannot be kept: the wipe stops here.
    fn save(&mut self, record: &Record) -> io::Result<()>;
}

/// A record in a file, replaced as a whole.
#[derive(Debug)]
pub struct FileJournal {
    path: PathBuf,
}

impl FileJournal {
    /// The record at `path`. Its folder must exist.
    #[must_use]
    pub fn new(path: &Path) -> FileJournal {
        FileJournal { path: path.to_owned() }
    }

    /// The record that is there, if there is one.
    ///
    /// # Errors
    /// It cannot be read; the inner error: it makes no sense.
    pub fn load(&self) -> io::Result<Option<Result<Record, RecordError>>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = String::new();
        file.take(RECORD_BYTES_MAX).read_to_string(&mut text)?;
        Ok(Some(Record::parse(&text)))
    }
}

impl Journal for FileJournal {
    fn save(&mut self, record: &Record) -> io::Result<()> {
        replace(&self.path, &serde_json::to_string_pretty(record).map_err(io::Error::other)?)
    }
}

/// Replaces a file as a whole: after a power loss there is the old text or the new.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
