//! Who may be written over. To destroy what is on a drive one must hold a [`Cleared`], and there is one way to get it.

use crate::content;
use crate::discovery::{Bus, Device};
use crate::source::Opened;
use crate::survey::{State, Survey, state};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;

/// Why a drive may not be written over.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It is in use now. Nothing overrides this.
    #[error("{} is in use: {users}; stop that first", path.display())]
    InUse {
        /// The drive.
        path: PathBuf,
        /// By whom.
        users: String,
    },
    /// It cannot be written.
    #[error("{} is read only", path.display())]
    ReadOnly {
        /// The drive.
        path: PathBuf,
    },
    /// A wipe of it has not ended well. Nothing overrides this but a wipe.
    #[error(
        "{} is {}: finish its wipe first, with `godwit drive wipe {}`",
        path.display(),
        state.name(),
        path.display()
    )]
    Unclean {
        /// The drive.
        path: PathBuf,
        /// How it is.
        state: State,
    },
    /// Nobody knows whether a wipe of it has ended well.
    #[error(
        "{}: it is not known whether a wipe of it was interrupted, or failed: {error}; let this user read that",
        path.display()
    )]
    Unknown {
        /// The drive.
        path: PathBuf,
        /// Why the records cannot be read.
        error: String,
    },
    /// It carries data, and nobody said that these may go.
    #[error(
        "{} is taken: {contents}. To destroy what is on it for good, add --force-destroy-data {confirmation:?}",
        path.display()
    )]
    Taken {
        /// The drive.
        path: PathBuf,
        /// What is on it.
        contents: String,
        /// What must be repeated.
        confirmation: String,
    },
    /// The serial number given is another drive's.
    #[error(
        "--force-destroy-data {given:?} does not name {}: its serial number is {confirmation:?}; look again which drive you mean",
        path.display()
    )]
    WrongSerial {
        /// The drive.
        path: PathBuf,
        /// As given.
        given: String,
        /// What it should be.
        confirmation: String,
    },
    /// It cannot be opened for Godwit alone, or changed since it was looked at.
    #[error("{}: {what}: {error}", path.display())]
    Open {
        /// The drive.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

/// A drive that may be written over: it was blank, or its owner's serial number was repeated. Made by [`Survey::clear`] only.
#[derive(Debug)]
#[must_use = "it is the permission to format or wipe this drive, and no other"]
pub struct Cleared {
    device: Device,
    by_force: bool,
}

impl Survey {
    /// Asks to write over this drive. `serial` is what the operator gave with `--force-destroy-data`. One who gives it for the
    /// wrong drive is refused even if this one is free: he thinks of another.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn clear(&self, serial: Option<&str>) -> Result<Cleared, Refusal> {
        let (path, confirmation) = (self.device.path.clone(), self.device.confirmation());
        match self.state {
            State::InUse => return Err(Refusal::InUse { path, users: self.device.users.join(", ") }),
            State::ReadOnly => return Err(Refusal::ReadOnly { path }),
            State::Wiping | State::Quarantined => return Err(Refusal::Unclean { path, state: self.state }),
            State::Free | State::Pool | State::Taken => {}
        }
        if let Some(error) = self.wipes_unread.clone() {
            return Err(Refusal::Unknown { path, error });
        }
        if let Some(given) = serial {
            if given.trim() != confirmation {
                return Err(Refusal::WrongSerial { path, given: given.to_owned(), confirmation });
            }
            return Ok(Cleared { device: self.device.clone(), by_force: true });
        }
        if self.state == State::Free {
            return Ok(Cleared { device: self.device.clone(), by_force: false });
        }
        Err(Refusal::Taken { path, contents: self.contents.summary(), confirmation })
    }
}

impl Cleared {
    /// The drive it is about.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// True if data were on it, and its serial number was repeated.
    #[must_use]
    pub fn by_force(&self) -> bool {
        self.by_force
    }

    /// Opens it for Godwit alone (the kernel refuses a device that is mounted or held), and looks once more: between the survey
    /// and now anything may have happened.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn open(&self) -> Result<File, Refusal> {
        let path = self.device.path.clone();
        let failed = |what: &'static str| {
            let path = path.clone();
            move |error: io::Error| Refusal::Open { path, what, error }
        };
        let exclusive = if self.device.bus == Bus::File { 0 } else { libc::O_EXCL };
        let file = crate::source::open(&path, OpenOptions::new().read(true).write(true), exclusive)
            .map_err(failed("cannot be opened for Godwit alone"))?;
        // An engine locks its files so; a block device it opens exclusively.
        file.try_lock()
            .map_err(|error| failed("is in use by another process, such as an engine")(error.into()))?;
        let source = file.try_clone().and_then(Opened::new).map_err(failed("cannot be measured"))?;
        if crate::source::Source::len_bytes(&source) != self.device.size_bytes {
            let error = io::Error::other("its size is another than a moment ago");
            return Err(failed("changed")(error));
        }
        let contents = content::look(&source);
        if !self.by_force && state(&self.device, &contents) != State::Free {
            let confirmation = self.device.confirmation();
            return Err(Refusal::Taken { path, contents: contents.summary(), confirmation });
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::Host;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    fn drive(folder: &Path, bytes: &[u8]) -> Survey {
        let path = folder.join("drive.img");
        let file = File::create(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(bytes, 1080).unwrap();
        Survey::of(Host::default().find(&path).unwrap())
    }

    #[test]
    fn a_blank_drive_is_cleared_without_a_word() {
        let folder = tempfile::tempdir().unwrap();
        let survey = drive(folder.path(), b"");
        assert_eq!(survey.state, State::Free);
        let cleared = survey.clear(None).unwrap();
        assert!(!cleared.by_force());
        assert!(cleared.open().is_ok());
    }

    #[test]
    fn a_taken_drive_is_cleared_by_its_own_serial_number_only() {
        let folder = tempfile::tempdir().unwrap();
        let survey = drive(folder.path(), &[0x53, 0xef]);
        assert_eq!(survey.state, State::Taken);
        let error = survey.clear(None).unwrap_err().to_string();
        let path = survey.device.path.display().to_string();
        assert!(
            error.contains("ext2") && error.contains(&format!("--force-destroy-data {path:?}")),
            "{error}"
        );
        for wrong in ["", "yes", "drive.img"] {
            assert!(matches!(survey.clear(Some(wrong)), Err(Refusal::WrongSerial { .. })), "{wrong}");
        }
        assert!(survey.clear(Some(&path)).unwrap().by_force());
    }

    #[test]
    fn a_drive_in_use_or_read_only_is_refused_whatever_is_given() {
        let folder = tempfile::tempdir().unwrap();
        let mut survey = drive(folder.path(), b"");
        let confirmation = survey.device.confirmation();
        survey.state = State::ReadOnly;
        assert!(matches!(survey.clear(Some(&confirmation)), Err(Refusal::ReadOnly { .. })));
        for unclean in [State::Wiping, State::Quarantined] {
            survey.state = unclean;
            assert!(matches!(survey.clear(Some(&confirmation)), Err(Refusal::Unclean { .. })));
        }
        survey.state = State::InUse;
        survey.device.users = vec!["mounted at /".to_owned()];
        let error = survey.clear(Some(&confirmation)).unwrap_err().to_string();
        assert!(error.contains("mounted at /"), "{error}");
    }

    #[test]
    fn a_file_that_an_engine_serves_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let survey = drive(folder.path(), b"");
        let cleared = survey.clear(Some(&survey.device.confirmation())).unwrap();
        let engine = File::open(&survey.device.path).unwrap();
        engine.lock().unwrap();
        assert!(matches!(cleared.open(), Err(Refusal::Open { .. })));
        drop(engine);
        assert!(cleared.open().is_ok());
    }

    #[test]
    fn what_is_written_between_the_look_and_the_opening_is_not_destroyed() {
        let folder = tempfile::tempdir().unwrap();
        let survey = drive(folder.path(), b"");
        let cleared = survey.clear(None).unwrap();
        drive(folder.path(), &[0x53, 0xef]);
        assert!(matches!(cleared.open(), Err(Refusal::Taken { .. })));
        File::options().write(true).open(&survey.device.path).unwrap().set_len(4 << 20).unwrap();
        assert!(matches!(cleared.open(), Err(Refusal::Open { what: "changed", .. })));
    }
}
