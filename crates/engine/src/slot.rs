//! Where the clients of one ssd plug in, one after the other, over links to the keeper.
//!
//! ```text
//!  taken over or powered on --> [ session --> client left: reset, unmap, power cycle ] --> ... --> stop
//! ```
//! A thread for each ssd. What a predecessor left is taken up before anything is served: the client's memory and interrupts
//! first, then the controller, whose unanswered commands need both.

use crate::blame::Line;
use crate::channel::LinkChannel;
use crate::clock::Clock;
use crate::home::HandedOn;
use crate::interrupts::Table;
use crate::keeper::{Keeper, PowerCycle};
use crate::management;
use crate::message::{Address, Call, Client, Life, Message, Settlement};
use crate::passenger::Passenger;
use crate::records::Records;
use crate::serve::controller;
use crate::session::{Means, Orders, Wire, call_home, power_off};
use crate::ssd::{Power, Ssd};
use anyhow::Context;
use frontend::vfio_user::{Connection, Limits, Pause};
use link::control::Role;
use link::session::Restore;
use memory::MemoryMap;
use nvme::controller::Controller;
use nvme::queue::{self, Left};
use state::session::VfioUserV1;
use state::ssd::SsdV1;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a command of a client at hand may take when the engine pauses. One that takes longer is done again.
const PAUSE_PATIENCE: Duration = Duration::from_millis(500);

/// A client's link.
pub(crate) struct Plug {
    pub(crate) session: u64,
    pub(crate) link: OwnedFd,
}

/// An ssd on its way to be served.
pub(crate) struct Plan {
    pub(crate) ssd: Arc<Ssd>,
    pub(crate) record: SsdV1,
    pub(crate) keeper: Arc<Keeper>,
    /// What a predecessor left; `None`: the ssd is powered on.
    pub(crate) found: Option<Power>,
    /// The client there is already.
    pub(crate) client: Option<Plug>,
    pub(crate) home: Address,
    pub(crate) records: Records,
    pub(crate) clock: Clock,
}

enum Job {
    Serve(Plug),
    Stop,
}

/// What other threads reach of the session there is.
#[derive(Default)]
pub(crate) struct Current {
    stopping: bool,
    channel: Option<Arc<LinkChannel>>,
    pause: Option<Pause>,
    pub(crate) orders: Option<Orders>,
}

/// One ssd's thread, as others see it.
pub(crate) struct Slot {
    ssd: Arc<Ssd>,
    home: Address,
    jobs: Sender<Job>,
    current: Arc<Mutex<Current>>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Slot {
    /// Starts the ssd's thread; `ready` hears when the ssd is served, or why it is not.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn start(plan: Plan, ready: Sender<anyhow::Result<Left>>) -> std::io::Result<Self> {
        let (jobs, inbox) = channel();
        let current = Arc::new(Mutex::new(Current::default()));
        let (ssd, home) = (Arc::clone(&plan.ssd), Arc::clone(&plan.home));
        let shared = Arc::clone(&current);
        let name = format!("ssd-{}", ssd.id.0);
        let thread = std::thread::Builder::new()
            .name(name)
            .stack_size(256 << 10)
            .spawn(move || Keeping::run(plan, &inbox, shared, ready))?;
        Ok(Self { ssd, home, jobs, current, thread })
    }

    pub(crate) fn ssd(&self) -> &Arc<Ssd> {
        &self.ssd
    }

    /// A new client.
    pub(crate) fn plug(&self, plug: Plug) {
        // A thread that is gone has said why.
        let _ = self.jobs.send(Job::Serve(plug));
    }

    /// Ends the session there is, makes all durable and cuts the power.
    pub(crate) fn stop(&self) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.stopping = true;
        if let Some(channel) = &current.channel {
            channel.stop();
        }
        drop(current);
        let _ = self.jobs.send(Job::Stop);
    }

    /// Waits for the end that [`Slot::stop`] asked for.
    pub(crate) fn join(self) -> anyhow::Result<()> {
        let result = self.thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the ssd's thread panicked")));
        result.with_context(|| format!("ssd \"{}\"", self.ssd.name))
    }

    /// The device, for whoever moves its guest.
    pub(crate) fn passenger(&self) -> Passenger {
        Passenger::new(Arc::clone(&self.ssd), Arc::clone(&self.home), Arc::clone(&self.current))
    }

    /// Says that the drive has so many bytes now.
    pub(crate) fn announcement(&self, capacity_bytes: u64) -> impl FnOnce() + use<> {
        let (home, ssd) = (Arc::clone(&self.home), Arc::clone(&self.ssd));
        // A home that comes later looks for itself.
        move || _ = call_home(&home, &ssd, Call::Grow(capacity_bytes))
    }

    /// No command of the client begins any more, and nothing of the guest; returns when nothing is at the drive.
    pub(crate) fn pause(&self) {
        let pause = self.current.lock().unwrap_or_else(PoisonError::into_inner).pause.clone();
        if pause.is_some_and(|pause| !pause.pause(PAUSE_PATIENCE)) {
            tracing::warn!(ssd = self.ssd.name, "a client's command takes long: it will be done again");
        }
        // Without a home there is nothing to stop.
        let _ = call_home(&self.home, &self.ssd, Call::Pause);
    }
}

/// The thread's own view.
struct Keeping {
    ssd: Arc<Ssd>,
    record: SsdV1,
    keeper: Arc<Keeper>,
    home: Address,
    records: Records,
    clock: Clock,
    power: Power,
    current: Arc<Mutex<Current>>,
}

/// A session that is set up and not yet served.
struct Ready {
    session: u64,
    channel: Arc<LinkChannel>,
    connection: Connection,
    orders: Orders,
    wire: Wire,
}

impl Keeping {
    fn run(
        plan: Plan,
        inbox: &Receiver<Job>,
        current: Arc<Mutex<Current>>,
        ready: Sender<anyhow::Result<Left>>,
    ) -> anyhow::Result<()> {
        let line = Line::of_other();
        line.turn_to(Some(plan.ssd.id.0));
        let name = plan.ssd.name.clone();
        let begun = Self::begin(plan, current).with_context(|| format!("ssd \"{name}\""));
        line.turn_to(None);
        let (mut keeping, mut session) = match begun {
            Ok((keeping, session, left)) => {
                // Whoever hears of the ssd may ask for its client at once.
                session.iter().for_each(|session| keeping.receive(session));
                let _ = ready.send(Ok(left));
                (keeping, session)
            }
            Err(error) => {
                let _ = ready.send(Err(error));
                return Ok(());
            }
        };
        // Whoever counts the ssds waits until the last of these is gone.
        drop(ready);
        loop {
            if let Some(session) = session.take() {
                keeping.serve(session)?;
            }
            match inbox.recv() {
                Ok(Job::Serve(plug)) => session = keeping.open(plug),
                Ok(Job::Stop) | Err(_) => return keeping.close(),
            }
        }
    }

    fn begin(plan: Plan, current: Arc<Mutex<Current>>) -> anyhow::Result<(Self, Option<Ready>, Left)> {
        let Plan { ssd, record, keeper, found, client, home, records, clock } = plan;
        let Some(power) = found else {
            let power = Power::on(&ssd.name)?;
            let mut keeping = Self { ssd, record, keeper, home, records, clock, power, current };
            keeping.power_on(None)?;
            let session = client.and_then(|plug| keeping.open(plug));
            return Ok((keeping, session, Left::default()));
        };
        let keeping = Self { ssd, record, keeper, home, records, clock, power, current };
        let mut session = match client {
            Some(plug) => Some(keeping.connect(plug)?),
            None => None,
        };
        let (memory, interrupts) = match &mut session {
            Some((ready, restore)) => keeping.restore(ready, restore)?,
            None => (Arc::new(MemoryMap::empty()), Table::default()),
        };
        // Only now is anything of the region changed.
        let left = queue::settle_region(&keeping.power.region);
        if left != Left::default() {
            let Left { unanswered, posting } = left;
            tracing::info!(ssd = keeping.ssd.name, unanswered, posting, "going on where a predecessor ended");
        }
        let mut session = session.map(|(ready, _)| ready);
        if let Some(ready) = session.as_mut().filter(|ready| ready.wire.was_still()) {
            // Whoever stopped it has not let it run again.
            ready.wire.restore_still(&keeping.record, false)?;
            return Ok((keeping, session, left));
        }
        let client = session.as_ref().map(|ready| ready.wire.client());
        let controller = controller(&keeping.ssd, &keeping.power, &keeping.record, keeping.clock);
        keeping.settle(controller, memory, interrupts, client, Some(HandedOn::default()));
        Ok((keeping, session, left))
    }

    /// Gives a controller to its home. `resume`: over a used region.
    fn settle(
        &self,
        controller: Controller,
        memory: Arc<MemoryMap>,
        interrupts: Table,
        client: Option<Arc<dyn Client>>,
        resume: Option<HandedOn>,
    ) {
        let settlement = Settlement {
            ssd: Arc::clone(&self.ssd),
            power: self.power.clone(),
            namespaces: Arc::clone(controller.namespaces()),
            controller,
            memory,
            interrupts,
            resume,
            client,
            private: false,
        };
        self.home.send(Message::Settle(Box::new(settlement)));
    }

    /// A new power cycle: the keeper has all of it before anything of it is served.
    fn power_on(&mut self, ended: Option<u64>) -> anyhow::Result<()> {
        let controller = controller(&self.ssd, &self.power, &self.record, self.clock);
        let record = controller.record();
        let fd = |fd: Option<std::os::fd::BorrowedFd<'_>>| {
            anyhow::Ok(fd.context("private memory")?.try_clone_to_owned()?)
        };
        let mut parts = vec![
            (Role::REGION, fd(self.power.region.fd())?),
            (Role::DOORBELLS, fd(self.power.doorbells.fd())?),
        ];
        if ended.is_none() {
            parts.extend(self.ssd.drive_parts()?);
            parts.extend(self.ssd.page_part()?);
        }
        let kept = match self.ssd.record_path() {
            Some(_) => None,
            None => Some(record.to_bytes()?),
        };
        self.keeper.power_on(self.ssd.id.0, PowerCycle { ended, parts, record: kept })?;
        if self.ssd.record_path().is_some() {
            self.records.note(&self.ssd, record.clone());
        }
        if let Some(desk) = self.ssd.management.get() {
            let life = Life { ssd: self.ssd.id, number: self.power.number };
            management::begin_anew(desk, life, &self.home);
        }
        self.settle(controller, Arc::new(MemoryMap::empty()), Table::default(), None, None);
        self.record = record;
        Ok(())
    }

    fn connect(&self, plug: Plug) -> anyhow::Result<(Ready, Restore)> {
        let (channel, restore) = LinkChannel::open(plug.link)?;
        let connection = Connection::over(Arc::clone(&channel) as _, Limits::default());
        let (ssd, home) = (Arc::clone(&self.ssd), Arc::clone(&self.home));
        let means = Means { records: self.records.clone(), clock: self.clock };
        let mut wire = Wire::new(ssd, &self.power, home, means, connection.remote_memory())?;
        let (orders, errands) = Orders::to(&connection);
        wire.obey(errands);
        Ok((Ready { session: plug.session, channel, connection, orders, wire }, restore))
    }

    fn restore(&self, ready: &mut Ready, restore: &mut Restore) -> anyhow::Result<(Arc<MemoryMap>, Table)> {
        let saved = match &restore.deposit {
            Some(bytes) => VfioUserV1::from_bytes(bytes)?,
            None => VfioUserV1::default(),
        };
        ready.wire.restore(saved, std::mem::take(&mut restore.fds))
    }

    /// A new client's session. `None`: its link is broken, and the keeper will notice.
    fn open(&self, plug: Plug) -> Option<Ready> {
        let name = &self.ssd.name;
        match self.connect(plug) {
            // A new client's deposit is empty; were it not, its memory would have to be adopted by the home.
            Ok((ready, restore)) if restore.deposit.is_none() => Some(ready),
            Ok((ready, mut restore)) => match self.adopt(ready, &mut restore) {
                Ok(ready) => Some(ready),
                Err(error) => {
                    self.keeper
                        .fault(Some(self.ssd.id.0), format!("its client cannot be taken over: {error:#}"));
                    None
                }
            },
            Err(error) => {
                tracing::warn!(ssd = name, error = format!("{error:#}"), "a client's link is broken");
                None
            }
        }
    }

    /// A client of an earlier engine comes to a controller that is there already (it was quarantined).
    fn adopt(&self, mut ready: Ready, restore: &mut Restore) -> anyhow::Result<Ready> {
        let (map, table) = self.restore(&mut ready, restore)?;
        let client = ready.wire.client();
        call_home(&self.home, &self.ssd, Call::Memory { map, client })?;
        call_home(&self.home, &self.ssd, Call::Interrupts(table))?;
        ready.wire.restore_still(&self.record, true)?;
        Ok(ready)
    }

    /// Other threads can reach the session from now on.
    fn receive(&self, ready: &Ready) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.stopping {
            ready.channel.stop();
        }
        current.channel = Some(Arc::clone(&ready.channel));
        current.pause = Some(ready.connection.pauser());
        current.orders = Some(ready.orders.clone());
    }

    /// Serves a client until it leaves, then cycles the power for the next.
    fn serve(&mut self, ready: Ready) -> anyhow::Result<()> {
        self.receive(&ready);
        let Ready { session, channel, connection, mut wire, .. } = ready;
        let (negotiated, maps) = wire.state();
        let end = connection.resume(negotiated, maps, &mut wire);
        tracing::debug!(ssd = self.ssd.name, session, reason = %end.reason, "session over");
        if channel.is_orphaned() {
            wait_for_the_end();
        }
        {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            (current.channel, current.pause, current.orders) = (None, None, None);
        }
        let left = wire.leave();
        self.record = match &left {
            Ok(Some(record)) => record.clone(),
            _ => power_off(&self.home, &self.ssd)?,
        };
        self.power = Power::on(&self.ssd.name)?;
        self.power_on(Some(session))?;
        // The link is closed after the keeper heard that the session is over.
        drop(channel);
        Ok(left.map(drop)?)
    }

    /// Makes all durable, with no client connected.
    fn close(self) -> anyhow::Result<()> {
        call_home(&self.home, &self.ssd, Call::Flush).context("its data cannot be made durable")?;
        let record = power_off(&self.home, &self.ssd)?;
        self.records.keep_now(&self.ssd, record).context("its state cannot be written")
    }
}

/// The keeper is gone, and with it the control link: the process is about to exit as it is. The client has not left, so nothing
/// may be reset; a keeper to come goes on with what is there. Should the control link be alive after all, the session is over.
fn wait_for_the_end() {
    std::thread::sleep(Duration::from_secs(1));
}
