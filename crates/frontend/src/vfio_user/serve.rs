//! One connection, two threads: a reader that sorts messages, a worker that carries commands out.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use rustix::io::Errno;

use super::device::Device;
use super::frame::BrokenStream;
use super::queue::Queue;
use super::remote::RemoteMemory;
use super::session::{Limits, Session};
use super::shutdown::Shutdown;
use super::transport::{Fault, Transport};

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
    transport: Arc<Transport>,
    remote: RemoteMemory,
    limits: Limits,
}

impl Connection {
    /// Takes a connected socket. It is served until the client leaves or `shutdown` is triggered.
    pub fn new(stream: UnixStream, limits: Limits, shutdown: &Shutdown) -> Self {
        let transport =
            Arc::new(Transport::new(stream, shutdown.clone(), limits.frame_time, limits.send_time));
        let remote = RemoteMemory::new(Arc::clone(&transport), limits.remote_time);
        Self { transport, remote, limits }
    }

    /// Reaches this client's memory by messages, once it is being served.
    pub fn remote_memory(&self) -> RemoteMemory {
        self.remote.clone()
    }

    pub(crate) fn transport(&self) -> Arc<Transport> {
        Arc::clone(&self.transport)
    }

    /// Serves the client. The calling thread becomes the worker; the reader is a thread of its own.
    ///
    /// When this returns, the socket is hung up, every [`RemoteMemory`] of the session fails at once and no descriptor of
    /// the client is left in the session. What the device was given is the device's: the caller unmaps and drops
    /// interrupts (vfio-user.rst, "Client Disconnection").
    pub fn serve(self, device: &mut dyn Device) -> SessionEnd {
        let shared = Shared {
            transport: self.transport,
            remote: self.remote,
            queue: Queue::default(),
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
            work(&shared, &self.limits, device, &mut end);
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
    transport: Arc<Transport>,
    remote: RemoteMemory,
    queue: Queue,
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
        if self.transport.is_shut_down() {
            self.end(EndReason::Shutdown);
            self.remote.close();
            self.queue.close_and_clear();
        } else if self.transport.peer_hung_up() {
            self.remote.close();
        }
    }
}

struct CloseOnDrop<'a>(&'a Shared);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.remote.close();
        self.0.queue.close_and_clear();
        self.0.transport.hang_up();
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
        match shared.transport.receive() {
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

fn work(shared: &Shared, limits: &Limits, device: &mut dyn Device, end: &mut SessionEnd) {
    let mut session = Session::new(limits);
    while let Some(message) = shared.queue.pop() {
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
        if let Some(reply) = outcome.reply {
            let sent = shared.transport.send(&reply.bytes, reply.fd.as_ref().map(|fd| fd.as_fd()));
            match sent {
                Ok(()) => {}
                // The reader knows better why.
                Err(Fault::Closed) => {}
                Err(Fault::Shutdown) => return shared.end(EndReason::Shutdown),
                Err(Fault::Io(errno)) => return shared.end(EndReason::Failed(errno)),
                Err(_) => return shared.end(EndReason::Unread),
            }
        }
        if outcome.close {
            return shared.end(EndReason::Version);
        }
    }
}
