//! The line of a run.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::load::histogram::Histogram;
use crate::verify::auditor::Tally;

/// What a run of migrations found.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// `migrations`, or `migrations-faults`.
    pub name: String,
    /// Replays the operations, the order of the migrations, and the faults.
    pub seed: u64,
    /// Migrations that were asked for.
    pub events: u64,
    /// Those after which the ssd was at the other host.
    pub moved: u64,
    /// What was counted.
    pub tally: Tally,
    /// Times at which two hosts answered for one ssd.
    pub double_owners: u64,
    /// Migrations after which nobody served the ssd, whatever the documents say to do.
    pub stranded: u64,
    /// Steps that an operator took after a fault, as the documents say.
    pub helped: u64,
    /// From the last completion at the source to the first at the destination, of migrations without a fault.
    pub stuns: Histogram,
    /// The same as the source's engine has it.
    pub engine_stuns: Histogram,
    /// The same as the client has it, with faults: what they cost.
    pub stuns_in_faults: Histogram,
    /// How often what went wrong.
    pub faults: BTreeMap<&'static str, u64>,
    /// Operations that were out when their device went.
    pub abandoned: u64,
    /// Seconds.
    pub seconds: f64,
}

impl Row {
    /// Nothing to complain about.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.tally.is_clean() && self.double_owners + self.stranded == 0
    }

    /// As JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "name": self.name,
            "seed": self.seed,
            "events": self.events,
            "moved": self.moved,
            "errors": self.tally.errors,
            "lost": self.tally.lost,
            "repeated": self.tally.repeated,
            "wrong_bytes": self.tally.wrong_bytes,
            "double_owners": self.double_owners,
            "stranded": self.stranded,
            "helped": self.helped,
            "stun_p50_ns": self.stuns.quantile(500),
            "stun_p99_ns": self.stuns.quantile(990),
            "engine_stun_p50_ns": self.engine_stuns.quantile(500),
            "engine_stun_p99_ns": self.engine_stuns.quantile(990),
            "fault_stun_p50_ns": self.stuns_in_faults.quantile(500),
            "fault_stun_p99_ns": self.stuns_in_faults.quantile(990),
            "faults": self.faults,
            "operations": self.tally.answered,
            "abandoned": self.abandoned,
            "checked_bytes": self.tally.checked_bytes,
            "seconds": self.seconds,
        })
    }

    /// As a line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let ms = |ns: u64| format!("{}.{:02} ms", ns / 1_000_000, ns / 10_000 % 100);
        let Tally { answered, checked_bytes, errors, lost, repeated, wrong_bytes } = self.tally;
        let faults: Vec<String> = self.faults.iter().map(|(name, count)| format!("{name} {count}")).collect();
        format!(
            "{}: {} events ({} moved, {} helped; {}), {errors} errors, {lost} lost, {repeated} repeated, {wrong_bytes} wrong bytes, {} double \
             owners, {} stranded; stun p50 {} p99 {} (engine {} {}; with faults {} {}); {answered} operations ({} abandoned), {} MiB checked, \
             {:.1} s; seed {}",
            self.name,
            self.events,
            self.moved,
            self.helped,
            faults.join(", "),
            self.double_owners,
            self.stranded,
            ms(self.stuns.quantile(500)),
            ms(self.stuns.quantile(990)),
            ms(self.engine_stuns.quantile(500)),
            ms(self.engine_stuns.quantile(990)),
            ms(self.stuns_in_faults.quantile(500)),
            ms(self.stuns_in_faults.quantile(990)),
            self.abandoned,
            checked_bytes >> 20,
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
        let mut row = Row { name: "migrations".into(), seed: 7, events: 2, ..Row::default() };
        row.stuns.record(1000);
        let json = row.json();
        for key in [
            "events",
            "errors",
            "lost",
            "wrong_bytes",
            "double_owners",
            "stranded",
            "stun_p50_ns",
            "stun_p99_ns",
            "seed",
        ] {
            assert!(json[key].is_u64(), "{key}");
        }
        assert!(row.is_clean());
        row.stranded = 1;
        assert!(!row.is_clean());
    }
}
