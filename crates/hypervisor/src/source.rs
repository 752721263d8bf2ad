//! The QEMU that a guest leaves.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::device::{self, Device};
use crate::error::{Error, Fault, quote};
use crate::migration::{self, Status};
use crate::qmp::{self, Qmp};

/// After a failure QEMU is asked why; it gets this long, whatever patience is left.
const WHY_PATIENCE: Duration = Duration::from_secs(1);

/// How QEMU shall copy the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// As quickly as this; 0 is as quickly as may be.
    pub bandwidth_bytes_s: u64,
    /// The guest is stopped when QEMU believes that what is left takes no longer than this. 0 keeps a guest that writes at all from being stopped.
    pub downtime_limit_ms: u64,
}

/// What the source says of a migration, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceWord {
    /// It copies memory. The guest runs.
    Copying,
    /// This pass over memory begins; the first is 1, and not always said.
    Pass(u64),
    /// The guest stands still.
    Stopped,
    /// QEMU waits for [`Source::go_on`] or [`Source::cancel`], for ever. The guest stands still, and each vhost-user device has ended its I/O.
    PreSwitchover,
    /// It sends the last pages and the devices' state. It may still fail, and then the guest runs here by itself.
    SwitchingOver,
    /// All of the guest is at the destination. The source does not run it any more.
    Completed,
    /// It came to nothing, and the guest runs here, or will: [`SourceWord::Resumed`] came before or comes next, if it stood still.
    Failed {
        /// QEMU's reason.
        why: String,
    },
    /// [`Source::cancel`] has been done. As with a failure the guest runs here, or will.
    Cancelled,
    /// The guest runs.
    Resumed,
    /// The guest has powered itself off, or QEMU was told to end. There is nothing to migrate.
    Ended,
}

/// Where a source stands, whoever began its migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceNow {
    /// It runs the guest, and copies nothing: no migration was begun, or the last one came to nothing.
    Runs,
    /// It copies memory. The guest runs, or is just being stopped.
    Copying,
    /// [`SourceWord::PreSwitchover`].
    PreSwitchover,
    /// [`SourceWord::SwitchingOver`].
    SwitchingOver,
    /// It is giving up: the next word is [`SourceWord::Failed`] or [`SourceWord::Cancelled`].
    GivingUp,
    /// [`SourceWord::Completed`], and nobody has had it run again since.
    Completed,
    /// The guest stands still and nothing is migrated: an operator, an I/O error, a panic or its end. In QEMU's word.
    Stopped(String),
    /// QEMU has a word that is not known here.
    Unknown(String),
}

/// How far a migration is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Sent so far.
    pub transferred_bytes: u64,
    /// To be sent, as known now.
    pub remaining_bytes: u64,
    /// The guest's memory.
    pub total_bytes: u64,
    /// As quickly as the guest writes.
    pub dirty_bytes_s: u64,
    /// Passes over memory so far.
    pub passes: u64,
    /// So much of the time the guest's processors are kept from running, for it writes faster than is copied.
    pub held_back_percent: u64,
    /// If it were stopped now; afterwards, how long it was. QEMU does not always know.
    pub downtime_ms: Option<u64>,
}

/// A connection to the QEMU that a guest leaves.
///
/// Each call has the connection's patience, unless it says otherwise. What fails with [`Error::is_an_answer`] has changed nothing, unless the call says otherwise. What fails in
/// another way may have been done: connect anew and look ([`Source::now`]).
#[derive(Debug)]
pub struct Source {
    qmp: Qmp,
}

impl Source {
    /// Connects to the QMP socket at `path`; `patience` is for that and for each call.
    pub fn connect(path: &Path, patience: Duration) -> Result<Source, Error> {
        Qmp::connect(path, patience).map(Source::over)
    }

    /// The same over a connection that is there.
    pub fn over(qmp: Qmp) -> Source {
        Source { qmp }
    }

    /// The connection itself.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Whether QEMU can migrate this guest now. If not, the error says why and what to do. QEMU itself has nothing against a vfio-user device, and leaves it behind: who migrates a guest has
    /// to know each that [`Source::devices`] tells of.
    pub fn check(&mut self) -> Result<(), Error> {
        migration::check_version(&self.qmp)?;
        let told = self.qmp.execute("query-migrate", json!({}))?;
        if migration::is_under_way(migration::status(&told)) {
            let text =
                format!("a migration is {} already: wait for it, or cancel it", migration::status(&told));
            return Err(self.unfit(text));
        }
        if let Some(reasons) = told["blocked-reasons"].as_array().filter(|reasons| !reasons.is_empty()) {
            let reasons: Vec<String> = reasons.iter().map(|one| quote(one.as_str().unwrap_or("?"))).collect();
            return Err(self.unfit(format!("it does not migrate this guest: {}", reasons.join("; "))));
        }
        let status = self.status()?;
        if !status.running {
            return Err(
                self.unfit(format!("the guest does not run (it is {}): have it run, or end it", status.word))
            );
        }
        Ok(())
    }

    /// The guest's devices that are served from outside QEMU, by vhost-user-blk or vfio-user. May be asked at any time.
    pub fn devices(&mut self) -> Result<Vec<Device>, Error> {
        device::devices(&mut self.qmp)
    }

    /// Begins to copy the guest's memory through `fd`, a connected socket, of which QEMU gets a duplicate; the destination must expect it already
    /// ([`crate::Destination::expect`]). It will stop the guest by itself when little enough is left, and waits then for [`Source::go_on`].
    ///
    /// Sets capabilities and parameters of QEMU's migrations. If it is refused no migration was begun, and it may be tried again after what is named was put right.
    pub fn begin(&mut self, fd: OwnedFd, terms: &Terms) -> Result<(), Error> {
        migration::set_capabilities(&mut self.qmp)?;
        self.set_terms(terms)?;
        migration::start(&mut self.qmp, "migrate", json!({}), fd.as_fd())
    }

    /// Other terms, at any time: a copy under way goes on by them.
    pub fn set_terms(&mut self, terms: &Terms) -> Result<(), Error> {
        let parameters = json!({
            "max-bandwidth": terms.bandwidth_bytes_s,
            "downtime-limit": terms.downtime_limit_ms,
            // The socket is somebody's who encrypts.
            "tls-creds": "",
        });
        self.qmp.execute("migrate-set-parameters", parameters).map(drop)
    }

    /// The next word; `None` if there is none within `patience` (zero: if none has come). After a failure it may take a second longer, in which QEMU is asked why.
    ///
    /// Words from before this connection are not heard: [`Source::now`] tells where the source stands.
    pub fn next(&mut self, patience: Duration) -> Result<Option<SourceWord>, Error> {
        let deadline = qmp::deadline(patience);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(event) = self.qmp.event(left)? else { return Ok(None) };
            let word = match event.name.as_str() {
                "STOP" => Some(SourceWord::Stopped),
                "RESUME" => Some(SourceWord::Resumed),
                "SHUTDOWN" => Some(SourceWord::Ended),
                "MIGRATION_PASS" => event.data["pass"].as_u64().map(SourceWord::Pass),
                "MIGRATION" => self.migration_word(event.data["status"].as_str().unwrap_or_default()),
                _ => None,
            };
            if word.is_some() {
                return Ok(word);
            }
        }
    }

    fn migration_word(&mut self, status: &str) -> Option<SourceWord> {
        match status {
            "active" => Some(SourceWord::Copying),
            "pre-switchover" => Some(SourceWord::PreSwitchover),
            "device" => Some(SourceWord::SwitchingOver),
            "completed" => Some(SourceWord::Completed),
            "cancelled" => Some(SourceWord::Cancelled),
            "failed" => Some(SourceWord::Failed { why: migration::why(&mut self.qmp, WHY_PATIENCE) }),
            _ => None,
        }
    }

    /// Where the source stands, from QEMU's word alone: for one that has just connected, or missed words.
    pub fn now(&mut self) -> Result<SourceNow, Error> {
        let told = self.qmp.execute("query-migrate", json!({}))?;
        let status = self.status()?;
        Ok(standing(migration::status(&told), &status))
    }

    /// How far the copy is.
    pub fn progress(&mut self) -> Result<Progress, Error> {
        self.qmp.execute("query-migrate", json!({})).map(|told| progress(&told))
    }

    /// Lets a source that waits at pre-switchover send the rest. Until it says [`SourceWord::Completed`] it may run the guest again by itself.
    pub fn go_on(&mut self) -> Result<(), Error> {
        self.qmp.execute("migrate-continue", json!({ "state": "pre-switchover" })).map(drop)
    }

    /// Gives the migration up. It is done when the source says so ([`SourceWord::Cancelled`]); it may also have been too late, and say [`SourceWord::Completed`]. Without a
    /// migration it is nothing.
    pub fn cancel(&mut self) -> Result<(), Error> {
        self.qmp.execute("migrate_cancel", json!({})).map(drop)
    }

    /// Runs the guest here. After [`SourceWord::Completed`] only if it is certain that the destination does not run it and never will.
    pub fn run(&mut self) -> Result<(), Error> {
        self.qmp.execute("cont", json!({})).map(drop)
    }

    /// Ends QEMU. The connection is of no use afterwards.
    pub fn quit(&mut self) -> Result<(), Error> {
        migration::quit(&mut self.qmp)
    }

    /// Whether the guest runs, and QEMU's word for it.
    pub fn status(&mut self) -> Result<Status, Error> {
        migration::run_status(&mut self.qmp)
    }

    fn unfit(&self, text: String) -> Error {
        self.qmp.error("migrate", Fault::Unfit(text))
    }
}

fn standing(migration: &str, guest: &Status) -> SourceNow {
    match migration {
        "setup" | "active" | "wait-unplug" => SourceNow::Copying,
        "pre-switchover" => SourceNow::PreSwitchover,
        "device" => SourceNow::SwitchingOver,
        "cancelling" | "failing" => SourceNow::GivingUp,
        "none" | "completed" | "failed" | "cancelled" if guest.running => SourceNow::Runs,
        // QEMU keeps "completed" when the guest has run again; its own state tells.
        "completed" if guest.word == "postmigrate" => SourceNow::Completed,
        "none" | "completed" | "failed" | "cancelled" => SourceNow::Stopped(guest.word.clone()),
        other => SourceNow::Unknown(quote(other)),
    }
}

fn progress(told: &Value) -> Progress {
    let ram = |name: &str| told["ram"][name].as_u64().unwrap_or(0);
    let downtime = told["downtime"].as_u64().or(told["expected-downtime"].as_u64());
    Progress {
        transferred_bytes: ram("transferred"),
        remaining_bytes: ram("remaining"),
        total_bytes: ram("total"),
        dirty_bytes_s: ram("dirty-pages-rate").saturating_mul(ram("page-size")),
        passes: ram("dirty-sync-count"),
        held_back_percent: told["cpu-throttle-percentage"].as_u64().unwrap_or(0),
        downtime_ms: downtime,
    }
}

#[cfg(test)]
mod tests;
