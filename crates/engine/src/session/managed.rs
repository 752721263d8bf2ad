//! What a migration management controller does to a session's device (NVMe Base 2.1, 8.1.12). As for an order of whoever moves a guest
//! ([`super::orders`]) the device stands still in the session; but who is killed does not let it run: its region says that it is suspended.
//!
//! ```text
//!  RUNNING --Suspend: halt, held = 2--> suspended --Resume: held = 0, run--> RUNNING
//!                                       suspended --the client resets it: held = 0, nothing of it is carried out--> RUNNING
//! ```

use super::orders::ORDERED;
use super::{REGISTERS_REGION, Wire};
use crate::message::{Answer, Call};
use frontend::vfio_user::{Errno, device};
use nvme::controller::saved::{self, Holder, Refused};
use nvme::management::{Order, Report, Trouble};
use spec::nvme::registers as reg;
use state::controller::ControllerV1;

impl Wire {
    /// Carries out an order.
    pub(super) fn manage(&mut self, order: Order) -> Report {
        let done = match order {
            Order::Look => return self.standing(),
            Order::Save => return self.peek(),
            Order::Suspend => self.suspend(),
            Order::Resume => self.end_suspension(),
            Order::Load(state) => self.install(&state),
            // Of others than the session.
            Order::List | Order::Track(_) | Order::Harvest { .. } => Err(Trouble::Failed),
            Order::TrackMemory(_) | Order::EndMemory | Order::EndAll | Order::HarvestMemory { .. } => {
                Err(Trouble::Failed)
            }
        };
        done.map_or_else(Report::Failed, |()| Report::Done)
    }

    /// It stands still by a management controller.
    pub(super) fn is_suspended(&self) -> bool {
        self.is_held() && saved::holder(&self.power.region) == Some(Holder::Management)
    }

    fn standing(&self) -> Report {
        Report::Standing { suspended: self.is_suspended(), enabled: self.power.is_enabled() }
    }

    fn suspend(&mut self) -> Result<(), Trouble> {
        if self.is_suspended() {
            return Ok(());
        }
        if self.is_still() {
            return Err(Trouble::Busy);
        }
        match self.halt() {
            Ok(()) => {
                self.note_order();
                saved::set_holder(&self.power.region, Some(Holder::Management));
                Ok(())
            }
            Err(Errno::BUSY) => Err(Trouble::Busy),
            Err(_) => Err(Trouble::Failed),
        }
    }

    fn end_suspension(&mut self) -> Result<(), Trouble> {
        if !self.is_suspended() {
            return Err(Trouble::NotSuspended);
        }
        saved::set_holder(&self.power.region, None);
        self.run().map_err(|_| Trouble::Failed)
    }

    /// Its state, running or not.
    fn peek(&self) -> Report {
        if let Some(still) = &self.still {
            let state = Box::new(still.controller.save(self.now()));
            return Report::State { state, suspended: self.is_suspended() };
        }
        match self.call(Call::Save) {
            Ok(Answer::State(state)) => Report::State { state, suspended: false },
            _ => Report::Failed(Trouble::Failed),
        }
    }

    fn install(&mut self, state: &ControllerV1) -> Result<(), Trouble> {
        let was_suspended = self.is_suspended();
        if self.power.is_enabled() && !was_suspended {
            return Err(Trouble::AtWork);
        }
        self.suspend()?;
        let here = match &self.still {
            Some(still) => still.controller.record(),
            None => return Err(Trouble::Failed),
        };
        match self.load_state(state, ORDERED, &here) {
            Ok(record) => {
                self.stand_still(&record, &state.errors);
                self.note_order();
                Ok(())
            }
            Err(error) => {
                tracing::warn!(
                    ssd = self.ssd.name,
                    error = format!("{error:#}"),
                    "a controller's state is refused"
                );
                if !was_suspended {
                    self.end_suspension()?;
                }
                let is_refused = error.downcast_ref::<Refused>().is_some();
                Err(if is_refused { Trouble::Refused } else { Trouble::Failed })
            }
        }
    }

    /// The client resets a device that is suspended: it is not any more (Base 2.1, 8.1.12), and nothing of what it had accepted is carried out.
    ///
    /// # Errors
    /// There is no home for it.
    pub(super) fn reset_suspended(&mut self, whole: bool) -> Result<(), Errno> {
        let Some(still) = &self.still else { return Ok(()) };
        if whole {
            still.controller.abandon();
        } else {
            still.controller.abandon_disabled();
        }
        saved::set_holder(&self.power.region, None);
        self.run()
    }

    /// Whether a write that a device which stands still cannot carry out resets the controller, and whether as a function.
    pub(super) fn resets(region: u32, offset: u64, data: &[u8]) -> Option<bool> {
        match region {
            // Nothing else of it has to wait.
            device::PCI_CONFIG_REGION => Some(true),
            REGISTERS_REGION if offset == reg::CC => (data.first()? & 1 == 0).then_some(false),
            REGISTERS_REGION if offset == reg::NSSR => {
                (data == reg::NSSR_RESET.to_le_bytes()).then_some(false)
            }
            _ => None,
        }
    }
}
