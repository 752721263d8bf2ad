//! QMP itself: one JSON object a line, a greeting first, then an answer to each command and events at any time.
//!
//! Every command carries a number that its answer repeats, so an answer that came too late is recognised.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use serde_json::{Value, json};

use crate::error::{Error, Fault, quote};

/// The longest line that is read. `query-pci` of a guest with a thousand devices is a quarter of it.
pub const LINE_BYTES_MAX: usize = 4 << 20;
/// Events that wait to be taken.
pub const EVENTS_MAX: usize = 4096;
/// Read from the socket at once.
const READ_BYTES: usize = 16 << 10;
const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// A listener whose queue is full is asked again after this.
const CONNECT_AGAIN: Duration = Duration::from_millis(10);

/// Something that happened in QEMU.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name, such as `MIGRATION` or `STOP`.
    pub name: String,
    /// What QEMU tells of it; null if nothing.
    pub data: Value,
    /// When, by the host's clock since 1970.
    pub at: Duration,
}

/// QEMU's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 11 of 11.1.3.
    pub major: u64,
    /// 1 of 11.1.3.
    pub minor: u64,
    /// 3 of 11.1.3.
    pub micro: u64,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// A connection past its greeting. Dropping it is no word to QEMU but that the socket is free for another client.
#[derive(Debug)]
pub struct Qmp {
    socket: UnixStream,
    path: PathBuf,
    version: Version,
    patience: Duration,
    /// Read, and not yet a whole line.
    pending: Vec<u8>,
    /// So much of it has no line's end.
    searched: usize,
    events: VecDeque<Event>,
    next_id: u64,
    broken: bool,
}

impl Qmp {
    /// Connects to QEMU's QMP socket and takes it through the greeting and `qmp_capabilities`. `patience` is for that, and for each command from then on.
    ///
    /// A QMP socket has one client at a time: while another has it, there is no greeting.
    pub fn connect(path: &Path, patience: Duration) -> Result<Qmp, Error> {
        let deadline = deadline(patience);
        let socket = dial(path, deadline)
            .map_err(|errno| Error::new(path, "connect", Fault::NoConnection(errno.into())))?;
        Qmp::over(socket, path, patience)
    }

    /// The same over a connection that is there, such as one that QEMU made. `path` is for the errors.
    pub fn over(socket: UnixStream, path: &Path, patience: Duration) -> Result<Qmp, Error> {
        let mut qmp = Qmp {
            socket,
            path: path.to_owned(),
            version: Version { major: 0, minor: 0, micro: 0 },
            patience,
            pending: Vec::new(),
            searched: 0,
            events: VecDeque::new(),
            next_id: 0,
            broken: false,
        };
        let fail = |fault| Error::new(path, "greeting", fault);
        qmp.socket.set_nonblocking(true).map_err(|error| fail(Fault::Io(error)))?;
        let greeting = match qmp.message(deadline(patience)) {
            Ok(Some(greeting)) => greeting,
            Ok(None) => return Err(fail(Fault::NoGreeting(patience))),
            Err(fault) => return Err(fail(fault)),
        };
        qmp.version = version(&greeting).ok_or_else(|| fail(Fault::NotUnderstood(quote(&greeting))))?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As QEMU greeted.
    pub fn version(&self) -> Version {
        self.version
    }

    /// How long each command may take.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// How long each command may take from now on.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Executes a command; what it returned. Events met on the way are kept.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        self.ask(command, arguments, None).map_err(|fault| self.error(command, fault))
    }

    /// The same with a patience of its own.
    pub fn execute_within(
        &mut self,
        patience: Duration,
        command: &str,
        arguments: Value,
    ) -> Result<Value, Error> {
        let usual = std::mem::replace(&mut self.patience, patience);
        let said = self.execute(command, arguments);
        self.patience = usual;
        said
    }

    /// Executes commands of which none waits for another's answer: all are sent at once, and QEMU does them in this order, each whatever came of those before it. The patience is for
    /// all of them.
    pub(crate) fn execute_all<const N: usize>(
        &mut self,
        commands: [(&str, Value); N],
    ) -> [Result<Value, Error>; N] {
        let deadline = deadline(self.patience);
        let sent =
            commands.map(|(name, arguments)| (name, self.send_command(name, arguments, None, deadline)));
        sent.map(|(name, sent)| self.answer(sent, deadline).map_err(|fault| self.error(name, fault)))
    }

    /// Executes a command that takes a descriptor along, as `getfd` does. QEMU gets a duplicate.
    pub fn execute_with_fd(
        &mut self,
        command: &str,
        arguments: Value,
        fd: BorrowedFd<'_>,
    ) -> Result<Value, Error> {
        self.ask(command, arguments, Some(fd)).map_err(|fault| self.error(command, fault))
    }

    /// A command of QEMU's human monitor; what it printed. It reports its errors there, in words.
    pub fn human(&mut self, line: &str) -> Result<String, Error> {
        self.human_all([line]).remove(0)
    }

    /// Several as [`Qmp::execute_all`] does them.
    pub(crate) fn human_all<'a>(
        &mut self,
        lines: impl IntoIterator<Item = &'a str>,
    ) -> Vec<Result<String, Error>> {
        let deadline = deadline(self.patience);
        let send = |line| {
            let arguments = json!({ "command-line": line });
            (line, self.send_command("human-monitor-command", arguments, None, deadline))
        };
        let sent: Vec<_> = lines.into_iter().map(send).collect();
        let said = |(line, sent): (&str, _)| {
            let said = self.answer(sent, deadline).and_then(|said| match said {
                Value::String(said) => Ok(said),
                other => Err(Fault::NotUnderstood(quote(other))),
            });
            said.map_err(|fault| self.error(line, fault))
        };
        sent.into_iter().map(said).collect()
    }

    /// The next event, in QEMU's order; `None` if there is none within `patience`. Zero looks at what has come.
    pub fn event(&mut self, patience: Duration) -> Result<Option<Event>, Error> {
        self.next_event(deadline(patience)).map_err(|fault| self.error("wait for an event", fault))
    }

    pub(crate) fn error(&self, asked: impl Into<String>, fault: Fault) -> Error {
        Error::new(&self.path, asked, fault)
    }

    fn ask(&mut self, command: &str, arguments: Value, fd: Option<BorrowedFd<'_>>) -> Result<Value, Fault> {
        let deadline = deadline(self.patience);
        let sent = self.send_command(command, arguments, fd, deadline);
        self.answer(sent, deadline)
    }

    /// The number that its answer will have.
    fn send_command(
        &mut self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<u64, Fault> {
        if self.broken {
            return Err(Fault::Broken);
        }
        self.next_id += 1;
        let id = self.next_id;
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        self.send(line.as_bytes(), fd, deadline).map(|()| id)
    }

    /// What is answered to a command that was sent. Answers are asked for in the order of their commands.
    fn answer(&mut self, sent: Result<u64, Fault>, deadline: Instant) -> Result<Value, Fault> {
        let id = sent?;
        loop {
            if self.broken {
                return Err(Fault::Broken);
            }
            let Some(mut message) = self.message(deadline)? else {
                return Err(Fault::Patience(self.patience));
            };
            if is_event(&message) {
                self.keep(message)?;
            } else if let Some(refused) = message.get("error").filter(|_| answers(&message, id)) {
                return Err(refusal(refused));
            } else if answers(&message, id)
                && let Some(value) = message.get_mut("return")
            {
                return Ok(value.take());
            } else if !answers_earlier(&message, id) {
                return Err(Fault::NotUnderstood(quote(message)));
            }
        }
    }

    fn next_event(&mut self, deadline: Instant) -> Result<Option<Event>, Fault> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            if self.broken {
                return Err(Fault::Broken);
            }
            let Some(message) = self.message(deadline)? else { return Ok(None) };
            if is_event(&message) {
                self.keep(message)?;
            } else if !answers_earlier(&message, self.next_id + 1) {
                return Err(Fault::NotUnderstood(quote(message)));
            }
        }
    }

    fn keep(&mut self, mut message: Value) -> Result<(), Fault> {
        if self.events.len() == EVENTS_MAX {
            self.broken = true;
            return Err(Fault::TooManyEvents(EVENTS_MAX));
        }
        let name = message["event"].as_str().unwrap_or_default().to_owned();
        let part = |name: &str| message["timestamp"][name].as_u64().unwrap_or(0);
        let at =
            Duration::from_secs(part("seconds")).saturating_add(Duration::from_micros(part("microseconds")));
        self.events.push_back(Event { name, data: message["data"].take(), at });
        Ok(())
    }

    /// The next message, or none in time. After any other fault the connection is of no use.
    fn message(&mut self, deadline: Instant) -> Result<Option<Value>, Fault> {
        let message = self.line(deadline).and_then(|line| match line {
            Some(line) => serde_json::from_slice(&line)
                .ok()
                .filter(Value::is_object)
                .map(Some)
                .ok_or_else(|| Fault::NotUnderstood(quote(String::from_utf8_lossy(&line)))),
            None => Ok(None),
        });
        self.broken |= message.is_err();
        message
    }

    fn line(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>, Fault> {
        loop {
            if let Some(at) = self.pending[self.searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.pending.split_off(self.searched + at + 1);
                self.searched = 0;
                return Ok(Some(std::mem::replace(&mut self.pending, rest)));
            }
            self.searched = self.pending.len();
            if self.searched > LINE_BYTES_MAX {
                return Err(Fault::TooLong(LINE_BYTES_MAX));
            }
            // What has come is read even when the time is over.
            match self.receive() {
                Ok(0) => return Err(Fault::Closed),
                Ok(_) => {}
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if Instant::now() >= deadline => return Ok(None),
                Err(Errno::AGAIN) => {
                    wait(&self.socket, PollFlags::IN, deadline).map_err(|errno| Fault::Io(errno.into()))?;
                }
                Err(Errno::CONNRESET) => return Err(Fault::Closed),
                Err(errno) => return Err(Fault::Io(errno.into())),
            }
        }
    }

    fn receive(&mut self) -> Result<usize, Errno> {
        let mut bytes = [0; READ_BYTES];
        let (count, _) = rustix::net::recv(&self.socket, &mut bytes[..], RecvFlags::empty())?;
        self.pending.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn send(&mut self, line: &[u8], mut fd: Option<BorrowedFd<'_>>, deadline: Instant) -> Result<(), Fault> {
        let mut rest = line;
        while !rest.is_empty() {
            match send_some(&self.socket, rest, fd) {
                Ok(count) => {
                    // It went with the first byte.
                    fd = None;
                    rest = &rest[count..];
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) if Instant::now() < deadline => {}
                Err(errno) => {
                    let fault = match errno {
                        Errno::AGAIN => Fault::Patience(self.patience),
                        Errno::PIPE | Errno::CONNRESET => Fault::Closed,
                        errno => Fault::Io(errno.into()),
                    };
                    self.broken |= errno != Errno::AGAIN || rest.len() < line.len();
                    return Err(fault);
                }
            }
            wait(&self.socket, PollFlags::OUT, deadline).map_err(|errno| Fault::Io(errno.into()))?;
        }
        Ok(())
    }
}

/// The end of a patience, which may be as good as endless.
pub(crate) fn deadline(patience: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(patience).unwrap_or(now + A_YEAR)
}

fn dial(path: &Path, deadline: Instant) -> Result<UnixStream, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(socket.into()),
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => {}
            Err(errno) => return Err(errno),
        }
        std::thread::sleep(CONNECT_AGAIN);
    }
}

fn send_some(socket: &UnixStream, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<usize, Errno> {
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::INVAL);
    }
    let slices = [io::IoSlice::new(bytes)];
    rustix::net::sendmsg(socket, &slices, &mut ancillary, SendFlags::NOSIGNAL)
}

/// Until the socket is ready, something interrupts, or the time is over.
fn wait(socket: &UnixStream, flags: PollFlags, deadline: Instant) -> Result<(), Errno> {
    let left = deadline.saturating_duration_since(Instant::now());
    let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 60, tv_nsec: 0 });
    match poll(&mut [PollFd::from_borrowed_fd(socket.as_fd(), flags)], Some(&left)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn version(greeting: &Value) -> Option<Version> {
    let qemu = &greeting["QMP"]["version"]["qemu"];
    let number = |name: &str| qemu[name].as_u64();
    Some(Version { major: number("major")?, minor: number("minor")?, micro: number("micro")? })
}

fn is_event(message: &Value) -> bool {
    message["event"].is_string()
}

fn answers(message: &Value, id: u64) -> bool {
    message["id"] == id
}

/// An answer that nobody waits for any more.
fn answers_earlier(message: &Value, id: u64) -> bool {
    message["id"].as_u64().is_some_and(|answered| answered < id)
}

fn refusal(error: &Value) -> Fault {
    let word = |name: &str| quote(error[name].as_str().unwrap_or("no word of it"));
    Fault::Refused { class: word("class"), description: word("desc") }
}

#[cfg(test)]
mod tests;
