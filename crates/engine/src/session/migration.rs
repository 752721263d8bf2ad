//! A device that stands still, and its state on the way out or in (vfio-user.rst, `VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE`).
//!
//! ```text
//!  RUNNING                        the ssd has its home on a reactor
//!    | Halt: the groups drain, the home packs up
//!  STOP, STOP_COPY, RESUMING      no reactor has the ssd: the session has it, and answers for it
//!    | Settle: the way of every takeover
//!  RUNNING
//! ```
//! What is read or written is a file of its own that the keeper keeps with the session, so that a successor of this process reads on and is
//! written to where this one was.

use super::orders::ORDERED;
use super::{Wire, bar, call_home, config_offset};
use crate::clock::{Clock, ticks};
use crate::home::HandedOn;
use crate::message::{Answer, Call, Message, Settlement};
use crate::records::Records;
use crate::serve::controller;
use frontend::vfio_user::{Errno, Logging, MadeFd, Migration, State, Transition, device};
use link::session::ENGINE_FDS;
use nvme::controller::Controller;
use nvme::controller::saved::{self, Holder, Place};
use nvme::host::Bar;
use nvme::pci;
use rustix::fs::MemfdFlags;
use state::controller::{ControllerV1, ErrorV1, STATE_BYTES_MAX};
use state::session::MigrationV1;
use state::ssd::SsdV1;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

/// How long the guest's commands may take to end. A client waits 5 s for an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// What a session needs to take an ssd from its home and to give it back.
pub(crate) struct Means {
    pub(crate) records: Records,
    pub(crate) clock: Clock,
}

/// An ssd that stands still.
pub(super) struct Still {
    pub(super) controller: Controller,
    state: State,
    data: Option<Data>,
    /// By an order of this process ([`super::orders`]), of which the client knows nothing.
    pub(super) is_ordered: bool,
}

/// A state on its way.
struct Data {
    id: u32,
    file: File,
    fd: Arc<OwnedFd>,
    len_bytes: u64,
    read_bytes: u64,
    /// The keeper does not have it yet.
    is_new: bool,
}

impl Data {
    fn new(id: u32) -> Result<Self, Errno> {
        let file = rustix::fs::memfd_create("godwit-migration", MemfdFlags::CLOEXEC)?;
        Self::over(id, file, 0, 0, true)
    }

    fn over(id: u32, fd: OwnedFd, len_bytes: u64, read_bytes: u64, is_new: bool) -> Result<Self, Errno> {
        let file = File::from(fd.try_clone().map_err(|error| errno(&error))?);
        Ok(Self { id, file, fd: Arc::new(fd), len_bytes, read_bytes, is_new })
    }

    /// The next bytes; fewer than asked for at the end.
    fn read(&mut self, bytes: usize) -> Result<Vec<u8>, Errno> {
        let left = usize::try_from(self.len_bytes.saturating_sub(self.read_bytes)).unwrap_or(usize::MAX);
        let mut data = vec![0; bytes.min(left)];
        self.file.read_exact_at(&mut data, self.read_bytes).map_err(|error| errno(&error))?;
        self.read_bytes += data.len() as u64;
        Ok(data)
    }

    fn write(&mut self, data: &[u8]) -> Result<(), Errno> {
        let end = self.len_bytes.saturating_add(data.len() as u64);
        if end > STATE_BYTES_MAX as u64 {
            return Err(Errno::INVAL);
        }
        self.file.write_all_at(data, self.len_bytes).map_err(|error| errno(&error))?;
        self.len_bytes = end;
        Ok(())
    }

    fn whole(&self) -> Result<Vec<u8>, Errno> {
        let len = usize::try_from(self.len_bytes.min(STATE_BYTES_MAX as u64)).unwrap_or(0);
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, 0).map_err(|error| errno(&error))?;
        Ok(bytes)
    }
}

pub(super) fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl Still {
    /// What a successor of this process must know.
    pub(super) fn saved(&self) -> MigrationV1 {
        let data = self.data.as_ref();
        MigrationV1 {
            state: self.state.to_wire().0,
            fd: data.map(|data| data.id),
            len_bytes: data.map_or(0, |data| data.len_bytes),
            read_bytes: data.map_or(0, |data| data.read_bytes),
        }
    }

    /// The descriptor that the keeper does not have yet.
    pub(super) fn take_made(&mut self) -> Option<MadeFd> {
        let data = self.data.as_mut().filter(|data| data.is_new)?;
        data.is_new = false;
        Some(MadeFd { id: data.id, fd: Arc::clone(&data.fd) })
    }

    /// Reads a region. Nothing is set off by it.
    pub(super) fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        match region {
            device::PCI_CONFIG_REGION => self.controller.config_read(config_offset(offset)?, data),
            _ => self.controller.bar_read(bar(region)?, offset, data),
        }
        Ok(())
    }

    /// For whoever has to do with a virtual machine whose devices stand still: configuration space and MSI-X table can be
    /// written, which has no effect before the device runs. Registers cannot, nor can it be reset by its configuration space.
    fn region_write(&self, region: u32, offset: u64, data: &[u8], home: &Wire) -> Result<(), Errno> {
        let pci = &home.power.region.pci;
        match region {
            device::PCI_CONFIG_REGION => {
                let effect = pci::config_write(pci, config_offset(offset)?, data);
                if effect.function_level_reset { Err(Errno::BUSY) } else { Ok(()) }
            }
            _ if bar(region)? == Bar::Msix => {
                pci::msix_write(pci, offset, data);
                Ok(())
            }
            _ => Err(Errno::BUSY),
        }
    }
}

impl Wire {
    pub(super) fn write_still(&self, region: u32, offset: u64, data: &[u8]) -> Option<Result<(), Errno>> {
        self.still.as_ref().map(|still| still.region_write(region, offset, data, self))
    }

    /// The device as a predecessor left it: it stood still. `at_home`: it has been settled meanwhile.
    pub(crate) fn restore_still(&mut self, record: &SsdV1, at_home: bool) -> anyhow::Result<()> {
        if !self.was_still() {
            return Ok(());
        }
        if at_home {
            self.halt()?;
        } else {
            self.stand_still(record, &[]);
        }
        let Some(saved) = self.saved.migration else {
            self.note_order();
            return Ok(());
        };
        let state = State::of(spec::vfio_user::MigState(saved.state)).unwrap_or(State::Error);
        let fd = self.kept_state.take();
        let data = match (saved.fd, fd) {
            (Some(id), Some(fd)) => Some(Data::over(id, fd, saved.len_bytes, saved.read_bytes, false)?),
            _ => None,
        };
        if let Some(still) = &mut self.still {
            // Without the file there is nothing to go on with.
            let lost = data.is_none() && matches!(state, State::StopCopy | State::Resuming);
            (still.state, still.data) = (if lost { State::Error } else { state }, data);
        }
        Ok(())
    }

    /// The device stands still.
    pub(crate) fn is_still(&self) -> bool {
        self.still.is_some()
    }

    /// Whether a predecessor left it so.
    pub(crate) fn was_still(&self) -> bool {
        self.saved.migration.is_some() || saved::holder(&self.power.region).is_some()
    }

    pub(super) fn now(&self) -> block::Now {
        self.means.clock.at(ticks())
    }

    /// The session takes the ssd from its home.
    pub(super) fn halt(&mut self) -> Result<(), Errno> {
        let (reply, answer) = sync_channel(1);
        self.home.send(Message::Call(self.ssd.id, Call::Halt, reply));
        let settlement = match answer.recv_timeout(PATIENCE) {
            Ok(Answer::Settlement(settlement)) => settlement,
            Ok(_) | Err(RecvTimeoutError::Disconnected) => return Err(Errno::NODEV),
            Err(RecvTimeoutError::Timeout) => match call_home(&self.home, &self.ssd, Call::GoOn) {
                // It has gone just now.
                Err(Errno::NODEV) => match answer.recv() {
                    Ok(Answer::Settlement(settlement)) => settlement,
                    _ => return Err(Errno::NODEV),
                },
                Err(errno) => return Err(errno),
                Ok(_) => {
                    tracing::warn!(
                        ssd = self.ssd.name,
                        "not stopped for migration: its commands, or a format, sanitize or self-test, take longer than 3 s"
                    );
                    return Err(Errno::BUSY);
                }
            },
        };
        // What the controller knew beside its region and its record.
        let before = settlement.controller.save(self.now());
        drop(settlement);
        self.stand_still(&before.record, &before.errors);
        Ok(())
    }

    pub(super) fn stand_still(&mut self, record: &SsdV1, errors: &[ErrorV1]) {
        let controller = controller(&self.ssd, &self.power, record, self.means.clock).with_errors(errors);
        let still = Still { controller, state: State::Stop, data: None, is_ordered: false };
        self.still = Some(Box::new(still));
    }

    /// The session gives the ssd back to its home, which goes on with it as with any that another process left.
    pub(super) fn run(&mut self) -> Result<(), Errno> {
        let Some(still) = self.still.take() else { return Err(Errno::INVAL) };
        still.controller.restart_keep_alive(self.now());
        let settlement = Settlement {
            ssd: Arc::clone(&self.ssd),
            power: self.power.clone(),
            namespaces: Arc::clone(still.controller.namespaces()),
            controller: still.controller,
            memory: Arc::clone(&self.map),
            interrupts: self.table.clone(),
            resume: Some(HandedOn::default()),
            client: Some(self.client()),
            private: false,
        };
        self.home.send(Message::Settle(Box::new(settlement)));
        // It is there when this is answered.
        call_home(&self.home, &self.ssd, Call::ConfigRead { offset: 0, len: 1 }).map(drop)
    }

    /// A reset of a device that stands still: it runs, and nothing of what it had accepted is carried out.
    pub(super) fn reset_still(&mut self) -> Result<(), Errno> {
        if let Some(still) = &self.still {
            still.controller.abandon();
            self.run()?;
        }
        Ok(())
    }

    /// The client of a device that stands still is gone: so is all that the device had accepted. What the next power-on begins with.
    pub(super) fn leave_still(&mut self) -> Option<SsdV1> {
        let still = self.still.take()?;
        still.controller.abandon();
        Some(still.controller.record())
    }

    fn save_still(&mut self) -> Result<(), Errno> {
        let now = self.now();
        let still = self.still.as_mut().ok_or(Errno::INVAL)?;
        let bytes = still.controller.save(now).to_bytes().map_err(|error| {
            tracing::error!(ssd = self.ssd.name, %error, "its controller's state cannot be saved");
            Errno::FBIG
        })?;
        let mut data = Data::new(next_made(&mut self.saved.made))?;
        data.write(&bytes)?;
        (still.data, still.state) = (Some(data), State::StopCopy);
        Ok(())
    }

    /// The state that was written becomes the device's, or the device is in ERROR.
    fn load_still(&mut self) -> Result<(), Errno> {
        let Some(mut still) = self.still.take() else { return Err(Errno::INVAL) };
        let data = still.data.take().ok_or(Errno::INVAL);
        still.state = State::Error;
        match data.and_then(|data| self.load(&data, &still.controller.record())) {
            Ok((record, errors)) => {
                self.stand_still(&record, &errors);
                Ok(())
            }
            Err(errno) => {
                self.still = Some(still);
                Err(errno)
            }
        }
    }

    /// Loads the state in a file. `here`: the ssd's record as it is.
    fn load(&self, data: &Data, here: &SsdV1) -> Result<(SsdV1, Vec<ErrorV1>), Errno> {
        let refuse = |error: anyhow::Error| {
            tracing::warn!(
                ssd = self.ssd.name,
                error = format!("{error:#}"),
                "a controller's state is refused"
            );
            error.downcast_ref().map_or(Errno::INVAL, errno)
        };
        let state = ControllerV1::from_bytes(&data.whole()?).map_err(|error| refuse(error.into()))?;
        if saved::is_loaded(&self.power.region, data.id) {
            // By a predecessor, which did not live to answer, and may have let the device run.
            return Ok((here.clone(), state.errors));
        }
        let record = self.load_state(&state, data.id, here).map_err(refuse)?;
        Ok((record, state.errors))
    }

    /// The state becomes the device's, which stands still; the record that goes with it. `here`: the one there is.
    ///
    /// # Errors
    /// Why it is refused, or [`std::io::Error`]: the record cannot be kept. Then the device is as it was.
    pub(super) fn load_state(&self, state: &ControllerV1, file: u32, here: &SsdV1) -> anyhow::Result<SsdV1> {
        let place = Place {
            region: &self.power.region,
            doorbells: &self.power.doorbells,
            profile: &self.ssd.profile,
            identity: &self.ssd.identity,
            record: here,
            block_bytes: self.ssd.limits().block_bytes,
        };
        let checked = saved::check(state, &place, self.now())?;
        let kept = self.means.records.keep_now(&self.ssd, checked.record().clone());
        if let Err(error) = kept {
            // It may have been written all the same.
            self.means.records.note(&self.ssd, here.clone());
            return Err(error.into());
        }
        if file == ORDERED {
            // Before anything of it is there: no successor may let it run.
            let holder = saved::holder(&self.power.region).unwrap_or(Holder::Mover);
            saved::set_holder(&self.power.region, Some(holder));
        }
        Ok(checked.load(file, self.now())?)
    }
}

/// An id that no descriptor of the session has had.
pub(super) fn next_made(made: &mut Option<u32>) -> u32 {
    let count = made.unwrap_or(0);
    *made = Some(count.wrapping_add(1) & (ENGINE_FDS - 1));
    ENGINE_FDS | count
}

impl Migration for Wire {
    fn state(&self) -> State {
        self.still.as_ref().filter(|still| !still.is_ordered).map_or(State::Running, |still| still.state)
    }

    fn step(&mut self, step: Transition) -> Result<(), Errno> {
        if self.is_held() {
            return Err(Errno::BUSY);
        }
        match step {
            Transition::Stop => self.halt(),
            Transition::Run => self.run(),
            Transition::Save => self.save_still(),
            Transition::EndLoad => self.load_still(),
            Transition::EndSave | Transition::Load => {
                let data = match step {
                    Transition::Load => Some(Data::new(next_made(&mut self.saved.made))?),
                    _ => None,
                };
                let still = self.still.as_mut().ok_or(Errno::INVAL)?;
                (still.data, still.state) = (data, step.end());
                Ok(())
            }
        }
    }

    fn read(&mut self, bytes: usize) -> Result<Vec<u8>, Errno> {
        self.still.as_mut().and_then(|still| still.data.as_mut()).ok_or(Errno::INVAL)?.read(bytes)
    }

    fn write(&mut self, data: &[u8]) -> Result<(), Errno> {
        self.still.as_mut().and_then(|still| still.data.as_mut()).ok_or(Errno::INVAL)?.write(data)
    }

    fn logging(&mut self) -> Option<&mut dyn Logging> {
        Some(self)
    }
}
