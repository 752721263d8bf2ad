//! What both sides of a migration ask of their QEMU.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, Fault, quote};
use crate::qmp::{Qmp, Version};

/// The oldest QEMU that this was tried with. `vfio-user-pci` came with 10.1.
pub const QEMU_OLDEST: Version = Version { major: 11, minor: 1, micro: 0 };
/// The descriptor's name at QEMU's monitor.
const FD_NAME: &str = "godwit-migration";
/// All others are turned off, those of newer QEMUs too: the bytes are for a QEMU that has the same. `auto-converge`: a guest that writes memory faster than it can be copied is held back, a bit
/// more with each two passes; without it such a guest is copied for ever.
const CAPABILITIES: [&str; 4] = ["events", "return-path", "pause-before-switchover", "auto-converge"];

/// Whether the guest runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Its processors run.
    pub running: bool,
    /// QEMU's word: `running`, `paused`, `inmigrate`, `finish-migrate`, `postmigrate` and others.
    pub word: String,
}

pub(crate) fn check_version(qmp: &Qmp) -> Result<(), Error> {
    if qmp.version() < QEMU_OLDEST {
        let text = format!("it is version {}, and {QEMU_OLDEST} is needed", qmp.version());
        return Err(qmp.error("migrate", Fault::Unfit(text)));
    }
    Ok(())
}

pub(crate) fn run_status(qmp: &mut Qmp) -> Result<Status, Error> {
    let told = qmp.execute("query-status", json!({}))?;
    told_status(qmp, &told)
}

/// What `query-status` told.
pub(crate) fn told_status(qmp: &Qmp, told: &Value) -> Result<Status, Error> {
    match (told["running"].as_bool(), told["status"].as_str()) {
        (Some(running), Some(word)) => Ok(Status { running, word: quote(word) }),
        _ => Err(qmp.error("query-status", Fault::NotUnderstood(quote(told)))),
    }
}

/// The migration's status in what `query-migrate` told. Without one there has been none.
pub(crate) fn status(told: &Value) -> &str {
    told["status"].as_str().unwrap_or("none")
}

pub(crate) fn is_under_way(status: &str) -> bool {
    !["none", "completed", "failed", "cancelled"].contains(&status)
}

/// Why the last migration failed.
pub(crate) fn why(qmp: &mut Qmp, patience: Duration) -> String {
    match qmp.execute_within(patience, "query-migrate", json!({})) {
        Ok(told) => quote(told["error-desc"].as_str().unwrap_or("QEMU does not say why")),
        Err(error) => format!("QEMU does not say why ({})", error.fault),
    }
}

pub(crate) fn set_capabilities(qmp: &mut Qmp) -> Result<(), Error> {
    let known = qmp.execute("query-migrate-capabilities", json!({}))?;
    let known: Vec<&str> =
        known.as_array().into_iter().flatten().filter_map(|one| one["capability"].as_str()).collect();
    if let Some(missing) = CAPABILITIES.iter().find(|one| !known.contains(one)) {
        let text = format!("it does not know of the capability {missing}");
        return Err(qmp.error("migrate-set-capabilities", Fault::Unfit(text)));
    }
    let wanted: Vec<Value> =
        known.iter().map(|one| json!({ "capability": one, "state": CAPABILITIES.contains(one) })).collect();
    qmp.execute("migrate-set-capabilities", json!({ "capabilities": wanted })).map(drop)
}

/// Hands the descriptor over, and begins.
pub(crate) fn start(
    qmp: &mut Qmp,
    command: &str,
    mut arguments: Value,
    fd: BorrowedFd<'_>,
) -> Result<(), Error> {
    // One of this name that was never used is closed by QEMU.
    qmp.execute_with_fd("getfd", json!({ "fdname": FD_NAME }), fd)?;
    arguments["uri"] = json!(format!("fd:{FD_NAME}"));
    let begun = qmp.execute(command, arguments);
    if begun.as_ref().is_err_and(Error::is_an_answer) {
        // QEMU may have taken it before it refused.
        let _ = qmp.execute("closefd", json!({ "fdname": FD_NAME }));
    }
    begun.map(drop)
}

/// QEMU may be gone before its answer is.
pub(crate) fn quit(qmp: &mut Qmp) -> Result<(), Error> {
    match qmp.execute("quit", json!({})) {
        Err(Error { fault: Fault::Closed, .. }) => Ok(()),
        other => other.map(drop),
    }
}
