//! An NVMe controller: registers, admin commands, memory mappings, queues that come and go.

use std::time::Duration;

use super::Partner;
use crate::load::workload::Random;
use crate::nvme::{Driver, Sqe, feature, nvm, reg};
use crate::ram::Ram;
use crate::vfio_user::{Frame, command, region};
use crate::{Error, Result};

/// The other end of a busy controller.
pub struct Controller {
    driver: Driver,
    random: Random,
    /// A queue that the load does not use.
    spare_qid: u16,
    identity: Vec<u8>,
    queues: u32,
}

/// Where memory comes and goes.
const VISITOR_IOVA: u64 = 0x70_0000_0000;
const VISITOR_BYTES: usize = 1 << 20;
/// Messages sent without waiting for the answers.
const PIPELINED: usize = 6;

impl Partner for Controller {
    fn topics(&self) -> u64 {
        7
    }

    fn exchange(&mut self, topic: u64) -> Result<Option<String>> {
        match topic {
            0 => {
                let csts = self.driver.csts()?;
                Ok((csts & 3 != 1).then(|| format!("CSTS is {csts:#x}")))
            }
            1 => {
                let identity = self.driver.identify(1, 0)?;
                Ok((identity != self.identity).then(|| "the controller's identity changed".into()))
            }
            2 => {
                let queues = self.driver.get_features(feature::NUMBER_OF_QUEUES, 0)?.ok()?.result;
                Ok((queues != self.queues).then(|| format!("{queues:#x} queues, not {:#x}", self.queues)))
            }
            3 => self.pipelined(),
            4 => self.queue_pair(),
            5 => self.visitor(),
            _ => {
                self.driver.log_page(2, 0xFFFF_FFFF, 0, 512)?;
                Ok(None)
            }
        }
    }
}

impl Controller {
    /// Over the driver whose queue pairs the load has taken.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(mut driver: Driver, spare_qid: u16, seed: u64, patience: Duration) -> Result<Self> {
        driver.set_timeout(patience);
        driver.client().set_timeout(patience);
        let identity = driver.identify(1, 0)?;
        let queues = driver.get_features(feature::NUMBER_OF_QUEUES, 0)?.ok()?.result;
        // Must stay unanswered.
        driver.request_event()?;
        Ok(Controller { driver, random: Random::new(seed), spare_qid, identity, queues })
    }

    /// Several register reads in a row, answered in order.
    fn pipelined(&mut self) -> Result<Option<String>> {
        let cap = self.driver.cap();
        let mut payload = Vec::new();
        payload.extend_from_slice(&reg::CAP.to_le_bytes());
        payload.extend_from_slice(&region::BAR0.to_le_bytes());
        payload.extend_from_slice(&8_u32.to_le_bytes());
        let client = self.driver.client();
        let ids = (0..PIPELINED)
            .map(|_| client.send_command(command::REGION_READ, &payload, &[]))
            .collect::<Result<Vec<_>>>()?;
        for id in ids {
            let Frame { payload, .. } = client.wait_reply(id, command::REGION_READ)?;
            if payload.get(16..24) != Some(cap.to_le_bytes().as_slice()) {
                return Ok(Some(format!("CAP is read as {payload:02x?}")));
            }
        }
        Ok(None)
    }

    /// A queue pair that comes, works and goes.
    fn queue_pair(&mut self) -> Result<Option<String>> {
        let qid = self.spare_qid;
        self.driver.create_queue_pair(qid, 2 + u32::try_from(self.random.below(30)).unwrap_or(0))?;
        for _ in 0..1 + self.random.below(8) {
            self.driver.io(qid, Sqe::new(nvm::FLUSH).nsid(1))?.ok()?;
        }
        self.driver.delete_queue_pair(qid)?;
        Ok(None)
    }

    /// Memory that comes, takes a read and goes.
    fn visitor(&mut self) -> Result<Option<String>> {
        let visitor = Ram::new(VISITOR_BYTES, VISITOR_IOVA)?;
        let len = visitor.len() as u64;
        self.driver.client().dma_map(VISITOR_IOVA, len, Some((visitor.fd(), 0)))?;
        let buffer = visitor.alloc(4096)?;
        buffer.fill(0xEE);
        let sqe = Sqe::new(crate::nvme::admin::IDENTIFY).cdw10(1).prp(buffer.iova(), 0);
        self.driver.admin(sqe)?.ok()?;
        self.driver.client().dma_unmap(VISITOR_IOVA, len)?;
        let same = buffer.to_vec() == self.identity;
        // Each refusal is a line in the daemon's log: not every time.
        if self.random.below(8) == 0 {
            match self.driver.client().dma_unmap(VISITOR_IOVA, len) {
                Err(Error::Refused { .. }) => {}
                Err(error) => return Err(error),
                Ok(()) => return Ok(Some("memory was unmapped twice".into())),
            }
        }
        Ok((!same).then(|| "the identity read into new memory differs".into()))
    }
}
