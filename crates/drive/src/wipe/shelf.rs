//! The folder of a host's wipes: a record for each that has not ended well, a certificate for each that has ended.

use super::journal::FileJournal;
use super::record::{Record, RecordError, Scope, Step, Target};
use super::{Certificate, Journal};
use crate::discovery::Device;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where they are, if nobody says.
pub const DEFAULT_FOLDER: &str = "/var/lib/godwit/wipes";
/// Most records of one drive that are looked at.
const RECORDS_MAX: usize = 4096;

impl Target {
    /// All of a device.
    #[must_use]
    pub fn of(device: &Device) -> Target {
        Target {
            name: device.name.clone(),
            model: device.model.clone(),
            serial: device.confirmation(),
            wwid: device.wwid.clone(),
            nsid: device.nvme.as_ref().map_or(0, |nvme| nvme.nsid),
            offset_bytes: 0,
            len_bytes: device.size_bytes,
        }
    }
}

/// A folder of records and certificates.
#[derive(Clone, Debug)]
pub struct Shelf {
    folder: PathBuf,
}

impl Shelf {
    /// The shelf in a folder, which is made when something is put there.
    #[must_use]
    pub fn new(folder: &Path) -> Shelf {
        Shelf { folder: folder.to_owned() }
    }

    fn serial_stem(target: &Target) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        target.serial.chars().map(plain).take(128).collect()
    }

    fn stem(target: &Target) -> String {
        format!("{}-{}", Shelf::serial_stem(target), target.nsid)
    }

    fn record_path(&self, target: &Target) -> PathBuf {
        self.folder.join(format!("{}.record.json", Shelf::stem(target)))
    }

    /// Where the wipe of a target is recorded.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn journal(&self, target: &Target) -> io::Result<FileJournal> {
        fs::create_dir_all(&self.folder)?;
        Ok(FileJournal::new(&self.record_path(target)))
    }

    /// The record of a target's wipe, if one was begun and has not ended well.
    ///
    /// # Errors
    /// It cannot be read; inside: it makes no sense.
    pub fn record(&self, target: &Target) -> io::Result<Option<Result<Record, RecordError>>> {
        FileJournal::new(&self.record_path(target)).load()
    }

    /// Keeps a certificate, and takes away the record of a wipe that ended well. Returns the certificate's file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn conclude(&self, certificate: &Certificate) -> io::Result<PathBuf> {
        let path = self.folder.join(format!("{}.certificate.json", certificate.id));
        super::journal::replace(
            &path,
            &serde_json::to_string_pretty(certificate).map_err(io::Error::other)?,
        )?;
        if certificate.verdict == super::Verdict::Wiped {
            fs::remove_file(self.record_path(&certificate.target))?;
        }
        Ok(path)
    }

    /// The wipe that keeps this device from being used: one that goes on or was interrupted, or ended in quarantine. A damaged record
    /// counts: what it was about is not known to be clean.
    ///
    /// # Errors
    /// The folder, or a record that may be about this device, cannot be read: nobody knows.
    pub fn holds(&self, device: &Device) -> io::Result<Option<Step>> {
        let target = Target::of(device);
        let named = |path: &Path, error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        };
        let own = self.record(&target).map_err(|error| named(&self.record_path(&target), error))?;
        if let Some(own) = own {
            return Ok(Some(own.map_or(Step::Quarantined, |record| record.at)));
        }
        // A wipe of the whole drive is about every namespace of it.
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(named(&self.folder, error)),
        };
        let of_drive = format!("{}-", Shelf::serial_stem(&target));
        let mut records = 0;
        for entry in entries {
            let entry = entry.map_err(|error| named(&self.folder, error))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with(&of_drive) || !name.ends_with(".record.json") {
                continue;
            }
            records += 1;
            if records > RECORDS_MAX {
                let error = format!("more than {RECORDS_MAX} records of wipes of one drive");
                return Err(named(&self.folder, io::Error::other(error)));
            }
            let path = entry.path();
            match FileJournal::new(&path).load().map_err(|error| named(&path, error))? {
                // It may have been about the whole drive.
                Some(Err(_)) => return Ok(Some(Step::Quarantined)),
                Some(Ok(record)) if record.scope == Scope::Drive && record.target.serial == target.serial => {
                    return Ok(Some(record.at));
                }
                _ => {}
            }
        }
        Ok(None)
    }
}

impl Journal for Shelf {
    fn save(&mut self, record: &Record) -> io::Result<()> {
        self.journal(&record.target)?.save(record)
    }
}
