//! How a drive becomes a pool: only one that is blank, or whose serial number was repeated.

use super::disk::PoolDisk;
use super::{host, random};
use anyhow::{Context, bail};
use api::control::PoolRequest;
use drive::discovery::Host;
use drive::survey::Survey;
use std::fs::File;
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
            let cleared = Survey::of(device).clear(force_destroy_data.as_deref())?;
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
        let file = File::open(path).ok()?;
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
