//! The line of a run.

use serde_json::{Value, json};

use super::auditor::Tally;
use crate::load::histogram::Histogram;

/// What a run of the soak found.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// `kills`, `upgrades`, `keeper` or `calm`.
    pub name: String,
    /// Replays the operations.
    pub seed: u64,
    /// What happened to the daemon.
    pub events: u64,
    /// What was counted.
    pub tally: Tally,
    /// The longest gap between completions of an ssd, one a event (the worst ssd counts).
    pub blackouts: Histogram,
    /// The same of the virtio-blk disks alone.
    pub disk_blackouts: Histogram,
    /// Operations of theirs.
    pub disk_operations: u64,
    /// The longest gaps in windows in which nothing happened: the machine's own.
    pub calm: Histogram,
    /// How often the load itself did not run for more than 5 ms.
    pub own_pauses: u64,
    /// Events in the middle of an exchange of messages.
    pub met_messages: u64,
    /// Messages, and the longest wait for one.
    pub messages: u64,
    /// In nanoseconds.
    pub message_max_ns: u64,
    /// Whose it was, and about what.
    pub message_max_of: String,
    /// Seconds.
    pub seconds: f64,
}

impl Row {
    /// As JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "name": self.name,
            "seed": self.seed,
            "events": self.events,
            "errors": self.tally.errors,
            "lost": self.tally.lost,
            "repeated": self.tally.repeated,
            "wrong_bytes": self.tally.wrong_bytes,
            "blackout_p50_ns": self.blackouts.quantile(500),
            "blackout_p99_ns": self.blackouts.quantile(990),
            "blackout_max_ns": self.blackouts.max(),
            "disk_blackout_p50_ns": self.disk_blackouts.quantile(500),
            "disk_blackout_p99_ns": self.disk_blackouts.quantile(990),
            "calm_p50_ns": self.calm.quantile(500),
            "calm_p99_ns": self.calm.quantile(990),
            "own_pauses": self.own_pauses,
            "operations": self.tally.answered,
            "disk_operations": self.disk_operations,
            "checked_bytes": self.tally.checked_bytes,
            "met_messages": self.met_messages,
            "messages": self.messages,
            "message_max_ns": self.message_max_ns,
            "message_max_of": self.message_max_of,
            "seconds": self.seconds,
        })
    }

    /// As a line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let ms = |ns: u64| format!("{}.{:02} ms", ns / 1_000_000, ns / 10_000 % 100);
        let Tally { answered, checked_bytes, errors, lost, repeated, wrong_bytes } = self.tally;
        format!(
            "{}: {} events ({} met a message), {errors} errors, {lost} lost, {repeated} repeated, {wrong_bytes} wrong bytes; blackout p50 {} \
             p99 {} max {} (disks p99 {}, calm p99 {}); {answered} operations ({} by virtio-blk), {} MiB checked, {} messages (longest {}: {}), {:.1} s; \
             seed {}",
            self.name,
            self.events,
            self.met_messages,
            ms(self.blackouts.quantile(500)),
            ms(self.blackouts.quantile(990)),
            ms(self.blackouts.max()),
            ms(self.disk_blackouts.quantile(990)),
            ms(self.calm.quantile(990)),
            self.disk_operations,
            checked_bytes >> 20,
            self.messages,
            ms(self.message_max_ns),
            self.message_max_of,
            self.seconds,
            self.seed,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_names_that_the_ledger_reads() {
        let mut row = Row { name: "kills".into(), seed: 7, events: 2, ..Row::default() };
        row.blackouts.record(1000);
        let json = row.json();
        for key in [
            "events",
            "errors",
            "lost",
            "repeated",
            "wrong_bytes",
            "blackout_p50_ns",
            "blackout_p99_ns",
            "seed",
        ] {
            assert!(json[key].is_u64(), "{key}");
        }
        assert!(row.line().starts_with("kills: 2 events (0 met a message), 0 errors"));
    }
}
