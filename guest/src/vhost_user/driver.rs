//! The way from a socket to rings that run.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use super::client::{Client, request, state, u64_at};
use super::ring::Ring;
use crate::ram::Ram;
use crate::{Error, Result};

/// Feature bits (virtio 1.2, 5.2.3 and 6).
#[expect(missing_docs, reason = "the names are the specification's")]
pub mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
    pub const INDIRECT: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
    pub const PACKED: u64 = 1 << 34;
}

/// Protocol feature bits (vhost-user.rst, "Protocol features").
#[expect(missing_docs, reason = "the names are the specification's")]
pub mod protocol {
    pub const MQ: u64 = 1;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const CONFIG: u64 = 1 << 9;
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
}

/// The front-end's own address of guest memory, so far from the guest's that they cannot be taken for each other.
const USER_ADDRESS: u64 = 0x7A00_0000_0000;
const CONFIG_BYTES: u32 = 256;
/// A packed ring's first place: at 0 with the wrap counter set, for what is available and for what is used.
const FIRST_PACKED_BASE: u32 = 0x8000_8000;
/// Offset, size and flags stand before it in a message.
const CONFIG_HEADER_BYTES: usize = 12;
/// Where the write-back byte stands.
const WRITEBACK_AT: u32 = 32;
/// Up to the fields of WRITE_ZEROES, as QEMU asks for it.
const CONFIG_BYTES_LEAST: u32 = 57;

/// What to ask for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Guest RAM.
    pub ram_bytes: usize,
    /// Rings.
    pub queues: u16,
    /// Entries of each.
    pub queue_size: u16,
    /// Packed rings.
    pub packed: bool,
    /// Indirect descriptors.
    pub indirect: bool,
    /// The event index.
    pub event_idx: bool,
    /// Kick eventfds are given, and written when the device wants it. Otherwise it is told to poll.
    pub kick: bool,
    /// The region for requests in flight is fetched and brought back, as QEMU does.
    pub inflight: bool,
    /// Memory comes by ADD_MEM_REG instead of SET_MEM_TABLE.
    pub mem_slots: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            ram_bytes: 48 << 20,
            queues: 1,
            queue_size: 256,
            packed: false,
            indirect: true,
            event_idx: false,
            kick: false,
            inflight: false,
            mem_slots: false,
        }
    }
}

/// The configuration space, as far as this driver uses it (virtio 1.2, 5.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Sectors of 512 bytes.
    pub sectors: u64,
    /// Data segments of a request; at least 1.
    pub seg_max: u32,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Rings that the device has.
    pub num_queues: u16,
    /// Sectors of a discard segment.
    pub discard_sectors_max: u32,
    /// Segments of a discard.
    pub discard_seg_max: u32,
    /// Sectors of a write-zeroes segment.
    pub write_zeroes_sectors_max: u32,
}

impl Config {
    fn parse(bytes: &[u8], features: u64) -> Result<Self> {
        let short = || Error::Protocol(format!("a configuration of {} bytes", bytes.len()));
        let word = |at: usize| {
            let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
            word.map(u32::from_le_bytes).ok_or_else(short)
        };
        let with = |bit: u64, value: u32, without: u32| if features & bit != 0 { value } else { without };
        Ok(Config {
            sectors: u64_at(bytes, 0).ok_or_else(short)?,
            seg_max: with(feature::SEG_MAX, word(12)?, 1).max(1),
            block_bytes: with(feature::BLK_SIZE, word(20)?, 512),
            num_queues: u16::try_from(with(feature::MQ, word(32)? >> 16, 1)).unwrap_or(1),
            discard_sectors_max: with(feature::DISCARD, word(36)?, 0),
            discard_seg_max: with(feature::DISCARD, word(40)?, 0),
            write_zeroes_sectors_max: with(feature::WRITE_ZEROES, word(48)?, 0),
        })
    }
}

/// A ring and its eventfds.
pub struct Queue {
    /// The ring.
    pub ring: Ring,
    index: u16,
    kick: Option<Arc<OwnedFd>>,
    pub(super) call: Arc<OwnedFd>,
}

/// What the device is told of a ring, whoever drives it.
struct Told {
    size: u16,
    packed: bool,
    places: [u64; 3],
    kick: Option<Arc<OwnedFd>>,
    call: Arc<OwnedFd>,
}

impl From<&Queue> for Told {
    fn from(queue: &Queue) -> Self {
        let Queue { ring, kick, call, .. } = queue;
        let (size, packed, places) = (ring.size(), matches!(ring, Ring::Packed(_)), ring.places());
        Told { size, packed, places, kick: kick.clone(), call: Arc::clone(call) }
    }
}

impl Queue {
    /// A ring with eventfds.
    pub(super) fn new(ring: Ring, index: u16, kicked: bool) -> Result<Self> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Arc::new);
        let kick = kicked.then(event).transpose()?;
        Ok(Queue { ring, index, kick, call: event()? })
    }

    /// Shows the device what was added, and kicks it if it wants that.
    ///
    /// # Errors
    /// As write(2) on the eventfd.
    pub fn publish(&mut self) -> Result<()> {
        if self.ring.publish()
            && let Some(kick) = &self.kick
        {
            rustix::io::write(kick, &1_u64.to_ne_bytes())?;
        }
        Ok(())
    }

    /// Kicks the device whether it wants that or not.
    ///
    /// # Errors
    /// As write(2) on the eventfd.
    pub fn kick(&self) -> Result<()> {
        match &self.kick {
            Some(kick) => rustix::io::write(kick, &1_u64.to_ne_bytes()).map(|_| ()).map_err(Error::from),
            None => Ok(()),
        }
    }

    /// The eventfd that the device signals. This driver does not look at it.
    #[must_use]
    pub fn call(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    /// The ring's number.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }
}

/// A virtio-blk device over vhost-user.
pub struct Driver {
    client: Client,
    ram: Arc<Ram>,
    options: Options,
    features: u64,
    protocol: u64,
    config: Config,
    /// In the order of their numbers. They can be taken out to be driven from elsewhere.
    pub queues: Vec<Queue>,
    told: Vec<Told>,
    inflight: Option<(OwnedFd, Vec<u8>)>,
}

impl Driver {
    /// Connects, agrees on what both have, and starts the rings.
    ///
    /// # Errors
    /// The connection's; something asked for is not offered.
    pub fn connect(path: impl AsRef<Path>, options: Options) -> Result<Self> {
        Self::start(Client::connect(path)?, options)
    }

    /// The same over a connection that is there.
    ///
    /// # Errors
    /// As [`Driver::connect`].
    pub fn start(mut client: Client, options: Options) -> Result<Self> {
        let (features, protocol) = agree(&mut client, &options)?;
        let rings = client.ask_number(request::GET_QUEUE_NUM)?;
        if rings < u64::from(options.queues) {
            return Err(Error::Protocol(format!("{rings} rings, not {}", options.queues)));
        }
        let config = config(&client, features)?;
        let ram = Ram::new(options.ram_bytes, 0x10_0000)?;
        let mut queues = Vec::new();
        for index in 0..options.queues {
            let event_idx = features & feature::EVENT_IDX != 0;
            let ring = Ring::new(&ram, options.queue_size, options.packed, event_idx)?;
            queues.push(Queue::new(ring, index, options.kick)?);
        }
        let (told, inflight) = (queues.iter().map(Told::from).collect(), None);
        let mut driver = Driver { client, ram, options, features, protocol, config, queues, told, inflight };
        if options.inflight {
            driver.inflight = Some(driver.fetch_inflight()?);
        }
        driver.set_up()?;
        Ok(driver)
    }

    /// Hangs up and does all of it again over another connection, as QEMU does when a back-end comes back: the rings go on. Those
    /// that were taken out may be busy if the region for requests in flight is the driver's.
    ///
    /// # Errors
    /// As [`Driver::connect`]; the device offers less than before.
    pub fn reconnect(&mut self, path: impl AsRef<Path>) -> Result<()> {
        self.client.hang_up();
        let mut client = Client::connect(path)?;
        client.set_timeout(self.client.timeout());
        let (features, protocol) = agree(&mut client, &self.options)?;
        if (features, protocol) != (self.features, self.protocol) {
            return Err(Error::Protocol("another device than before".into()));
        }
        self.client = client;
        self.set_up()
    }

    /// The connection.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// How long an answer may take.
    pub fn set_timeout(&mut self, timeout: std::time::Duration) {
        self.client.set_timeout(timeout);
    }

    /// Guest memory.
    #[must_use]
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// The device.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The configuration space as it is now.
    ///
    /// # Errors
    /// The connection's.
    pub fn read_config(&self) -> Result<Vec<u8>> {
        read_config(&self.client, CONFIG_BYTES_LEAST)
    }

    /// Sets the write-back byte (CONFIG_WCE).
    ///
    /// # Errors
    /// The connection's.
    pub fn set_writeback(&self, on: bool) -> Result<()> {
        let mut payload: Vec<u8> =
            [WRITEBACK_AT, 1, 0].iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        payload.push(on.into());
        self.client.tell(request::SET_CONFIG, &payload, &[])
    }

    /// The region for requests in flight, if the driver brought one.
    #[must_use]
    pub fn inflight_region(&self) -> Option<BorrowedFd<'_>> {
        self.inflight.as_ref().map(|(fd, _)| fd.as_fd())
    }

    /// Features in use.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// What was asked for.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Stops a ring and says where the device was.
    ///
    /// # Errors
    /// The connection's.
    pub fn stop(&self, queue: u16) -> Result<u32> {
        let (answer, _) = self.client.ask(request::GET_VRING_BASE, &state(queue.into(), 0))?;
        let word = u64_at(&answer, 0).ok_or_else(|| Error::Protocol("a short ring state".into()))?;
        u32::try_from(word >> 32).map_err(|_| Error::Protocol("a ring state".into()))
    }

    /// Lets a ring go on at `base`.
    ///
    /// # Errors
    /// The connection's.
    pub fn go_on(&self, queue: u16, base: u32) -> Result<()> {
        let told = &self.told[usize::from(queue)];
        let index = u32::from(queue);
        let client = &self.client;
        client.tell(request::SET_VRING_NUM, &state(index, told.size.into()), &[])?;
        client.tell(request::SET_VRING_BASE, &state(index, base), &[])?;
        let [descriptors, driver, device] = told.places.map(|iova| self.user_address(iova));
        let words = [u64::from(index), descriptors, device, driver, 0];
        let payload: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        client.tell(request::SET_VRING_ADDR, &payload, &[])?;
        let fd = u64::from(index) | if told.kick.is_some() { 0 } else { 1 << 8 };
        let kick: Vec<_> = told.kick.iter().map(AsFd::as_fd).collect();
        client.tell(request::SET_VRING_KICK, &fd.to_le_bytes(), &kick)?;
        self.set_call(queue)?;
        self.enable(queue, true)
    }

    /// Gives a ring its call eventfd, which it may have already.
    ///
    /// # Errors
    /// The connection's.
    pub fn set_call(&self, queue: u16) -> Result<()> {
        let call = &self.told[usize::from(queue)].call;
        self.client.tell(request::SET_VRING_CALL, &u64::from(queue).to_le_bytes(), &[call.as_fd()])
    }

    /// Lets a ring be looked at, or not.
    ///
    /// # Errors
    /// The connection's.
    pub fn enable(&self, queue: u16, on: bool) -> Result<()> {
        self.client.tell(request::SET_VRING_ENABLE, &state(queue.into(), on.into()), &[])
    }

    /// Maps all guest memory anew, as a hot-plug does.
    ///
    /// # Errors
    /// The connection's.
    pub fn share_memory(&self) -> Result<()> {
        if self.options.mem_slots {
            return self.tell_slot(request::ADD_MEM_REG, &self.ram);
        }
        self.tell_table(&[&self.ram])
    }

    /// Maps more memory, which must not touch the driver's own.
    ///
    /// # Errors
    /// The connection's.
    pub fn add_memory(&self, more: &Ram) -> Result<()> {
        if self.options.mem_slots {
            return self.tell_slot(request::ADD_MEM_REG, more);
        }
        self.tell_table(&[&self.ram, more])
    }

    /// Takes it back.
    ///
    /// # Errors
    /// The connection's.
    pub fn remove_memory(&self, more: &Ram) -> Result<()> {
        if self.options.mem_slots {
            return self.tell_slot(request::REM_MEM_REG, more);
        }
        self.tell_table(&[&self.ram])
    }

    fn region(&self, ram: &Ram) -> [u64; 4] {
        [ram.iova(), ram.len() as u64, self.user_address(ram.iova()), 0]
    }

    /// A region after the padding of a single one.
    fn tell_slot(&self, request: u32, ram: &Ram) -> Result<()> {
        let words = std::iter::once(0).chain(self.region(ram));
        let fds = [ram.fd()];
        let fds = if request == request::ADD_MEM_REG { fds.as_slice() } else { &[] };
        self.client.tell(request, &words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>(), fds)
    }

    /// Regions after their count.
    fn tell_table(&self, rams: &[&Ram]) -> Result<()> {
        let words = std::iter::once(rams.len() as u64).chain(rams.iter().flat_map(|ram| self.region(ram)));
        let fds: Vec<_> = rams.iter().map(|ram| ram.fd()).collect();
        let payload: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        self.client.tell(request::SET_MEM_TABLE, &payload, &fds)
    }

    /// Where the front-end has guest memory.
    #[must_use]
    pub fn user_address(&self, iova: u64) -> u64 {
        USER_ADDRESS + (iova - self.ram.iova())
    }

    fn fetch_inflight(&self) -> Result<(OwnedFd, Vec<u8>)> {
        let mut shape = vec![0; 24];
        shape[16..18].copy_from_slice(&self.options.queues.to_le_bytes());
        shape[18..20].copy_from_slice(&self.options.queue_size.to_le_bytes());
        let (answer, mut fds) = self.client.ask(request::GET_INFLIGHT_FD, &shape)?;
        let fd = fds.pop().filter(|_| answer.len() == shape.len());
        Ok((fd.ok_or_else(|| Error::Protocol("no in-flight region".into()))?, answer))
    }

    fn set_up(&self) -> Result<()> {
        let client = &self.client;
        client.tell(request::SET_OWNER, &[], &[])?;
        client.tell(request::SET_FEATURES, &self.features.to_le_bytes(), &[])?;
        self.share_memory()?;
        if let Some((fd, shape)) = &self.inflight {
            client.tell(request::SET_INFLIGHT_FD, shape, &[fd.as_fd()])?;
        }
        (0..self.options.queues).try_for_each(|queue| self.go_on(queue, self.base(queue)))
    }

    /// Where a ring begins.
    fn base(&self, queue: u16) -> u32 {
        if let Some(queue) = self.queues.iter().find(|here| here.index == queue) {
            return queue.ring.base();
        }
        // Driven from elsewhere: what QEMU knows of it, which is less than what the region for requests in flight says.
        let told = &self.told[usize::from(queue)];
        let used = self.ram.offset_of(told.places[2], 4).filter(|_| !told.packed);
        used.map_or(FIRST_PACKED_BASE, |used| u32::from(self.ram.mapping().load_u16(used + 2)))
    }
}

/// Features that both have; an error when one that was asked for is missing.
fn agree(client: &mut Client, options: &Options) -> Result<(u64, u64)> {
    let offered = client.ask_number(request::GET_FEATURES)?;
    let bits = [
        (options.packed, feature::PACKED),
        (options.indirect, feature::INDIRECT),
        (options.event_idx, feature::EVENT_IDX),
        (options.queues > 1, feature::MQ),
        (true, feature::VERSION_1 | feature::PROTOCOL),
    ];
    let needed = bits.iter().filter(|(asked, _)| *asked).fold(0, |all, (_, bit)| all | bit);
    if offered & needed != needed {
        return Err(Error::Protocol(format!("features {offered:#x} without {:#x}", needed & !offered)));
    }
    let useful = feature::SEG_MAX
        | feature::BLK_SIZE
        | feature::FLUSH
        | feature::CONFIG_WCE
        | feature::MQ
        | feature::DISCARD
        | feature::WRITE_ZEROES;
    let offered_protocol = client.ask_number(request::GET_PROTOCOL_FEATURES)?;
    let mut protocol = protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG;
    protocol |= if options.inflight { protocol::INFLIGHT_SHMFD } else { 0 };
    protocol |= if options.mem_slots { protocol::CONFIGURE_MEM_SLOTS } else { 0 };
    if offered_protocol & protocol != protocol {
        let missing = protocol & !offered_protocol;
        return Err(Error::Protocol(format!("protocol features without {missing:#x}")));
    }
    client.tell(request::SET_PROTOCOL_FEATURES, &protocol.to_le_bytes(), &[])?;
    client.use_acknowledgements();
    Ok((needed | offered & useful, protocol))
}

fn config(client: &Client, features: u64) -> Result<Config> {
    let mut answer = read_config(client, CONFIG_BYTES)?;
    if answer.is_empty() {
        // QEMU's storage daemon gives no more than its structure has.
        answer = read_config(client, CONFIG_BYTES_LEAST)?;
    }
    if answer.len() < CONFIG_BYTES_LEAST as usize {
        return Err(Error::Protocol(format!("a configuration of {} bytes", answer.len())));
    }
    Config::parse(&answer, features)
}

/// The first bytes of the configuration space; none, if the device refuses.
fn read_config(client: &Client, bytes: u32) -> Result<Vec<u8>> {
    let mut ask: Vec<u8> = [0, bytes, 0].iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
    ask.resize(CONFIG_HEADER_BYTES + bytes as usize, 0);
    let (mut answer, _) = client.ask(request::GET_CONFIG, &ask)?;
    Ok(answer.split_off(answer.len().min(CONFIG_HEADER_BYTES)))
}
