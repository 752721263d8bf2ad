//! Enable, reset, shutdown (Base 2.1, 3.5 to 3.7), and taking over from a predecessor.
//!
//! ```text
//!  Disabled --EN=1, checks--> Ready --EN=0 | NSSR | FLR--> Resetting --groups acknowledged--> Disabled (or Ready: EN is 1)
//!      |  checks failed: CSTS.CFS       SHN: Draining -> Flushing -> Recording -> Complete (until the next reset)
//! ```
//! `reset_count` is odd in the region while a reset is under way, and `reset_kind` says how far it goes, so that a successor
//! finishes it.

use std::sync::atomic::Ordering;

use block::{Op, Outcome, Range, Request, Submitted, Token};
use spec::nvme::Status;
use spec::nvme::registers::{Aqa, Cc, CommandSetSelected, Csts, ShutdownNotification, ShutdownStatus};
use state::region::{ControllerRegion, LAYOUT_VERSION, MAGIC};
use state::ssd::SsdV1;

use super::{Controller, Host, PersistWish, Wait};
use crate::admin::queue::AdminQueue;
use crate::limits::PAGE_BYTES;
use crate::pci;
use crate::profile::Role;
use crate::queue;
use crate::sink::{GroupCommand, Scope};
use crate::store::{change64, publish32, publish64, put_doorbell, put32, put64};

/// How far the controller goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ResetKind {
    /// CC.EN cleared: AQA, ASQ, ACQ and PCI stay.
    Controller,
    /// NSSR: all properties.
    Subsystem,
    /// Function level reset, or a reset by the client: all properties, configuration space and MSI-X.
    Function,
}

impl ResetKind {
    /// As the region says it. Whatever else it says is the least.
    fn of(word: u64) -> Self {
        match word {
            1 => Self::Subsystem,
            2 => Self::Function,
            _ => Self::Controller,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// CSTS.RDY = 0.
    Disabled,
    /// CSTS.RDY = 1: admin commands are taken.
    Ready,
    /// Waits for the groups to drop their queues.
    Resetting { id: u32, kind: ResetKind },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shutdown {
    /// Groups end what they began.
    Draining,
    /// The backend makes it durable; the token is missing while the backend was full.
    Flushing { token: Option<Token> },
    /// The record says "clean".
    Recording,
    /// CSTS.SHST = 10b.
    Complete,
}

/// The host asks for a shutdown.
fn asks(cc: Cc) -> bool {
    cc.shn() == ShutdownNotification::Normal.0 || cc.shn() == ShutdownNotification::Abrupt.0
}

/// Whether nobody ever used the region.
pub(super) fn is_fresh(region: &ControllerRegion) -> bool {
    region.header.magic.load(Ordering::Acquire) != MAGIC
}

/// The power cycle after those a record counts, as [`Header`](state::region::Header) says it.
fn cycle_after(record: &SsdV1) -> u32 {
    let [low, _]: [u32; 2] = zerocopy::transmute!(record.totals.power_cycles.wrapping_add(1));
    low
}

impl Controller {
    /// A fresh region: what power-on means.
    pub(super) fn power_on(&mut self, record: &SsdV1) {
        pci::reset(&self.region.pci, &self.profile);
        let header = &self.region.header;
        put32(&header.layout_version, LAYOUT_VERSION);
        put64(&header.size_bytes, size_of::<ControllerRegion>() as u64);
        put32(&header.power_cycle, cycle_after(record));
        // The error count goes on over power cycles (Base 2.1, 5.1.12.1.2).
        put64(&self.region.admin.error_count, record.totals.error_log_entries);
        publish64(&header.magic, MAGIC);
        self.count_power_cycle(record);
    }

    /// What the record says was before this power cycle.
    fn count_power_cycle(&mut self, record: &SsdV1) {
        self.totals.base = record::sum(&self.totals.base, &self.totals.live);
        self.totals.live = state::ssd::CountersV1::default();
        self.totals.power_cycles = self.totals.power_cycles.saturating_add(1);
        if record.laid_out && !record.clean {
            self.totals.unsafe_shutdowns = self.totals.unsafe_shutdowns.saturating_add(1);
            // What was counted since the record went with the region.
            self.sanitize.writes_at_end = u64::MAX;
        }
    }

    /// A used region: what its registers say is what the controller is.
    pub(super) fn take_over(&mut self, record: &SsdV1) {
        let cycle = self.region.header.power_cycle.load(Ordering::Acquire);
        if cycle != 0 && cycle == cycle_after(record) {
            // Whoever made the region ended before a record said so.
            self.count_power_cycle(record);
        }
        if self.region.registers.reset_count.load(Ordering::Acquire).is_multiple_of(2) && self.csts().rdy() {
            self.life = Life::Ready;
        }
    }

    /// The first turn: whatever a predecessor left half done.
    pub(super) fn resume_if_due(&mut self, host: &mut impl Host) {
        if core::mem::take(&mut self.resume) {
            self.resume_work(host);
            self.resume_life(host);
            self.grow_if_due(host);
        }
    }

    fn resume_life(&mut self, host: &mut impl Host) {
        if self.region.registers.reset_count.load(Ordering::Acquire) % 2 == 1 {
            // It is done as far as it was to go: the message that asked for it may have been answered.
            let kind = ResetKind::of(self.region.registers.reset_kind.load(Ordering::Acquire));
            self.begin_reset(kind, host);
            return;
        }
        if self.life == Life::Ready && !self.cc().en() {
            // CC says "disable", and the reset had not begun: the write that says so again would change nothing.
            return self.start_reset(ResetKind::Controller, host);
        }
        if self.life == Life::Ready {
            match AdminQueue::take_over(&self.region, &self.map) {
                Some((queue, unanswered)) => {
                    self.queue = Some(queue);
                    self.note_remote();
                    self.settle_events(&unanswered);
                    self.tell_changes_again();
                    // Before a command that says that all was logged.
                    self.resume_logs(host);
                    self.replay(unanswered, host);
                }
                None => self.fatal(),
            }
        } else if self.cc().en() && !self.csts().cfs() {
            self.enable(host);
        }
        if self.csts().shst() == ShutdownStatus::Complete.0 {
            self.shutdown = Some(Shutdown::Complete);
            // What was held then is held still.
            let id = self.next_id(Wait::Shutdown);
            self.shutdown_hold = Some(id);
            host.to_all(GroupCommand::Hold { scope: Scope::All, except: None, id });
        } else if self.shutdown.is_none()
            && (self.csts().shst() == ShutdownStatus::Occurring.0 || asks(self.cc()))
        {
            // Begun, or asked for by a write of CC whose effects ended with the store.
            self.begin_shutdown(host);
        }
    }

    /// A write of CC.
    pub(super) fn write_cc(&mut self, new: Cc, host: &mut impl Host) {
        let old = self.cc();
        let mut new = new;
        if old.en() && new.en() {
            // Only SHN and the entry sizes may change while enabled (Base 2.1, 3.1.4.5).
            new = old.with_shn(new.shn()).with_iosqes(new.iosqes()).with_iocqes(new.iocqes());
        }
        publish32(&self.region.registers.cc, new.into_bits());
        match (old.en(), new.en()) {
            (true, false) => self.start_reset(ResetKind::Controller, host),
            (false, true) if self.life == Life::Disabled => self.enable(host),
            _ => {}
        }
        if asks(new) && !asks(old) && self.shutdown.is_none() {
            self.begin_shutdown(host);
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.life == Life::Ready
    }

    /// Admin commands are fetched.
    pub(crate) fn takes_commands(&self) -> bool {
        self.life == Life::Ready && self.shutdown.is_none() && !self.csts().cfs()
    }

    pub(crate) fn fatal(&mut self) {
        self.update_csts(|csts| csts.with_cfs(true));
    }

    /// CC.EN went from 0 to 1 (Base 2.1, 3.5.1).
    fn enable(&mut self, host: &mut impl Host) {
        let cc = self.cc();
        let css = CommandSetSelected(cc.css());
        let sizes = matches!(cc.iosqes(), 0 | 6) && matches!(cc.iocqes(), 0 | 4);
        let modes = cc.mps() == 0 && cc.ams() == 0 && !cc.crime();
        // An administrative controller has no I/O command set; hosts that do not know of such select one all the same.
        let set = match css {
            CommandSetSelected::Nvm | CommandSetSelected::All => true,
            CommandSetSelected::AdminOnly => self.profile.role == Role::Management,
            _ => false,
        };
        let aqa = Aqa::from_bits(self.region.registers.aqa.load(Ordering::Acquire));
        let asq = self.region.registers.asq.load(Ordering::Acquire);
        let acq = self.region.registers.acq.load(Ordering::Acquire);
        let aligned = [asq, acq].iter().all(|base| base.is_multiple_of(PAGE_BYTES as u64));
        let size = aqa.asqs_z() >= 1 && aqa.acqs_z() >= 1;
        if !(sizes && modes && set && aligned && size) {
            return self.fatal();
        }
        self.zero_doorbells();
        queue::create_cq(&self.region, 0, acq, u32::from(aqa.acqs_z()) + 1, Some(0));
        queue::create_sq(&self.region, 0, asq, u32::from(aqa.asqs_z()) + 1, 0);
        let queue = AdminQueue::open(&self.region, &self.map).filter(AdminQueue::is_reachable);
        let Some(queue) = queue else {
            queue::close_sq(&self.region, 0);
            queue::close_cq(&self.region, 0);
            return self.fatal();
        };
        self.queue = Some(queue);
        self.note_remote();
        self.life = Life::Ready;
        self.shutdown = None;
        self.cq_head_seen = 0;
        self.update_csts(|csts| csts.with_rdy(true).with_shst(0));
        if core::mem::take(&mut self.clean) {
            self.persist(PersistWish::Nobody, host);
        }
    }

    fn zero_doorbells(&self) {
        (0..1024).for_each(|index| put_doorbell(&self.doorbells, index, 0));
    }

    pub(super) fn start_reset(&mut self, kind: ResetKind, host: &mut impl Host) {
        let registers = &self.region.registers;
        if let Life::Resetting { kind: running, .. } = &mut self.life {
            *running = (*running).max(kind);
            publish64(&registers.reset_kind, *running as u64);
        } else {
            publish64(&registers.reset_kind, kind as u64);
            change64(&registers.reset_count, |count| count.wrapping_add(1));
            self.begin_reset(kind, host);
        }
        if kind != ResetKind::Controller {
            // These resets end with the controller disabled, whatever the host writes meanwhile is what counts then.
            publish32(&self.region.registers.cc, 0);
        }
    }

    fn begin_reset(&mut self, kind: ResetKind, host: &mut impl Host) {
        // Replies still owed are not given; the work itself goes on (format, wipe, sanitize).
        self.drop_queue();
        self.waits.retain(|_, wait| *wait == Wait::Work);
        self.deleting.clear();
        self.end_logs(host);
        self.management.reset();
        self.surveys.reset();
        self.shutdown = None;
        self.drop_exclusives(host);
        self.abort_self_test_by_reset(host);
        let id = self.next_id(Wait::Reset);
        self.life = Life::Resetting { id, kind };
        host.to_all(GroupCommand::Reset { id });
        if let Some(hold) = self.shutdown_hold.take() {
            host.to_all(GroupCommand::Release { id: hold });
        }
    }

    fn drop_queue(&mut self) {
        if let Some(mut queue) = self.queue.take() {
            queue.abandon_all(&self.region);
        }
        self.work.forget_replies();
    }

    /// Every group has dropped its queues.
    pub(super) fn reset_acknowledged(&mut self, host: &mut impl Host) {
        let Life::Resetting { kind, .. } = self.life else { return };
        for qid in 0..=self.profile.io_queues {
            queue::close_sq(&self.region, qid);
            queue::close_cq(&self.region, qid);
        }
        publish32(&self.region.registers.interrupt_mask, 0);
        self.reset_admin_state();
        self.zero_doorbells();
        let registers = &self.region.registers;
        if kind != ResetKind::Controller {
            put32(&registers.aqa, 0);
            put64(&registers.asq, 0);
            put64(&registers.acq, 0);
        }
        if kind == ResetKind::Function {
            pci::function_level_reset(&self.region.pci, &self.profile);
        }
        let nssro = self.csts().nssro() || kind == ResetKind::Subsystem;
        publish32(&registers.csts, Csts::new().with_nssro(nssro).into_bits());
        publish64(&registers.reset_kind, 0);
        change64(&registers.reset_count, |count| count.wrapping_add(1));
        self.life = Life::Disabled;
        host.interrupt(0);
        self.work_after_reset(host);
        if self.cc().en() {
            self.enable(host);
        }
        if self.cc().shn() != 0 && self.shutdown.is_none() && !self.cc().en() {
            self.begin_shutdown(host);
        }
    }

    /// CC.SHN asked for it (Base 2.1, 3.6). Normal and abrupt end alike: everything begun is finished and durable.
    fn begin_shutdown(&mut self, host: &mut impl Host) {
        self.update_csts(|csts| csts.with_shst(ShutdownStatus::Occurring.0));
        self.shutdown = Some(Shutdown::Draining);
        if matches!(self.life, Life::Resetting { .. }) {
            // The reset drains too.
            return self.flush_for_shutdown(host);
        }
        let id = self.next_id(Wait::Shutdown);
        self.shutdown_hold = Some(id);
        host.to_all(GroupCommand::Hold { scope: Scope::All, except: None, id });
    }

    /// The groups have drained (or a full backend has room again).
    pub(super) fn flush_for_shutdown(&mut self, host: &mut impl Host) {
        if !matches!(self.shutdown, Some(Shutdown::Draining | Shutdown::Flushing { token: None })) {
            return;
        }
        let token = self.next_token();
        let range = Range { start_bytes: 0, len_bytes: 0 };
        match host.submit(&Request { token, op: Op::Flush, range, data: &[] }) {
            Submitted::Full => self.shutdown = Some(Shutdown::Flushing { token: None }),
            Submitted::Queued => self.shutdown = Some(Shutdown::Flushing { token: Some(token) }),
            Submitted::Ended(outcome) => self.flushed_for_shutdown(outcome, host),
        }
    }

    pub(super) fn flush_is_due(&self) -> bool {
        self.shutdown == Some(Shutdown::Flushing { token: None })
    }

    /// Takes the end of the shutdown's flush. `false`: the token is another's.
    pub(super) fn shutdown_flush_ended(
        &mut self,
        token: Token,
        outcome: Outcome,
        host: &mut impl Host,
    ) -> bool {
        if self.shutdown != Some(Shutdown::Flushing { token: Some(token) }) {
            return false;
        }
        self.flushed_for_shutdown(outcome, host);
        true
    }

    fn flushed_for_shutdown(&mut self, outcome: Outcome, host: &mut impl Host) {
        if outcome != Outcome::Done {
            // The host must not believe its data safe (Base 2.1, 3.6: SHST stays "occurring" on failure).
            tracing::error!(?outcome, "the drive failed to flush at shutdown");
            self.note_error(0, 0, Status::WRITE_FAULT, 0, 0, 0xffff);
            return self.fatal();
        }
        self.shutdown = Some(Shutdown::Recording);
        self.clean = true;
        self.persist(PersistWish::Shutdown, host);
    }

    pub(super) fn shutdown_recorded(&mut self) {
        if self.shutdown == Some(Shutdown::Recording) {
            self.shutdown = Some(Shutdown::Complete);
            self.update_csts(|csts| csts.with_shst(ShutdownStatus::Complete.0));
        }
    }
}

use super::record;
