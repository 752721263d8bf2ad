//! INTx is a level, MSI-X an edge; and eventfds that are none (row 16).

use crate::host::RAM;
use crate::siege::{Siege, page_io};
use guest::PATIENCE;
use guest::nvme::{Driver, reg};
use guest::vfio_user::{irq, region, set_irqs};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

struct Line(OwnedFd);

impl Line {
    /// Enables INTx by eventfd, as a kernel driver without MSI-X would have it.
    fn enable(driver: &mut Driver) -> Self {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        driver.client().set_irq_eventfds(irq::INTX, 0, &[fd.as_fd()]).unwrap();
        driver.client().region_write(region::CONFIG, 4, &0x0006_u16.to_le_bytes()).unwrap();
        Self(fd)
    }

    fn fires(&self) -> bool {
        self.fires_within(PATIENCE)
    }

    fn is_quiet(&self) -> bool {
        !self.fires_within(Duration::from_millis(30))
    }

    /// Once the reactor has seen the head that the driver rang last; until then the level is what it was.
    fn falls_quiet(&self, driver: &mut Driver) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.unmask(driver);
            if self.is_quiet() {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
        }
    }

    fn fires_within(&self, timeout: Duration) -> bool {
        let timeout = Timespec::try_from(timeout).unwrap();
        let ready = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout)).unwrap() == 1;
        ready && rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }

    fn unmask(&self, driver: &mut Driver) {
        let flags = set_irqs::DATA_NONE | set_irqs::ACTION_UNMASK;
        driver.client().set_irqs(irq::INTX, flags, 0, 1, &[], &[]).unwrap();
    }

    fn mask(&self, driver: &mut Driver) {
        let flags = set_irqs::DATA_NONE | set_irqs::ACTION_MASK;
        driver.client().set_irqs(irq::INTX, flags, 0, 1, &[], &[]).unwrap();
    }
}

#[test]
fn intx_follows_its_level_its_masks_and_the_client() {
    Siege::run(RAM, 3, |siege| {
        let mut driver = siege.connect();
        let line = Line::enable(&mut driver);
        // On each of the three reactors.
        for qid in 1..=3 {
            driver.create_cq(qid, 16, Some(0)).unwrap();
            driver.create_sq(qid, qid, 16).unwrap();
        }
        let data = driver.ram().clone().alloc(4096).unwrap();
        for qid in 1..=3 {
            let io = |driver: &mut Driver| driver.submit(qid, page_io(2, data.iova(), 0)).unwrap();
            let take = |driver: &mut Driver| driver.wait_any(qid, PATIENCE).unwrap().ok().unwrap();
            assert!(line.falls_quiet(&mut driver), "nothing is pending ({qid})");
            io(&mut driver);
            assert!(line.fires(), "a completion raises it ({qid})");
            io(&mut driver);
            assert!(line.is_quiet(), "sent once, then masked ({qid})");
            line.unmask(&mut driver);
            assert!(line.fires(), "still asserted when unmasked: sent again ({qid})");
            take(&mut driver);
            take(&mut driver);
            assert!(line.falls_quiet(&mut driver), "the driver has taken all ({qid})");
            // Masked by the guest, in two ways, and by the client.
            driver.write_u32(reg::INTMS, 1).unwrap();
            io(&mut driver);
            assert!(line.is_quiet(), "INTMS masks it ({qid})");
            driver.write_u32(reg::INTMC, 1).unwrap();
            assert!(line.fires(), "INTMC lets it out ({qid})");
            driver.client().region_write(region::CONFIG, 4, &0x0406_u16.to_le_bytes()).unwrap();
            line.unmask(&mut driver);
            assert!(line.is_quiet(), "Interrupt Disable masks it ({qid})");
            driver.client().region_write(region::CONFIG, 4, &0x0006_u16.to_le_bytes()).unwrap();
            assert!(line.fires(), "Interrupt Disable cleared lets it out ({qid})");
            take(&mut driver);
            assert!(line.falls_quiet(&mut driver), "the driver has taken that, too ({qid})");
            line.mask(&mut driver);
            io(&mut driver);
            assert!(line.is_quiet(), "the client masks it ({qid})");
            line.unmask(&mut driver);
            assert!(line.fires(), "the client lets it out ({qid})");
            take(&mut driver);
        }
    });
}

#[test]
fn intx_that_is_asserted_is_sent_to_an_eventfd_that_comes_late() {
    Siege::run(RAM, 2, |siege| {
        let mut driver = siege.connect();
        driver.create_cq(1, 16, Some(0)).unwrap();
        driver.create_sq(1, 1, 16).unwrap();
        let data = driver.ram().clone().alloc(4096).unwrap();
        driver.submit(1, page_io(2, data.iova(), 0)).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        driver.client().region_write(region::CONFIG, 4, &0x0006_u16.to_le_bytes()).unwrap();
        let line = Line::enable(&mut driver);
        assert!(line.fires());
    });
}

#[test]
fn a_vector_masked_by_taking_its_eventfd_fires_when_it_comes_back() {
    Siege::run(RAM, 3, |siege| {
        let mut driver = siege.connect();
        driver.enable_msix(4).unwrap();
        for qid in 1..=3 {
            driver.create_cq(qid, 16, Some(qid)).unwrap();
            driver.create_sq(qid, qid, 16).unwrap();
        }
        let data = driver.ram().clone().alloc(4096).unwrap();
        let trigger = set_irqs::DATA_EVENTFD | set_irqs::ACTION_TRIGGER;
        for round in 0..20 {
            for qid in 1..=3_u16 {
                driver.client().set_irqs(irq::MSIX, trigger, u32::from(qid), 1, &[], &[]).unwrap();
                driver.submit(qid, page_io(2, data.iova(), 0)).unwrap();
                driver.wait_any(qid, PATIENCE).unwrap().ok().unwrap();
                let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
                driver.client().set_irqs(irq::MSIX, trigger, u32::from(qid), 1, &[], &[fd.as_fd()]).unwrap();
                assert!(Line(fd).fires(), "vector {qid}, round {round}");
            }
        }
    });
}

#[test]
fn row_16_an_eventfd_that_is_none_is_refused_and_a_full_one_stops_nobody() {
    Siege::run(RAM, 2, |siege| {
        let mut driver = siege.connect();
        let (_reader, pipe) = rustix::pipe::pipe().unwrap();
        let ram = guest::ram::Ram::new(4096, 0).unwrap();
        for index in [irq::INTX, irq::MSIX] {
            assert!(driver.client().set_irq_eventfds(index, 0, &[pipe.as_fd()]).is_err());
            assert!(driver.client().set_irq_eventfds(index, 0, &[ram.fd()]).is_err());
        }
        let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        driver.client().set_irq_eventfds(irq::MSIX, 0, &[full.as_fd(), full.as_fd()]).unwrap();
        driver.create_cq(1, 16, Some(0)).unwrap();
        driver.create_sq(1, 1, 16).unwrap();
        let data = driver.ram().clone().alloc(4096).unwrap();
        for at in 0..20 {
            driver.io(1, page_io(2, data.iova(), at)).unwrap().ok().unwrap();
        }
    });
}
