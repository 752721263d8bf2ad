//! The store, shared by those who ask and the one who works, and the news of its changes.

use crate::store::{self, Store, StoreError};
use rusqlite::{Connection, Transaction};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Book {
    store: Arc<Mutex<Store>>,
    version: watch::Sender<u64>,
    work: Sender<()>,
}

impl Book {
    /// `work` hears of each wish.
    pub(crate) fn new(store: Store, work: Sender<()>) -> Result<Self, StoreError> {
        let version = watch::Sender::new(store::version(store.read())?);
        Ok(Self { store: Arc::new(Mutex::new(store)), version, work })
    }

    /// A panic while it was held was in a transaction, which is undone.
    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&Connection) -> T) -> T {
        look(self.lock().read())
    }

    /// All that `change` does, or nothing; then tells those who wait.
    pub(crate) fn write<T, E: From<StoreError>>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut held = self.lock();
        let result = held.write(change)?;
        let version = store::version(held.read())?;
        drop(held);
        self.version.send_if_modified(|known| std::mem::replace(known, version) != version);
        Ok(result)
    }

    /// There is something to do.
    pub(crate) fn wake(&self) {
        // Without a worker there is nobody to tell.
        let _gone = self.work.send(());
    }

    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}
