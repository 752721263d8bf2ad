//! How patient the keeper is.

use std::time::Duration;

/// Times and counts after which the keeper acts.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a client's frame may take from its first byte to its last.
    pub frame_time: Duration,
    /// How long a message to a client may wait for it to read.
    pub send_time: Duration,
    /// How long an engine may take from its start until it serves or has checked.
    pub start_time: Duration,
    /// How long an engine may take to pause; then it is killed, and its work replayed.
    pub pause_time: Duration,
    /// How long an engine may take to make all durable when the daemon stops.
    pub stop_time: Duration,
    /// How long a new engine is watched after an upgrade: if it fails, the former binary runs again.
    pub probation: Duration,
    /// After so many engines in a row that served nothing the next one still starts at once: before an ssd can be blamed
    /// ([`Limits::blame_crashes`]), a pause would only make all guests wait.
    pub backoff_after: u32,
    /// The first pause after one more; doubles with each.
    pub backoff_first: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
    /// An engine that lived less than this after it was ready has served nothing.
    pub short_life: Duration,
    /// So many crashes with the same ssd in hand, within [`Limits::blame_time`], quarantine it.
    pub blame_crashes: usize,
    /// See [`Limits::blame_crashes`].
    pub blame_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            frame_time: seconds(5),
            send_time: seconds(5),
            start_time: seconds(60),
            pause_time: seconds(3),
            stop_time: seconds(60),
            probation: seconds(5),
            backoff_after: 3,
            backoff_first: Duration::from_millis(10),
            backoff_max: seconds(5),
            short_life: Duration::from_millis(100),
            blame_crashes: 3,
            blame_time: seconds(60),
        }
    }
}
