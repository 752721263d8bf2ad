//! What carries a session's messages: the client's socket, or a link to the process that holds it.

use rustix::io::Errno;

use super::device::Deposit;
use super::frame::BrokenStream;
use super::queue::Message;
use super::session::Reply;

/// A way to one client. One thread receives, any thread sends.
pub trait Channel: Send + Sync + std::fmt::Debug {
    /// Waits for the next message.
    fn receive(&self) -> Result<Message, Fault>;
    /// Answers the command with this number, exactly once, also when the client wants no reply. The deposit takes effect with
    /// the answer or not at all.
    fn answer(&self, seq: u64, reply: Option<&Reply>, deposit: Option<Deposit>) -> Result<(), Fault>;
    /// Sends commands of ours, in this order.
    fn requests(&self, frames: Vec<Vec<u8>>) -> Result<(), Fault>;
    /// Ends the session; a receiver that waits wakes soon.
    fn hang_up(&self);
    /// We were told to stop.
    fn is_shut_down(&self) -> bool;
    /// The client is gone, whether or not what it sent has been read.
    fn peer_hung_up(&self) -> bool;
}

/// Why no message came, or none could be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The peer closed between two messages.
    Closed,
    /// The peer closed inside a message.
    Truncated,
    /// The message's size makes no sense.
    Broken(BrokenStream),
    /// The peer took too long over a message.
    Slow,
    /// We were told to stop.
    Shutdown,
    /// The socket failed.
    Io(Errno),
}
