//! A vfio-user session's view of an ssd: messages become calls to the ssd's home, the answers become replies.

mod logging;
mod managed;
mod migration;
mod orders;

use crate::interrupts::{Eventfd, Table, VECTORS_MAX};
use crate::message::{Address, Answer, Call, Client, Message};
use crate::ssd::{Power, Ssd};
use crate::trouble::Trouble;
use anyhow::Context;
use frontend::vfio_user::{
    ClientFd, Deposit, Device, DeviceInfo, DmaMap, DmaUnmap, Errno, IrqAction, IrqData, IrqInfo, Migration,
    MmapArea, Negotiated, RegionInfo, RegionMmap, RemoteMemory, SetIrqs, device, frame,
};
use memory::{Access, Fault, Iova, MapError, Mapping, MappingError, MemoryMap, Remote};
use nvme::host::Bar;
use nvme::pci::{BAR0_BYTES, BAR4_BYTES};
use state::session::{AheadV1, DmaMapV1, NegotiatedV1, VfioUserV1};
use state::ssd::SsdV1;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

pub(crate) use migration::Means;
pub(crate) use orders::{Order, Orders, Report};

/// BAR index of the registers and doorbells.
const REGISTERS_REGION: u32 = 0;
/// Where the doorbell page stands in BAR0 and in its memfd.
const DOORBELLS_OFFSET: u64 = 0x1000;
/// BAR index of the MSI-X table.
const MSIX_REGION: u32 = 4;

/// An ssd as one client's device.
pub(crate) struct Wire {
    ssd: Arc<Ssd>,
    power: Power,
    home: Address,
    means: Means,
    info: DeviceInfo,
    map: Arc<MemoryMap>,
    table: Table,
    client: Arc<dyn Client>,
    remote: RemoteMemory,
    /// What this process itself asks of the device.
    errands: Option<Receiver<orders::Errand>>,
    /// What a successor of this process must know.
    saved: VfioUserV1,
    /// It is not deposited yet.
    changed: bool,
    /// The device, while it does not run.
    still: Option<Box<migration::Still>>,
    /// The file of a state on its way, of a predecessor.
    kept_state: Option<OwnedFd>,
    /// What a client in PRE_COPY reads.
    ahead: Option<migration::Data>,
    /// What the device writes, if the client wants to know it.
    log: Option<logging::Log>,
    /// A state that the client wrote was refused.
    refused: Trouble,
}

/// The client at the other end of the socket.
struct OverSocket(RemoteMemory);

impl Remote for OverSocket {
    fn read(&self, iova: Iova, dst: &mut [u8]) -> Result<(), Fault> {
        self.0.read(iova.0, dst).map_err(|_| Fault::Unmapped)
    }

    fn write(&self, iova: Iova, src: &[u8]) -> Result<(), Fault> {
        self.0.write(iova.0, src).map_err(|_| Fault::Unmapped)
    }
}

impl Client for OverSocket {
    fn hang_up(&self) {
        self.0.hang_up();
    }
}

impl Wire {
    pub(crate) fn new(
        ssd: Arc<Ssd>,
        power: &Power,
        home: Address,
        means: Means,
        remote: RemoteMemory,
    ) -> std::io::Result<Self> {
        Ok(Self {
            info: device_info(power)?,
            ssd,
            power: power.clone(),
            home,
            means,
            map: Arc::new(MemoryMap::empty()),
            table: Table::default(),
            client: Arc::new(OverSocket(remote.clone())),
            remote,
            errands: None,
            saved: VfioUserV1::default(),
            changed: false,
            still: None,
            kept_state: None,
            ahead: None,
            log: None,
            refused: Trouble::default(),
        })
    }

    /// Takes up what a predecessor knew of the client: its memory is mapped again and its interrupts are connected. The ssd's home
    /// hears nothing of it: it is settled with both.
    ///
    /// # Errors
    /// The client took memory away, or a descriptor is not there.
    pub(crate) fn restore(
        &mut self,
        saved: VfioUserV1,
        fds: Vec<(u32, OwnedFd)>,
    ) -> anyhow::Result<(Arc<MemoryMap>, Table)> {
        let fds: BTreeMap<u32, OwnedFd> = fds.into_iter().collect();
        let fd = |id: u32| {
            let fd = fds.get(&id).with_context(|| format!("descriptor {id} of the session was not kept"))?;
            fd.try_clone().context("no descriptor is left")
        };
        let mut map = MemoryMap::empty();
        for region in &saved.maps {
            let access = Access { read: region.read, write: region.write };
            let backing = region
                .fd
                .map(|id| anyhow::Ok((Mapping::new(fd(id)?, region.offset, region.size, access)?, 0)))
                .transpose()?;
            map = map.with(Iova(region.iova), region.size, access, backing)?;
        }
        let eventfd = |id: u32| Eventfd::checked(fd(id)?).context("an interrupt that is no eventfd");
        let mut table = Table::default();
        if let Some(id) = saved.intx {
            table = table.with_intx(Some(eventfd(id)?));
            table.mask_intx(saved.intx_masked);
        }
        if !saved.msix.is_empty() {
            let vectors = saved.msix.iter().map(|id| id.checked_sub(1).map(eventfd).transpose());
            table = table.with_msix(0, vectors.collect::<anyhow::Result<_>>()?);
        }
        self.log = match &saved.logging {
            Some(logging) => Some(logging::Log::restore(logging.clone(), fd(logging.fd)?)?),
            None => None,
        };
        if self.log.is_some() {
            self.ssd.written.begin_clients()?;
        }
        self.map = Arc::new(self.log.iter().fold(map, |map, log| log.on(&map)));
        self.table = table.clone();
        self.kept_state = saved.migration.and_then(|migration| migration.fd).map(fd).transpose()?;
        let kept_ahead = |ahead: AheadV1| anyhow::Ok(migration::Data::kept_ahead(ahead, fd(ahead.fd)?)?);
        self.ahead = saved.ahead.map(kept_ahead).transpose()?;
        self.saved = saved;
        Ok((Arc::clone(&self.map), table))
    }

    /// The client, for the ssd's home.
    pub(crate) fn client(&self) -> Arc<dyn Client> {
        Arc::clone(&self.client)
    }

    /// What was agreed on with the client, and its maps.
    pub(crate) fn state(&self) -> (Option<Negotiated>, Vec<(u64, u64)>) {
        let negotiated = self.saved.negotiated.map(|agreed| Negotiated {
            client_takes_fds: agreed.client_takes_fds,
            data_bytes_max: usize::try_from(agreed.data_bytes_max)
                .unwrap_or(frame::DATA_BYTES_MAX)
                .min(frame::DATA_BYTES_MAX),
            write_multiple: agreed.write_multiple,
        });
        (negotiated, self.saved.maps.iter().map(|map| (map.iova, map.size)).collect())
    }

    /// Asks the ssd's home and waits for the answer.
    fn call(&self, call: Call) -> Result<Answer, Errno> {
        call_home(&self.home, &self.ssd, call)
    }

    fn adopt(&mut self, map: MemoryMap) -> Result<(), Errno> {
        let map = Arc::new(map);
        if !self.is_still() {
            self.call(Call::Memory { map: Arc::clone(&map), client: Arc::clone(&self.client) })?;
        }
        self.map = map;
        Ok(())
    }

    fn set_table(&mut self, table: Table) -> Result<(), Errno> {
        if !self.is_still() {
            self.call(Call::Interrupts(table.clone()))?;
        }
        self.table = table;
        Ok(())
    }

    /// The client is gone: nothing of its memory may be touched and no interrupt sent when this returns. A device that stood still has no home
    /// any more: its record is what the next power-on begins with.
    pub(crate) fn leave(mut self) -> Result<Option<SsdV1>, Errno> {
        match self.leave_still() {
            Some(record) => Ok(Some(record)),
            None => self.leave_home().map(|()| None),
        }
    }

    fn leave_home(&mut self) -> Result<(), Errno> {
        self.call(Call::Reset)?;
        let empty = self.map.cleared();
        self.adopt(empty)?;
        self.set_table(Table::default())
    }

    fn set_intx(&mut self, set: SetIrqs) -> Result<(), Errno> {
        let all = matches!(&set.data, IrqData::None)
            || matches!(&set.data, IrqData::Bool(on) if on.contains(&true));
        match (set.action, set.data) {
            (IrqAction::Trigger, IrqData::Eventfd(fds)) => {
                let id = fds.last().and_then(Option::as_ref).map(|fd| fd.id);
                let table = self.table.with_intx(eventfds(fds)?.pop().flatten());
                self.set_table(table)?;
                (self.saved.intx, self.saved.intx_masked, self.changed) = (id, false, true);
                Ok(())
            }
            (IrqAction::Trigger, IrqData::None) if set.count == 0 => {
                let table = self.table.with_intx(None);
                self.set_table(table)?;
                (self.saved.intx, self.saved.intx_masked, self.changed) = (None, false, true);
                Ok(())
            }
            (IrqAction::Trigger, _) => {
                if all {
                    self.table.raise_intx();
                }
                Ok(())
            }
            // An eventfd for unmasking is how kernels resample; a process sends the message itself.
            (_, IrqData::Eventfd(_)) => Err(Errno::INVAL),
            (action, _) if all => {
                let masked = action == IrqAction::Mask;
                if self.is_still() {
                    self.table.mask_intx(masked);
                } else {
                    self.call(Call::MaskIntx(masked))?;
                }
                self.changed |= self.saved.intx_masked != masked;
                self.saved.intx_masked = masked;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn save_msix(&mut self, start: usize, ids: &[u32]) {
        let end = start.saturating_add(ids.len()).min(VECTORS_MAX);
        if self.saved.msix.len() < end {
            self.saved.msix.resize(end, 0);
        }
        for (slot, id) in self.saved.msix.iter_mut().skip(start).zip(ids) {
            *slot = *id;
        }
        self.changed = true;
    }

    fn set_msix(&mut self, set: SetIrqs) -> Result<(), Errno> {
        let start = usize::try_from(set.start).map_err(|_| Errno::INVAL)?;
        let vectors = |on: &dyn Fn(usize) -> bool| {
            let count = usize::try_from(set.count).unwrap_or(0).min(VECTORS_MAX);
            let meant = (0..count).filter(|at| on(*at)).filter_map(|at| u16::try_from(start + at).ok());
            meant.collect::<Vec<u16>>()
        };
        match (set.action, set.data) {
            (IrqAction::Trigger, IrqData::Eventfd(fds)) => {
                let ids: Vec<u32> =
                    fds.iter().map(|fd| fd.as_ref().map_or(0, |fd| fd.id.saturating_add(1))).collect();
                let table = self.table.with_msix(start, eventfds(fds)?);
                self.set_table(table)?;
                self.save_msix(start, &ids);
                Ok(())
            }
            (IrqAction::Trigger, IrqData::None) if set.count == 0 => {
                let table = self.table.without_msix();
                self.set_table(table)?;
                self.saved.msix.clear();
                self.changed = true;
                Ok(())
            }
            (IrqAction::Trigger, IrqData::None) => {
                vectors(&|_| true).into_iter().for_each(|vector| _ = self.table.raise(vector));
                Ok(())
            }
            (IrqAction::Trigger, IrqData::Bool(on)) => {
                let on = |at: usize| on.get(at).copied().unwrap_or(false);
                vectors(&on).into_iter().for_each(|vector| _ = self.table.raise(vector));
                Ok(())
            }
            // MSI-X vectors are masked in their table, by taking their eventfd.
            _ => Err(Errno::INVAL),
        }
    }
}

/// Also of a session that was never served: what its client logged is nobody's.
impl Drop for Wire {
    fn drop(&mut self) {
        if self.log.is_some() {
            self.ssd.written.end_clients();
        }
    }
}

impl Device for Wire {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        if let Some(still) = &mut self.still {
            return still.region_read(region, offset, data);
        }
        let len = data.len();
        let answer = match region {
            device::PCI_CONFIG_REGION => {
                self.call(Call::ConfigRead { offset: config_offset(offset)?, len })?
            }
            _ => self.call(Call::BarRead { bar: bar(region)?, offset, len })?,
        };
        match answer {
            Answer::Bytes(bytes) if bytes.len() == len => data.copy_from_slice(&bytes),
            _ => return Err(Errno::IO),
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        match self.write_still(region, offset, data) {
            Some(Err(Errno::BUSY)) if self.is_held() => {
                match Self::resets(region, offset, data).filter(|_| self.is_suspended()) {
                    Some(whole) => self.reset_suspended(whole)?,
                    None => self.wait_to_run()?,
                }
            }
            Some(written) => return written,
            None => {}
        }
        let data = data.to_vec();
        let call = match region {
            device::PCI_CONFIG_REGION => Call::ConfigWrite { offset: config_offset(offset)?, data },
            _ => Call::BarWrite { bar: bar(region)?, offset, data },
        };
        self.call(call).map(|_| ())
    }

    fn dma_map(&mut self, map: DmaMap) -> Result<(), Errno> {
        if self.log.as_ref().is_some_and(|log| !log.covers(map.iova, map.size)) {
            return Err(Errno::TOOBIG);
        }
        let access = Access { read: map.access.read, write: map.access.write };
        let (fd, offset) = map.backing.as_ref().map_or((None, 0), |(fd, offset)| (Some(fd.id), *offset));
        let saved =
            DmaMapV1 { iova: map.iova, size: map.size, read: access.read, write: access.write, fd, offset };
        let backing = match map.backing {
            Some((fd, offset)) => {
                let mapping = Mapping::new(fd.fd, offset, map.size, access).map_err(|error| {
                    tracing::warn!(ssd = self.ssd.name, %error, "guest memory refused");
                    mapping_errno(&error)
                })?;
                Some((mapping, 0))
            }
            None => None,
        };
        let next =
            self.map.with(Iova(map.iova), map.size, access, backing).map_err(|error| map_errno(&error))?;
        self.adopt(next)?;
        let at = self.saved.maps.partition_point(|other| other.iova < saved.iova);
        self.saved.maps.insert(at, saved);
        self.changed = true;
        Ok(())
    }

    fn dma_unmap(&mut self, unmap: DmaUnmap) -> Result<(), Errno> {
        let next = match unmap {
            DmaUnmap::Range { iova, size } => {
                self.map.without(Iova(iova), size).map_err(|error| map_errno(&error))?
            }
            DmaUnmap::All => self.map.cleared(),
        };
        self.adopt(next)?;
        match unmap {
            DmaUnmap::Range { iova, .. } => self.saved.maps.retain(|map| map.iova != iova),
            DmaUnmap::All => self.saved.maps.clear(),
        }
        self.changed = true;
        Ok(())
    }

    fn set_irqs(&mut self, set: SetIrqs) -> Result<(), Errno> {
        match set.index {
            device::PCI_INTX_IRQ => self.set_intx(set),
            device::PCI_MSIX_IRQ => self.set_msix(set),
            // Taken and never fired: Godwit neither unplugs a device nor reports PCI errors.
            device::PCI_ERR_IRQ | device::PCI_REQ_IRQ if set.action == IrqAction::Trigger => Ok(()),
            _ => Err(Errno::INVAL),
        }
    }

    fn reset(&mut self) -> Result<(), Errno> {
        if self.is_suspended() {
            self.reset_suspended(true)?;
        }
        self.wait_to_run()?;
        self.reset_still()?;
        self.call(Call::Reset).map(|_| ())
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }

    fn nudged(&mut self) {
        self.carry_out_errands();
    }

    fn last_write_counts(&self, region: u32, offset: u64) -> bool {
        region == REGISTERS_REGION && offset >= DOORBELLS_OFFSET
    }

    fn deposit(&mut self, negotiated: Option<&Negotiated>) -> Option<Deposit> {
        let negotiated = negotiated.map(|agreed| NegotiatedV1 {
            client_takes_fds: agreed.client_takes_fds,
            data_bytes_max: agreed.data_bytes_max as u64,
            write_multiple: agreed.write_multiple,
        });
        self.changed |= self.saved.negotiated != negotiated;
        self.saved.negotiated = negotiated;
        let by_client = self.still.as_ref().filter(|still| !still.is_ordered);
        let migration = by_client.map(|still| still.saved());
        self.changed |= self.saved.migration != migration;
        self.saved.migration = migration;
        let ahead = self.ahead.as_ref().map(migration::Data::ahead);
        self.changed |= self.saved.ahead != ahead;
        self.saved.ahead = ahead;
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        match self.saved.to_bytes() {
            Ok(bytes) => {
                let state = self.still.as_mut().and_then(|still| still.take_made());
                let log = self.log.as_mut().and_then(logging::Log::take_made);
                let ahead = self.ahead.as_mut().and_then(migration::Data::take_made);
                let made = state.into_iter().chain(log).chain(ahead).collect();
                Some(Deposit { bytes, keep: self.saved.descriptors(), made })
            }
            // Longer than any envelope: not with the limits on maps and vectors.
            Err(error) => {
                tracing::error!(ssd = self.ssd.name, %error, "a session cannot be saved");
                None
            }
        }
    }
}

/// Sends a call to an ssd's home and waits for its answer, for as long as the home lives.
pub(crate) fn call_home(home: &Address, ssd: &Ssd, call: Call) -> Result<Answer, Errno> {
    let (reply, answer) = sync_channel(1);
    home.send(Message::Call(ssd.id, call, reply));
    match answer.recv() {
        Ok(Answer::Failed(errno)) => Err(errno),
        Ok(answer) => Ok(answer),
        Err(_) => Err(Errno::NODEV),
    }
}

/// Cuts the power and takes the record that the next power-on begins with.
pub(crate) fn power_off(home: &Address, ssd: &Ssd) -> Result<SsdV1, Errno> {
    match call_home(home, ssd, Call::PowerOff)? {
        Answer::Record(record) => Ok(*record),
        _ => Err(Errno::IO),
    }
}

/// All of them, or none if one is something else.
fn eventfds(fds: Vec<Option<ClientFd>>) -> Result<Vec<Option<Eventfd>>, Errno> {
    let check = |fd: ClientFd| Eventfd::checked(fd.fd).ok_or(Errno::INVAL);
    fds.into_iter().map(|fd| fd.map(check).transpose()).collect()
}

fn config_offset(offset: u64) -> Result<u16, Errno> {
    u16::try_from(offset).map_err(|_| Errno::INVAL)
}

fn bar(region: u32) -> Result<Bar, Errno> {
    match region {
        REGISTERS_REGION => Ok(Bar::Registers),
        MSIX_REGION => Ok(Bar::Msix),
        _ => Err(Errno::INVAL),
    }
}

pub(crate) fn map_errno(error: &MapError) -> Errno {
    match error {
        MapError::TooMany => Errno::NOSPC,
        MapError::Overlap(_) => Errno::EXIST,
        MapError::NotMapped => Errno::NOENT,
        _ => Errno::INVAL,
    }
}

pub(crate) fn mapping_errno(error: &MappingError) -> Errno {
    match error {
        MappingError::System { error, .. } => Errno::from_io_error(error).unwrap_or(Errno::INVAL),
        _ => Errno::INVAL,
    }
}

/// BAR0 with its mappable doorbells, BAR4 with MSI-X, configuration space; INTx and MSI-X.
fn device_info(power: &Power) -> std::io::Result<DeviceInfo> {
    let doorbells = power.doorbells.fd().ok_or(std::io::ErrorKind::Unsupported)?.try_clone_to_owned()?;
    let region = |size: u64| RegionInfo { size, readable: true, writable: true, mmap: None };
    let mut regions = vec![RegionInfo::default(); device::PCI_REGIONS as usize];
    regions[REGISTERS_REGION as usize] = RegionInfo {
        mmap: Some(RegionMmap {
            fd: Arc::new(doorbells),
            offset: 0,
            areas: vec![MmapArea { offset: DOORBELLS_OFFSET, size: 0x1000 }],
        }),
        ..region(u64::from(BAR0_BYTES))
    };
    regions[MSIX_REGION as usize] = region(u64::from(BAR4_BYTES));
    regions[device::PCI_CONFIG_REGION as usize] = region(4096);
    let mut irqs = vec![IrqInfo::default(); device::PCI_IRQS as usize];
    irqs[device::PCI_INTX_IRQ as usize] =
        IrqInfo { count: 1, eventfd: true, maskable: true, automasked: true, noresize: false };
    irqs[device::PCI_MSIX_IRQ as usize] = IrqInfo {
        count: u32::try_from(VECTORS_MAX).unwrap_or(0),
        eventfd: true,
        noresize: true,
        ..IrqInfo::default()
    };
    for index in [device::PCI_ERR_IRQ, device::PCI_REQ_IRQ] {
        irqs[index as usize] = IrqInfo { count: 1, eventfd: true, noresize: true, ..IrqInfo::default() };
    }
    Ok(DeviceInfo { resettable: true, regions, irqs })
}
