//! The record keeper: one thread that writes the ssds' records, in the order they come, so that no reactor waits for a
//! file and no older record overtakes a newer one. Threads that look at drives' maps are started by it, too ([`crate::survey`]).

use crate::message::{Address, Life, Message};
use crate::ssd::Ssd;
use crate::survey::{self, Ask};
use link::control::ToKeeper;
use state::ssd::SsdV1;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

/// The way to the keeper. The keeper ends when the last one is dropped.
#[derive(Clone)]
pub(crate) struct Records {
    sender: Sender<Job>,
}

enum Job {
    Write {
        ssd: Arc<Ssd>,
        record: Box<SsdV1>,
        reply_to: ReplyTo,
    },
    /// Begin a look at a drive's map.
    Survey(Box<Ask>),
    /// Say when all before this is written.
    Finish(SyncSender<()>),
}

enum ReplyTo {
    Nobody,
    Home(Address, Life),
    Waiter(SyncSender<io::Result<()>>),
}

impl Records {
    /// Starts the keeper's thread.
    pub(crate) fn start() -> io::Result<(Self, JoinHandle<()>)> {
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new().name("records".to_owned()).spawn(move || keep(&receiver))?;
        Ok((Self { sender }, thread))
    }

    /// Writes a record and tells `home` with [`Message::Persisted`].
    pub(crate) fn keep(&self, ssd: &Arc<Ssd>, life: Life, record: SsdV1, home: &Address) {
        self.send(ssd, record, ReplyTo::Home(Arc::clone(home), life));
    }

    /// Writes what was asked for so far, for a process that is about to end. Reactors that still run keep the thread alive: what
    /// they ask for later is lost.
    pub(crate) fn finish(self, thread: JoinHandle<()>) {
        self.settle();
        drop(self);
        if thread.is_finished() {
            let _ = thread.join();
        }
    }

    /// What was asked for before is written, or said not to be, when this returns.
    pub(crate) fn settle(&self) {
        let (reply, done) = sync_channel(1);
        let _ = self.sender.send(Job::Finish(reply));
        let _ = done.recv();
    }

    /// Writes a record whose loss harms nothing.
    pub(crate) fn note(&self, ssd: &Arc<Ssd>, record: SsdV1) {
        self.send(ssd, record, ReplyTo::Nobody);
    }

    /// Writes a record and waits for it.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn keep_now(&self, ssd: &Arc<Ssd>, record: SsdV1) -> io::Result<()> {
        let (reply, done) = sync_channel(1);
        self.send(ssd, record, ReplyTo::Waiter(reply));
        done.recv().map_err(io::Error::other)?
    }

    /// Has somebody look at a drive's map.
    pub(crate) fn survey(&self, ask: Ask) {
        let _ = self.sender.send(Job::Survey(Box::new(ask)));
    }

    fn send(&self, ssd: &Arc<Ssd>, record: SsdV1, reply_to: ReplyTo) {
        // The keeper lives as long as a sender; it cannot be gone.
        let _ = self.sender.send(Job::Write { ssd: Arc::clone(ssd), record: Box::new(record), reply_to });
    }
}

fn keep(jobs: &Receiver<Job>) {
    for job in jobs {
        let (ssd, record, reply_to) = match job {
            Job::Write { ssd, record, reply_to } => (ssd, record, reply_to),
            Job::Survey(ask) => {
                survey::begin(*ask);
                continue;
            }
            Job::Finish(reply) => {
                let _ = reply.send(());
                continue;
            }
        };
        let result = save(&ssd, &record);
        if let Err(error) = &result {
            let path = ssd.record_path().unwrap_or(Path::new("-")).display();
            let name = &ssd.name;
            tracing::error!(ssd = name, %path, %error, "its state cannot be written; free space or mend the file system");
        }
        match reply_to {
            ReplyTo::Nobody => {}
            ReplyTo::Home(home, life) => home.send(Message::Persisted(life, result.is_ok())),
            // Whoever waited and left does not need the answer.
            ReplyTo::Waiter(waiter) => _ = waiter.send(result),
        }
    }
}

/// Finds out early what [`save`] needs: a record that cannot be written is otherwise found when the first guest changes
/// something. Writes nothing: an engine that is to be replaced may be at work on the same file.
///
/// # Errors
/// Why it cannot be written there.
pub(crate) fn check_writable(path: &Path) -> io::Result<()> {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    let temporary = temporary_of(path);
    if temporary.is_dir() {
        return Err(io::Error::other(format!("{} is a directory", temporary.display())));
    }
    accessat(CWD, directory_of(path), Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)?;
    // A name in a path that is none, such as a file's.
    match std::fs::symlink_metadata(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn temporary_of(path: &Path) -> PathBuf {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    temporary.into()
}

/// Writes a record so that a crash at any point leaves the old one or the new one.
fn save(ssd: &Ssd, record: &SsdV1) -> io::Result<()> {
    let Some(path) = ssd.record_path() else {
        if let (Some(keeper), Ok(id)) = (&ssd.keeper, u32::try_from(ssd.id.0)) {
            let record = record.to_bytes().map_err(io::Error::other)?;
            keeper.tell(&ToKeeper::Record { ssd: id, record });
        }
        return Ok(());
    };
    replace(path, &record.to_bytes().map_err(io::Error::other)?)
}

/// Writes a file so that a crash at any point leaves the old one or the new one, and the new one once this has returned.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary_of(path);
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(directory_of(path))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::check_writable;

    #[test]
    fn a_place_where_no_record_can_be_written_is_found_without_writing() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "").unwrap();
        std::fs::create_dir(at("taken.state.new")).unwrap();
        let before = std::fs::read_dir(folder.path()).unwrap().count();
        check_writable(&at("new.state")).unwrap();
        for bad in ["missing/a.state", "file/a.state", "taken.state"] {
            check_writable(&at(bad)).expect_err(bad);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), before);
    }
}
