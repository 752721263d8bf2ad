//! The keys of encrypted ssds that this agent made: a file each, of its owner alone (0600).
//!
//! ```text
//!  made:       ID.key.new, whole and durable --> ID.key        before the daemon hears of the ssd
//!  destroyed:  ID.key overwritten --> removed                  when nothing has it any more
//! ```
//!
//! The name says which key it is and nothing about it. A key is made once: where a file is missing later it is lost, and no other takes its place, for
//! nobody could tell what was written with it from noise.

use crate::place::Place;
use rustix::rand::{GetRandomFlags, getrandom};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Two AES-256 keys: of the data, and of the tweak.
const KEY_BYTES: usize = 64;

impl Place {
    /// Where a key is kept.
    pub(crate) fn key(&self, id: &str) -> PathBuf {
        self.keys.join(format!("{id}.key"))
    }

    /// Where it is while it is made.
    fn new_key(&self, id: &str) -> PathBuf {
        self.keys.join(format!("{id}.key.new"))
    }
}

/// The folder of keys, for nobody else.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Has a key be there, durably. One that is there stays: an agent before this one made it for the same wish.
pub(crate) fn make(place: &Place, id: &str, between: &dyn Fn()) -> io::Result<()> {
    let (path, new) = (place.key(id), place.new_key(id));
    if path.symlink_metadata().is_ok() {
        // It may have been renamed, and not durably.
        return File::open(&place.keys)?.sync_all();
    }
    // What an agent that was killed began: nobody has used it.
    end(&new)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    between();
    let mut key = [0; KEY_BYTES];
    let filled = getrandom(&mut key, GetRandomFlags::empty())?;
    assert_eq!(filled, KEY_BYTES, "the kernel gives up to 256 bytes at once");
    let written = file.write_all(&key).and_then(|()| file.sync_all());
    key.fill(0);
    std::hint::black_box(&key);
    written?;
    between();
    std::fs::rename(&new, &path)?;
    File::open(&place.keys)?.sync_all()
}

/// Destroys a key, durably. One that is not there is destroyed.
pub(crate) fn destroy(place: &Place, id: &str) -> io::Result<()> {
    end(&place.new_key(id))?;
    end(&place.key(id))?;
    File::open(&place.keys)?.sync_all()
}

/// What overwriting reaches is the file system's to say; but where it writes in place, nothing is left.
fn end(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).open(path) {
        Ok(mut file) => {
            file.write_all(&[0; KEY_BYTES])?;
            file.sync_all()?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    std::fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn place() -> (tempfile::TempDir, Place) {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let place = Place { ssds: at("ssds"), sockets: at("sockets"), keys: at("state/keys") };
        make_folder(&place.keys).unwrap();
        (folder, place)
    }

    #[test]
    fn a_key_is_made_once_for_its_owner_alone_and_no_two_are_the_same() {
        let (_folder, place) = place();
        make(&place, "a", &|| {}).unwrap();
        make(&place, "b", &|| {}).unwrap();
        let [a, b] = ["a", "b"].map(|id| std::fs::read(place.key(id)).unwrap());
        assert!(a.len() == KEY_BYTES && b.len() == KEY_BYTES && a != b && a[..32] != a[32..]);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&place.keys), mode(&place.key("a"))), (0o700, 0o600));
        make(&place, "a", &|| {}).unwrap();
        assert_eq!(std::fs::read(place.key("a")).unwrap(), a);
    }

    #[test]
    fn a_key_that_is_destroyed_is_overwritten_in_its_file_before_that_goes() {
        let (folder, place) = place();
        make(&place, "a", &|| {}).unwrap();
        // Another name of the same file shows what is in it.
        let seen = folder.path().join("seen");
        std::fs::hard_link(place.key("a"), &seen).unwrap();
        destroy(&place, "a").unwrap();
        assert_eq!(std::fs::read(&seen).unwrap(), [0; KEY_BYTES]);
        assert_eq!(std::fs::read_dir(&place.keys).unwrap().count(), 0);
        destroy(&place, "a").unwrap();
    }
}
