//! How the engines ended, for `godwit status`.

use api::control::Restart;
use link::control::Ready;
use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The most ends remembered.
const RESTARTS_MAX: usize = 32;

#[derive(Debug, Default)]
pub(crate) struct History {
    restarts: VecDeque<Restart>,
    /// When service ended, until it begins again.
    dark_since: Option<Instant>,
    pub(crate) crashes: u64,
    pub(crate) handovers: u64,
}

impl History {
    /// Goes on from what an earlier keeper remembered.
    pub(crate) fn resume(restarts: impl Iterator<Item = Restart>, crashes: u64, handovers: u64) -> Self {
        let mut restarts: VecDeque<Restart> = restarts.collect();
        restarts.drain(..restarts.len().saturating_sub(RESTARTS_MAX));
        Self { restarts, dark_since: None, crashes, handovers }
    }

    /// An engine that served, or was to, has ended.
    pub(crate) fn ended(&mut self, now: Instant, generation: u32, reason: String, planned: bool) {
        if planned {
            self.handovers += 1;
        } else {
            self.crashes += 1;
        }
        if self.restarts.len() == RESTARTS_MAX {
            self.restarts.pop_front();
        }
        let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let restart =
            Restart { generation: u64::from(generation), unix_s, reason, planned, ..Restart::default() };
        self.restarts.push_back(restart);
        self.dark_since.get_or_insert(now);
    }

    /// Service begins again after so long, if it had ended.
    pub(crate) fn serving(&mut self, now: Instant, ready: &Ready) -> Option<Duration> {
        let blackout = now.saturating_duration_since(self.dark_since.take()?);
        if let Some(restart) = self.restarts.back_mut() {
            restart.blackout_us = Some(u64::try_from(blackout.as_micros()).unwrap_or(u64::MAX));
            restart.replayed = ready.replayed;
            restart.reposted = ready.reposted;
            restart.fenced = ready.fenced;
        }
        Some(blackout)
    }

    pub(crate) fn restarts(&self) -> Vec<Restart> {
        self.restarts.iter().cloned().collect()
    }
}
