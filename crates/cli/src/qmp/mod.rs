//! QEMU's machine protocol, to the extent that plugging needs: one JSON object a line, a greeting first, events between answers.
//!
//! What comes from QEMU is not trusted with more than an error: lines and the events kept are bounded, and a missing field is an
//! answer that was not understood.
//!
//! Not here: out-of-band commands, descriptors beside a command.

use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

mod plug;
#[cfg(test)]
mod scripted;

pub(crate) use plug::{attach, detach};

/// Nothing that is asked here has a longer answer.
const LINE_BYTES_MAX: u64 = 4 << 20;
const EVENTS_MAX: usize = 1024;
/// For an answer. QEMU answers nothing while it waits for a device's server, for instance.
const PATIENCE: Duration = Duration::from_secs(30);
/// For the greeting, which comes at once unless somebody else is served.
const GREETING_PATIENCE: Duration = Duration::from_secs(5);

/// A QEMU's release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Release {
    pub(crate) major: u64,
    pub(crate) minor: u64,
    pub(crate) micro: u64,
}

impl std::fmt::Display for Release {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// QEMU said no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) text: String,
}

/// A connection to a running QEMU, past its greeting.
pub(crate) struct Monitor {
    stream: BufReader<UnixStream>,
    events: Vec<Value>,
    pub(crate) release: Release,
}

impl Monitor {
    /// Connects to the monitor that QEMU serves at a path (`-qmp unix:PATH,server=on,wait=off`).
    pub(crate) fn connect(path: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| {
            format!(
                "no QEMU answers at {}: start it with -qmp unix:{},server=on,wait=off, and run this as a user who may connect",
                path.display(),
                path.display()
            )
        })?;
        Self::new(stream).with_context(|| format!("the monitor at {}", path.display()))
    }

    fn new(stream: UnixStream) -> anyhow::Result<Self> {
        let release = Release { major: 0, minor: 0, micro: 0 };
        let mut monitor = Self { stream: BufReader::new(stream), events: Vec::new(), release };
        let greeting = monitor.message(Instant::now() + GREETING_PATIENCE)?.context(
            "it does not greet: it serves one client at a time, and somebody (libvirt?) is connected; \
             give QEMU a monitor of its own for this with another -qmp",
        )?;
        let version = &greeting["QMP"]["version"]["qemu"];
        let number = |name: &str| version[name].as_u64().context("it is not QEMU's: no QMP greeting");
        monitor.release =
            Release { major: number("major")?, minor: number("minor")?, micro: number("micro")? };
        monitor.must("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Executes a command that should succeed.
    pub(crate) fn must(&mut self, command: &str, arguments: &Value) -> anyhow::Result<Value> {
        self.execute(command, arguments)?
            .map_err(|refusal| anyhow::anyhow!("QEMU refuses {command}: {}", refusal.text))
    }

    /// Executes a command; a refusal of QEMU's is a value. Events met on the way are kept.
    pub(crate) fn execute(
        &mut self,
        command: &str,
        arguments: &Value,
    ) -> anyhow::Result<Result<Value, Refusal>> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.stream.get_mut().write_all(line.as_bytes()).with_context(|| gone(command))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut message = self
                .message(deadline)?
                .with_context(|| format!("QEMU has not answered {command} for {} s", PATIENCE.as_secs()))?;
            if let Some(value) = message.get_mut("return") {
                return Ok(Ok(value.take()));
            }
            if let Some(error) = message.get("error") {
                let text = error["desc"].as_str().unwrap_or("without a reason").to_owned();
                return Ok(Err(Refusal { text }));
            }
            self.keep(message);
        }
    }

    /// The next event that `wanted` takes, or `None` at the deadline.
    pub(crate) fn event(
        &mut self,
        deadline: Instant,
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Option<Value>> {
        loop {
            if let Some(at) = self.events.iter().position(&wanted) {
                return Ok(Some(self.events.remove(at)));
            }
            match self.message(deadline)? {
                Some(message) => self.keep(message),
                None => return Ok(None),
            }
        }
    }

    fn keep(&mut self, message: Value) {
        if message.get("event").is_some() && self.events.len() < EVENTS_MAX {
            self.events.push(message);
        }
    }

    /// The next message, or `None` at the deadline.
    fn message(&mut self, deadline: Instant) -> anyhow::Result<Option<Value>> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.get_ref().set_read_timeout(Some(left))?;
            let room = LINE_BYTES_MAX.saturating_sub(line.len() as u64);
            if room == 0 {
                bail!("QEMU sends a line of more than {LINE_BYTES_MAX} bytes");
            }
            match (&mut self.stream).take(room).read_until(b'\n', &mut line) {
                Ok(0) => bail!(gone("its next line")),
                Ok(_) => {}
                Err(error) if waits(error.kind()) => {}
                Err(error) => return Err(error).context("the monitor cannot be read"),
            }
        }
        serde_json::from_slice(&line).context("QEMU sends what is not JSON").map(Some)
    }
}

fn waits(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn gone(at: &str) -> String {
    format!("QEMU closed its monitor at {at}: it has ended, or somebody took the monitor away")
}

#[cfg(test)]
mod tests {
    use super::scripted::{GREETING, qemu};
    use super::*;

    #[test]
    fn a_greeting_says_the_release_and_events_between_answers_are_kept() {
        let stream = qemu(GREETING, |_, _| vec![json!({"event": "RESUME"}), json!({"return": 7})]);
        let mut monitor = Monitor::new(stream).unwrap();
        assert_eq!(monitor.release.to_string(), "11.1.3");
        assert_eq!(monitor.must("x", &json!({})).unwrap(), 7);
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(monitor.event(soon, |event| event["event"] == "STOP").unwrap().is_none());
        assert!(monitor.event(soon, |event| event["event"] == "RESUME").unwrap().is_some());
    }

    #[test]
    fn a_refusal_says_what_was_refused_and_why() {
        let stream = qemu(GREETING, |command, _| match command {
            "qmp_capabilities" => vec![json!({"return": {}})],
            _ => vec![json!({"error": {"class": "GenericError", "desc": "no such thing"}})],
        });
        let mut monitor = Monitor::new(stream).unwrap();
        let text = monitor.must("device_add", &json!({})).unwrap_err().to_string();
        assert_eq!(text, "QEMU refuses device_add: no such thing");
    }

    #[test]
    fn what_is_no_qemu_is_told_and_believed_in_nothing() {
        for greeting in
            ["{}\n", "[]\n", "{\"QMP\":{\"version\":{\"qemu\":{\"major\":\"x\"}}}}\n", "not json\n"]
        {
            assert!(Monitor::new(qemu(greeting, |_, _| vec![])).is_err(), "{greeting:?}");
        }
    }

    #[test]
    fn a_line_without_an_end_is_given_up() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || while theirs.write_all(&[b'x'; 65536]).is_ok() {});
        assert!(Monitor::new(ours).err().unwrap().to_string().contains("a line of more than"));
        writer.join().unwrap();
    }
}
