//! MSI-X through eventfds.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::driver::Driver;
use crate::vfio_user::{irq, region};
use crate::{Error, Result};

const CAP_MSIX: u64 = 0x11;
const STATUS_CAP_LIST: u64 = 0x10;

impl Driver {
    /// Gives vectors `0..count` an eventfd each, unmasks them in the table and sets MSI-X Enable.
    ///
    /// # Errors
    /// The client's, or a device without MSI-X.
    pub fn enable_msix(&mut self, count: u32) -> Result<()> {
        let cap =
            self.find_capability(CAP_MSIX)?.ok_or_else(|| Error::Protocol("no MSI-X capability".into()))?;
        let fds: Vec<OwnedFd> = (0..count)
            .map(|_| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK))
            .collect::<std::result::Result<_, _>>()?;
        // At most 16 fds a message, as the client's max_msg_fds has it.
        let mut start = 0;
        for chunk in fds.chunks(16) {
            let borrowed: Vec<_> = chunk.iter().map(AsFd::as_fd).collect();
            self.client.set_irq_eventfds(irq::MSIX, start, &borrowed)?;
            start += u32::try_from(chunk.len()).unwrap_or(0);
        }
        let table = self.client.read_number(region::CONFIG, cap + 4, 4)?;
        let bar = u32::try_from(table & 7).unwrap_or(0);
        for vector in 0..u64::from(count) {
            // Vector control: clear the mask bit (PCI Express 6.0, 7.7.2).
            self.client.region_write(bar, (table & !7) + vector * 16 + 12, &[0; 4])?;
        }
        let control = self.client.read_number(region::CONFIG, cap + 2, 2)? | 0x8000;
        self.client.region_write(region::CONFIG, cap + 2, &control.to_le_bytes()[..2])?;
        self.vectors = fds;
        Ok(())
    }

    /// Takes the eventfds of all vectors out of the driver, for a caller that waits on them itself.
    #[must_use]
    pub fn take_vectors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.vectors)
    }

    /// Offset of a PCI capability in config space.
    ///
    /// # Errors
    /// The client's, or a list that loops.
    pub fn find_capability(&mut self, id: u64) -> Result<Option<u64>> {
        if self.client.read_number(region::CONFIG, 6, 2)? & STATUS_CAP_LIST == 0 {
            return Ok(None);
        }
        let mut at = self.client.read_number(region::CONFIG, 0x34, 1)? & !3;
        for _ in 0..48 {
            if at == 0 {
                return Ok(None);
            }
            let header = self.client.read_number(region::CONFIG, at, 2)?;
            if header & 0xFF == id {
                return Ok(Some(at));
            }
            at = header >> 8 & !3;
        }
        Err(Error::Protocol("the PCI capability list loops".into()))
    }

    /// Waits for an interrupt on a vector; the number of signals since the last wait, or `None` in time.
    ///
    /// # Errors
    /// As poll(2) and read(2).
    pub fn wait_interrupt(&mut self, vector: usize, timeout: Duration) -> Result<Option<u64>> {
        let fd = self
            .vectors
            .get(vector)
            .ok_or_else(|| Error::Protocol(format!("vector {vector} has no eventfd")))?;
        let wait =
            Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: timeout.subsec_nanos().into() };
        if poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&wait))? == 0 {
            return Ok(None);
        }
        let mut count = [0; 8];
        match rustix::io::read(fd, &mut count) {
            Ok(_) => Ok(Some(u64::from_ne_bytes(count))),
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}
