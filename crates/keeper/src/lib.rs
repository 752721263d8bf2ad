//! The keeper: the process that outlives the engine.
//!
//! ```text
//!  clients --sockets--> Session (bounded queue, deposit, kept descriptors) --session link--> engine
//!                          ^ one for each ssd's client                                        |
//!  godwit  --socket---> console                     Keeper <--------- control link -----------+
//!                                                     | starts, watches, replaces
//! ```
//!
//! One thread, one epoll instance, no waiting anywhere else. Of a client's bytes it looks at the frame's header alone
//! (`protocol`). Doorbells, guest memory and interrupts do not pass through it. Everything that can pile up is bounded, and a
//! client that keeps it waiting loses its own session (`session`).
//!
//! There is a keeper after this one, too: another program executed in its process (`reexec`), or another process that goes on
//! from what the service manager kept at every moment (`store`, `restore`). What goes to it is `carry`'s.
//!
//! What each side of the links owes the other is in crate `link`; why it is so, in `docs/decisions/0007-keeper-and-link.md` and
//! `0013-keeper-restarts.md`.
mod carry;
mod cell;
mod change;
mod console;
mod crash;
mod engines;
mod history;
mod island;
mod keeper;
mod limits;
mod listener;
mod messages;
mod notify;
mod poller;
mod process;
mod protocol;
mod reexec;
mod relay;
mod requests;
mod restore;
mod session;
mod ssd;
mod store;
mod tally;
mod upgrade;
mod vault;

pub use keeper::{Keeper, Options};
pub use limits::Limits;
pub use notify::Notify;
pub use process::{Binary, EngineCommand};
pub use reexec::{Again, check};
