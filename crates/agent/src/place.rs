//! Where the ssds' files and sockets are, and how the data of one goes.

use crate::store::SsdRow;
use api::rest::Interface;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// The folders.
#[derive(Clone, Debug)]
pub struct Place {
    /// The data and the state of ssds. Nothing else may be in it.
    pub ssds: PathBuf,
    /// The sockets of ssds.
    pub sockets: PathBuf,
    /// The keys of encrypted ssds.
    pub keys: PathBuf,
}

impl Place {
    /// The data of an ssd that lives in a file. The name is of this ssd alone, so that a later one of its name never sees it.
    pub(crate) fn data(&self, ssd: &SsdRow) -> PathBuf {
        self.ssds.join(format!("{}.{}.data", ssd.name, ssd.uuid))
    }

    /// What a controller remembers. A virtio-blk disk remembers nothing.
    pub(crate) fn state(&self, ssd: &SsdRow) -> PathBuf {
        self.ssds.join(format!("{}.{}.state", ssd.name, ssd.uuid))
    }

    /// Where it is said who owns an ssd that lives in a file. Where it has a state, this is the place that the daemon takes by itself.
    pub(crate) fn journal(&self, ssd: &SsdRow) -> PathBuf {
        self.ssds.join(format!("{}.{}.state.migration", ssd.name, ssd.uuid))
    }

    pub(crate) fn socket(&self, name: &str, interface: Interface) -> PathBuf {
        self.sockets.join(match interface {
            Interface::Nvme => format!("{name}.sock"),
            Interface::VirtioBlk => format!("{name}.vhost"),
        })
    }

    /// Whether anything of it is there.
    pub(crate) fn has_any(&self, ssd: &SsdRow) -> bool {
        [self.data(ssd), self.state(ssd), self.journal(ssd)]
            .iter()
            .any(|path| path.symlink_metadata().is_ok())
    }

    /// Removes what an ssd leaves behind, durably. What is not there is removed.
    ///
    /// The file system gives a file's blocks to others as zeros only; so a file needs no other wipe.
    pub(crate) fn remove(&self, ssd: &SsdRow) -> io::Result<()> {
        remove_file(&self.state(ssd))?;
        remove_file(&self.data(ssd))?;
        // Last: as long as there is something, it says whose that is.
        let journal = self.journal(ssd);
        remove_file(&journal.with_added_extension("new"))?;
        remove_file(&journal)?;
        File::open(&self.ssds)?.sync_all()
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
