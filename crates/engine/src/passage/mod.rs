//! Where the record of an ssd's ownership lies while it passes between hosts, and what an engine may do by it
//! (`docs/decisions/0034-commit.md`).
//!
//! ```text
//!  engine starts, or an ssd is added --Passage::standing--> owned here: opened and served
//!                                                     `---> not, or nobody can say: Away; nothing of it is opened
//!  mover --Store::replace--> the next step                  House::arrive: looks again, opens and serves
//! ```
//! Looked at before the drive is opened: what was granted must not be served by an engine that starts anew.

mod absent;
mod away;
mod file;
#[cfg(test)]
mod tests;
mod waiting;

pub(crate) use absent::Absent;
pub(crate) use away::Away;

use crate::pool::Pools;
use anyhow::bail;
use api::config::{self, Backend};
use state::migration::MigrationV1;
use std::io;
use std::sync::Arc;

/// Where the journal of one ssd's migrations lies.
pub(crate) trait Store: Send + Sync {
    /// The record's bytes, if there is one.
    ///
    /// # Errors
    /// It cannot be read: then nobody knows by it who owns the ssd.
    fn read(&self) -> anyhow::Result<Option<Vec<u8>>>;

    /// Replaces the record. When this returns it is what is read, whatever crashes; after an error, or a crash in the middle, it is that or the
    /// one before: whoever goes on reads it back.
    ///
    /// # Errors
    /// Why it cannot be written. Bytes that [`MigrationV1::from_bytes`] refuses are not written.
    fn replace(&self, record: &[u8]) -> anyhow::Result<()>;

    /// Where it is, for people.
    fn place(&self) -> String;

    /// It is a file of its own, which an operator can move away.
    fn is_file(&self) -> bool {
        false
    }
}

/// What an ssd's journal says, and where it lies.
#[derive(Clone)]
pub(crate) struct Passage {
    /// `None`: it has no place for a journal, and is never moved.
    store: Option<Arc<dyn Store>>,
    /// The configuration says that it comes from another host.
    incoming: bool,
    /// Its pool is in use: the journal cannot be read yet.
    in_use: Option<String>,
}

/// Whether an ssd may be opened.
pub(crate) enum Standing {
    /// Its owner is here; `None`: it was never moved.
    Here(Option<Box<MigrationV1>>),
    /// It may not.
    Away(Away),
}

impl Passage {
    /// Of an ssd of the configuration. Opens nothing.
    pub(crate) fn of(ssd: &config::Ssd, pools: &Pools) -> Self {
        let store: Option<Arc<dyn Store>> = match (&ssd.backend, &ssd.journal) {
            (Backend::Pool { pool, .. }, _) => pools.passage(ssd, pool),
            (_, Some(path)) => Some(Arc::new(file::File::new(path))),
            (_, None) => None,
        };
        let in_use = match &ssd.backend {
            Backend::Pool { pool, .. } => pools.in_use(pool),
            _ => None,
        };
        Self { store, incoming: ssd.incoming, in_use }
    }

    /// Its journal's place. `None`: it cannot be moved; the configuration gives it one.
    pub(crate) fn store(&self) -> Option<&Arc<dyn Store>> {
        self.store.as_ref()
    }

    /// Its journal cannot be read yet.
    fn is_in_use(&self) -> bool {
        self.in_use.is_some()
    }

    /// It was never moved, or nobody can say: a journal that is there and cannot be read is no proof that it was.
    pub(crate) fn has_no_journal(&self) -> bool {
        self.in_use.is_none() && self.store.as_ref().is_none_or(|store| !matches!(store.read(), Ok(Some(_))))
    }

    /// By its journal a migration of it is to go on, or nobody can say.
    pub(crate) fn is_under_way(&self) -> bool {
        let record = || self.store.as_ref().map_or(Ok(None), |store| store.read());
        self.in_use.is_some()
            || match record().map(|bytes| bytes.map(|bytes| MigrationV1::from_bytes(&bytes))) {
                Ok(None) => false,
                Ok(Some(Ok(record))) => !record.is_over() || record.owes_word(),
                Ok(Some(Err(_))) | Err(_) => true,
            }
    }

    /// Whether the ssd may be opened now.
    pub(crate) fn standing(&self) -> Standing {
        if let Some(why) = &self.in_use {
            return Standing::Away(Away::in_use(why, self.incoming));
        }
        let is_file = self.store.as_ref().is_some_and(|store| store.is_file());
        let place = || self.store.as_ref().map_or(String::new(), |store| store.place());
        let read = self.store.as_ref().map_or(Ok(None), |store| store.read());
        let record = read.and_then(|bytes| match bytes.map(|bytes| MigrationV1::from_bytes(&bytes)) {
            // The error tells all of its causes itself.
            Some(Err(error)) => bail!("{error}"),
            record => Ok(record.and_then(Result::ok)),
        });
        match record {
            Ok(None) if self.incoming => Standing::Away(Away::expected()),
            Ok(Some(record)) if record.owned_here().is_none() => {
                Standing::Away(Away::by(&record, &place(), is_file))
            }
            Ok(record) => Standing::Here(record.map(Box::new)),
            Err(error) => Standing::Away(Away::doubtful(&error, &place(), is_file)),
        }
    }
}

/// Makes the place of an ssd that is to come, as large as it will be, so that a host without room says so at once and not in
/// the middle of a migration. What is there already stays as it is.
///
/// # Errors
/// There is no room, or no such place.
pub(crate) fn reserve(ssd: &config::Ssd, pools: &Pools) -> anyhow::Result<()> {
    match &ssd.backend {
        Backend::Pool { pool, thin, .. } => pools.reserve(ssd, pool, *thin),
        Backend::Uring { path, .. } => match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                backend::Drive::open(&crate::serve::backend_config(ssd)?)?;
                Ok(())
            }
            _ => Ok(()),
        },
        Backend::Drive { .. } | Backend::Ram | Backend::Null => Ok(()),
    }
}
