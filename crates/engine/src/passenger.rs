//! An NVMe device whose guest is moved by a hypervisor that neither carries the device's state nor asks what it has written (QEMU up to 11.1), as
//! whoever moves the guest sees it.
//!
//! ```text
//!  source       log_written ... guest stands still, halt -> touch_written -> save ----+      or, if it comes to nothing: run, end_log
//!  destination  client connected, its memory mapped ............................. load +-> the guest's memory is all there -> run
//! ```
//! Any thread may call, and each call waits; none may be made by a reactor or under a lock that one takes. A client that is silent meanwhile and one
//! that speaks are both served ([`crate::session`]). Each call may be made again after it was done, by this process or the next.
//!
//! **A killed engine.** A successor lets a device run that was stopped and not loaded: at the source the migration is over then. One that was loaded stands
//! still until [`Passenger::run`]; of its state only the error log is lost, unless it is loaded once more. The log of written pages stays armed.

use crate::message::{Address, Answer, Call};
use crate::run::House;
use crate::session::{Order, Orders, Report, call_home};
use crate::slot::Current;
use crate::ssd::Ssd;
use crate::written;
use anyhow::{Context, bail};
use hypervisor::CONFIG_BYTES;
use nvme::management;
use rustix::io::Errno;
use state::controller::ControllerV1;
use std::sync::{Arc, Mutex, PoisonError};

/// See the module. It outlives sessions: each call is for the client there is.
#[derive(Clone)]
pub struct Passenger {
    ssd: Arc<Ssd>,
    home: Address,
    current: Arc<Mutex<Current>>,
}

impl Passenger {
    pub(crate) fn new(ssd: Arc<Ssd>, home: Address, current: Arc<Mutex<Current>>) -> Self {
        Self { ssd, home, current }
    }

    fn orders(&self) -> anyhow::Result<Orders> {
        let orders = self.current.lock().unwrap_or_else(PoisonError::into_inner).orders.clone();
        orders.context("no client is connected")
    }

    fn order(&self, order: Order) -> anyhow::Result<Report> {
        self.orders()?.give(order)
    }

    /// The device stands still: nothing of the guest's begins, and nothing of the device changes any more, its guest's memory, or the drive. What is at
    /// the drive has ended; what was accepted and had not begun is carried with the state, or goes on with [`Passenger::run`].
    ///
    /// # Errors
    /// EBUSY: its commands, or a format, sanitize or self-test, take longer than 3 s, or its client has stopped it. There is no client.
    pub fn halt(&self) -> anyhow::Result<()> {
        self.order(Order::Halt).map(drop)
    }

    /// # Errors
    /// There is no client: nothing can be said of the device.
    pub(crate) fn check_client(&self) -> anyhow::Result<()> {
        self.orders().map(drop)
    }

    /// Whether it stands still by an order: it was halted, or loaded and not let run.
    pub(crate) fn stands_still(&self) -> bool {
        self.save().is_ok()
    }

    /// The state of the device, which stands still (`docs/formats/controller-state.md`).
    ///
    /// # Errors
    /// It does not stand still.
    pub fn save(&self) -> anyhow::Result<Vec<u8>> {
        match self.order(Order::Save)? {
            Report::State(bytes) => Ok(bytes),
            _ => bail!("no state came"),
        }
    }

    /// The device stands still, in this state, until [`Passenger::run`]. Nothing of the guest's memory is looked at before that. The ssd's record is
    /// that of the state, and stable.
    ///
    /// # Errors
    /// The state is of another ssd, or none, or the record cannot be kept: it stands still as it was.
    pub fn load(&self, state: &[u8]) -> anyhow::Result<()> {
        self.order(Order::Load(state.to_vec())).map(drop)
    }

    /// The device goes on from where it stands, with the memory and the interrupts that its client has given it by now. One that runs goes on running.
    ///
    /// # Errors
    /// Its client has stopped it; there is no client.
    pub fn run(&self) -> anyhow::Result<()> {
        self.order(Order::Run).map(drop)
    }

    /// What it is a device of.
    pub(crate) fn ssd(&self) -> &Arc<Ssd> {
        &self.ssd
    }

    /// Where it is.
    pub(crate) fn home(&self) -> &Address {
        &self.home
    }

    /// Configuration space as its guest has set it up, whether the device runs or stands still: the last word of a guest that stands still itself.
    ///
    /// # Errors
    /// There is no client.
    pub(crate) fn config(&self) -> anyhow::Result<Box<[u8; CONFIG_BYTES]>> {
        match self.order(Order::Config)? {
            Report::Config(config) => Ok(config),
            _ => bail!("no configuration came"),
        }
    }

    /// The state of the device, which may change at once, with a client or without.
    pub(crate) fn peek(&self) -> Option<Box<ControllerV1>> {
        match self.manage(management::Order::Save) {
            management::Report::State { state, .. } => Some(state),
            _ => match call_home(&self.home, &self.ssd, Call::Save) {
                Ok(Answer::State(state)) => Some(state),
                _ => None,
            },
        }
    }

    /// What a migration management controller wants done.
    pub(crate) fn manage(&self, order: management::Order) -> management::Report {
        use management::{Report as Managed, Trouble};
        match self.orders().map(|orders| orders.give(Order::Manage(order))) {
            // Without a client there is no device that could be suspended.
            Err(_) => Managed::Failed(Trouble::NoController),
            Ok(Ok(Report::Managed(report))) => report,
            Ok(_) => Managed::Failed(Trouble::Busy),
        }
    }

    /// Every write of the device into its guest that is answered after this returned is logged.
    ///
    /// # Errors
    /// EBUSY: it is logged already, or its client has a log. What making one comes to.
    pub fn log_written(&self) -> anyhow::Result<()> {
        written::arm(&self.ssd, &self.home)
    }

    /// Has the client take every page for written that the device has written since it is logged, or since this was last done; done when the client has
    /// it. Returns how many pages. Only while nobody writes into the guest: its processors and all of its devices stand still, this one by
    /// [`Passenger::halt`]. See `docs/decisions/0035`.
    ///
    /// # Errors
    /// It does not stand still, or is not logged. What the client answers (ENODEV: the guest does not let the device be a bus master), or that it does
    /// not: ETIMEDOUT, ENOTCONN. E2BIG: the guest has memory beyond 2 TiB. What was not done stays logged; what was sent may yet be stored: see [`Passenger::barrier`].
    pub fn touch_written(&self) -> anyhow::Result<u64> {
        match self.order(Order::Reach)? {
            Report::Memory(memory, client) => Ok(written::touch(&self.ssd, &memory, &client)?),
            _ => bail!("no memory came"),
        }
    }

    /// The client has stored all that it was told of before, also by an engine before this one. To be called before the guest runs again where
    /// [`Passenger::touch_written`] failed or did not return: a byte that is stored later is an old one.
    ///
    /// # Errors
    /// ETIMEDOUT: it did not answer; ENOTCONN: it is gone, or its version is not agreed on.
    pub fn barrier(&self) -> anyhow::Result<()> {
        match self.orders()?.client().read(0, &mut [0]) {
            Err(errno @ (Errno::TIMEDOUT | Errno::NOTCONN)) => Err(errno.into()),
            // Whatever it answers, it has come to this question.
            _ => Ok(()),
        }
    }

    /// It is not logged any more.
    ///
    /// # Errors
    /// EINVAL: it was not. EBUSY: what is underway is logged to its end.
    pub fn end_log(&self) -> anyhow::Result<()> {
        Ok(written::disarm(&self.ssd, &self.home)?)
    }
}

/// The devices of an engine process, for whoever moves guests and is told of nothing else: tests of one.
#[doc(hidden)]
pub struct Passengers(Arc<House>);

impl Passengers {
    pub(crate) fn of(house: Arc<House>) -> Self {
        Self(house)
    }

    /// The controller of that name, if it is served or waits for its drive.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Passenger> {
        let slots = self.0.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = slots.absent.values().filter_map(|absent| absent.waiting.as_ref());
        slots.open.values().chain(waiting).find(|served| served.ssd().name == name)?.passenger()
    }
}
