//! What the keeper holds of an ssd.

use crate::listener::Listener;
use crate::protocol::Protocol;
use crate::session::Session;
use anyhow::Context;
use link::LinkError;
use link::control::{Packet, Role, Saved, Slot, Standing, ToEngine};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// An ssd of the configuration.
#[derive(Debug)]
pub(crate) struct Ssd {
    pub(crate) name: String,
    /// Its place in the configuration, for people. Everything else names it by its number.
    pub(crate) place: usize,
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
    /// Why no engine serves it, though nothing is wrong with it. Each engine says it anew.
    pub(crate) standing: Option<Standing>,
    /// Clients turned away while another one is served.
    pub(crate) turned_away: u64,
}

impl Ssd {
    pub(crate) fn new(config: &api::config::Ssd, listener: Listener) -> Self {
        Self {
            name: config.name.clone(),
            place: 0,
            listener,
            protocol: Protocol::at(config.door),
            limits: config.limits,
            memory: BTreeMap::new(),
            record: None,
            session: None,
            quarantined: None,
            fault: None,
            standing: None,
            turned_away: 0,
        }
    }

    /// Binds its socket.
    pub(crate) fn listen(config: &api::config::Ssd) -> anyhow::Result<Listener> {
        Listener::bind(&config.socket).with_context(|| {
            let path = config.socket.display();
            format!(
                "ssd \"{}\": cannot listen at {path}: is the directory there and writable, and no other godwitd serving it?",
                config.name
            )
        })
    }

    pub(crate) fn is_powered(&self) -> bool {
        !self.memory.is_empty()
    }

    /// An engine may have it.
    pub(crate) fn is_given(&self) -> bool {
        self.quarantined.is_none()
    }

    /// It is not here, and will not come by itself: whoever wants it should hear that, not wait.
    pub(crate) fn turns_away(&self) -> bool {
        self.standing.as_ref().is_some_and(|standing| !standing.holds)
    }

    pub(crate) fn slot(&self, number: u32) -> Slot {
        let parked = self.quarantined.is_some();
        Slot { name: self.name.clone(), saved: self.is_powered() && !parked, parked, number: Some(number) }
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
