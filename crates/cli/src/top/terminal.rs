//! The terminal: a screen of its own, keys without Enter, and all as before at the end.

use super::frame::{Line, Tone};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, Write as _, stdin, stdout};
use std::time::Duration;

/// Another screen, without a cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// Back to plain letters.
const PLAIN: &str = "\x1b[0m";

/// How a terminal says a tone; without colours (<https://no-color.org>), as far as it can be said.
fn code(tone: Tone, colours: bool) -> &'static str {
    match tone {
        Tone::Plain => "",
        Tone::Strong => "\x1b[1m",
        Tone::Head => "\x1b[7m",
        Tone::HeldBack if colours => "\x1b[33m",
        Tone::Wrong if colours => "\x1b[31m",
        Tone::HeldBack => "",
        Tone::Wrong => "\x1b[1m",
    }
}

/// What was pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Quit,
    Order,
    None,
}

/// See the module.
pub(super) struct Terminal {
    before: Termios,
    colours: bool,
}

impl Terminal {
    /// `None`: what we talk to is no terminal.
    pub(super) fn open() -> io::Result<Option<Self>> {
        if !isatty(stdin()) || !isatty(stdout()) {
            return Ok(None);
        }
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Drain, &raw)?;
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let terminal = Self { before, colours };
        stdout().write_all(ENTER.as_bytes())?;
        Ok(Some(terminal))
    }

    /// Columns and rows.
    pub(super) fn size(&self) -> (usize, usize) {
        match tcgetwinsize(stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            _ => (80, 24),
        }
    }

    /// Replaces what is shown, without a blank between.
    pub(super) fn show(&self, lines: &[Line]) -> io::Result<()> {
        let drawn = |line: &Line| match code(line.tone, self.colours) {
            "" => format!("{}\x1b[K", line.text),
            code => format!("{code}{}{PLAIN}\x1b[K", line.text),
        };
        let text = lines.iter().map(drawn).collect::<Vec<_>>().join("\r\n");
        let mut out = stdout().lock();
        out.write_all(format!("\x1b[H{text}\x1b[J").as_bytes())?;
        out.flush()
    }

    /// Waits for a key.
    pub(super) fn key(&self, patience: Duration) -> io::Result<Key> {
        let patience = Timespec::try_from(patience).map_err(io::Error::other)?;
        let stdin = stdin();
        let mut ready = [PollFd::new(&stdin, PollFlags::IN)];
        match poll(&mut ready, Some(&patience)) {
            Ok(0) | Err(Errno::INTR) => return Ok(Key::None),
            other => other?,
        };
        let mut bytes = [0; 16];
        let count = rustix::io::read(&stdin, &mut bytes)?;
        Ok(match bytes.get(..count).unwrap_or(&[]) {
            // The terminal is gone.
            [] => Key::Quit,
            // q, Q, control-C, control-D.
            [b'q' | b'Q' | 3 | 4, ..] => Key::Quit,
            [b's' | b'S', ..] => Key::Order,
            _ => Key::None,
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Whoever is gone needs no screen.
        let _ = stdout().write_all(LEAVE.as_bytes());
        let _ = stdout().flush();
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.before);
    }
}
