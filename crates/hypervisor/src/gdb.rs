//! QEMU's server for debuggers, of which Godwit wants one thing that neither QMP nor the human monitor has: writes to the guest's physical memory, devices' registers too.
//!
//! QEMU is handed one end of a socket pair, so nobody else can connect. The server is there from [`Gdb::start`] to [`Gdb::finish`] or [`Gdb::give_up`].

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

/// A write: to where, and what.
pub(crate) type Write = (u64, Vec<u8>);

/// Has QEMU take addresses for a processor's again: it keeps that beyond the server's end.
const PUT_BACK: &str = "Qqemu.PhyMemMode:0";

/// A debugger's connection to QEMU.
#[derive(Debug)]
pub(crate) struct Gdb {
    socket: UnixStream,
    patience: Duration,
    /// Nothing more is asked: an answer is still to come, or none will.
    broken: bool,
}

impl Gdb {
    #[cfg(test)]
    pub(crate) fn over(socket: UnixStream, patience: Duration) -> Gdb {
        Gdb { socket, patience, broken: false }
    }

    /// Starts a debugger's server and connects to it. The guest must not run: it is stopped by a debugger that connects. One that has not come yet is none the worse for it.
    pub(crate) fn start(qmp: &mut Qmp) -> Result<Gdb, Error> {
        let chardevs = qmp.execute("query-chardev", json!({}))?;
        let mut labels = chardevs.as_array().into_iter().flatten().map(|one| &one["label"]);
        if labels.clone().any(|label| label == OTHERS_NAME) {
            let text =
                "a debugger's server runs (gdbserver, -gdb or -s): end it with 'gdbserver none'".to_owned();
            return Err(qmp.error("write to the guest's memory", Fault::Unfit(text)));
        }
        if labels.any(|label| label == NAME) {
            // Of one who was killed at this.
            end(qmp)?;
        }
        let pair = UnixStream::pair();
        let (socket, theirs) =
            pair.map_err(|error| qmp.error("start a debugger's server", Fault::Io(error)))?;
        qmp.execute_with_fd("getfd", json!({ "fdname": NAME }), theirs.as_fd())?;
        let address = json!({ "type": "fd", "data": { "str": NAME } });
        let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
        qmp.execute("chardev-add", json!({ "id": NAME, "backend": backend }))?;
        // It has a duplicate of its own: what is left here would keep the line from ending when QEMU does.
        drop(theirs);
        let mut gdb = Gdb { socket, patience: qmp.patience(), broken: false };
        match gdb.connect(qmp) {
            Ok(()) => Ok(gdb),
            Err(error) => {
                gdb.give_up(qmp);
                Err(error)
            }
        }
    }

    fn connect(&mut self, qmp: &mut Qmp) -> Result<(), Error> {
        let said = qmp.human(&format!("gdbserver chardev:{NAME}"))?;
        self.ask(&["Qqemu.PhyMemMode:1".to_owned()]).map_err(|fault| {
            let fault = Fault::NotUnderstood(format!("{}; {fault}", quote(said.trim())));
            qmp.error("start a debugger's server", fault)
        })
    }

    /// Writes to physical memory, in this order: each from its beginning on, with the widest accesses that a device takes. All are sent before the first answer is waited for.
    ///
    /// # Errors
    /// Of the first that was not done; those behind it may have been.
    pub(crate) fn write(&mut self, writes: impl IntoIterator<Item = Write>) -> Result<(), Fault> {
        self.ask(&writes.into_iter().map(command).collect::<Vec<_>>())
    }

    /// The last writes, and the end of the server whatever came of them; then QEMU's human monitor is asked what is `looks`. What it said to each.
    pub(crate) fn finish(
        mut self,
        qmp: &mut Qmp,
        writes: impl IntoIterator<Item = Write>,
        looks: &[String],
    ) -> Result<Vec<String>, Error> {
        let commands = writes.into_iter().map(command).chain([PUT_BACK.to_owned()]);
        let written = self.ask(&commands.collect::<Vec<_>>());
        if let Err(fault) = written {
            let error = qmp.error("write to the guest's memory", fault);
            // It may be there still: the first error is the one to be told.
            let _ = end(qmp);
            return Err(error);
        }
        let mut said =
            qmp.human_all(std::iter::once("gdbserver none").chain(looks.iter().map(String::as_str)));
        // The character device goes with the server.
        said.remove(0)?;
        said.into_iter().collect()
    }

    /// Ends the server, if it can be, after something else has failed: what that was is to be told, and not this.
    pub(crate) fn give_up(mut self, qmp: &mut Qmp) {
        let _ = self.ask(&[PUT_BACK.to_owned()]);
        let _ = end(qmp);
    }

    fn ask(&mut self, commands: &[String]) -> Result<(), Fault> {
        if self.broken {
            return Err(Fault::Broken);
        }
        let asked = self.ask_all(commands);
        // An answer that comes later would be taken for the next one's.
        self.broken = asked.as_ref().is_err_and(|fault| !matches!(fault, Fault::Refused { .. }));
        asked
    }

    /// Commands whose answers are OK. The acknowledgement of an answer follows its command at once: nothing is ever sent again on a socket.
    fn ask_all(&mut self, commands: &[String]) -> Result<(), Fault> {
        let deadline = qmp::deadline(self.patience);
        let packet = |command: &String| {
            let sum = command.bytes().fold(0u8, u8::wrapping_add);
            format!("${command}#{sum:02x}+")
        };
        let packets: String = commands.iter().map(packet).collect();
        self.socket.set_write_timeout(Some(self.patience)).map_err(Fault::Io)?;
        self.socket.write_all(packets.as_bytes()).map_err(|error| self.fault(error))?;
        let mut heard = Vec::new();
        let mut done = Ok(());
        for _ in commands {
            let answer = self.answer(&mut heard, deadline)?;
            if answer != "OK" && done.is_ok() {
                let said = if answer.is_empty() { "it does not know of it" } else { &answer };
                done = Err(Fault::Refused { class: "gdb".to_owned(), description: quote(said) });
            }
        }
        done
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

fn command((address, bytes): Write) -> String {
    use std::fmt::Write as _;
    let mut command = format!("M{address:x},{:x}:", bytes.len());
    for byte in bytes {
        let _ = write!(command, "{byte:02x}");
    }
    command
}

/// Ends a server that may not have come to be. The character device goes with it, if the server had taken it.
fn end(qmp: &mut Qmp) -> Result<(), Error> {
    qmp.human("gdbserver none")?;
    match qmp.execute("chardev-remove", json!({ "id": NAME })) {
        Err(error) if !error.is_an_answer() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
