//! Registers and the controller's life: BAR0, doorbells, enable, shut down (Base 2.1, 3.1.4 and 3.5).

use std::time::{Duration, Instant};

use super::driver::Driver;
use super::queue::{CompletionQueue, SubmissionQueue};
use crate::mapping::Mapping;
use crate::vfio_user::{Client, region};
use crate::{Error, Result};

/// Register offsets in BAR0 (Base 2.1, Figure 33).
pub mod reg {
    #![expect(missing_docs, reason = "the specification's own names")]
    pub const CAP: u64 = 0x00;
    pub const VS: u64 = 0x08;
    pub const INTMS: u64 = 0x0C;
    pub const INTMC: u64 = 0x10;
    pub const CC: u64 = 0x14;
    pub const CSTS: u64 = 0x1C;
    pub const NSSR: u64 = 0x20;
    pub const AQA: u64 = 0x24;
    pub const ASQ: u64 = 0x28;
    pub const ACQ: u64 = 0x30;
    pub const DOORBELLS: u64 = 0x1000;
}

/// CC: enable, 64-byte SQEs, 16-byte CQEs, NVM command set, 4 KiB pages.
pub(super) const CC_ENABLE: u32 = 4 << 20 | 6 << 16 | 1;
const CSTS_RDY: u32 = 1;
const CSTS_CFS: u32 = 2;
const CSTS_SHST: u32 = 3 << 2;
const CSTS_SHST_DONE: u32 = 2 << 2;

/// How doorbells reach the controller.
#[derive(Debug)]
pub(super) enum Doorbells {
    /// Stores into the shared page; the region offset the mapping starts at.
    Mapped(Mapping, u64),
    /// Messages.
    Trapped,
}

impl Driver {
    /// Reads a 32-bit register.
    ///
    /// # Errors
    /// The client's.
    pub fn read_u32(&mut self, offset: u64) -> Result<u32> {
        let mut bytes = [0; 4];
        self.client.region_read(region::BAR0, offset, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Reads a 64-bit register.
    ///
    /// # Errors
    /// The client's.
    pub fn read_u64(&mut self, offset: u64) -> Result<u64> {
        self.client.read_number(region::BAR0, offset, 8)
    }

    /// Writes a 32-bit register.
    ///
    /// # Errors
    /// The client's.
    pub fn write_u32(&mut self, offset: u64, value: u32) -> Result<()> {
        self.client.region_write(region::BAR0, offset, &value.to_le_bytes())
    }

    /// Writes a 64-bit register.
    ///
    /// # Errors
    /// The client's.
    pub fn write_u64(&mut self, offset: u64, value: u64) -> Result<()> {
        self.client.region_write(region::BAR0, offset, &value.to_le_bytes())
    }

    /// CSTS.
    ///
    /// # Errors
    /// The client's.
    pub fn csts(&mut self) -> Result<u32> {
        self.read_u32(reg::CSTS)
    }

    /// Maps the doorbell page if the server offers it.
    pub(super) fn map_doorbells(client: &mut Client) -> Result<Doorbells> {
        let info = client.region_info(region::BAR0)?;
        Ok(match Client::map_area(&info, reg::DOORBELLS)? {
            Some((mapping, start)) => Doorbells::Mapped(mapping, start),
            None => Doorbells::Trapped,
        })
    }

    /// Writes any value to a doorbell register: `index` 2y is queue y's tail, 2y + 1 its head.
    ///
    /// # Errors
    /// The client's, when doorbells are trapped.
    pub fn write_doorbell(&mut self, index: usize, value: u32) -> Result<()> {
        let at = reg::DOORBELLS + (index as u64) * (4 << self.doorbell_stride());
        match &self.doorbells {
            Doorbells::Mapped(mapping, start) => {
                mapping.store_u32(usize::try_from(at - start).expect("a doorbell lies in the page"), value);
                Ok(())
            }
            Doorbells::Trapped => self.write_u32(at, value),
        }
    }

    /// The doorbell page and the offset in it of doorbell 0, when it is mapped.
    #[must_use]
    pub fn doorbell_page(&self) -> Option<(&Mapping, usize)> {
        match &self.doorbells {
            Doorbells::Mapped(mapping, start) => {
                Some((mapping, usize::try_from(reg::DOORBELLS - start).ok()?))
            }
            Doorbells::Trapped => None,
        }
    }

    /// Bypasses the mapping from now on: every doorbell is a REGION_WRITE.
    pub fn trap_doorbells(&mut self) {
        self.doorbells = Doorbells::Trapped;
    }

    /// CAP.DSTRD.
    #[must_use]
    pub fn doorbell_stride(&self) -> u32 {
        u32::try_from(self.cap >> 32 & 0xF).unwrap_or(0)
    }

    /// Entries a queue may have: CAP.MQES + 1.
    #[must_use]
    pub fn queue_entries_max(&self) -> u32 {
        u32::try_from(self.cap & 0xFFFF).unwrap_or(0) + 1
    }

    /// Resets the controller if it runs, gives it an admin queue pair and enables it (Base 2.1, 3.5.1).
    ///
    /// # Errors
    /// The client's, [`Error::Fatal`], or [`Error::Timeout`] after CAP.TO.
    pub fn enable(&mut self) -> Result<()> {
        self.disable()?;
        let depth = self.options.admin_depth;
        let sq = SubmissionQueue::new(&self.ram, 0, 0, depth)?;
        let cq = CompletionQueue::new(&self.ram, 0, depth)?;
        self.write_u32(reg::AQA, (depth - 1) << 16 | (depth - 1))?;
        self.write_u64(reg::ASQ, sq.ring().iova())?;
        self.write_u64(reg::ACQ, cq.ring().iova())?;
        self.sqs.insert(0, sq);
        self.cqs.insert(0, cq);
        self.write_u32(reg::CC, CC_ENABLE)?;
        self.wait_csts(|csts| csts & CSTS_RDY != 0)
    }

    /// Clears CC.EN, waits for CSTS.RDY to clear, and forgets every queue.
    ///
    /// # Errors
    /// The client's, or [`Error::Timeout`] after CAP.TO.
    pub fn disable(&mut self) -> Result<()> {
        let cc = self.read_u32(reg::CC)?;
        if cc & 1 != 0 {
            self.write_u32(reg::CC, cc & !1)?;
        }
        self.forget_queues();
        let deadline = self.ready_deadline();
        while self.csts()? & CSTS_RDY != 0 {
            self.pause_until(deadline)?;
        }
        Ok(())
    }

    /// A normal (or abrupt) shutdown, waiting for SHST = complete (Base 2.1, 3.6).
    ///
    /// # Errors
    /// The client's, [`Error::Fatal`], or [`Error::Timeout`].
    pub fn shutdown(&mut self, abrupt: bool) -> Result<()> {
        let cc = self.read_u32(reg::CC)? & !(3 << 14);
        self.write_u32(reg::CC, cc | if abrupt { 2 << 14 } else { 1 << 14 })?;
        self.wait_csts(|csts| csts & CSTS_SHST == CSTS_SHST_DONE)
    }

    /// Forgets every queue without a word to the controller, as after a reset.
    pub fn forget_queues(&mut self) {
        self.sqs.clear();
        self.cqs.clear();
        self.stash.clear();
        self.shadow = None;
    }

    fn wait_csts(&mut self, done: impl Fn(u32) -> bool) -> Result<()> {
        let deadline = self.ready_deadline();
        loop {
            let csts = self.csts()?;
            if done(csts) {
                return Ok(());
            }
            if csts & CSTS_CFS != 0 {
                return Err(Error::Fatal(csts));
            }
            self.pause_until(deadline)?;
        }
    }

    fn ready_deadline(&self) -> Instant {
        let units = (self.cap >> 24 & 0xFF).max(4);
        Instant::now() + Duration::from_millis(units * 500)
    }

    fn pause_until(&mut self, deadline: Instant) -> Result<()> {
        if Instant::now() > deadline {
            return Err(Error::Timeout(Duration::from_millis((self.cap >> 24 & 0xFF).max(4) * 500)));
        }
        std::thread::sleep(Duration::from_micros(100));
        Ok(())
    }
}
