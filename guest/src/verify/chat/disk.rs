//! A virtio-blk disk: features, configuration, rings that stop and go on, memory that comes and goes, connections anew.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Partner;
use crate::load::workload::Random;
use crate::ram::{Buffer, Ram};
use crate::vhost_user::client::request as message;
use crate::vhost_user::request;
use crate::vhost_user::ring::Piece;
use crate::vhost_user::{Driver, Queue};
use crate::{Error, Result};

/// The other end of a busy disk.
pub struct Disk {
    driver: Driver,
    socket: PathBuf,
    random: Random,
    patience: Duration,
    /// A ring that the load does not use.
    spare: Queue,
    own: Buffer,
    config: Vec<u8>,
    identity: Vec<u8>,
    writeback: bool,
}

/// Where memory comes and goes.
const VISITOR_IOVA: u64 = 0x70_0000_0000;
const VISITOR_BYTES: usize = 1 << 20;
/// Messages sent without waiting for the answers.
const PIPELINED: usize = 6;
/// Where the write-back byte stands in the configuration space.
const WRITEBACK_AT: usize = 32;
const STATUS_AT: usize = 64;
const ID_BYTES: usize = 20;

impl Disk {
    /// Over the driver whose rings but one the load has taken.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(mut driver: Driver, socket: PathBuf, seed: u64, patience: Duration) -> Result<Self> {
        driver.set_timeout(patience);
        let spare = driver.queues.pop().ok_or(Error::NoQueue(0))?;
        let (own, config) = (driver.ram().alloc(4096)?, driver.read_config()?);
        let writeback = config.get(WRITEBACK_AT) == Some(&1);
        let (random, identity) = (Random::new(seed), Vec::new());
        let mut disk = Disk { driver, socket, random, patience, spare, own, config, identity, writeback };
        let buffer = disk.driver.ram().alloc(4096)?;
        disk.identity = disk.identify(&buffer)?;
        Ok(disk)
    }

    /// Several questions in a row, answered in order.
    fn pipelined(&mut self) -> Result<Option<String>> {
        let client = self.driver.client();
        let topics = [message::GET_FEATURES, message::GET_QUEUE_NUM, message::GET_PROTOCOL_FEATURES];
        let asked: Vec<u32> = topics.into_iter().cycle().take(PIPELINED).collect();
        asked.iter().try_for_each(|topic| client.send(*topic, 1, &[], &[]))?;
        let mut answers = Vec::new();
        for topic in asked {
            answers.push(client.receive(topic)?.0);
        }
        let (first, second) = answers.split_at(topics.len());
        let features = first[0].first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let missing = self.driver.features() & !features;
        Ok((first != second || missing != 0).then(|| format!("the device is another: {answers:02x?}")))
    }

    fn configuration(&mut self) -> Result<Option<String>> {
        let mut expected = self.config.clone();
        expected[WRITEBACK_AT] = self.writeback.into();
        let config = self.driver.read_config()?;
        Ok((config != expected).then(|| format!("the configuration is {config:02x?}, not {expected:02x?}")))
    }

    /// The write cache goes off or on again, and is what it was set to.
    fn write_cache(&mut self) -> Result<Option<String>> {
        self.driver.set_writeback(!self.writeback)?;
        self.writeback = !self.writeback;
        self.configuration()
    }

    /// A ring stops and goes on where it was.
    fn ring(&mut self) -> Result<Option<String>> {
        let queue = self.any_ring();
        let base = self.driver.stop(queue)?;
        self.driver.go_on(queue, base)?;
        Ok(None)
    }

    /// A ring is not looked at for a while.
    fn pause(&mut self) -> Result<Option<String>> {
        let queue = self.any_ring();
        self.driver.enable(queue, false)?;
        self.driver.enable(queue, true)?;
        Ok(None)
    }

    fn any_ring(&mut self) -> u16 {
        u16::try_from(self.random.below(self.driver.options().queues.into())).unwrap_or(0)
    }

    /// Memory that comes, takes the device's name and goes.
    fn visitor(&mut self) -> Result<Option<String>> {
        let visitor = Ram::new(VISITOR_BYTES, VISITOR_IOVA)?;
        self.driver.add_memory(&visitor)?;
        let identity = self.identify(&visitor.alloc(4096)?)?;
        self.driver.remove_memory(&visitor)?;
        // Each refusal is a line in the daemon's log: not every time.
        if self.driver.options().mem_slots && self.random.below(8) == 0 {
            match self.driver.remove_memory(&visitor) {
                Err(Error::Refused { .. }) => {}
                Err(error) => return Err(error),
                Ok(()) => return Ok(Some("memory was removed twice".into())),
            }
        }
        let (new, old) = (&identity, &self.identity);
        Ok((new != old).then(|| format!("the disk's name is {new:02x?}, not {old:02x?}")))
    }

    /// GET_ID on the spare ring.
    fn identify(&mut self, target: &Buffer) -> Result<Vec<u8>> {
        target.write(0, &[0xEE; ID_BYTES]);
        self.own.write(0, &request::header(request::GET_ID, 0));
        self.own.write(STATUS_AT, &[request::UNANSWERED]);
        let iova = self.own.iova();
        let pieces = [
            Piece { iova, len: 16, device_writes: false },
            Piece { iova: target.iova(), len: 20, device_writes: true },
            Piece { iova: iova + STATUS_AT as u64, len: 1, device_writes: true },
        ];
        let index = self.spare.index();
        let token = self.spare.ring.add(&pieces).ok_or(Error::QueueFull(index))?;
        self.spare.publish()?;
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(used) = self.spare.ring.take() {
                let status = self.own.bytes(STATUS_AT, 1)[0];
                if (used.token, used.expected, used.written, status) == (token, true, 21, request::OK) {
                    return Ok(target.bytes(0, ID_BYTES));
                }
                return Err(Error::Protocol(format!("GET_ID has {used:?} with status {status}")));
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout(self.patience));
            }
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    /// Another connection, while requests are in flight.
    fn reconnect(&mut self) -> Result<Option<String>> {
        let deadline = Instant::now() + self.patience;
        // The old session may still be leaving, or a keeper go that had not yet noted the new one.
        while let Err(error) = self.driver.reconnect(&self.socket) {
            if Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // A new session begins with the cache on.
        self.writeback = true;
        self.configuration()
    }
}

impl Partner for Disk {
    fn topics(&self) -> u64 {
        64
    }

    fn exchange(&mut self, topic: u64) -> Result<Option<String>> {
        match topic {
            0 if self.driver.inflight_region().is_some() => self.reconnect(),
            0..20 => self.pipelined(),
            20..32 => self.configuration(),
            32..40 => self.write_cache(),
            40..48 => {
                let queue = self.any_ring();
                self.driver.set_call(queue).map(|()| None)
            }
            48..52 => self.pause(),
            52..58 => self.ring(),
            _ => self.visitor(),
        }
    }
}
