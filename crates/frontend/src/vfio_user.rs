//! The server side of vfio-user (QEMU's `docs/interop/vfio-user.rst`, cited as "vfio-user.rst") for a PCI device.
//!
//! ```text
//!  socket --transport--> header, payload, fds --frame::parse--> Request --session--> Device (the engine's)
//!     ^                        (all doubt ends here)                        |
//!     +--------------------- one reply, one sendmsg -----------------------+
//! ```
//!
//! Two threads serve a connection ([`Connection::serve`]): the *reader* takes frames off the socket and sorts them
//! (commands into a bounded queue, replies to our own DMA requests to whoever waits for them), the *worker* carries out
//! one command at a time and writes its reply. A [`RemoteMemory`] reaches client memory that came without a file
//! descriptor, by DMA_READ and DMA_WRITE messages over the same socket.
//!
//! Not implemented: twin-socket mode, ioeventfds (GET_REGION_IO_FDS answers an empty list), of migration the peer-to-peer
//! states.

mod capabilities;
mod channel;
pub mod device;
mod feature;
pub mod frame;
mod listener;
pub mod migration;
mod queue;
mod remote;
mod serve;
mod session;
mod shutdown;
mod transport;

pub use channel::{Channel, Fault};
pub use device::{
    Access, ClientFd, Deposit, Device, DeviceInfo, DmaMap, DmaUnmap, Errno, IrqAction, IrqData, IrqInfo,
    MadeFd, MmapArea, Negotiated, RegionInfo, RegionMmap, SetIrqs,
};
pub use feature::{LoggedRange, ReportRange};
pub use listener::Listener;
pub use migration::{Logging, Migration, State, Transition};
pub use queue::Message;
pub use remote::{Receipt, RemoteMemory, Store};
pub use serve::{Connection, EndReason, Nudge, Pause, SessionEnd, serve};
pub use session::{Limits, Reply, Session};
pub use shutdown::Shutdown;
