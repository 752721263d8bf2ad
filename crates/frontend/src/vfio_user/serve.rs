//! One connection, two threads: a reader that sorts messages, a worker that carries commands out.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use super::channel::{Channel, Fault};
use super::device::{Device, Negotiated};
use super::frame::BrokenStream;
use super::queue::{Queue, Work};
use super::remote::RemoteMemory;
use super::session::{Limits, Session};
use super::shutdown::Shutdown;
use super::transport::Transport;

/// Stack of a session's threads: nothing recurses, buffers are on the heap.
pub(crate) const STACK_BYTES: usize = 128 << 10;

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndReason {
    /// The client closed the connection.
    #[error("the client closed the connection")]
    Disconnected,
    /// The client closed the connection inside a message.
    #[error("the client closed the connection inside a message")]
    Truncated,
    /// A message's size makes no sense.
    #[error("{0}")]
    Broken(BrokenStream),
    /// The client took too long to complete a message.
    #[error("the client took too long to complete a message")]
    Slow,
    /// The client did not read what was sent to it.
    #[error("the client did not read its replies")]
    Unread,
    /// The client speaks another version of the protocol.
    #[error("the client speaks another version of the protocol")]
    Version,
    /// The shutdown handle was triggered.
    #[error("shut down")]
    Shutdown,
    /// The socket failed, or no thread could be started.
    #[error("{0}")]
    Failed(Errno),
}

/// How a session went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionEnd {
    /// Why it ended.
    pub reason: EndReason,
    /// Commands carried out or refused.
    pub commands: u64,
    /// Commands answered with an error.
    pub refused: u64,
    /// Replies that nobody had asked for.
    pub unasked_replies: u64,
}

/// A connected client, not yet served.
#[derive(Debug)]
pub struct Connection {
    channel: Arc<dyn Channel>,
    remote: RemoteMemory,
    queue: Arc<Queue>,
    limits: Limits,
}

/// Stops a session's worker between two commands.
#[derive(Debug, Clone)]
pub struct Pause(Arc<Queue>);

impl Pause {
    /// From now on no command is begun, for good. Waits at most so long until the command at hand is answered; false: it is
    /// not, and may still take effect.
    pub fn pause(&self, patience: Duration) -> bool {
        self.0.pause(patience)
    }
}

/// Calls for a session's worker between two commands.
#[derive(Debug, Clone)]
pub struct Nudge(Arc<Queue>);

impl Nudge {
    /// [`Device::nudged`] is called soon, by the worker, once for all nudges until then; not any more once the session is over or paused.
    pub fn nudge(&self) {
        self.0.nudge();
    }
}

impl Connection {
    /// Takes a connected socket. It is served until the client leaves or `shutdown` is triggered.
    pub fn new(stream: UnixStream, limits: Limits, shutdown: &Shutdown) -> Self {
        let transport = Transport::new(stream, shutdown.clone(), limits.frame_time, limits.send_time);
        Self::over(Arc::new(transport), limits)
    }

    /// Takes any channel to a client.
    pub fn over(channel: Arc<dyn Channel>, limits: Limits) -> Self {
        let remote = RemoteMemory::new(Arc::clone(&channel), limits.remote_time);
        Self { channel, remote, queue: Arc::default(), limits }
    }

    /// Stops the session's worker, from another thread.
    pub fn pauser(&self) -> Pause {
        Pause(Arc::clone(&self.queue))
    }

    /// Calls for the session's worker, from another thread.
    pub fn nudger(&self) -> Nudge {
        Nudge(Arc::clone(&self.queue))
    }

    /// Reaches this client's memory by messages, once it is being served.
    pub fn remote_memory(&self) -> RemoteMemory {
        self.remote.clone()
    }

    pub(crate) fn channel(&self) -> Arc<dyn Channel> {
        Arc::clone(&self.channel)
    }

    /// Serves the client. The calling thread becomes the worker; the reader is a thread of its own.
    ///
    /// When this returns, the socket is hung up, every [`RemoteMemory`] of the session fails at once and no descriptor of
    /// the client is left in the session. What the device was given is the device's: the caller unmaps and drops
    /// interrupts (vfio-user.rst, "Client Disconnection").
    pub fn serve(self, device: &mut dyn Device) -> SessionEnd {
        self.resume(None, [], device)
    }

    /// As [`Connection::serve`], for a client that a predecessor of this process served before: what was agreed on, and the DMA
    /// maps (address, length) there are.
    pub fn resume(
        self,
        negotiated: Option<Negotiated>,
        maps: impl IntoIterator<Item = (u64, u64)>,
        device: &mut dyn Device,
    ) -> SessionEnd {
        let mut session = Session::resumed(&self.limits, negotiated, maps);
        let shared = Shared {
            channel: self.channel,
            remote: self.remote,
            queue: self.queue,
            reason: OnceLock::new(),
            log: LogBudget { left: AtomicU32::new(self.limits.log_lines_max) },
            unasked_replies: AtomicU64::new(0),
        };
        let mut end =
            SessionEnd { reason: EndReason::Disconnected, commands: 0, refused: 0, unasked_replies: 0 };
        thread::scope(|scope| {
            // Also when the device panics: the reader must not be left waiting, the scope waits for it.
            let _close = CloseOnDrop(&shared);
            let reader = thread::Builder::new().name("vfu-reader".into()).stack_size(STACK_BYTES);
            if let Err(error) = reader.spawn_scoped(scope, || read(&shared)) {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::AGAIN);
                shared.end(EndReason::Failed(errno));
                return;
            }
            work(&shared, &mut session, device, &mut end);
        });
        end.reason = shared.reason.get().copied().unwrap_or(EndReason::Disconnected);
        end.unasked_replies = shared.unasked_replies.load(Ordering::Relaxed);
        tracing::info!(
            reason = %end.reason, commands = end.commands, refused = end.refused,
            unasked_replies = end.unasked_replies, "vfio-user session ended"
        );
        end
    }
}

/// Serves one connected client with the default limits until it leaves or `shutdown` is triggered.
pub fn serve(stream: UnixStream, device: &mut dyn Device, shutdown: &Shutdown) -> SessionEnd {
    Connection::new(stream, Limits::default(), shutdown).serve(device)
}

struct Shared {
    channel: Arc<dyn Channel>,
    remote: RemoteMemory,
    queue: Arc<Queue>,
    /// The first reason counts.
    reason: OnceLock<EndReason>,
    log: LogBudget,
    unasked_replies: AtomicU64,
}

impl Shared {
    fn end(&self, reason: EndReason) {
        let _ = self.reason.set(reason);
    }

    /// For a reader that waits for room in the queue. A device call that waits for client memory, and with it the queue, ends
    /// when nobody will answer any more.
    fn end_if_over(&self) {
        if self.channel.is_shut_down() {
            self.end(EndReason::Shutdown);
            self.remote.close();
            self.queue.close_and_clear();
        } else if self.channel.peer_hung_up() {
            self.remote.close();
        }
    }
}

struct CloseOnDrop<'a>(&'a Shared);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.remote.close();
        self.0.queue.close_and_clear();
        self.0.channel.hang_up();
    }
}

/// Log lines a client may cause.
struct LogBudget {
    left: AtomicU32,
}

impl LogBudget {
    fn allows(&self) -> bool {
        let take = |left: u32| left.checked_sub(1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

fn read(shared: &Shared) {
    let fault = loop {
        match shared.channel.receive() {
            Ok(message) if message.header.is_reply() => {
                if !shared.remote.answer(message.header, message.payload) {
                    shared.unasked_replies.fetch_add(1, Ordering::Relaxed);
                    if shared.log.allows() {
                        tracing::warn!(id = message.header.id, "a reply that nobody asked for");
                    }
                }
            }
            Ok(message) => {
                if !shared.queue.push(message, || shared.end_if_over()) {
                    return;
                }
            }
            Err(fault) => break fault,
        }
    };
    shared.end(match fault {
        _ if shared.remote.ended_unread() => EndReason::Unread,
        Fault::Closed => EndReason::Disconnected,
        Fault::Truncated => EndReason::Truncated,
        Fault::Broken(broken) => EndReason::Broken(broken),
        Fault::Slow => EndReason::Slow,
        Fault::Shutdown => EndReason::Shutdown,
        Fault::Io(errno) => EndReason::Failed(errno),
    });
    // Nobody will answer any more; a device call that waits for client memory ends now.
    shared.remote.close();
    if fault == Fault::Shutdown {
        shared.queue.close_and_clear();
    } else {
        // What came before the end still counts: a write may have been sent without waiting for the reply.
        shared.queue.close();
    }
}

fn work(shared: &Shared, session: &mut Session, device: &mut dyn Device, end: &mut SessionEnd) {
    if let Some(data_bytes_max) = session.dma_data_bytes_max() {
        shared.remote.open(data_bytes_max);
    }
    while let Some(work) = shared.queue.pop() {
        let Work::Command(message) = work else {
            device.nudged();
            continue;
        };
        end.commands += 1;
        let header = message.header;
        let outcome = if message.surplus_fds {
            session.refuse(&header, Errno::INVAL)
        } else {
            session.handle(&header, &message.payload, message.fds, device)
        };
        if let Some(errno) = outcome.refused {
            end.refused += 1;
            if shared.log.allows() {
                tracing::warn!(command = header.command.0, id = header.id, %errno, "command refused");
            }
        }
        if let Some(data_bytes_max) = session.dma_data_bytes_max() {
            shared.remote.open(data_bytes_max);
        }
        let deposit = device.deposit(session.negotiated());
        match shared.channel.answer(message.seq, outcome.reply.as_ref(), deposit) {
            Ok(()) => {}
            // The reader knows better why.
            Err(Fault::Closed) => {}
            Err(Fault::Shutdown) => return shared.end(EndReason::Shutdown),
            Err(Fault::Io(errno)) => return shared.end(EndReason::Failed(errno)),
            Err(_) => return shared.end(EndReason::Unread),
        }
        if outcome.close {
            return shared.end(EndReason::Version);
        }
    }
}
