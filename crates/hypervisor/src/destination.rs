//! The QEMU that a guest comes to.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::device::{self, Device};
use crate::error::{Error, Fault, quote};
use crate::gdb::Gdb;
use crate::migration::{self, Status};
use crate::qmp::{self, Qmp};

/// After a failure QEMU is asked why; it gets this long, whatever patience is left.
const WHY_PATIENCE: Duration = Duration::from_secs(1);

/// What the destination says of a migration, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DestinationWord {
    /// The guest's memory comes.
    Coming,
    /// All of the guest is here. It stands still until [`Destination::run`].
    Completed,
    /// It came to nothing. This QEMU takes no other guest: start it anew.
    Failed {
        /// QEMU's reason.
        why: String,
    },
    /// The guest runs.
    Resumed,
    /// The guest stands still.
    Stopped,
    /// The guest has powered itself off, or QEMU was told to end.
    Ended,
}

/// Where a destination stands, whoever began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DestinationNow {
    /// It waits for [`Destination::expect`].
    Waits,
    /// The guest's memory comes, or is expected.
    Coming,
    /// All of the guest is here, and nobody has had it run yet.
    Completed,
    /// The migration came to nothing. This QEMU takes no other guest: start it anew.
    Failed,
    /// It runs the guest.
    Runs,
    /// Anything else, in QEMU's words: of the guest and of the migration.
    Other(String),
}

/// A connection to the QEMU that a guest comes to. Of failures the same holds as for [`crate::Source`].
#[derive(Debug)]
pub struct Destination {
    pub(crate) qmp: Qmp,
    /// By which devices will be set up, if it is there already.
    pub(crate) gdb: Option<Gdb>,
    /// It has said that all of the guest is here.
    came: bool,
}

impl Destination {
    /// Connects to the QMP socket at `path`; `patience` is for that and for each call.
    pub fn connect(path: &Path, patience: Duration) -> Result<Destination, Error> {
        Qmp::connect(path, patience).map(Destination::over)
    }

    /// The same over a connection that is there.
    pub fn over(qmp: Qmp) -> Destination {
        Destination { qmp, gdb: None, came: false }
    }

    /// The connection itself.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Whether this QEMU can take a guest. If not, the error says why and what to do. May be asked again and again.
    pub fn check(&mut self) -> Result<(), Error> {
        migration::check_version(&self.qmp)?;
        match self.now()? {
            DestinationNow::Waits => {}
            DestinationNow::Coming => {
                return Err(self.unfit("a guest is expected or on its way to it already"));
            }
            DestinationNow::Failed => {
                return Err(
                    self.unfit("an earlier migration failed, and QEMU takes no second one: start it anew")
                );
            }
            _ => {
                return Err(self.unfit(
                    "it waits for no guest: start it as the source was, and with -S -incoming defer",
                ));
            }
        }
        // Else a QEMU without -S would run the guest as soon as it has come, whoever owns its disks. While a guest is waited for, this says just that.
        self.qmp.execute("stop", json!({})).map(drop)
    }

    /// The guest's devices that are served from outside QEMU, by vhost-user-blk or vfio-user. Their PCI addresses are known when the guest has come.
    pub fn devices(&mut self) -> Result<Vec<Device>, Error> {
        device::devices(&mut self.qmp)
    }

    /// Expects the guest through `fd`, a connected socket, of which QEMU gets a duplicate. To be called once, after [`Destination::check`]: a migration that has failed cannot be repeated
    /// with this QEMU.
    pub fn expect(&mut self, fd: OwnedFd) -> Result<(), Error> {
        migration::set_capabilities(&mut self.qmp)?;
        self.qmp.execute("migrate-set-parameters", json!({ "tls-creds": "" }))?;
        migration::start(&mut self.qmp, "migrate-incoming", json!({ "exit-on-error": false }), fd.as_fd())
    }

    /// The next word; `None` if there is none within `patience` (zero: if none has come). After a failure it may take a second longer, in which QEMU is asked why.
    pub fn next(&mut self, patience: Duration) -> Result<Option<DestinationWord>, Error> {
        let deadline = qmp::deadline(patience);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(event) = self.qmp.event(left)? else { return Ok(None) };
            let word = match (event.name.as_str(), event.data["status"].as_str()) {
                ("STOP", _) => DestinationWord::Stopped,
                ("RESUME", _) => DestinationWord::Resumed,
                ("SHUTDOWN", _) => DestinationWord::Ended,
                ("MIGRATION", Some("active")) => DestinationWord::Coming,
                ("MIGRATION", Some("completed")) => {
                    self.came = true;
                    DestinationWord::Completed
                }
                ("MIGRATION", Some("failed")) => {
                    DestinationWord::Failed { why: migration::why(&mut self.qmp, WHY_PATIENCE) }
                }
                _ => continue,
            };
            return Ok(Some(word));
        }
    }

    /// Where the destination stands, from QEMU's word alone: for one that has just connected, or missed words.
    pub fn now(&mut self) -> Result<DestinationNow, Error> {
        let told = self.qmp.execute("query-migrate", json!({}))?;
        let status = self.status()?;
        Ok(standing(migration::status(&told), &status))
    }

    /// Runs the guest that has come. Refused before it has: QEMU would take that as the wish to run it as soon as it is there.
    pub fn run(&mut self) -> Result<(), Error> {
        if !self.came && self.status()?.word == "inmigrate" {
            return Err(self.unfit("the guest has not come yet"));
        }
        self.qmp.execute("cont", json!({})).map(drop)
    }

    /// Ends QEMU, and the guest if it has come. The connection is of no use afterwards.
    pub fn quit(&mut self) -> Result<(), Error> {
        migration::quit(&mut self.qmp)
    }

    /// Whether the guest runs, and QEMU's word for it.
    pub fn status(&mut self) -> Result<Status, Error> {
        migration::run_status(&mut self.qmp)
    }

    fn unfit(&self, text: &str) -> Error {
        self.qmp.error("take a guest", Fault::Unfit(text.to_owned()))
    }
}

fn standing(migration: &str, guest: &Status) -> DestinationNow {
    match (migration, guest.word.as_str()) {
        (_, _) if guest.running => DestinationNow::Runs,
        ("none", "inmigrate") => DestinationNow::Waits,
        ("setup" | "active", "inmigrate") => DestinationNow::Coming,
        ("failed" | "failing", _) => DestinationNow::Failed,
        ("completed", "paused") => DestinationNow::Completed,
        (migration, word) => DestinationNow::Other(quote(format!("{word}, migration {migration}"))),
    }
}

#[cfg(test)]
mod tests;
