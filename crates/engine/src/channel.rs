//! A client's session over the link to the keeper, which has the client's socket.

use frontend::vfio_user::frame::{HEADER_BYTES, Header};
use frontend::vfio_user::{Channel, ClientFd, Deposit, Errno, Fault, Message, Reply};
use link::LinkError;
use link::session::{self, Answer, EngineFds, Receiver, Restore, Sender, ToEngine};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// See the module.
#[derive(Debug)]
pub(crate) struct LinkChannel {
    receiver: Mutex<Receiver>,
    sender: Sender,
    /// The link once more, to look at without reading.
    probe: OwnedFd,
    /// This process ends the session because it is told to stop.
    stopping: AtomicBool,
}

impl LinkChannel {
    /// Takes a link and what a predecessor left of the session.
    ///
    /// # Errors
    /// The keeper is gone, or speaks otherwise.
    pub(crate) fn open(link: OwnedFd) -> Result<(Arc<Self>, Restore), LinkError> {
        let os = |error: std::io::Error| LinkError::Io(Errno::from_io_error(&error).unwrap_or(Errno::MFILE));
        let probe = link.try_clone().map_err(os)?;
        let (mut receiver, sender) = session::open(link).map_err(os)?;
        let restore = match receiver.receive()? {
            Some(ToEngine::Restore(restore)) => restore,
            _ => return Err(LinkError::Truncated),
        };
        let (receiver, stopping) = (Mutex::new(receiver), AtomicBool::new(false));
        Ok((Arc::new(Self { receiver, sender, probe, stopping }), restore))
    }

    /// Ends the session in this process.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.sender.shut_down();
    }

    /// The keeper's end is gone altogether: not the client has left, but the keeper.
    pub(crate) fn is_orphaned(&self) -> bool {
        !self.is_shut_down() && self.revents().contains(PollFlags::HUP)
    }

    /// The next command of the client, whole, whatever it speaks; `None` when there are no more.
    ///
    /// # Errors
    /// The keeper speaks otherwise.
    pub(crate) fn command(&self) -> Result<Option<session::Command>, LinkError> {
        let mut receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        match receiver.receive()? {
            Some(ToEngine::Command(command)) => Ok(Some(command)),
            Some(_) => Err(LinkError::Nonsense("no command")),
            None => Ok(None),
        }
    }

    /// The atomic step.
    ///
    /// # Errors
    /// The keeper is gone.
    pub(crate) fn done(&self, answer: &Answer) -> Result<(), LinkError> {
        self.sender.answer(answer)
    }

    fn revents(&self) -> PollFlags {
        let mut fds = [PollFd::new(&self.probe, PollFlags::RDHUP)];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(_) => fds[0].revents(),
            Err(_) => PollFlags::empty(),
        }
    }
}

impl Channel for LinkChannel {
    fn receive(&self) -> Result<Message, Fault> {
        let mut receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        match receiver.receive() {
            Ok(Some(ToEngine::Command(command))) => {
                let fds = command.fds.into_iter().map(|(id, fd)| ClientFd { id, fd }).collect();
                message(command.seq, command.frame, fds, command.surplus_fds)
            }
            Ok(Some(ToEngine::Reply { frame })) => message(0, frame, Vec::new(), false),
            Ok(Some(ToEngine::Restore(_))) => Err(Fault::Io(Errno::PROTO)),
            Ok(None) => Err(if self.is_shut_down() { Fault::Shutdown } else { Fault::Closed }),
            Err(error) => Err(fault(&error)),
        }
    }

    fn answer(&self, seq: u64, reply: Option<&Reply>, deposit: Option<Deposit>) -> Result<(), Fault> {
        let fd = reply.and_then(|reply| reply.fd.clone());
        let made = deposit.as_ref().map_or(&[][..], |deposit| &deposit.made);
        // Ids count up from the client's descriptor, if there is one; only those after it are kept.
        let first = made.first().map_or(0, |made| made.id.wrapping_sub(u32::from(fd.is_some())));
        let for_client = usize::from(fd.is_some());
        let made = made.iter().map(|made| Arc::clone(&made.fd));
        let fds = EngineFds { first, for_client, fds: fd.into_iter().chain(made).collect() };
        let deposit = deposit.map(|deposit| session::Deposit { bytes: deposit.bytes, keep: deposit.keep });
        let reply = reply.map_or_else(Vec::new, |reply| reply.bytes.clone());
        self.sender.answer(&Answer { seq, reply, deposit, fds }).map_err(|error| fault(&error))
    }

    fn requests(&self, frames: Vec<Vec<u8>>) -> Result<(), Fault> {
        self.sender.requests(frames).map_err(|error| fault(&error))
    }

    fn hang_up(&self) {
        // Of a client that has left already the keeper knows.
        let _ = self.sender.hang_up();
    }

    fn is_shut_down(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn peer_hung_up(&self) -> bool {
        self.revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
    }
}

fn message(seq: u64, frame: Vec<u8>, fds: Vec<ClientFd>, surplus_fds: bool) -> Result<Message, Fault> {
    let header = frame.first_chunk::<HEADER_BYTES>().ok_or(Fault::Truncated)?;
    let header = Header::parse(header).map_err(Fault::Broken)?;
    let payload = frame.get(HEADER_BYTES..).unwrap_or(&[]).to_vec();
    Ok(Message { seq, header, payload, fds, surplus_fds })
}

fn fault(error: &LinkError) -> Fault {
    match error {
        LinkError::Gone => Fault::Closed,
        LinkError::Truncated => Fault::Truncated,
        LinkError::Io(errno) => Fault::Io(*errno),
        LinkError::TooLarge(_) => Fault::Io(Errno::MSGSIZE),
        _ => Fault::Io(Errno::PROTO),
    }
}
