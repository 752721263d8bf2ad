//! The host's end of the guest agent (`guest/agent.sh`): send a script, get its status and its output.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// More than this from one command is a mistake, not an output.
const OUTPUT_BYTES_MAX: usize = 64 << 20;

/// What a command in the guest left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit status, as the shell counts it.
    pub status: i32,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

impl Output {
    /// The standard output if the status is 0, else an error that tells all three.
    pub fn into_ok(self, command: &str) -> Result<String> {
        let Output { status, stdout, stderr } = self;
        ensure!(status == 0, "in the guest, `{command}` ended with {status}\n{stdout}{stderr}");
        Ok(stdout)
    }
}

/// The connection to one guest's agent.
pub(crate) struct Agent {
    port: BufReader<UnixStream>,
    next_id: u64,
}

impl Agent {
    pub(crate) fn new(port: UnixStream) -> Agent {
        Agent { port: BufReader::new(port), next_id: 1 }
    }

    /// Waits until the guest has booted. Answers to commands of an earlier boot are skipped.
    pub(crate) fn wait_ready(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while self.line(deadline).context("the guest did not boot")? != "ready" {}
        Ok(())
    }

    /// Sends a script without waiting for its end: for those that end the guest.
    pub(crate) fn send(&mut self, script: &str) -> Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let line = format!("{id} {}\n", base64(script.as_bytes()));
        self.port.get_mut().write_all(line.as_bytes()).context("the guest's agent port is closed")?;
        Ok(id)
    }

    pub(crate) fn run(&mut self, script: &str, patience: Duration) -> Result<Output> {
        let deadline = Instant::now() + patience;
        let id = self.send(script)?;
        let head = self.line(deadline).with_context(|| format!("no answer from the guest to `{script}`"))?;
        ensure!(head != "ready", "the guest rebooted by itself during `{script}`");
        let fields: Vec<&str> = head.split(' ').collect();
        let ["=", echoed, status, stdout_bytes, stderr_bytes] = fields[..] else {
            bail!("the guest's agent said `{head}`, not an answer");
        };
        ensure!(echoed == id.to_string(), "the guest's agent answered request {echoed}, not {id}");
        Ok(Output {
            status: status.parse().context("the agent's status")?,
            stdout: self.text(stdout_bytes, deadline)?,
            stderr: self.text(stderr_bytes, deadline)?,
        })
    }

    fn line(&mut self, deadline: Instant) -> Result<String> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            self.arm(deadline)?;
            match self.port.read_until(b'\n', &mut line) {
                Ok(0) => bail!("QEMU closed the guest's agent port"),
                Ok(_) => {}
                Err(error) => patient(error)?,
            }
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    fn text(&mut self, bytes: &str, deadline: Instant) -> Result<String> {
        let bytes: usize = bytes.parse().context("the agent's length")?;
        ensure!(bytes <= OUTPUT_BYTES_MAX, "a command in the guest wrote {bytes} bytes");
        let mut text = vec![0; bytes];
        let mut filled = 0;
        while filled < bytes {
            self.arm(deadline)?;
            match self.port.read(&mut text[filled..]) {
                Ok(0) => bail!("QEMU closed the guest's agent port"),
                Ok(count) => filled += count,
                Err(error) => patient(error)?,
            }
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Lets the next read wait until the deadline at most.
    fn arm(&mut self, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "the time is over");
        self.port.get_mut().set_read_timeout(Some(left)).context("set the agent port's timeout")
    }
}

/// A read that timed out is asked again, and the deadline decides.
fn patient(error: std::io::Error) -> Result<()> {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(()),
        _ => Err(error).context("the guest's agent port"),
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let sextet = (word >> (18 - 6 * place)) & 63;
            text.push(if place <= chunk.len() { char::from(ALPHABET[sextet as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_matches_the_vectors_of_rfc_4648() {
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
        ];
        for (plain, coded) in vectors {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
