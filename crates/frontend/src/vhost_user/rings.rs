//! The rings of a session: what was said of each, and which of them run.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use spec::vhost_user::VringAddr;

use super::device::{Blk, RING_ENTRIES_MAX, Ring};
use super::frame::{FdId, Refusal, VringEvent};
use super::saved::{SavedAddr, SavedVring};
use super::session::device;
use super::table::Table;

/// One ring.
#[derive(Debug, Clone, Copy, Default)]
struct Vring {
    said: SavedVring,
    /// The device has it.
    runs: bool,
    /// It ran, and was stopped for a change that the ring must not see.
    paused: bool,
}

/// All rings that the device has, by index.
#[derive(Debug)]
pub(crate) struct Rings(Vec<Vring>);

const BUSY: Refusal = Refusal::new(Errno::BUSY, "the ring runs");

const fn invalid(why: &'static str) -> Refusal {
    Refusal::new(Errno::INVAL, why)
}

impl Rings {
    pub(crate) fn new(queues_max: u16) -> Self {
        Self(vec![Vring::default(); usize::from(queues_max)])
    }

    pub(crate) fn saved(&self) -> Vec<SavedVring> {
        self.0.iter().map(|vring| vring.said).collect()
    }

    pub(crate) fn running(&self) -> Vec<u16> {
        let running = (0..).zip(&self.0).filter(|(_, vring)| vring.runs);
        running.map(|(queue, _)| queue).collect()
    }

    /// Takes what a predecessor was told; nothing runs yet.
    pub(crate) fn restore(
        &mut self,
        saved: &[SavedVring],
        take: &mut dyn FnMut(FdId) -> Result<OwnedFd, Refusal>,
        blk: &mut dyn Blk,
    ) -> Result<(), Refusal> {
        if saved.len() > self.0.len() {
            return Err(invalid("more rings than this device has"));
        }
        for ((queue, said), vring) in (0..).zip(saved).zip(&mut self.0) {
            check_num(said.num, blk.info().queue_size_max, true)?;
            vring.said = *said;
            if let Some(id) = said.kick {
                blk.set_kick(queue, Some(take(id)?)).map_err(device)?;
            }
            if let Some(id) = said.call {
                blk.set_call(queue, Some(take(id)?)).map_err(device)?;
            }
            if let Some(id) = said.err {
                blk.set_err(queue, Some(take(id)?)).map_err(device)?;
            }
        }
        Ok(())
    }

    fn at(&mut self, index: u32) -> Result<(u16, &mut Vring), Refusal> {
        let none = invalid("there is no such ring");
        let queue = u16::try_from(index).map_err(|_| none)?;
        Ok((queue, self.0.get_mut(usize::from(queue)).ok_or(none)?))
    }

    pub(crate) fn check(&mut self, index: u32) -> Result<(), Refusal> {
        self.at(index).map(|_| ())
    }

    fn idle(&mut self, index: u32) -> Result<(u16, &mut Vring), Refusal> {
        let (queue, vring) = self.at(index)?;
        if vring.runs { Err(BUSY) } else { Ok((queue, vring)) }
    }

    pub(crate) fn set_num(&mut self, index: u32, num: u32, queue_size_max: u16) -> Result<(), Refusal> {
        let (_, vring) = self.idle(index)?;
        check_num(num, queue_size_max, false)?;
        vring.said.num = num;
        Ok(())
    }

    /// The caller has paused the ring.
    pub(crate) fn set_addr(&mut self, addr: &VringAddr) -> Result<(), Refusal> {
        let (_, vring) = self.idle(addr.index)?;
        let &VringAddr { descriptor, used, available, log, flags, .. } = addr;
        let log = (flags & VringAddr::LOG != 0).then_some(log);
        vring.said.addr = Some(SavedAddr { descriptor, used, available, log });
        Ok(())
    }

    pub(crate) fn set_base(&mut self, index: u32, base: u32) -> Result<u16, Refusal> {
        let (queue, vring) = self.idle(index)?;
        vring.said.base = base;
        Ok(queue)
    }

    /// The ring needs a new SET_VRING_KICK from now on; returns where it stands. The caller has paused it.
    pub(crate) fn halt(&mut self, index: u32, blk: &mut dyn Blk) -> Result<u32, Refusal> {
        let (queue, vring) = self.idle(index)?;
        vring.drop_kick(queue, blk)?;
        Ok(vring.said.base)
    }

    pub(crate) fn set_fd(
        &mut self,
        event: VringEvent,
        index: u32,
        id: Option<FdId>,
        fd: Option<OwnedFd>,
        blk: &mut dyn Blk,
    ) -> Result<(), Refusal> {
        let (queue, vring) = self.at(index)?;
        match event {
            VringEvent::Kick => {
                blk.set_kick(queue, fd).map_err(device)?;
                vring.said.kick = id;
                vring.said.started = true;
            }
            VringEvent::Call => {
                blk.set_call(queue, fd).map_err(device)?;
                vring.said.call = id;
            }
            VringEvent::Err => {
                blk.set_err(queue, fd).map_err(device)?;
                vring.said.err = id;
            }
        }
        Ok(())
    }

    pub(crate) fn enable(&mut self, index: u32, on: bool) -> Result<(), Refusal> {
        self.at(index)?.1.said.enabled = on;
        Ok(())
    }

    /// The caller has paused them.
    pub(crate) fn disable(&mut self) {
        self.0.iter_mut().for_each(|vring| {
            vring.said.enabled = false;
            vring.said.started = false;
        });
    }

    /// As at first, but for call and error eventfds, which only the client takes away. The caller has paused all.
    pub(crate) fn reset(&mut self, blk: &mut dyn Blk) -> Result<(), Refusal> {
        for (queue, vring) in (0..).zip(&mut self.0) {
            vring.drop_kick(queue, blk)?;
            let SavedVring { call, err, .. } = vring.said;
            vring.said = SavedVring { call, err, ..SavedVring::default() };
        }
        Ok(())
    }

    /// Stops the ring if it runs. It may run again at the next [`Rings::settle`].
    pub(crate) fn pause(&mut self, index: u32, blk: &mut dyn Blk) -> Result<(), Refusal> {
        let (queue, vring) = self.at(index)?;
        if vring.runs {
            vring.said.base = blk.stop(queue).map_err(device)?;
            vring.runs = false;
            vring.paused = true;
        }
        Ok(())
    }

    /// Starts every ring that can run and does not. It is an error when one cannot that ran before, or that the message is
    /// `about`, or because the device refuses; the others run all the same. Before there is memory, nothing is expected to.
    pub(crate) fn settle(
        &mut self,
        about: Option<u32>,
        setting: &Setting<'_>,
        blk: &mut dyn Blk,
    ) -> Result<(), Refusal> {
        let mut first = Ok(());
        for (queue, vring) in (0..).zip(&mut self.0) {
            let paused = std::mem::take(&mut vring.paused);
            let wanted = vring.said.started && (vring.said.enabled || setting.enabled_by_default);
            if vring.runs || !wanted {
                continue;
            }
            let Some(addr) = vring.said.addr.filter(|_| vring.said.num > 0) else { continue };
            match setting.ring(queue, &vring.said, &addr) {
                Ok(ring) => {
                    let started = blk.start(queue, ring).map_err(device);
                    vring.runs = started.is_ok();
                    first = first.and(started);
                }
                Err(refusal) => {
                    let expected = about == Some(u32::from(queue)) && !setting.table.entries().is_empty();
                    if paused || expected {
                        first = first.and(Err(refusal));
                    }
                }
            }
        }
        first
    }
}

/// What of the session decides whether a ring can run.
pub(crate) struct Setting<'a> {
    /// Protocol features are not in use.
    pub(crate) enabled_by_default: bool,
    pub(crate) packed: bool,
    /// Rings, and entries of each, that the in-flight region has room for.
    pub(crate) room: (u16, u16),
    pub(crate) table: &'a Table,
}

impl Vring {
    fn drop_kick(&mut self, queue: u16, blk: &mut dyn Blk) -> Result<(), Refusal> {
        if self.said.kick.is_some() {
            blk.set_kick(queue, None).map_err(device)?;
        }
        self.said.kick = None;
        self.said.started = false;
        Ok(())
    }
}

/// Whether a split or packed ring is meant may not be known yet: a power of two is checked when the ring starts.
fn check_num(num: u32, queue_size_max: u16, or_unsaid: bool) -> Result<(), Refusal> {
    let max = u32::from(queue_size_max.min(RING_ENTRIES_MAX));
    match num {
        0 if or_unsaid => Ok(()),
        0 => Err(invalid("a ring of no entries")),
        num if num > max => Err(invalid("a ring of more entries than the device takes")),
        _ => Ok(()),
    }
}

impl Setting<'_> {
    /// The ring in the guest's addresses, with all that [`Blk::start`] promises.
    fn ring(&self, queue: u16, said: &SavedVring, addr: &SavedAddr) -> Result<Ring, Refusal> {
        let size = u16::try_from(said.num).map_err(|_| invalid("a ring of too many entries"))?;
        let entries = u64::from(size);
        if !self.packed && !size.is_power_of_two() {
            return Err(invalid("a split ring whose size is no power of two"));
        }
        if queue >= self.room.0 || size > self.room.1 {
            return Err(invalid("the in-flight region has no room for the ring"));
        }
        // Virtio 1.2, 2.7 and 2.8.10. With the event index a split ring has two bytes more at each end.
        let (driver_bytes, driver_align, device_bytes) =
            if self.packed { (4, 4, 4) } else { (6 + 2 * entries, 2, 6 + 8 * entries) };
        Ok(Ring {
            size,
            packed: self.packed,
            descriptors: self.place(addr.descriptor, 16 * entries, 16)?,
            driver: self.place(addr.available, driver_bytes, driver_align)?,
            device: self.place(addr.used, device_bytes, 4)?,
            base: said.base,
            log_address: addr.log,
        })
    }

    fn place(&self, user_address: u64, len: u64, align: u64) -> Result<u64, Refusal> {
        let outside = Refusal::new(Errno::FAULT, "a ring outside of the memory table");
        let guest_address = self.table.guest_address(user_address, len).ok_or(outside)?;
        if guest_address.is_multiple_of(align) {
            Ok(guest_address)
        } else {
            Err(invalid("a ring that is not aligned"))
        }
    }
}
