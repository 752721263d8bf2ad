//! One migration, as it is shown and steered from outside while its thread drives it.

use super::gauge::Gauge;
use api::control::{MigrationStatus, Steer};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use transfer::control::{Control, UNLIMITED};

/// See the module.
pub(super) struct Case {
    pub(super) ssd: String,
    pub(super) peer: String,
    /// Its guest's hypervisor here, if that goes with it.
    pub(super) guest: Option<PathBuf>,
    pub(super) incoming: bool,
    pub(super) size_bytes: u64,
    pub(super) control: Control,
    pub(super) gauge: Gauge,
    /// Bytes of its guest's memory that have gone.
    pub(super) memory_bytes: AtomicU64,
    /// Steers that are the machine's.
    steers: Box<dyn Fn(Steer) + Send + Sync>,
    /// Bytes a second on the wire at most, by an operator's word, and for the guest's sake.
    paces: Mutex<[u64; 2]>,
    shown: Mutex<Shown>,
}

struct Shown {
    began: Instant,
    ended: Option<Instant>,
    state: &'static str,
    reason: Option<String>,
    stun: Option<Duration>,
}

impl Case {
    pub(super) fn new(
        ssd: &str,
        peer: &str,
        incoming: bool,
        size_bytes: u64,
        steers: Box<dyn Fn(Steer) + Send + Sync>,
    ) -> Self {
        let shown =
            Shown { began: Instant::now(), ended: None, state: "beginning", reason: None, stun: None };
        let (ssd, peer, control) = (ssd.to_owned(), peer.to_owned(), Control::default());
        Self {
            ssd,
            peer,
            guest: None,
            incoming,
            size_bytes,
            control,
            gauge: Gauge::default(),
            memory_bytes: AtomicU64::new(0),
            steers,
            paces: Mutex::new([UNLIMITED; 2]),
            shown: Mutex::new(shown),
        }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is done now.
    pub(super) fn show(&self, state: &'static str) {
        let mut shown = self.shown();
        if shown.ended.is_none() && shown.state != state {
            tracing::info!(ssd = self.ssd, peer = self.peer, state, "migration");
            shown.state = state;
            self.gauge.mark(state);
        }
    }

    /// What must be known of it; the last stays. Whether it is another than before.
    pub(super) fn remark(&self, reason: impl Into<String>) -> bool {
        let reason = Some(reason.into());
        let mut shown = self.shown();
        let is_new = shown.reason != reason;
        shown.reason = reason;
        is_new
    }

    pub(super) fn stood_still(&self, stun: Duration) {
        self.shown().stun = Some(stun);
    }

    pub(super) fn end(&self, state: &'static str) {
        self.show(state);
        self.shown().ended.get_or_insert_with(Instant::now);
    }

    pub(super) fn is_over(&self) -> bool {
        self.shown().ended.is_some()
    }

    /// By an operator's word; 0: as many as can.
    pub(super) fn set_bandwidth(&self, bytes_per_s: u64) {
        self.set_pace(0, if bytes_per_s == 0 { UNLIMITED } else { bytes_per_s });
    }

    /// So that its guest stays in its budget.
    pub(super) fn set_guest_pace(&self, bytes_per_s: u64) {
        self.set_pace(1, bytes_per_s);
    }

    /// The lower of the two holds.
    fn set_pace(&self, whose: usize, bytes_per_s: u64) {
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        let before = paces[0].min(paces[1]);
        paces[whose] = bytes_per_s;
        let now = paces[0].min(paces[1]);
        if now != before {
            self.control.set_pace(now);
        }
    }

    /// Does what can be done at once, and passes the rest on to who drives it.
    pub(super) fn steer(&self, steer: Steer) {
        match steer {
            Steer::Pause => self.control.pause(),
            Steer::Resume => self.control.resume(),
            Steer::Bandwidth(bytes) => self.set_bandwidth(bytes),
            // It is over where nobody listens.
            Steer::Cancel | Steer::Force => (self.steers)(steer),
        }
    }

    pub(super) fn status(&self) -> MigrationStatus {
        let (progress, shown) = (self.control.progress(), self.shown());
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let is_paused = shown.state == "copying" && self.control.is_paused();
        let (p99_before, p99_now) = self.gauge.p99_ns();
        let elapsed = shown.ended.unwrap_or_else(Instant::now).duration_since(shown.began);
        MigrationStatus {
            ssd: self.ssd.clone(),
            peer: self.peer.clone(),
            guest: self.guest.clone(),
            incoming: self.incoming,
            state: if is_paused { "paused" } else { shown.state }.to_owned(),
            reason: shown.reason.clone(),
            over: shown.ended.is_some(),
            size_bytes: self.size_bytes,
            sent_bytes: progress.bytes_sent,
            memory_bytes: self.memory_bytes.load(Ordering::Relaxed),
            left_bytes: progress.bytes_left,
            pass: progress.pass,
            rate: progress.rate,
            dirty_rate: progress.dirty_rate,
            predicted_stun_ns: progress.predicted_stun.map(nanos),
            stun_ns: shown.stun.map(nanos),
            p99_before_ns: p99_before,
            p99_ns: p99_now,
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        }
    }
}
