//! The record keeper: writes the ssds' records, so that no reactor waits for a file.

use crate::message::{Address, Message};
use crate::ssd::Ssd;
use state::ssd::SsdV1;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// The way to the keeper. The keeper ends when the last one is dropped.
#[derive(Clone)]
pub(crate) struct Records {
    sender: Sender<Job>,
}

struct Job {
    ssd: Arc<Ssd>,
    record: SsdV1,
    reply_to: Address,
}

impl Records {
    /// Starts the keeper's thread.
    pub(crate) fn start() -> io::Result<(Self, JoinHandle<()>)> {
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new().name("records".to_owned()).spawn(move || keep(&receiver))?;
        Ok((Self { sender }, thread))
    }

    /// Writes a record and tells `reply_to` with [`Message::Persisted`].
    pub(crate) fn keep(&self, ssd: &Arc<Ssd>, record: SsdV1, reply_to: &Address) {
        let job = Job { ssd: Arc::clone(ssd), record, reply_to: Arc::clone(reply_to) };
        // The keeper lives as long as a sender; it cannot be gone.
        let _ = self.sender.send(job);
    }
}

fn keep(jobs: &Receiver<Job>) {
    for Job { ssd, record, reply_to } in jobs {
        let result = save(&ssd, &record);
        if let Err(error) = &result {
            let path = ssd.record_path.as_deref().unwrap_or(Path::new("-")).display();
            tracing::error!(ssd = ssd.name, %path, %error, "the ssd's state cannot be written; free space or mend the file system");
        }
        reply_to.send(Message::Persisted(ssd.id, result.is_ok()));
    }
}

/// Writes a record so that a crash at any point leaves the old one or the new one.
pub(crate) fn save(ssd: &Ssd, record: &SsdV1) -> io::Result<()> {
    let Some(path) = &ssd.record_path else { return Ok(()) };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = path.with_extension("state.new");
    let mut file = File::create(&temporary)?;
    file.write_all(&record.to_bytes().map_err(io::Error::other)?)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}
