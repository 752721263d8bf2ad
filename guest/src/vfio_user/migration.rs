//! Migration, as a hypervisor drives it (vfio-user.rst, "Device Features").

use super::client::Client;
use super::frame::{Fields, Payload, command};
use crate::{Error, Result};

/// `enum vfio_device_mig_state`.
pub mod state {
    #![expect(missing_docs, reason = "the specification's own names")]
    pub const ERROR: u32 = 0;
    pub const STOP: u32 = 1;
    pub const RUNNING: u32 = 2;
    pub const STOP_COPY: u32 = 3;
    pub const RESUMING: u32 = 4;
}

const GET: u32 = 1 << 16;
const SET: u32 = 1 << 17;
const DEVICE_STATE: u32 = 2;

impl Client {
    /// DEVICE_FEATURE: the data of the reply.
    ///
    /// # Errors
    /// The transport's, a refusal, or a reply that breaks the protocol.
    pub fn device_feature(&mut self, flags: u32, data: &[u8]) -> Result<Vec<u8>> {
        let payload = Payload::default().u32(1 << 21).u32(flags).bytes(data).0;
        let reply = self.request(command::DEVICE_FEATURE, &payload, &[])?;
        reply
            .payload
            .get(8..)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| Error::Protocol("a feature without head".into()))
    }

    /// The device's migration state.
    ///
    /// # Errors
    /// As [`Client::device_feature`].
    pub fn migration_state(&mut self) -> Result<u32> {
        Fields(&self.device_feature(GET | DEVICE_STATE, &[])?).u32(0)
    }

    /// Brings the device to a migration state ([`state`]).
    ///
    /// # Errors
    /// As [`Client::device_feature`].
    pub fn set_migration_state(&mut self, state: u32) -> Result<()> {
        let data = Payload::default().u32(state).u32(0).0;
        self.device_feature(SET | DEVICE_STATE, &data).map(drop)
    }

    /// MIG_DATA_READ of at most so many bytes.
    ///
    /// # Errors
    /// The transport's, a refusal, or a reply that breaks the protocol.
    pub fn migration_read(&mut self, bytes: u32) -> Result<Vec<u8>> {
        let payload = Payload::default().u32(bytes.saturating_add(8)).u32(bytes).0;
        let reply = self.request(command::MIG_DATA_READ, &payload, &[])?;
        let size = Fields(&reply.payload).u32(4)? as usize;
        match reply.payload.get(8..) {
            Some(data) if data.len() == size && size <= bytes as usize => Ok(data.to_vec()),
            _ => Err(Error::Protocol(format!("{size} bytes of state in {}", reply.payload.len()))),
        }
    }

    /// MIG_DATA_WRITE.
    ///
    /// # Errors
    /// The transport's or a refusal.
    pub fn migration_write(&mut self, data: &[u8]) -> Result<()> {
        let size = u32::try_from(data.len()).map_err(|error| Error::Protocol(error.to_string()))?;
        let payload = Payload::default().u32(size.saturating_add(8)).u32(size).bytes(data).0;
        self.request(command::MIG_DATA_WRITE, &payload, &[]).map(drop)
    }
}
