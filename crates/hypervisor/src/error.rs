//! What went wrong, of which QEMU, at which question.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Of what others wrote, an error quotes this much.
const QUOTE_CHARS_MAX: usize = 400;

/// What QEMU did not do, and why.
#[derive(Debug, thiserror::Error)]
#[error("QEMU at {}: {asked}: {fault}", socket.display())]
pub struct Error {
    /// The QMP socket.
    pub socket: PathBuf,
    /// What was asked of it: a command, or what was waited for.
    pub asked: String,
    /// What came of it.
    pub fault: Fault,
}

/// What can go wrong with a question to QEMU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// There is nobody at the socket, or not the right to speak to it.
    #[error("no connection: {0}")]
    NoConnection(io::Error),
    /// The socket failed.
    #[error("its socket failed: {0}")]
    Io(io::Error),
    /// QEMU has ended, or gave the connection up.
    #[error("it closed the connection")]
    Closed,
    /// Nothing came in time. A QEMU that is busy answers later; what it answers to a question given up is not mixed up with the next answer.
    #[error("no answer within {0:?}")]
    Patience(Duration),
    /// Nothing came at all, not even the greeting. A QMP socket has one client at a time.
    #[error("no greeting within {0:?}: is another client connected to it?")]
    NoGreeting(Duration),
    /// A line longer than any that is needed.
    #[error("it sent a line of more than {0} bytes")]
    TooLong(usize),
    /// More events than anybody takes.
    #[error("it sent more than {0} events at once")]
    TooManyEvents(usize),
    /// What it said is not QMP, or not what this command answers.
    #[error("it said what is not understood: {0}")]
    NotUnderstood(String),
    /// An earlier fault left half a line in the socket: connect anew.
    #[error("the connection broke at an earlier question: connect anew")]
    Broken,
    /// QEMU refused.
    #[error("it refused: {description} ({class})")]
    Refused {
        /// QEMU's class of the error, such as `GenericError` or `CommandNotFound`.
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// QEMU answered, and cannot do what is asked of it as it stands. The text says what to do.
    #[error("{0}")]
    Unfit(String),
}

impl Error {
    pub(crate) fn new(socket: &Path, asked: impl Into<String>, fault: Fault) -> Self {
        Error { socket: socket.to_owned(), asked: asked.into(), fault }
    }

    /// QEMU has answered: the connection is good, and other questions may be asked.
    pub fn is_an_answer(&self) -> bool {
        matches!(self.fault, Fault::Refused { .. } | Fault::Unfit(_))
    }
}

/// What another wrote, fit to be shown: short, and without control characters.
pub(crate) fn quote(text: impl fmt::Display) -> String {
    let text = text.to_string();
    let mut shown: String = text.chars().take(QUOTE_CHARS_MAX).flat_map(shown).collect();
    if text.chars().nth(QUOTE_CHARS_MAX).is_some() {
        shown.push_str("...");
    }
    shown
}

fn shown(letter: char) -> impl Iterator<Item = char> {
    let escaped = letter.is_control().then(|| letter.escape_default());
    let plain = escaped.is_none().then_some(letter);
    escaped.into_iter().flatten().chain(plain)
}
