//! How a drive becomes a pool: only one that is blank, or whose serial number was repeated.

use super::disk::PoolDisk;
use super::{host, random};
use anyhow::{Context, bail};
use api::control::PoolRequest;
use drive::discovery::Host;
use drive::source;
use drive::survey::Survey;
use drive::wipe::{DEFAULT_FOLDER, Shelf};
use std::fs::{File, OpenOptions};
use std::path::Path;
use volume::{FormatOptions, Pool};

/// What the new pool is to be.
pub(super) struct Wish<'a> {
    pub(super) name: &'a str,
    pub(super) extent_bytes: Option<u64>,
    /// The drive is known to read as zeros.
    pub(super) zeroed: bool,
    pub(super) overwrite: bool,
    /// Its identity. `None`: a new one.
    pub(super) uuid: Option<[u8; 16]>,
}

impl<'a> Wish<'a> {
    pub(super) fn new(name: &'a str) -> Self {
        Self { name, extent_bytes: None, zeroed: false, overwrite: false, uuid: None }
    }
}

pub(super) fn format(disk: &PoolDisk, wish: Wish<'_>) -> anyhow::Result<()> {
    let Wish { name, extent_bytes, zeroed, overwrite, uuid } = wish;
    let (uuid, host) = (uuid.map_or_else(random, Ok)?, host()?);
    let options = FormatOptions { uuid, name: name.to_owned(), host, extent_bytes, zeroed, overwrite };
    Ok(Pool::format(disk, &options)?)
}

/// `godwit volume format`.
pub(super) fn create(request: &PoolRequest) -> anyhow::Result<String> {
    create_unless_unclean(request, &Shelf::new(Path::new(DEFAULT_FOLDER)))
}

/// `wipes`: where it is written down which drives are not clean.
fn create_unless_unclean(request: &PoolRequest, wipes: &Shelf) -> anyhow::Result<String> {
    let PoolRequest::Create { name, path, size_bytes, extent_bytes, force_destroy_data, uuid } = request
    else {
        bail!("this engine does not know the request; is `godwit` of another release?");
    };
    let uuid = uuid.as_deref().map(uuid_of).transpose()?;
    if uuid.is_some_and(|uuid| carries(path, uuid)) {
        return Ok(format!("{} carries pool \"{name}\" already", path.display()));
    }
    let is_new = !path.exists();
    let (file, overwrite) = match (is_new, size_bytes) {
        (true, Some(size_bytes)) => (new_file(path, *size_bytes)?, false),
        (true, None) => bail!("{} is not there; add --size to make a file of that size", path.display()),
        (false, _) => {
            let device = Host::default().find(path).with_context(|| path.display().to_string())?;
            let cleared = Survey::of(device).with_wipes(wipes).clear(force_destroy_data.as_deref())?;
            (cleared.open()?, cleared.by_force())
        }
    };
    // A daemon that serves it has this lock.
    if file.try_lock().is_err() {
        bail!("{} is in use: stop whoever uses it", path.display());
    }
    let len_bytes = drive_len(&file)?;
    let wish = Wish { name, extent_bytes: *extent_bytes, zeroed: is_new, overwrite, uuid };
    format(&PoolDisk::new(file.into(), len_bytes), wish)?;
    let path = path.display();
    Ok(format!(
        "{path} carries pool \"{name}\" now; in the configuration: [[pool]] with name = \"{name}\" and path = \"{path}\""
    ))
}

fn uuid_of(text: &str) -> anyhow::Result<[u8; 16]> {
    let number = u128::from_str_radix(text, 16).ok().filter(|uuid| *uuid != 0 && text.len() == 32);
    let number = number.with_context(|| format!("{text:?} is no identity: write 32 hexadecimal digits"))?;
    Ok(number.to_be_bytes())
}

/// This very pool is there already, whole.
fn carries(path: &Path, uuid: [u8; 16]) -> bool {
    let peek = || {
        let file = source::open(path, OpenOptions::new().read(true), 0).ok()?;
        let len_bytes = drive_len(&file).ok()?;
        Pool::peek(&PoolDisk::new(file.into(), len_bytes)).ok()
    };
    peek().is_some_and(|info| info.uuid == uuid)
}

fn new_file(path: &Path, size_bytes: u64) -> anyhow::Result<File> {
    let make = || {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.set_len(size_bytes).map(|()| file)
    };
    make().with_context(|| format!("{} cannot be made", path.display()))
}

pub(super) fn drive_len(file: &File) -> std::io::Result<u64> {
    use std::io::{Seek as _, SeekFrom};
    let mut file = file;
    Ok(file.seek(SeekFrom::End(0))? & !4095)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::io;
    use std::path::PathBuf;
    use volume::Disk;

    /// Who makes the pool is killed after so many stores.
    struct Mortal {
        disk: PoolDisk,
        left: Cell<u32>,
    }

    impl Mortal {
        fn live(&self) -> io::Result<()> {
            let left = self.left.get().checked_sub(1).ok_or_else(|| io::Error::other("killed"))?;
            self.left.set(left);
            Ok(())
        }
    }

    impl Disk for Mortal {
        fn len_bytes(&self) -> io::Result<u64> {
            self.disk.len_bytes()
        }

        fn read_at(&self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
            self.disk.read_at(offset_bytes, into)
        }

        fn write_at(&self, offset_bytes: u64, from: &[u8]) -> io::Result<()> {
            self.live()?;
            self.disk.write_at(offset_bytes, from)
        }

        fn flush(&self) -> io::Result<()> {
            self.live()
        }
    }

    fn image(folder: &Path) -> (PathBuf, File) {
        let path = folder.join("drive.img");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        (path, file)
    }

    fn request(path: &Path, uuid: Option<u128>) -> PoolRequest {
        PoolRequest::Create {
            name: "p".to_owned(),
            path: path.to_owned(),
            size_bytes: None,
            extent_bytes: None,
            force_destroy_data: None,
            uuid: uuid.map(|uuid| format!("{uuid:032x}")),
        }
    }

    #[test]
    fn a_pool_whose_making_was_cut_short_anywhere_is_made_without_another_word() {
        let folder = tempfile::tempdir().unwrap();
        let wipes = Shelf::new(&folder.path().join("wipes"));
        let options = |uuid: u128| FormatOptions {
            uuid: uuid.to_be_bytes(),
            name: "p".to_owned(),
            host: host().unwrap(),
            extent_bytes: None,
            zeroed: false,
            overwrite: false,
        };
        for stores in 0.. {
            let (path, file) = image(folder.path());
            let mortal = Mortal { disk: PoolDisk::new(file.into(), 64 << 20), left: Cell::new(stores) };
            let made = Pool::format(&mortal, &options(7)).is_ok();
            drop(mortal);
            create_unless_unclean(&request(&path, Some(7)), &wipes).unwrap();
            assert!(carries(&path, 7_u128.to_be_bytes()), "after {stores} stores");
            if made {
                assert!(stores > 5);
                return;
            }
        }
    }

    #[test]
    fn a_drive_in_quarantine_and_one_of_which_that_is_not_known_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = image(folder.path());
        let shelf = folder.path().join("wipes");
        let wipes = Shelf::new(&shelf);
        let device = Host::default().find(&path).unwrap();
        let journal = wipes.journal(&drive::wipe::Target::of(&device)).unwrap();
        drop(journal);
        let stem: String =
            device.confirmation().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let record = shelf.join(format!("{stem}-0.record.json"));
        // A record that makes no sense counts as one of a wipe that failed.
        std::fs::write(&record, "{}").unwrap();
        let refused =
            |wipes: &Shelf| create_unless_unclean(&request(&path, None), wipes).unwrap_err().to_string();
        assert!(refused(&wipes).contains("quarantined"), "{}", refused(&wipes));
        // One that cannot be read: a folder is in its place.
        std::fs::remove_file(&record).unwrap();
        std::fs::create_dir(&record).unwrap();
        assert!(refused(&wipes).contains("it is not known"), "{}", refused(&wipes));
        std::fs::remove_dir(&record).unwrap();
        // So is all of the folder.
        let no_folder = Shelf::new(&path);
        assert!(refused(&no_folder).contains("it is not known"), "{}", refused(&no_folder));
        create_unless_unclean(&request(&path, None), &wipes).unwrap();
    }

    #[test]
    fn what_is_neither_a_file_nor_a_drive_is_refused_and_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        let wipes = Shelf::new(&folder.path().join("wipes"));
        for uuid in [None, Some(7)] {
            let refused = create_unless_unclean(&request(&path, uuid), &wipes).unwrap_err();
            assert!(format!("{refused:#}").contains("neither"), "{refused:#}");
        }
        let refused = crate::pool::requests::check_path(&path, false).unwrap_err();
        assert!(format!("{refused:#}").contains("neither"), "{refused:#}");
    }
}
