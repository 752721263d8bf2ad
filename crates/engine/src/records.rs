//! The record keeper: one thread that writes the ssds' records, in the order they come, so that no reactor waits for a
//! file and no older record overtakes a newer one.

use crate::message::{Address, Life, Message};
use crate::ssd::Ssd;
use state::ssd::SsdV1;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

/// The way to the keeper. The keeper ends when the last one is dropped.
#[derive(Clone)]
pub(crate) struct Records {
    sender: Sender<Job>,
}

struct Job {
    ssd: Arc<Ssd>,
    record: SsdV1,
    reply_to: ReplyTo,
}

enum ReplyTo {
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

    /// Writes a record and waits for it.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn keep_now(&self, ssd: &Arc<Ssd>, record: SsdV1) -> io::Result<()> {
        let (reply, done) = sync_channel(1);
        self.send(ssd, record, ReplyTo::Waiter(reply));
        done.recv().map_err(io::Error::other)?
    }

    fn send(&self, ssd: &Arc<Ssd>, record: SsdV1, reply_to: ReplyTo) {
        // The keeper lives as long as a sender; it cannot be gone.
        let _ = self.sender.send(Job { ssd: Arc::clone(ssd), record, reply_to });
    }
}

fn keep(jobs: &Receiver<Job>) {
    for Job { ssd, record, reply_to } in jobs {
        let result = save(&ssd, &record);
        if let Err(error) = &result {
            let path = ssd.record_path.as_deref().unwrap_or(Path::new("-")).display();
            let name = &ssd.name;
            tracing::error!(ssd = name, %path, %error, "its state cannot be written; free space or mend the file system");
        }
        match reply_to {
            ReplyTo::Home(home, life) => home.send(Message::Persisted(life, result.is_ok())),
            // Whoever waited and left does not need the answer.
            ReplyTo::Waiter(waiter) => _ = waiter.send(result),
        }
    }
}

/// Writes a record so that a crash at any point leaves the old one or the new one.
fn save(ssd: &Ssd, record: &SsdV1) -> io::Result<()> {
    let Some(path) = &ssd.record_path else { return Ok(()) };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = path.clone().into_os_string();
    temporary.push(".new");
    let mut file = File::create(&temporary)?;
    file.write_all(&record.to_bytes().map_err(io::Error::other)?)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}
