//! Bytes at rest: what outlives a process.
//!
//! - [`region`]: the shared-memory region of one controller, which a successor process goes on from.
//! - [`controller`]: the state of a controller at rest, as it goes to another host.
//! - [`ssd`]: the record of one ssd that outlives a daemon restart (namespaces, marks, sanitize progress, totals).
//! - [`session`]: what is kept of a client's session.
//! - [`vhost_session`]: the same of a vhost-user client.
//! - [`pool`]: headers, map and journal of a pool on its drive.
//! - [`keeper`]: all that a keeper holds, for the keeper after it.
//! - [`migration`]: the journal by which an ssd's ownership passes to another host.
//! - [`envelope`]: magic, version, length and checksum around every record, outside its body.
//!
//! Types here are never the runtime's own: they change only by adding.
#![forbid(unsafe_code)]

pub mod controller;
pub mod envelope;
pub mod keeper;
pub mod migration;
pub mod pool;
pub mod region;
pub mod session;
pub mod ssd;
pub mod vhost_session;

pub use ssd::SsdV1;
