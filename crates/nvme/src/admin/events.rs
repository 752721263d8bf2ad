//! Asynchronous events (Base 2.1, 5.1.2), the error log behind one of them, Keep Alive (5.1.14) and Abort (5.1.1).
//!
//! An event is posted at most once until the host reads its log page with RAE = 0: then its type is unmasked.

use std::sync::atomic::Ordering;

use block::Now;
use spec::nvme::admin::{AbortCdw10, AsyncEventDw0, AsyncEventType, KEEP_ALIVE_TIMEOUT_UNIT_NS, event_info};
use spec::nvme::feature::{AsyncEventConfig, Fid};
use spec::nvme::log::{CriticalWarning, ErrorInformation, Lid};
use spec::nvme::{Command, Status};
use zerocopy::FromZeros;

use super::{Outcome, Step, invalid_field};
use crate::controller::{Controller, Host, Wait};
use crate::limits::{ACL_Z, AERL_Z, ELPE_Z};
use crate::queue::{Answer, Unanswered};
use crate::sink::{DoorbellError, GroupCommand};
use crate::store::{change32, change64, publish32, publish64, put32, put64};

impl Controller {
    /// Parks the request; it is answered when something happens.
    pub(super) fn async_event_request(&mut self, slot: u16) -> Outcome {
        let Some(queue) = &mut self.queue else { return Ok(Step::Later) };
        if queue.parked() > usize::from(AERL_Z) {
            return Err(Status::ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED.into());
        }
        queue.park(slot);
        self.record_parked();
        self.deliver_events();
        Ok(Step::Later)
    }

    /// The region says which requests are parked.
    fn record_parked(&self) {
        let mut cids = self.queue.as_ref().into_iter().flat_map(|q| q.parked_cids());
        for place in &self.region.admin.parked_events {
            publish32(place, cids.next().map_or(0, |cid| u32::from(cid) + 1));
        }
    }

    /// Answers parked requests with pending events, oldest with oldest. The order of the stores tells a successor how far
    /// this came: mask, answer, drop the event, drop the request (see [`Controller::settle_events`]).
    pub(crate) fn deliver_events(&mut self) {
        while let Some(dw0) = self.first_pending() {
            let Some(queue) = self.queue.as_mut().filter(|queue| queue.parked() > 0) else { return };
            let kind = AsyncEventDw0::from_bits(dw0).event_type();
            if kind == AsyncEventType::OneShot.0 {
                // No log page is read for it that could unmask it. What it is about comes in dword 1.
                let answer = Answer { dw0: dw0 & 0xff_ffff, dw1: dw0 >> 24, status: Status::SUCCESS };
                if !queue.unpark(&self.region, &self.doorbells, None, answer) {
                    return;
                }
                self.drop_pending(|event| event == dw0);
                self.record_parked();
                continue;
            }
            let masked = &self.region.admin.masked_event_types;
            change32(masked, |masked| masked | 1 << kind);
            let answer = Answer { dw0, dw1: 0, status: Status::SUCCESS };
            if !queue.unpark(&self.region, &self.doorbells, None, answer) {
                return change32(masked, |masked| masked & !(1 << kind));
            }
            self.drop_pending(|event| AsyncEventDw0::from_bits(event).event_type() == kind);
            self.record_parked();
        }
    }

    /// A predecessor ended while it reported an event: a pending event of a masked type says so. If a request that was parked
    /// has its answer, the event was told; else it is to be told still.
    pub(crate) fn settle_events(&self, unanswered: &[Unanswered]) {
        let admin = &self.region.admin;
        let waits = |cid: u32| unanswered.iter().any(|found| u32::from(found.command.cid()) == cid);
        let mut parked = admin.parked_events.iter().filter_map(|e| e.load(Ordering::Acquire).checked_sub(1));
        let told = parked.any(|cid| !waits(cid));
        let kind = |event: u32| AsyncEventDw0::from_bits(event).event_type();
        let masked = admin.masked_event_types.load(Ordering::Acquire);
        let is_masked = |event: u32| masked >> kind(event) & 1 == 1;
        if told {
            return self.drop_pending(is_masked);
        }
        let pending = admin.pending_events.iter().filter_map(|e| e.load(Ordering::Acquire).checked_sub(1));
        let untold = pending.filter(|event| is_masked(*event)).fold(0, |bits, event| bits | 1 << kind(event));
        if untold != 0 {
            change32(&admin.masked_event_types, |masked| masked & !untold);
        }
    }

    fn first_pending(&self) -> Option<u32> {
        self.region.admin.pending_events.iter().find_map(|e| e.load(Ordering::Acquire).checked_sub(1))
    }

    /// Takes events out, keeping the others in order.
    fn drop_pending(&self, gone: impl Fn(u32) -> bool) {
        let places = &self.region.admin.pending_events;
        let all: Vec<u32> = places.iter().filter_map(|e| e.load(Ordering::Acquire).checked_sub(1)).collect();
        let mut kept = all.into_iter().filter(|event| !gone(*event));
        for place in places {
            publish32(place, kept.next().map_or(0, |event| event + 1));
        }
    }

    /// Something happened.
    fn raise(&self, kind: AsyncEventType, info: u8, lid: Lid) {
        let admin = &self.region.admin;
        if admin.masked_event_types.load(Ordering::Acquire) >> kind.0 & 1 == 1 {
            return;
        }
        let event =
            AsyncEventDw0::new().with_event_type(kind.0).with_event_info(info).with_lid(lid.0).into_bits();
        let places = &admin.pending_events;
        if places.iter().any(|place| place.load(Ordering::Acquire) == event + 1) {
            return;
        }
        // No place is left only when every kind of event is there already.
        if let Some(free) = places.iter().find(|place| place.load(Ordering::Acquire) == 0) {
            publish32(free, event + 1);
        }
    }

    fn event_for(kind: AsyncEventType, info: u8, about: u16) -> u32 {
        // Bits that no event has, until it is told.
        AsyncEventDw0::new().with_event_type(kind.0).with_event_info(info).into_bits()
            | u32::from(about & 0xff) << 24
    }

    /// Something happened to one of several.
    pub(super) fn raise_for(&self, kind: AsyncEventType, info: u8, about: u16) {
        let event = Self::event_for(kind, info, about);
        let places = &self.region.admin.pending_events;
        let is_there = places.iter().any(|place| place.load(Ordering::Acquire) == event + 1);
        if let Some(free) =
            places.iter().find(|place| place.load(Ordering::Acquire) == 0).filter(|_| !is_there)
        {
            publish32(free, event + 1);
        }
    }

    /// It need not be told any more.
    pub(super) fn drop_event_for(&self, kind: AsyncEventType, info: u8, about: u16) {
        let event = Self::event_for(kind, info, about);
        self.drop_pending(|pending| pending == event);
    }

    /// The host has read a log page with RAE = 0: the events it clears are no longer pending, their type no longer masked.
    pub(super) fn log_was_read(&self, lid: Lid) {
        let kind = match lid {
            Lid::ErrorInformation => AsyncEventType::Error,
            Lid::SmartHealth => AsyncEventType::SmartHealth,
            Lid::ChangedNamespaceList => AsyncEventType::Notice,
            Lid::SanitizeStatus => AsyncEventType::IoCommandSpecific,
            _ => return,
        };
        change32(&self.region.admin.masked_event_types, |masked| masked & !(1 << kind.0));
        self.drop_pending(|event| AsyncEventDw0::from_bits(event).lid() == lid.0);
    }

    fn event_config(&self) -> AsyncEventConfig {
        AsyncEventConfig::from_bits(self.feature(Fid::AsyncEventConfiguration))
    }

    /// An attached namespace came, went or changed (log page 04h).
    pub(crate) fn namespace_changed(&self, nsid: u32) {
        if self.queue.is_none() {
            return;
        }
        if let Some(bit) = nsid.checked_sub(1).filter(|bit| *bit < 64) {
            change64(&self.region.admin.changed_namespaces, |changed| changed | 1 << bit);
        }
        if self.event_config().nan() {
            let info = event_info::NOTICE_NAMESPACE_ATTRIBUTE_CHANGED;
            self.raise(AsyncEventType::Notice, info, Lid::ChangedNamespaceList);
        }
    }

    /// A namespace is about to change. A successor tells the host of it, should this process end before it does: the log page
    /// says so before the record does.
    pub(crate) fn note_change(&self, nsid: u32) {
        if let Some(bit) = nsid.checked_sub(1).filter(|bit| *bit < 64 && self.is_ready()) {
            change64(&self.region.admin.changed_namespaces, |changed| changed | 1 << bit);
        }
    }

    /// A predecessor may have ended between a change and the event that tells of it (Base 2.1, 5.1.2). An event that was told and
    /// whose log page was not read is masked, and so not told again.
    pub(crate) fn tell_changes_again(&self) {
        let changed = self.region.admin.changed_namespaces.load(Ordering::Acquire);
        if changed != 0 && self.event_config().nan() {
            let info = event_info::NOTICE_NAMESPACE_ATTRIBUTE_CHANGED;
            self.raise(AsyncEventType::Notice, info, Lid::ChangedNamespaceList);
        }
    }

    /// The critical warnings of the SMART log became these.
    pub(super) fn warn(&self, warning: CriticalWarning) {
        let enabled = CriticalWarning::from_bits(self.event_config().smart());
        if warning.temperature() && enabled.temperature() {
            self.raise(AsyncEventType::SmartHealth, event_info::SMART_TEMPERATURE, Lid::SmartHealth);
        }
        if (warning.degraded() && enabled.degraded()) || (warning.read_only() && enabled.read_only()) {
            self.raise(AsyncEventType::SmartHealth, event_info::SMART_RELIABILITY, Lid::SmartHealth);
        }
    }

    /// A sanitize operation ended.
    pub(crate) fn sanitize_completed(&self) {
        let info = event_info::IO_SANITIZE_COMPLETED;
        self.raise(AsyncEventType::IoCommandSpecific, info, Lid::SanitizeStatus);
    }

    /// A doorbell was written that is none, or with a value that is none.
    pub(crate) fn doorbell_error(&mut self, qid: u16, kind: DoorbellError) {
        let info = match kind {
            DoorbellError::Register => event_info::ERROR_INVALID_DOORBELL_REGISTER,
            DoorbellError::Value => event_info::ERROR_INVALID_DOORBELL_VALUE,
        };
        self.note_error(qid, 0xffff, Status::SUCCESS, 0, 0, 0xffff);
        self.raise(AsyncEventType::Error, info, Lid::ErrorInformation);
    }

    /// Adds an entry to the error log (Base 2.1, 5.1.12.1.2). Always `true`: the status may say so in its More bit.
    pub(crate) fn note_error(
        &mut self,
        sqid: u16,
        cid: u16,
        status: Status,
        lba: u64,
        nsid: u32,
        location: u16,
    ) -> bool {
        let count = change64(&self.region.admin.error_count, |count| count.wrapping_add(1));
        self.errors.push_front(ErrorInformation {
            error_count: count,
            sqid,
            cid,
            status,
            parameter_error_location: location,
            lba,
            nsid,
            ..ErrorInformation::new_zeroed()
        });
        self.errors.truncate(usize::from(ELPE_Z) + 1);
        true
    }

    /// Keep Alive restarts the timer.
    pub(super) fn keep_alive(&mut self) -> Outcome {
        publish64(&self.region.admin.keep_alive_ns, self.now.0);
        Ok(Step::Done(0))
    }

    pub(crate) fn keep_alive_deadline(&self) -> Option<Now> {
        let timeout_ms = self.feature(Fid::KeepAliveTimer);
        if timeout_ms == 0 || !self.takes_commands() {
            return None;
        }
        let started = self.region.admin.keep_alive_ns.load(Ordering::Acquire);
        Some(Now(started.saturating_add(u64::from(timeout_ms) * KEEP_ALIVE_TIMEOUT_UNIT_NS)))
    }

    /// The host was silent for too long: the controller stops, fatally (Base 2.1, 3.9).
    pub(crate) fn expire_keep_alive(&mut self) {
        if self.keep_alive_deadline().is_some_and(|at| at <= self.now) {
            tracing::warn!("keep alive timer expired");
            self.note_error(0xffff, 0xffff, Status::KEEP_ALIVE_TIMER_EXPIRED, 0, 0, 0xffff);
            self.fatal();
        }
    }

    /// Abort is best effort (Base 2.1, 5.1.1): dword 0 bit 0 says whether it was too late.
    pub(super) fn abort(&mut self, slot: u16, command: &Command, host: &mut impl Host) -> Outcome {
        let fields = AbortCdw10::from_bits(command.cdw10);
        let (sqid, cid) = (fields.sqid(), fields.cid());
        if sqid == 0 {
            return self.abort_admin(slot, cid);
        }
        let queue = self.region.sqs.get(usize::from(sqid)).filter(|sq| sq.size.load(Ordering::Acquire) != 0);
        let Some(queue) = queue else { return Err(invalid_field(10)) };
        let running = self.waits.values().filter(|wait| matches!(wait, Wait::Abort(_))).count();
        if running > usize::from(ACL_Z) {
            return Err(Status::ABORT_COMMAND_LIMIT_EXCEEDED.into());
        }
        let cqid = u16::try_from(queue.cqid.load(Ordering::Relaxed) & 0xffff).unwrap_or(0);
        let id = self.next_id(Wait::Abort(slot));
        host.to_queue(cqid, GroupCommand::Abort { sqid, cid, id });
        Ok(Step::Later)
    }

    /// Of admin commands only a parked event request can be aborted.
    fn abort_admin(&mut self, own: u16, cid: u16) -> Outcome {
        let Some(queue) = &mut self.queue else { return Ok(Step::Done(1)) };
        let target = queue.slot_of(cid).filter(|slot| *slot != own);
        let answer = Answer::of(Status::ABORT_REQUESTED);
        let aborted =
            target.is_some_and(|slot| queue.unpark(&self.region, &self.doorbells, Some(slot), answer));
        if aborted {
            self.record_parked();
        }
        Ok(Step::Done(u32::from(!aborted)))
    }

    /// Everything that a controller level reset clears beside the registers.
    pub(crate) fn reset_admin_state(&self) {
        let admin = &self.region.admin;
        admin.features_set.iter().for_each(|w| put64(w, 0));
        admin.features.iter().for_each(|w| put32(w, 0));
        admin.vector_coalescing_disabled.iter().for_each(|w| put64(w, 0));
        admin.host_identifier.iter().for_each(|w| put64(w, 0));
        put64(&admin.timestamp[0], 0);
        put64(&admin.timestamp[1], self.now.0);
        admin.parked_events.iter().for_each(|w| put32(w, 0));
        admin.pending_events.iter().for_each(|w| put32(w, 0));
        for word in [&admin.masked_event_types, &admin.host_behavior] {
            put32(word, 0);
        }
        let long =
            [&admin.shadow_doorbells, &admin.event_indices, &admin.changed_namespaces, &admin.keep_alive_ns];
        long.into_iter().for_each(|w| publish64(w, 0));
    }
}
