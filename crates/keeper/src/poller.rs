//! Which sockets have something to say.

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Whose event it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Token {
    /// Somebody asks us to stop.
    Stop,
    /// The control socket.
    Console,
    /// A client of the control socket.
    Guest(u32),
    /// An ssd's listening socket.
    Listener(u32),
    /// An ssd's client.
    Client(u32),
    /// An ssd's link to the engine.
    Link(u32),
    /// An engine's control link.
    Control(u32),
    /// An engine's process.
    Process(u32),
    /// The process that looks whether it could be the next keeper.
    Checker,
    /// The process of the engine of the keeper before this one.
    Orphan,
    /// Somebody asks us to make room for another keeper.
    Leave,
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, number) = match self {
            Self::Stop => (0, 0),
            Self::Console => (1, 0),
            Self::Guest(number) => (2, number),
            Self::Listener(number) => (3, number),
            Self::Client(number) => (4, number),
            Self::Link(number) => (5, number),
            Self::Control(number) => (6, number),
            Self::Process(number) => (7, number),
            Self::Checker => (8, 0),
            Self::Orphan => (9, 0),
            Self::Leave => (10, 0),
        };
        kind << 32 | u64::from(number)
    }

    fn decode(word: u64) -> Option<Self> {
        let number = u32::try_from(word & u64::from(u32::MAX)).ok()?;
        Some(match word >> 32 {
            0 => Self::Stop,
            1 => Self::Console,
            2 => Self::Guest(number),
            3 => Self::Listener(number),
            4 => Self::Client(number),
            5 => Self::Link(number),
            6 => Self::Control(number),
            7 => Self::Process(number),
            8 => Self::Checker,
            9 => Self::Orphan,
            10 => Self::Leave,
            _ => return None,
        })
    }
}

/// An epoll instance that knows what it was told.
///
/// It watches duplicates of its own. A closed socket that lives on elsewhere (in the service manager's store, in another process) is reported for ever, since
/// the kernel forgets a socket with its last duplicate only, and takes the word of nobody who has no descriptor of it.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    known: HashMap<Token, Watched>,
}

#[derive(Debug)]
struct Watched {
    fd: OwnedFd,
    /// Input, output.
    interest: (bool, bool),
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, known: HashMap::new() })
    }

    /// Looks for input and for room at `fd` from now on. With neither, not even its end is reported: a socket that cannot be
    /// read now must not wake us.
    pub(crate) fn set(&mut self, token: Token, fd: impl AsFd, interest: (bool, bool)) {
        if interest == (false, false) {
            return self.closed(token);
        }
        if let Err(error) = self.watch(token, fd, interest) {
            tracing::error!(?token, %error, "a socket cannot be watched");
        }
    }

    fn watch(&mut self, token: Token, fd: impl AsFd, interest: (bool, bool)) -> rustix::io::Result<()> {
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN, interest.0);
        flags.set(epoll::EventFlags::OUT, interest.1);
        let data = epoll::EventData::new_u64(token.encode());
        match self.known.get_mut(&token) {
            Some(watched) if watched.interest == interest => {}
            Some(watched) => {
                epoll::modify(&self.epoll, &watched.fd, data, flags)?;
                watched.interest = interest;
            }
            None => {
                let fd = rustix::io::fcntl_dupfd_cloexec(fd, 0)?;
                epoll::add(&self.epoll, &fd, data, flags)?;
                self.known.insert(token, Watched { fd, interest });
            }
        }
        Ok(())
    }

    /// The descriptor behind `token` is closed, or about to be; another may take its place.
    pub(crate) fn closed(&mut self, token: Token) {
        if let Some(watched) = self.known.remove(&token)
            && let Err(error) = epoll::delete(&self.epoll, &watched.fd)
        {
            tracing::error!(?token, %error, "a socket is watched too long");
        }
    }

    /// Waits for events, at most so long.
    pub(crate) fn wait(&mut self, most: Option<Duration>) -> io::Result<Vec<Token>> {
        let timeout = most.and_then(|most| Timespec::try_from(most).ok());
        let mut events = Vec::with_capacity(64);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => events.clear(),
            Err(errno) => return Err(errno.into()),
        }
        Ok(events.iter().filter_map(|event| Token::decode(event.data.u64())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_as_it_went() {
        let numbered =
            [Token::Guest, Token::Listener, Token::Client, Token::Link, Token::Control, Token::Process];
        let all = numbered.iter().flat_map(|token| [0, 1, u32::MAX].map(token));
        for token in all.chain([Token::Stop, Token::Console, Token::Checker, Token::Orphan, Token::Leave]) {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(u64::MAX), None);
    }

    #[test]
    fn a_closed_socket_that_lives_on_elsewhere_is_silent_and_its_token_is_the_next_ones() {
        let mut poller = Poller::new().expect("epoll");
        let (one, other) = std::os::unix::net::UnixStream::pair().expect("pair");
        let _elsewhere = one.try_clone().expect("a duplicate");
        poller.set(Token::Client(1), &one, (true, false));
        drop((one, other));
        assert_eq!(poller.wait(Some(Duration::ZERO)).expect("waited"), [Token::Client(1)]);
        poller.closed(Token::Client(1));
        assert_eq!(poller.wait(Some(Duration::ZERO)).expect("waited"), []);
        let (next, its) = std::os::unix::net::UnixStream::pair().expect("pair");
        poller.set(Token::Client(1), &next, (true, false));
        assert_eq!(poller.wait(Some(Duration::ZERO)).expect("waited"), []);
        drop(its);
        assert_eq!(poller.wait(Some(Duration::ZERO)).expect("waited"), [Token::Client(1)]);
    }

    #[test]
    fn a_socket_of_no_interest_is_silent_even_when_its_peer_leaves() {
        let mut poller = Poller::new().expect("epoll");
        let (one, other) = std::os::unix::net::UnixStream::pair().expect("pair");
        poller.set(Token::Client(1), &one, (true, false));
        drop(other);
        assert_eq!(poller.wait(Some(Duration::ZERO)).expect("waited"), [Token::Client(1)]);
        poller.set(Token::Client(1), &one, (false, false));
        assert_eq!(poller.wait(Some(Duration::ZERO)).expect("waited"), []);
        poller.set(Token::Client(1), &one, (true, false));
        assert_eq!(poller.wait(Some(Duration::ZERO)).expect("waited"), [Token::Client(1)]);
    }
}
