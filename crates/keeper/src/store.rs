//! All that the keeper holds, kept by the service manager at every moment, so that a keeper that is killed at any instruction
//! is followed by one that goes on with its clients.
//!
//! ```text
//!  the manager's store            the vault: a socket                     the cell of a session
//!    root cell -----------ids---->  listeners, programs, region,           deposit, unanswered,
//!    vault, both ends  ---------->  doorbells, clients' sockets and  <----ids---  what waits to be sent
//!                                   descriptors, cells, tallies            the tally: what went through the socket
//! ```
//!
//! The order that keeps a client's stream in step, for each direction:
//! - Input is looked at first; then the session's record says what came; then it is taken out of the socket, and counted by the
//!   kernel (`tally`). A successor takes out what the record has and the count has not.
//! - Output is in the session's record before the first byte is sent; what is sent is counted by the kernel. A successor leaves
//!   out what the count has and the record has not.
//!
//! A descriptor is in the vault before a record names it. The vault fills up, since nothing can be taken out of its middle: from
//! time to time all that is alive goes into a new one.
//!
//! Not kept: io_urings (no socket takes them) and drives' files: their locks end with the last I/O of the dead engine, and so
//! keep its successor waiting as long as they must. An `accept` that nobody wrote down: that client connects again.

use crate::carry::{Links, Naming};
use crate::cell::Cell;
use crate::keeper::Keeper;
use crate::notify::Shelf;
use crate::session::Session;
use crate::tally::{Direction, Tally};
use crate::vault::{PACKET_FDS_MAX, Vault};
use state::keeper::{Fd, KeeperV1};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Packets in a vault before a new one is begun; the kernel takes some 270.
const PACKETS_MAX: usize = 128;
/// Ids from here on are not of descriptors (`restore`).
pub(crate) const IDS_END: u32 = 1 << 31;

/// The store, which sessions share.
#[derive(Clone, Debug)]
pub(crate) struct Store(Arc<Mutex<Place>>);

/// A keeper's place in the service manager's store.
#[derive(Debug)]
pub(crate) struct Place {
    shelf: Shelf,
    /// Each keeper makes a place of its own; the newest with a record counts.
    number: u64,
    vault: Vault,
    vault_number: u32,
    packets: usize,
    root: Cell,
    /// What the root says.
    written: Vec<u8>,
    /// Ids by the address of what holds the descriptor; as long as the `Weak` lives, nothing else has that address.
    ids: HashMap<usize, (Weak<OwnedFd>, u32)>,
    next: u32,
    failed: bool,
}

impl Store {
    /// A place of its own, with nothing in it. `next`: the first id to give.
    pub(crate) fn new(shelf: Shelf, number: u64, next: u32) -> io::Result<Self> {
        let (vault, root) = (Vault::new()?, Cell::new()?);
        let place = Place {
            shelf,
            number,
            vault,
            vault_number: 0,
            packets: 0,
            root,
            written: Vec::new(),
            ids: HashMap::new(),
            next,
            failed: false,
        };
        place.shelf.put(&place.root_name(), place.root.fd.as_fd())?;
        place.put_vault()?;
        Ok(Self(Arc::new(Mutex::new(place))))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Clears other keepers' places, or one's own at the very end.
    pub(crate) fn remove(&self, names: &[String]) {
        let place = self.lock();
        for name in names {
            if let Err(error) = place.shelf.remove(name) {
                tracing::warn!(name, %error, "the service manager keeps a descriptor too long");
            }
        }
    }
}

impl Place {
    fn root_name(&self) -> String {
        format!("godwit-{}-root", self.number)
    }

    fn vault_names(&self) -> [String; 2] {
        ["r", "w"].map(|end| format!("godwit-{}-vault-{}-{end}", self.number, self.vault_number))
    }

    /// What the manager calls what is here.
    pub(crate) fn names(&self) -> Vec<String> {
        self.vault_names().into_iter().chain([self.root_name()]).collect()
    }

    fn put_vault(&self) -> io::Result<()> {
        let [read, write] = self.vault_names();
        self.shelf.put(&read, self.vault.read.as_fd())?;
        self.shelf.put(&write, self.vault.write.as_fd())
    }

    /// Puts a descriptor into the vault.
    fn put(&mut self, id: u32, fd: &Arc<OwnedFd>) {
        let result = match self.packets {
            ..PACKETS_MAX => self.vault.put(&[(id, fd.as_fd())]).inspect(|()| self.packets += 1),
            _ => self.renew(),
        };
        self.look(result);
    }

    /// All that is alive, into a new vault.
    fn renew(&mut self) -> io::Result<()> {
        self.ids.retain(|_, (fd, _)| fd.strong_count() > 0);
        let alive: Vec<_> = self.ids.values().filter_map(|(fd, id)| Some((*id, fd.upgrade()?))).collect();
        let entries: Vec<_> = alive.iter().map(|(id, fd)| (*id, fd.as_fd())).collect();
        let vault = Vault::new()?;
        vault.put(&entries)?;
        let old = self.vault_names();
        self.vault = vault;
        self.vault_number += 1;
        self.packets = entries.len().div_ceil(PACKET_FDS_MAX);
        self.put_vault()?;
        old.iter().try_for_each(|name| self.shelf.remove(name))
    }

    /// Says once that it does not work.
    fn look(&mut self, result: io::Result<()>) {
        if let Err(error) = result
            && !std::mem::replace(&mut self.failed, true)
        {
            tracing::error!(%error, "the keeper's state cannot be kept: its next restart will cost clients their devices");
        }
    }

    /// Replaces the root's record.
    fn write(&mut self, keeper: &KeeperV1) {
        let result = keeper.to_bytes().map_err(io::Error::other).and_then(|bytes| {
            if bytes != self.written {
                self.root.write(&bytes)?;
                self.written = bytes;
            }
            Ok(())
        });
        self.look(result);
    }
}

impl Naming for Place {
    fn shared(&mut self, fd: &Arc<OwnedFd>) -> Fd {
        let address = Arc::as_ptr(fd).addr();
        if let Some((known, id)) = self.ids.get(&address)
            && known.strong_count() > 0
        {
            return Fd(*id);
        }
        let id = self.next;
        self.next = (id + 1) % IDS_END;
        self.ids.insert(address, (Arc::downgrade(fd), id));
        self.put(id, fd);
        Fd(id)
    }

    /// Sessions name these by `Halves`, and nothing else here has any.
    fn lone(&mut self, _fd: BorrowedFd<'_>) -> Fd {
        self.look(Err(io::Error::other("a descriptor without a holder")));
        Fd(IDS_END)
    }
}

/// Where a session is written down.
#[derive(Debug)]
pub(crate) struct Desk {
    store: Store,
    ssd: String,
    pub(crate) cell: Cell,
    pub(crate) tally: Tally,
    /// Bytes that came in, those included that are still to be taken out of the socket.
    pub(crate) came_bytes: u64,
    /// Duplicates of the descriptors of the message that has begun, and where in the stream it did.
    halves: (u64, Vec<Arc<OwnedFd>>),
}

impl Desk {
    pub(crate) fn new(store: &Store, ssd: &str, tally: Option<(Tally, u64)>) -> io::Result<Self> {
        let (tally, came_bytes) = match tally {
            Some(known) => known,
            None => (Tally::new()?, 0),
        };
        let cell = Cell::new()?;
        Ok(Self {
            store: store.clone(),
            ssd: ssd.to_owned(),
            cell,
            tally,
            came_bytes,
            halves: (0, Vec::new()),
        })
    }

    /// Writes down how the session is now.
    fn save(&mut self, session: &Session) {
        let result = self.hold_halves(session);
        let mut place = self.store.lock();
        place.look(result);
        let mut naming = Halves { place: &mut place, fds: self.halves.1.iter() };
        let mut kept = session.to_kept(&self.ssd, Links::Ended, &mut naming);
        if let Some(client) = &mut kept.client {
            client.tally = Some(place.shared(&self.tally.fd));
            client.came_bytes = self.came_bytes;
            client.went_bytes = self.tally.bytes(Direction::Out);
        }
        let result = kept.to_bytes().map_err(io::Error::other).and_then(|bytes| self.cell.write(&bytes));
        place.look(result);
    }

    /// Descriptors of a message that has begun belong to the intake alone: duplicates of them are what is kept.
    fn hold_halves(&mut self, session: &Session) -> io::Result<()> {
        let Some(client) = &session.client else { return Ok(()) };
        let (bytes, fds, _) = client.intake.begun();
        let begun = self.came_bytes.saturating_sub(bytes.len() as u64);
        if (begun, fds.len()) != (self.halves.0, self.halves.1.len()) {
            let duplicates: io::Result<_> = fds.iter().map(|fd| fd.try_clone().map(Arc::new)).collect();
            self.halves = (begun, duplicates?);
        }
        Ok(())
    }
}

/// Names a session's descriptors; those of the message that has begun by their duplicates, in order.
struct Halves<'a> {
    place: &'a mut Place,
    fds: std::slice::Iter<'a, Arc<OwnedFd>>,
}

impl Naming for Halves<'_> {
    fn shared(&mut self, fd: &Arc<OwnedFd>) -> Fd {
        self.place.shared(fd)
    }

    fn lone(&mut self, fd: BorrowedFd<'_>) -> Fd {
        match self.fds.next() {
            Some(duplicate) => self.place.shared(duplicate),
            None => self.place.lone(fd),
        }
    }
}

impl Session {
    /// Writes down how it is now, if that has changed and there is a place for it.
    pub(crate) fn save(&mut self) {
        if let Some(mut desk) = self.desk.take_if(|_| self.changed) {
            desk.save(self);
            self.desk = Some(desk);
        }
        self.changed = false;
    }
}

/// A file in memory, which has no name and no lock that anybody waits for.
fn is_memory(fd: &OwnedFd) -> bool {
    rustix::fs::fcntl_get_seals(fd).is_ok() && rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_nlink == 0)
}

impl Keeper {
    /// Gives a session that has just begun a place in the store.
    pub(crate) fn keep_session(&mut self, number: u32) {
        let Some(store) = self.store.clone() else { return };
        let Some(ssd) = self.ssd_mut(number) else { return };
        let Some(session) = &mut ssd.session else { return };
        match Desk::new(&store, &ssd.name, None) {
            Ok(desk) => session.desk = Some(desk),
            Err(error) => store.lock().look(Err(error)),
        }
        session.changed = true;
        session.save();
        self.save();
    }

    /// Writes down how everything but the sessions is now.
    pub(crate) fn save(&mut self) {
        let Some(store) = self.store.clone() else { return };
        let mut place = store.lock();
        let mut ssds = Vec::with_capacity(self.ssds.len());
        for (number, ssd) in self.in_order() {
            let mut kept = ssd.to_kept(number, &mut Unlocked(&mut place));
            kept.memory.retain(|(_, fd)| fd.0 != IDS_END);
            let desk = ssd.session.as_ref().and_then(|session| session.desk.as_ref());
            kept.cell = desk.map(|desk| place.shared(&desk.cell.fd));
            ssds.push(kept);
        }
        let engine = self.active().map(|engine| engine.to_kept(Links::Ended, &mut *place));
        // `left_ns` would make each record another one.
        let keeper = KeeperV1 {
            ssds,
            engine: engine.or_else(|| self.orphan.as_ref().map(|orphan| orphan.to_kept(&mut *place))),
            left_ns: 0,
            ..self.kept_common(&mut *place)
        };
        place.write(&keeper);
    }
}

/// Leaves out what must not be in the vault: a drive's file.
struct Unlocked<'a>(&'a mut Place);

impl Naming for Unlocked<'_> {
    fn shared(&mut self, fd: &Arc<OwnedFd>) -> Fd {
        let is_file = rustix::fs::fstat(fd).is_ok_and(|stat| {
            let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
            matches!(kind, rustix::fs::FileType::RegularFile | rustix::fs::FileType::BlockDevice)
        });
        match is_file && !is_memory(fd) {
            true => Fd(IDS_END),
            false => self.0.shared(fd),
        }
    }

    fn lone(&mut self, fd: BorrowedFd<'_>) -> Fd {
        self.0.lone(fd)
    }
}
