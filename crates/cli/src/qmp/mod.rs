//! A running QEMU's monitor, as plugging needs it, with errors for people.

use ::hypervisor::qmp::{Event, Version};
use ::hypervisor::{Error, Fault, Qmp};
use anyhow::{Context, anyhow};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

mod plug;
#[cfg(test)]
mod scripted;

pub(crate) use plug::{attach, detach};

/// For an answer. QEMU answers nothing while it waits for a device's server, for instance.
const PATIENCE: Duration = Duration::from_secs(30);
/// For the greeting, which comes at once unless somebody else is served.
const GREETING_PATIENCE: Duration = Duration::from_secs(5);

/// QEMU said no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) text: String,
}

/// A connection to a running QEMU, past its greeting.
pub(crate) struct Monitor {
    qmp: Qmp,
    /// Met, and not asked for yet.
    events: Vec<Event>,
    pub(crate) release: Version,
}

impl Monitor {
    /// Connects to the monitor that QEMU serves at a path (`-qmp unix:PATH,server=on,wait=off`).
    pub(crate) fn connect(path: &Path) -> anyhow::Result<Self> {
        let qmp = Qmp::connect(path, GREETING_PATIENCE).map_err(unreachable)?;
        Ok(Self::over(qmp))
    }

    fn over(mut qmp: Qmp) -> Self {
        qmp.set_patience(PATIENCE);
        Self { release: qmp.version(), qmp, events: Vec::new() }
    }

    /// Executes a command that should succeed.
    pub(crate) fn must(&mut self, command: &str, arguments: &Value) -> anyhow::Result<Value> {
        self.execute(command, arguments)?
            .map_err(|refusal| anyhow!("QEMU refuses {command}: {}", refusal.text))
    }

    /// Executes a command; a refusal of QEMU's is a value. Events met on the way are kept.
    pub(crate) fn execute(
        &mut self,
        command: &str,
        arguments: &Value,
    ) -> anyhow::Result<Result<Value, Refusal>> {
        match self.qmp.execute(command, arguments.clone()) {
            Ok(value) => Ok(Ok(value)),
            Err(Error { fault: Fault::Refused { description, .. }, .. }) => {
                Ok(Err(Refusal { text: description }))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The next event that `wanted` takes, or `None` at the deadline.
    pub(crate) fn event(
        &mut self,
        deadline: Instant,
        wanted: impl Fn(&Event) -> bool,
    ) -> anyhow::Result<Option<Event>> {
        loop {
            if let Some(at) = self.events.iter().position(&wanted) {
                return Ok(Some(self.events.remove(at)));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.qmp.event(left).context("wait for QEMU")? {
                Some(event) => self.events.push(event),
                None => return Ok(None),
            }
        }
    }
}

/// Why there is no monitor, and what to do.
fn unreachable(error: Error) -> anyhow::Error {
    let socket = error.socket.display();
    match error.fault {
        Fault::NoConnection(fault) => anyhow!(fault).context(format!(
            "no QEMU answers at {socket}: start it with -qmp unix:{socket},server=on,wait=off, and run this as a user who may connect"
        )),
        Fault::NoGreeting(_) => anyhow!(
            "the monitor at {socket} does not greet: it serves one client at a time, and somebody (libvirt?) is connected; \
             give QEMU a monitor of its own for this with another -qmp"
        ),
        _ => anyhow!(error),
    }
}

#[cfg(test)]
mod tests {
    use super::scripted::{GREETING, monitor};
    use super::*;
    use serde_json::json;

    #[test]
    fn events_between_answers_are_kept_until_they_are_asked_for() {
        let mut monitor = monitor(GREETING, |_, _| vec![json!({"event": "RESUME"}), json!({"return": 7})]);
        assert_eq!(monitor.release.to_string(), "11.1.3");
        assert_eq!(monitor.must("x", &json!({})).unwrap(), 7);
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(monitor.event(soon, |event| event.name == "STOP").unwrap().is_none());
        assert!(monitor.event(soon, |event| event.name == "RESUME").unwrap().is_some());
    }

    #[test]
    fn a_refusal_says_what_was_refused_and_why() {
        let mut monitor = monitor(GREETING, |command, _| match command {
            "qmp_capabilities" => vec![json!({"return": {}})],
            _ => vec![json!({"error": {"class": "GenericError", "desc": "no such thing"}})],
        });
        let text = monitor.must("device_add", &json!({})).unwrap_err().to_string();
        assert_eq!(text, "QEMU refuses device_add: no such thing");
    }

    #[test]
    fn a_socket_without_a_qemu_is_told_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let said = format!("{:#}", Monitor::connect(&folder.path().join("qmp")).err().unwrap());
        assert!(said.contains("no QEMU answers at") && said.contains("No such file"), "{said}");
        let silent = Fault::NoGreeting(GREETING_PATIENCE);
        let silent = Error { socket: "/run/qmp".into(), asked: "greeting".to_owned(), fault: silent };
        let said = unreachable(silent).to_string();
        assert!(said.contains("somebody (libvirt?) is connected"), "{said}");
    }
}
