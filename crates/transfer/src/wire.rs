//! One connection: frames in order, in both directions, over anything that reads and writes.

use std::io::{self, BufReader, ErrorKind, IoSlice, Read, Write};

use crate::frame::{Cancel, Damage, Frame, HEAD_BYTES, Head, Kind, Scope};

/// Room for small frames that are read at once.
const READ_BYTES: usize = 64 << 10;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The other side closed it between two frames.
    #[error("the other side closed the connection")]
    Closed,
    /// It ended inside a frame.
    #[error("the connection broke inside a frame")]
    Torn,
    /// Nothing came, or nothing went, for as long as the socket waits.
    #[error("the other side did not answer in time")]
    Stalled,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[source] io::Error),
    /// What came is not sound.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// The other side gives the migration up.
    #[error("the other side gives up ({:?}): {}", .0.reason, .0.text)]
    Cancelled(Cancel),
    /// The other side's own migration, or another connection of this stream, took over.
    #[error("{0}")]
    Superseded(&'static str),
    /// The plan does not fit what was prepared.
    #[error("the plan is refused: {0}")]
    Refused(String),
    /// The drive that pages are written to failed.
    #[error("cannot write what arrived: {0}")]
    Sink(#[source] io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::Stalled,
            ErrorKind::UnexpectedEof | ErrorKind::WriteZero => Self::Torn,
            _ => Self::Io(error),
        }
    }
}

/// Which frames may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The first one, of who receives pages: hello.
    Hello,
    /// The second: the plan.
    Plan,
    /// All else that a sender of pages says.
    Pages,
    /// The first one, of who sends pages: welcome.
    Welcome,
    /// All else that a receiver says.
    Answers,
}

impl Stage {
    fn next(self, kind: Kind) -> Option<Self> {
        match (self, kind) {
            // Whoever has not said which migration it is about ends none.
            (Self::Hello, Kind::Cancel) => None,
            (_, Kind::Cancel) => Some(self),
            (Self::Hello, Kind::Hello) => Some(Self::Plan),
            (Self::Plan, Kind::Plan) => Some(Self::Pages),
            (Self::Pages, Kind::Data | Kind::Map | Kind::State | Kind::Barrier | Kind::Pace | Kind::End) => {
                Some(self)
            }
            (Self::Welcome, Kind::Welcome) => Some(Self::Answers),
            (Self::Answers, Kind::Ack | Kind::Pace) => Some(self),
            _ => None,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Wire<C> {
    connection: BufReader<C>,
    stage: Stage,
    scope: Option<Scope>,
    sent: u64,
    received: u64,
    body: Vec<u8>,
    out: Vec<u8>,
}

impl<C: Read + Write> Wire<C> {
    /// The side that sends pages.
    #[must_use]
    pub fn sender(connection: C) -> Self {
        Self::new(connection, Stage::Welcome)
    }

    /// The side that receives them.
    #[must_use]
    pub fn receiver(connection: C) -> Self {
        Self::new(connection, Stage::Hello)
    }

    fn new(connection: C, stage: Stage) -> Self {
        let connection = BufReader::with_capacity(READ_BYTES, connection);
        Self { connection, stage, scope: None, sent: 0, received: 0, body: Vec::new(), out: Vec::new() }
    }

    /// From here on there can be data, and it lies in this.
    pub fn set_scope(&mut self, scope: Scope) {
        self.scope = Some(scope);
    }

    /// Sends a frame; returns its bytes.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn send(&mut self, frame: &Frame<'_>) -> Result<u64, Fault> {
        let tail = frame.encode(self.sent, &mut self.out)?;
        self.sent += 1;
        write_all(self.connection.get_mut(), &self.out, tail)?;
        Ok((self.out.len() + tail.len()) as u64)
    }

    /// What was sent is on its way.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn flush(&mut self) -> Result<(), Fault> {
        Ok(self.connection.get_mut().flush()?)
    }

    /// Says why this side gives up, and takes what is still coming until the other side has heard it and closes: a connection that is closed with
    /// something unread may lose what was said last. Takes so many bytes at most, and no longer than the socket waits for each.
    pub fn part(&mut self, cancel: Cancel, bytes_max: u64) {
        if self.send(&Frame::Cancel(cancel)).and_then(|_| self.flush()).is_ok() {
            let _ = io::copy(&mut self.connection.by_ref().take(bytes_max), &mut io::sink());
        }
    }

    /// The next frame. A cancel of the other side's is a fault.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn receive(&mut self) -> Result<Frame<'_>, Fault> {
        let mut head = [0; HEAD_BYTES];
        let mut at = 0;
        while at < HEAD_BYTES {
            match self.connection.read(&mut head[at..]) {
                Ok(0) if at == 0 => return Err(Fault::Closed),
                Ok(0) => return Err(Fault::Torn),
                Ok(count) => at += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        let head = Head::parse(&head, self.received)?;
        let stage = self.stage.next(head.kind()).ok_or(Damage::Order(head.kind()))?;
        self.body.resize(head.bytes(), 0);
        self.connection.read_exact(&mut self.body)?;
        let frame = head.body(&self.body, self.scope.as_ref())?;
        self.received += 1;
        self.stage = stage;
        match frame {
            Frame::Cancel(cancel) => Err(Fault::Cancelled(cancel)),
            frame => Ok(frame),
        }
    }
}

/// Both stretches, by one call where the connection takes them.
fn write_all(to: &mut impl Write, first: &[u8], second: &[u8]) -> io::Result<()> {
    let mut slices = [IoSlice::new(first), IoSlice::new(second)];
    let mut rest = &mut slices[..];
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match to.write_vectored(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut rest, count),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
