//! The bounded queue from the reader to the worker.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::device::ClientFd;
use super::frame::Header;

/// The most commands that wait for the worker.
const COMMANDS_MAX: usize = 256;
/// The most payload bytes that wait, beyond those of one command.
const BYTES_MAX: usize = 2 << 20;
/// The most descriptors that wait, beyond those of one command.
const FDS_MAX: usize = 64;
/// How often whoever waits for room looks up.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// A message off the socket: its header is sound, the rest is not yet looked at.
#[derive(Debug)]
pub struct Message {
    /// Names it in its answer.
    pub seq: u64,
    /// Its header.
    pub header: Header,
    /// What follows the header.
    pub payload: Vec<u8>,
    /// The descriptors that came with it.
    pub fds: Vec<ClientFd>,
    /// More descriptors came than a message may carry; the surplus is closed.
    pub surplus_fds: bool,
}

/// What the worker does next.
#[derive(Debug)]
pub(crate) enum Work {
    /// A command of the client.
    Command(Message),
    /// Somebody in this process wants the worker.
    Nudge,
}

/// Commands in their order. A client that sends faster than the device answers is made to wait in its own socket.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    messages: VecDeque<Message>,
    bytes: usize,
    fds: usize,
    closed: bool,
    /// Nothing is handed out any more, for good.
    paused: bool,
    /// The worker is at a command, or at a nudge.
    at_work: bool,
    /// Somebody in this process wants the worker.
    nudged: bool,
}

impl Queue {
    /// Waits for room and appends; false when the queue is closed. `waiting` is called now and then meanwhile: whoever waits
    /// here reads nothing off the socket, not even its end.
    pub(crate) fn push(&self, message: Message, waiting: impl Fn()) -> bool {
        let full = |state: &mut State| {
            !state.closed
                && (state.messages.len() >= COMMANDS_MAX || state.bytes >= BYTES_MAX || state.fds >= FDS_MAX)
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while full(&mut state) {
            let (woken, timeout) = self
                .changed
                .wait_timeout_while(state, WAIT_MAX, full)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if timeout.timed_out() {
                drop(state);
                waiting();
                state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            }
        }
        if state.closed {
            return false;
        }
        state.bytes += message.payload.len();
        state.fds += message.fds.len();
        state.messages.push_back(message);
        self.changed.notify_all();
        true
    }

    /// Waits for the next command, or a nudge; `None` when the queue is closed and, unless it was cleared, empty.
    pub(crate) fn pop(&self) -> Option<Work> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = state;
        state.at_work = false;
        self.changed.notify_all();
        let nothing =
            |state: &mut State| state.paused || state.messages.is_empty() && !state.closed && !state.nudged;
        let mut state = self.changed.wait_while(state, nothing).unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut state.nudged) && !state.closed {
            state.at_work = true;
            return Some(Work::Nudge);
        }
        let message = state.messages.pop_front()?;
        state.at_work = true;
        state.bytes -= message.payload.len();
        state.fds -= message.fds.len();
        self.changed.notify_all();
        Some(Work::Command(message))
    }

    /// The worker is wanted, before the next command. Several at a time are one.
    pub(crate) fn nudge(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).nudged = true;
        self.changed.notify_all();
    }

    /// Takes no more; what waits is still handed out.
    pub(crate) fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.changed.notify_all();
    }

    /// Hands nothing out any more, and waits at most so long until the command or nudge at hand is over; false: it is not.
    pub(crate) fn pause(&self, patience: Duration) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.paused = true;
        let at_work = |state: &mut State| state.at_work && !state.closed;
        let waited = self.changed.wait_timeout_while(state, patience, at_work);
        !waited.unwrap_or_else(PoisonError::into_inner).0.at_work
    }

    /// Takes no more and drops what waits.
    pub(crate) fn close_and_clear(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (paused, at_work) = (state.paused, state.at_work);
        *state = State { closed: true, paused, at_work, ..State::default() };
        drop(state);
        self.changed.notify_all();
    }
}
