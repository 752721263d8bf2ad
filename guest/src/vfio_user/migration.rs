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
    pub const PRE_COPY: u32 = 6;
}

const GET: u32 = 1 << 16;
const SET: u32 = 1 << 17;
const DEVICE_STATE: u32 = 2;
const LOGGING_START: u32 = 6;
const LOGGING_STOP: u32 = 7;
const LOGGING_REPORT: u32 = 8;

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

    /// DMA_LOGGING_START over these ranges (first address, bytes). The grain that the device answers.
    ///
    /// # Errors
    /// As [`Client::device_feature`].
    pub fn start_dma_logging(&mut self, page_bytes: u64, ranges: &[(u64, u64)]) -> Result<u64> {
        let count = u32::try_from(ranges.len()).map_err(|error| Error::Protocol(error.to_string()))?;
        let head = Payload::default().u64(page_bytes).u32(count).u32(0);
        let data = ranges.iter().fold(head, |data, (iova, length)| data.u64(*iova).u64(*length)).0;
        Fields(&self.device_feature(SET | LOGGING_START, &data)?).u64(0)
    }

    /// DMA_LOGGING_STOP.
    ///
    /// # Errors
    /// As [`Client::device_feature`].
    pub fn stop_dma_logging(&mut self) -> Result<()> {
        self.device_feature(SET | LOGGING_STOP, &[]).map(drop)
    }

    /// DMA_LOGGING_REPORT: the first addresses of the pages of `page_bytes` in a range that were written since the last one.
    ///
    /// # Errors
    /// As [`Client::device_feature`].
    pub fn report_dma_logging(&mut self, iova: u64, length: u64, page_bytes: u64) -> Result<Vec<u64>> {
        let data = Payload::default().u64(iova).u64(length).u64(page_bytes).0;
        let reply = self.device_feature(GET | LOGGING_REPORT, &data)?;
        let bitmap = reply.get(data.len()..).filter(|_| reply.get(..data.len()) == Some(&data));
        let bitmap = bitmap.ok_or_else(|| Error::Protocol("a report of another range".into()))?;
        let bits = length.div_ceil(page_bytes);
        if bitmap.len() as u64 != bits.div_ceil(64) * 8 {
            return Err(Error::Protocol(format!("{} bytes of bitmap for {bits} pages", bitmap.len())));
        }
        let is_set = |bit: u64| {
            let byte = usize::try_from(bit / 8).ok().and_then(|at| bitmap.get(at));
            byte.is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
        };
        Ok((0..bits).filter(|bit| is_set(*bit)).map(|bit| iova + bit * page_bytes).collect())
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
