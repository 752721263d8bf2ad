//! What the keeper holds of an ssd.

use crate::listener::Listener;
use crate::protocol::{Protocol, VFIO_USER};
use crate::session::Session;
use link::LinkError;
use link::control::{Packet, Role, Saved, Slot, ToEngine};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// An ssd of the configuration.
#[derive(Debug)]
pub(crate) struct Ssd {
    pub(crate) name: String,
    pub(crate) listener: Listener,
    pub(crate) protocol: &'static Protocol,
    pub(crate) limits: api::config::Limits,
    /// Region, doorbells, memory: from the engine, for its successors. Empty: never powered on.
    pub(crate) memory: BTreeMap<Role, Arc<OwnedFd>>,
    /// The newest record an engine sent.
    pub(crate) record: Option<Vec<u8>>,
    pub(crate) session: Option<Session>,
    /// Why it is quarantined.
    pub(crate) quarantined: Option<String>,
    /// What an engine said is wrong with it.
    pub(crate) fault: Option<String>,
    /// Clients turned away while another one is served.
    pub(crate) turned_away: u64,
}

impl Ssd {
    pub(crate) fn new(name: String, listener: Listener) -> Self {
        Self {
            name,
            listener,
            protocol: &VFIO_USER,
            limits: api::config::Limits::default(),
            memory: BTreeMap::new(),
            record: None,
            session: None,
            quarantined: None,
            fault: None,
            turned_away: 0,
        }
    }

    pub(crate) fn is_powered(&self) -> bool {
        !self.memory.is_empty()
    }

    /// An engine may have it.
    pub(crate) fn is_given(&self) -> bool {
        self.quarantined.is_none()
    }

    pub(crate) fn slot(&self) -> Slot {
        let parked = self.quarantined.is_some();
        Slot { name: self.name.clone(), saved: self.is_powered() && !parked, parked }
    }

    /// The message that hands it to an engine.
    pub(crate) fn saved(&self, ssd: u32, crashes: usize) -> Result<Packet, LinkError> {
        let saved = Saved {
            ssd,
            roles: self.memory.keys().copied().collect(),
            record: self.record.clone(),
            crashes: u32::try_from(crashes).unwrap_or(u32::MAX),
        };
        Packet::new(&ToEngine::Saved(saved), self.memory.values().cloned().collect())
    }
}
