//! What this process asks of a session's device, between two commands of the client: whoever moves the guest of a hypervisor that asks no device has
//! it stand still, saved, loaded and run ([`crate::passenger`]).
//!
//! ```text
//!  migration thread --Errand, nudge--> the session's thread: as for the client's own messages (super::migration) --> Report
//! ```
//! The client knows nothing of it. What it may do with a device that stands still is done at once; what only a device at work can do waits for the
//! order to run, and is refused if that takes too long.
//!
//! **Who is killed.** Of a device that was only stopped a successor knows nothing, and lets it run: that is the way back of a migration whose source died.
//! One that was loaded says in its region that it is held, from before the first store of the state until the order to run.

use super::Wire;
use super::migration::PATIENCE;
use anyhow::{Context, anyhow, bail};
use frontend::vfio_user::{Connection, Errno, Nudge, RemoteMemory};
use hypervisor::CONFIG_BYTES;
use memory::MemoryMap;
use nvme::controller::saved;
use nvme::management;
use state::controller::ControllerV1;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Instant;

/// Stands for the file of a state that was loaded by order: no descriptor of this engine's has such an id.
pub(super) const ORDERED: u32 = 1;

/// What is asked.
pub(crate) enum Order {
    /// Stand still.
    Halt,
    /// Say in what state it stands still: [`Report::State`].
    Save,
    /// Stand still in this state.
    Load(Vec<u8>),
    /// Run.
    Run,
    /// What a management controller wants done: [`Report::Managed`].
    Manage(management::Order),
    /// Say how the memory of the guest is reached, of a device that stands still: [`Report::Memory`].
    Reach,
    /// Say how its guest has set it up, whether it runs or stands still: [`Report::Config`].
    Config,
}

/// What became of it.
pub(crate) enum Report {
    /// It is done.
    Done,
    /// The device's state.
    State(Vec<u8>),
    /// What became of a management controller's order.
    Managed(management::Report),
    /// The guest's memory, as the client has it mapped, and the client.
    Memory(Arc<MemoryMap>, RemoteMemory),
    /// Configuration space.
    Config(Box<[u8; CONFIG_BYTES]>),
}

/// An order, and who waits for the report.
pub(crate) struct Errand {
    order: Order,
    reply: SyncSender<anyhow::Result<Report>>,
}

/// Gives orders to one session.
#[derive(Clone)]
pub(crate) struct Orders {
    errands: Sender<Errand>,
    nudge: Nudge,
    client: RemoteMemory,
}

impl Orders {
    /// For the session on that connection.
    pub(crate) fn to(connection: &Connection) -> (Self, Receiver<Errand>) {
        let (errands, inbox) = channel();
        (Self { errands, nudge: connection.nudger(), client: connection.remote_memory() }, inbox)
    }

    /// The client.
    pub(crate) fn client(&self) -> &RemoteMemory {
        &self.client
    }

    /// Has an order carried out, after the client's command at hand.
    ///
    /// # Errors
    /// What the order comes to; the session is over.
    pub(crate) fn give(&self, order: Order) -> anyhow::Result<Report> {
        let (reply, report) = sync_channel(1);
        let over = || anyhow!("its client has left");
        self.errands.send(Errand { order, reply }).map_err(|_| over())?;
        self.nudge.nudge();
        report.recv().map_err(|_| over())?
    }
}

impl Wire {
    /// Orders come from here.
    pub(crate) fn obey(&mut self, errands: Receiver<Errand>) {
        self.errands = Some(errands);
    }

    /// The device stands still by an order.
    pub(super) fn is_held(&self) -> bool {
        self.still.as_ref().is_some_and(|still| still.is_ordered)
    }

    /// It is an order by which the device stands still.
    pub(super) fn note_order(&mut self) {
        if let Some(still) = &mut self.still {
            still.is_ordered = true;
        }
    }

    pub(super) fn carry_out_errands(&mut self) {
        while let Some(errand) = self.errands.as_ref().and_then(|errands| errands.try_recv().ok()) {
            self.carry_out(errand);
        }
    }

    /// For a command that a device which stands still cannot carry out.
    ///
    /// # Errors
    /// EBUSY: it was not let run in time.
    pub(super) fn wait_to_run(&mut self) -> Result<(), Errno> {
        let by = Instant::now() + PATIENCE;
        while self.is_held() {
            let left = by.saturating_duration_since(Instant::now());
            let errand = self.errands.as_ref().and_then(|errands| errands.recv_timeout(left).ok());
            self.carry_out(errand.ok_or(Errno::BUSY)?);
        }
        Ok(())
    }

    fn carry_out(&mut self, Errand { order, reply }: Errand) {
        let report = match order {
            Order::Halt => self.hold().map(|()| Report::Done),
            Order::Save => self.save_held().map(Report::State),
            Order::Load(bytes) => self.load_held(&bytes).map(|()| Report::Done),
            Order::Run => self.let_go().map(|()| Report::Done),
            Order::Manage(order) => Ok(Report::Managed(self.manage(order))),
            Order::Reach if self.is_held() => Ok(Report::Memory(Arc::clone(&self.map), self.remote.clone())),
            Order::Reach => Err(anyhow!("the device does not stand still")),
            Order::Config => {
                let mut config = Box::new([0; CONFIG_BYTES]);
                // Whether the pin is asserted now is of no use to anybody.
                nvme::pci::config_read(&self.power.region.pci, false, 0, &mut config[..]);
                Ok(Report::Config(config))
            }
        };
        // Who asked may have gone.
        let _ = reply.send(report);
    }

    /// For whoever moves the guest.
    fn check_not_suspended(&self) -> anyhow::Result<()> {
        if self.is_suspended() {
            bail!("a migration management controller has suspended the device");
        }
        Ok(())
    }

    fn hold(&mut self) -> anyhow::Result<()> {
        self.check_not_suspended()?;
        if self.is_held() {
            return Ok(());
        }
        if self.is_still() {
            bail!("its client has stopped the device");
        }
        self.halt().context("the device cannot be stopped")?;
        self.note_order();
        Ok(())
    }

    fn save_held(&mut self) -> anyhow::Result<Vec<u8>> {
        self.check_not_suspended()?;
        let now = self.now();
        let still = self.still.as_ref().filter(|still| still.is_ordered);
        let still = still.context("the device does not stand still")?;
        still.controller.save(now).to_bytes().context("its controller's state cannot be saved")
    }

    fn load_held(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let state = ControllerV1::from_bytes(bytes).context("the controller's state that came")?;
        self.hold()?;
        let Some(still) = &self.still else { bail!("the device does not stand still") };
        let record = self.load_state(&state, ORDERED, &still.controller.record())?;
        self.stand_still(&record, &state.errors);
        self.note_order();
        Ok(())
    }

    fn let_go(&mut self) -> anyhow::Result<()> {
        self.check_not_suspended()?;
        if !self.is_still() {
            return Ok(());
        }
        if !self.is_held() {
            bail!("its client has stopped the device");
        }
        saved::set_holder(&self.power.region, None);
        self.run().context("the device cannot go on")
    }
}
