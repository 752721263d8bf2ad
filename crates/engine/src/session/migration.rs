//! A device that stands still, and its state on the way out or in (vfio-user.rst, `VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE`).
//!
//! ```text
//!  RUNNING, PRE_COPY              the ssd has its home on a reactor
//!    | Halt: the groups drain, the home packs up
//!  STOP, STOP_COPY, RESUMING      no reactor has the ssd: the session has it, and answers for it
//!    | Settle: the way of every takeover
//!  RUNNING
//! ```
//! What is read or written is a file of its own that the keeper keeps with the session, so that a successor of this process reads on and is
//! written to where this one was. A client that begins with PRE_COPY reads an outline first, which the other side checks as soon as it has come.

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
use state::controller::{
    Begins, ControllerError, ControllerV1, ErrorV1, OUTLINE_BYTES_MAX, OutlineV1, STATE_BYTES_MAX,
};
use state::session::{AheadV1, MigrationV1};
use state::ssd::SsdV1;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

/// How long the guest's commands may take to end. A client waits 5 s for an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// Longest stream.
const STREAM_BYTES_MAX: u64 = (OUTLINE_BYTES_MAX + STATE_BYTES_MAX) as u64;

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

/// A stream on its way.
pub(super) struct Data {
    id: u32,
    file: File,
    fd: Arc<OwnedFd>,
    len_bytes: u64,
    read_bytes: u64,
    /// The keeper does not have it yet.
    is_new: bool,
    /// It may begin with an outline that was not checked yet.
    is_unread: bool,
}

impl Data {
    fn new(id: u32) -> Result<Self, Errno> {
        let file = rustix::fs::memfd_create("godwit-migration", MemfdFlags::CLOEXEC)?;
        Self::over(id, file, 0, 0, true)
    }

    fn over(id: u32, fd: OwnedFd, len_bytes: u64, read_bytes: u64, is_new: bool) -> Result<Self, Errno> {
        let file = File::from(fd.try_clone().map_err(|error| errno(&error))?);
        Ok(Self { id, file, fd: Arc::new(fd), len_bytes, read_bytes, is_new, is_unread: true })
    }

    /// As a predecessor left it in PRE_COPY.
    pub(super) fn kept_ahead(ahead: AheadV1, fd: OwnedFd) -> Result<Self, Errno> {
        Self::over(ahead.fd, fd, ahead.len_bytes, ahead.read_bytes, false)
    }

    /// What a successor of this process must know in PRE_COPY.
    pub(super) fn ahead(&self) -> AheadV1 {
        AheadV1 { fd: self.id, len_bytes: self.len_bytes, read_bytes: self.read_bytes }
    }

    /// The descriptor, if the keeper does not have it yet.
    pub(super) fn take_made(&mut self) -> Option<MadeFd> {
        std::mem::take(&mut self.is_new).then(|| MadeFd { id: self.id, fd: Arc::clone(&self.fd) })
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
        if end > STREAM_BYTES_MAX {
            return Err(Errno::INVAL);
        }
        self.file.write_all_at(data, self.len_bytes).map_err(|error| errno(&error))?;
        self.len_bytes = end;
        Ok(())
    }

    fn whole(&self) -> Result<Vec<u8>, Errno> {
        self.head(STREAM_BYTES_MAX)
    }

    fn head(&self, bytes: u64) -> Result<Vec<u8>, Errno> {
        let len = usize::try_from(self.len_bytes.min(bytes)).unwrap_or(0);
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
        self.data.as_mut()?.take_made()
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

    /// A reset of a device that stands still: it runs, and nothing of what it had accepted is carried out. One in PRE_COPY is RUNNING.
    pub(super) fn reset_still(&mut self) -> Result<(), Errno> {
        self.ahead = None;
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

    /// The device runs, and its outline can be read.
    fn begin_ahead(&mut self) -> Result<(), Errno> {
        let Answer::Outline(outline) = self.call(Call::Outline)? else { return Err(Errno::IO) };
        let outline = outline.to_bytes().map_err(|error| self.unsaved(&error))?;
        let mut data = Data::new(next_made(&mut self.saved.made))?;
        data.write(&outline)?;
        self.ahead = Some(data);
        Ok(())
    }

    /// From PRE_COPY to STOP_COPY: the state follows the outline.
    fn end_ahead(&mut self) -> Result<(), Errno> {
        self.halt()?;
        let Some(data) = self.ahead.take() else { return Err(Errno::INVAL) };
        let outline_bytes = data.len_bytes;
        match self.save_still(data) {
            Ok(()) => Ok(()),
            Err((errno, data)) => {
                self.ahead = Some(Data { len_bytes: outline_bytes, ..data });
                self.run().and(Err(errno))
            }
        }
    }

    /// Writes the state of the device, which stands still, to the end of a stream; or gives that back.
    fn save_still(&mut self, mut data: Data) -> Result<(), (Errno, Data)> {
        let now = self.now();
        let Some(still) = &mut self.still else { return Err((Errno::INVAL, data)) };
        let written = match still.controller.save(now).to_bytes() {
            Ok(bytes) => data.write(&bytes),
            Err(error) => Err(self.unsaved(&error)),
        };
        match (written, &mut self.still) {
            (Ok(()), Some(still)) => {
                (still.data, still.state) = (Some(data), State::StopCopy);
                Ok(())
            }
            (written, _) => Err((written.err().unwrap_or(Errno::INVAL), data)),
        }
    }

    fn unsaved(&self, error: &ControllerError) -> Errno {
        tracing::error!(ssd = self.ssd.name, %error, "its controller's state cannot be saved");
        Errno::FBIG
    }

    /// Takes the next bytes of a state, unless they show it to be another ssd's.
    fn take_in(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        let Some(mut data) = self.still.as_mut().and_then(|still| still.data.take()) else {
            return Err(Errno::INVAL);
        };
        let before = data.len_bytes;
        let taken = data.write(bytes).and_then(|()| self.check_head(&mut data));
        if taken.is_err() {
            data.len_bytes = before;
        }
        if let Some(still) = &mut self.still {
            still.data = Some(data);
        }
        taken
    }

    /// Looks at the outline as soon as all of it has come.
    fn check_head(&self, data: &mut Data) -> Result<(), Errno> {
        let Some(still) = self.still.as_ref().filter(|_| data.is_unread) else { return Ok(()) };
        let checked = match OutlineV1::at_head(&data.head(OUTLINE_BYTES_MAX as u64)?) {
            Ok(Begins::NotYet) => return Ok(()),
            Ok(Begins::Otherwise) => Ok(()),
            Ok(Begins::Outline(outline, _)) => {
                let here = still.controller.record();
                saved::check_outline(&outline, &self.place(&here)).map_err(anyhow::Error::from)
            }
            Err(error) => Err(error.into()),
        };
        checked.map_err(|error| self.refuse(&error))?;
        data.is_unread = false;
        Ok(())
    }

    fn refuse(&self, error: &anyhow::Error) -> Errno {
        // A client may try for ever.
        if self.refused.begins() {
            let error_text = format!("{error:#}");
            tracing::warn!(
                ssd = self.ssd.name,
                error = error_text,
                "a controller's state is refused (told once of a client)"
            );
        }
        error.downcast_ref().map_or(Errno::INVAL, errno)
    }

    /// What a state is loaded into. `here`: the ssd's record as it is.
    fn place<'a>(&'a self, here: &'a SsdV1) -> Place<'a> {
        Place {
            region: &self.power.region,
            doorbells: &self.power.doorbells,
            profile: &self.ssd.profile,
            identity: &self.ssd.identity,
            record: here,
            block_bytes: self.ssd.limits().block_bytes,
        }
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
        let refuse = |error: anyhow::Error| self.refuse(&error);
        let state = ControllerV1::from_stream(&data.whole()?).map_err(|error| refuse(error.into()))?;
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
        let place = self.place(here);
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
        match self.still.as_ref().filter(|still| !still.is_ordered) {
            Some(still) => still.state,
            None if self.ahead.is_some() => State::PreCopy,
            None => State::Running,
        }
    }

    fn step(&mut self, step: Transition) -> Result<(), Errno> {
        if self.is_held() {
            return Err(Errno::BUSY);
        }
        match step {
            Transition::Stop => self.halt(),
            Transition::Run => self.run(),
            Transition::Save => {
                let data = Data::new(next_made(&mut self.saved.made))?;
                self.save_still(data).map_err(|(errno, _)| errno)
            }
            Transition::BeginPreCopy => self.begin_ahead(),
            Transition::EndPreCopy => {
                self.ahead = None;
                Ok(())
            }
            Transition::StopCopy => self.end_ahead(),
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
        let stopped = self.still.as_mut().and_then(|still| still.data.as_mut());
        stopped.or(self.ahead.as_mut()).ok_or(Errno::INVAL)?.read(bytes)
    }

    fn write(&mut self, data: &[u8]) -> Result<(), Errno> {
        self.take_in(data)
    }

    fn logging(&mut self) -> Option<&mut dyn Logging> {
        Some(self)
    }
}
