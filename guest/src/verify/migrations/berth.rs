//! A client of an ssd, and how it finds where the ssd is.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::ram::Ram;
use crate::verify::daemon::{Frontend, Ssd};
use crate::verify::door::Door;
use crate::verify::nvme::{NvmeDoor, Slots};
use crate::verify::plug::{Plan, RAM_BYTES, client};
use crate::vhost_user::VhostDoor;
use crate::{Error, Result, nvme, vfio_user, vhost_user};

/// How long one host is given to answer before the other is tried.
pub(crate) const TRY: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(2);

/// A device that is driven, and the connection to it.
pub(crate) struct Berth {
    pub(crate) door: Box<dyn Door + Send>,
    line: Line,
}

enum Line {
    Nvme(Box<nvme::Driver>),
    Disk(Box<vhost_user::Driver>),
}

impl Berth {
    /// Connects by a socket that is given, with so much time for each answer.
    pub(crate) fn over(stream: UnixStream, ssd: &Ssd, plan: &Plan, patience: Duration) -> Result<Self> {
        let no_driver = || Error::Protocol("a door that has just been made has its driver".into());
        match ssd.frontend {
            Frontend::Nvme { .. } => {
                let options =
                    nvme::Options { ram_bytes: RAM_BYTES, timeout: patience, ..nvme::Options::default() };
                // Before it waits to be let in: a guest has its memory by then.
                let ram = Ram::new(options.ram_bytes, options.ram_iova)?;
                ram.populate()?;
                let slots = Slots::new(&ram, plan.lanes, plan.depth)?;
                let mut client = vfio_user::Client::from_stream(stream);
                client.set_timeout(patience);
                client.greet()?;
                let mut driver = nvme::Driver::attach_to(client, ram, options)?;
                driver.enable()?;
                driver.set_queue_count(plan.lanes)?;
                let door = Box::new(NvmeDoor::new(&mut driver, slots, true)?);
                Ok(Berth { door, line: Line::Nvme(Box::new(driver)) })
            }
            Frontend::Disk { packed } => {
                let mut connection = vhost_user::Client::new(stream);
                connection.set_timeout(patience);
                let options = vhost_user::Options { queues: plan.lanes, ..client(packed, plan) };
                let door = VhostDoor::start(connection, plan.lanes, plan.depth, options)?;
                let mut door = door.with_a_called_lane();
                let driver = door.take_driver().ok_or_else(no_driver)?;
                Ok(Berth { door: Box::new(door), line: Line::Disk(Box::new(driver)) })
            }
        }
    }

    /// Connects to a host, if it serves the ssd by then.
    pub(crate) fn connect(socket: &Path, ssd: &Ssd, plan: &Plan, patience: Duration) -> Result<Self> {
        Self::over(UnixStream::connect(socket)?, ssd, plan, patience)
    }

    /// Its door, and what must be kept as long as that.
    pub(crate) fn split(self) -> (Box<dyn Door>, Connection) {
        (self.door, Connection(self.line))
    }
}

/// Of a berth.
pub(crate) struct Connection(Line);

impl Connection {
    /// The device is not here any more.
    pub(crate) fn is_hung_up(&mut self) -> bool {
        match &mut self.0 {
            Line::Nvme(driver) => driver.client().is_hung_up(),
            Line::Disk(driver) => driver.client().is_hung_up(),
        }
    }
}

/// Somebody who waits at hosts for an ssd.
pub(crate) struct Follower {
    seat: Arc<Seat>,
}

#[derive(Default)]
struct Seat {
    is_over: AtomicBool,
    /// Both hosts are asked, not only the first.
    asks_both: AtomicBool,
    /// Where it waits now.
    socket: Mutex<Option<UnixStream>>,
}

/// Where one follower found the ssd.
pub(crate) struct Found {
    pub(crate) guest: usize,
    pub(crate) number: u64,
    pub(crate) host: usize,
    pub(crate) berth: Berth,
}

/// What a follower is sent out with.
pub(crate) struct Errand {
    pub(crate) guest: usize,
    pub(crate) number: u64,
    pub(crate) ssd: Ssd,
    pub(crate) plan: Plan,
    /// Hosts and their sockets, in the order in which they are asked.
    pub(crate) hosts: [(usize, PathBuf); 2],
    pub(crate) asks_both: bool,
    /// How long one host is given to answer.
    pub(crate) patience: Duration,
}

impl Follower {
    /// Sends one out; what it finds comes to `found`, once.
    pub(crate) fn start(errand: Errand, found: Sender<Found>) -> std::io::Result<Self> {
        let seat = Arc::new(Seat { asks_both: AtomicBool::new(errand.asks_both), ..Seat::default() });
        let theirs = Arc::clone(&seat);
        let run = move || {
            if let Some((host, berth)) = theirs.find(&errand) {
                let Errand { guest, number, .. } = errand;
                let _nobody_waits = found.send(Found { guest, number, host, berth });
            }
        };
        std::thread::Builder::new().name("follower".to_owned()).spawn(run)?;
        Ok(Self { seat })
    }

    /// Has it ask both hosts from now on.
    pub(crate) fn ask_both(&self) {
        self.seat.asks_both.store(true, Ordering::Release);
    }
}

/// It is called back.
impl Drop for Follower {
    fn drop(&mut self) {
        self.seat.is_over.store(true, Ordering::Release);
        if let Some(socket) = self.seat.socket.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _gone_already = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Seat {
    fn find(&self, errand: &Errand) -> Option<(usize, Berth)> {
        loop {
            for (at, (host, socket)) in errand.hosts.iter().enumerate() {
                if at > 0 && !self.asks_both.load(Ordering::Acquire) {
                    continue;
                }
                if self.is_over.load(Ordering::Acquire) {
                    return None;
                }
                if let Ok(berth) = self.wait_at(socket, errand) {
                    self.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
                    return Some((*host, berth));
                }
            }
            std::thread::sleep(AGAIN);
        }
    }

    fn wait_at(&self, socket: &Path, errand: &Errand) -> Result<Berth> {
        let stream = UnixStream::connect(socket)?;
        let also = stream.try_clone()?;
        {
            let mut place = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
            // It was called back meanwhile, and nobody would.
            if self.is_over.load(Ordering::Acquire) {
                return Err(Error::Closed);
            }
            *place = Some(also);
        }
        Berth::over(stream, &errand.ssd, &errand.plan, errand.patience)
    }
}
