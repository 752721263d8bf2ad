//! QEMU's machine protocol: one JSON object a line, a greeting first.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A QMP connection past its handshake.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Qmp {
    /// Takes a fresh connection through the greeting and `qmp_capabilities`.
    pub fn new(stream: UnixStream) -> Result<Qmp> {
        stream.set_read_timeout(Some(Duration::from_secs(30))).context("set QMP's timeout")?;
        let mut qmp = Qmp { stream: BufReader::new(stream), events: Vec::new() };
        qmp.message().context("QMP's greeting")?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and returns its `return` value. Events met on the way are kept for [`Qmp::wait_event`].
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes()).with_context(|| format!("send QMP {command}"))?;
        loop {
            let mut message = self.message().with_context(|| format!("QMP {command}"))?;
            if let Some(error) = message.get("error") {
                bail!("QMP {command} {arguments}: {error}");
            }
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            self.events.push(message);
        }
    }

    /// Waits for an event of this name, such as `DEVICE_DELETED`.
    pub fn wait_event(&mut self, name: &str, patience: Duration) -> Result<Value> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return Ok(self.events.remove(at));
            }
            if Instant::now() >= deadline {
                bail!("no QMP event {name} within {patience:?}");
            }
            let message = self.message().with_context(|| format!("wait for QMP event {name}"))?;
            self.events.push(message);
        }
    }

    fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).context("read from QMP")? == 0 {
            bail!("QEMU closed its QMP socket");
        }
        serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))
    }
}
