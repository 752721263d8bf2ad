//! QEMU's server for debuggers, of which Godwit wants one thing that neither QMP nor the human monitor has: writes to the guest's physical memory, devices' registers too.
//!
//! QEMU is handed one end of a socket pair, so nobody else can connect. The server is there for as long as [`Gdb::with`] runs.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::error::{Error, Fault, quote};
use crate::qmp::{self, Qmp};

/// The names of the descriptor and of the character device at QEMU.
const NAME: &str = "godwit-gdb";
/// QEMU's own name for a debugger's connection that somebody else has asked for.
const OTHERS_NAME: &str = "gdb";
/// An answer is a few bytes.
const ANSWER_BYTES_MAX: usize = 4096;

/// A connection to a QEMU that has no debugger's server at its end yet. It may be laid while the guest runs, and is used once; one that is not used is taken down before the next is laid.
#[derive(Debug)]
pub(crate) struct Line(UnixStream);

impl Line {
    pub(crate) fn lay(qmp: &mut Qmp) -> Result<Line, Error> {
        let chardevs = qmp.execute("query-chardev", json!({}))?;
        let mut labels = chardevs.as_array().into_iter().flatten().map(|one| &one["label"]);
        if labels.clone().any(|label| label == OTHERS_NAME) {
            let text =
                "a debugger's server runs (gdbserver, -gdb or -s): end it with 'gdbserver none'".to_owned();
            return Err(qmp.error("write to the guest's memory", Fault::Unfit(text)));
        }
        if labels.any(|label| label == NAME) {
            // Of one who was killed at this.
            Gdb::end(qmp)?;
        }
        let pair = UnixStream::pair();
        let (socket, theirs) = pair.map_err(|error| qmp.error("lay a debugger's line", Fault::Io(error)))?;
        qmp.execute_with_fd("getfd", json!({ "fdname": NAME }), theirs.as_fd())?;
        let address = json!({ "type": "fd", "data": { "str": NAME } });
        let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
        qmp.execute("chardev-add", json!({ "id": NAME, "backend": backend }))?;
        Ok(Line(socket))
    }

    /// It is not needed after all.
    pub(crate) fn take_down(self, qmp: &mut Qmp) -> Result<(), Error> {
        qmp.execute("chardev-remove", json!({ "id": NAME })).map(drop)
    }
}

/// A debugger's connection to QEMU.
#[derive(Debug)]
pub(crate) struct Gdb {
    socket: UnixStream,
    patience: Duration,
}

impl Gdb {
    /// Does `work` with a debugger's connection, and takes it down again. The guest must stand still: it is stopped by a debugger that connects.
    pub(crate) fn with<T>(
        qmp: &mut Qmp,
        line: Line,
        work: impl FnOnce(&mut Qmp, &mut Gdb) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let worked = Gdb::open(qmp, line).and_then(|mut gdb| {
            let worked = work(qmp, &mut gdb);
            let closed = gdb
                .ask(&["Qqemu.PhyMemMode:0"])
                .map_err(|fault| qmp.error("end the debugger's server", fault));
            worked.and_then(|value| closed.map(|()| value))
        });
        let ended = match &worked {
            Ok(_) => qmp.human("gdbserver none").map(drop),
            Err(_) => Gdb::end(qmp),
        };
        worked.and_then(|value| ended.map(|()| value))
    }

    /// Ends a server that may not have come to be. The character device goes with it, if the server had taken it.
    fn end(qmp: &mut Qmp) -> Result<(), Error> {
        qmp.human("gdbserver none")?;
        match qmp.execute("chardev-remove", json!({ "id": NAME })) {
            Err(error) if !error.is_an_answer() => Err(error),
            _ => Ok(()),
        }
    }

    fn open(qmp: &mut Qmp, Line(socket): Line) -> Result<Gdb, Error> {
        let said = qmp.human(&format!("gdbserver chardev:{NAME}"))?;
        let mut gdb = Gdb { socket, patience: qmp.patience() };
        gdb.ask(&["Qqemu.PhyMemMode:1"]).map_err(|fault| {
            let fault = Fault::NotUnderstood(format!("{}; {fault}", quote(said.trim())));
            qmp.error("start a debugger's server", fault)
        })?;
        Ok(gdb)
    }

    /// Writes to physical memory, in this order: each from its beginning on, with the widest accesses that a device takes. All are sent before the first answer is waited for.
    ///
    /// # Errors
    /// Of the first that was not done; those behind it may have been.
    pub(crate) fn write(&mut self, writes: impl IntoIterator<Item = (u64, Vec<u8>)>) -> Result<(), Fault> {
        use std::fmt::Write as _;
        let command = |(address, bytes): (u64, Vec<u8>)| {
            let mut command = format!("M{address:x},{:x}:", bytes.len());
            for byte in bytes {
                let _ = write!(command, "{byte:02x}");
            }
            command
        };
        let commands: Vec<String> = writes.into_iter().map(command).collect();
        self.ask(&commands.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Commands whose answers are OK. The acknowledgement of an answer follows its command at once: nothing is ever sent again on a socket.
    fn ask(&mut self, commands: &[&str]) -> Result<(), Fault> {
        let deadline = qmp::deadline(self.patience);
        let packet = |command: &&str| {
            let sum = command.bytes().fold(0u8, u8::wrapping_add);
            format!("${command}#{sum:02x}+")
        };
        let packets: String = commands.iter().map(packet).collect();
        self.socket.set_write_timeout(Some(self.patience)).map_err(Fault::Io)?;
        self.socket.write_all(packets.as_bytes()).map_err(|error| self.fault(error))?;
        let mut heard = Vec::new();
        for _ in commands {
            match self.answer(&mut heard, deadline)?.as_str() {
                "OK" => {}
                other => {
                    let said = if other.is_empty() { "it does not know of it" } else { other };
                    return Err(Fault::Refused { class: "gdb".to_owned(), description: quote(said) });
                }
            }
        }
        Ok(())
    }

    /// What is between `$` and `#`, of what was heard and is to come. Acknowledgements before it are skipped; its sum is not looked at, on a socket.
    fn answer(&mut self, heard: &mut Vec<u8>, deadline: Instant) -> Result<String, Fault> {
        loop {
            let packet = heard.iter().position(|byte| *byte == b'$');
            let end = heard.iter().position(|byte| *byte == b'#');
            if let (Some(begin), Some(end)) = (packet, end.filter(|end| end + 3 <= heard.len()))
                && begin < end
            {
                let answer = String::from_utf8_lossy(&heard[begin + 1..end]).into_owned();
                heard.drain(..end + 3);
                return Ok(answer);
            }
            if heard.len() > ANSWER_BYTES_MAX {
                return Err(Fault::TooLong(ANSWER_BYTES_MAX));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Fault::Patience(self.patience));
            }
            self.socket.set_read_timeout(Some(left)).map_err(Fault::Io)?;
            let mut bytes = [0; 256];
            match self.socket.read(&mut bytes) {
                Ok(0) => return Err(Fault::Closed),
                Ok(count) => heard.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.fault(error)),
            }
        }
    }

    fn fault(&self, error: std::io::Error) -> Fault {
        match error.kind() {
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => Fault::Patience(self.patience),
            std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset => Fault::Closed,
            _ => Fault::Io(error),
        }
    }
}

#[cfg(test)]
mod tests;
