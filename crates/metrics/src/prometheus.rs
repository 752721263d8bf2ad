//! The text that Prometheus reads (exposition format 0.0.4).

use std::fmt::Write as _;

use crate::bucket::{BUCKETS, floor_ns};
use crate::page::{Op, Part};
use crate::snapshot::{Counts, Histogram, Snapshot};

/// The first and last bound of Prometheus' buckets, which are an octave each: 1 µs and 8.6 s, nearly.
const BOUNDS: core::ops::RangeInclusive<u32> = 10..=33;

/// An ssd at one moment.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Its name.
    pub ssd: String,
    /// `serving`, `parked` or `quarantined`.
    pub state: String,
    /// A client is connected.
    pub client: bool,
    /// Crashes of engines, lately, with it in hand.
    pub crashes: u64,
    /// What its page says. `None`: there is none (it was never powered on), or it cannot be read.
    pub page: Option<Snapshot>,
}

/// The engine at one moment.
#[derive(Clone, Debug, Default)]
pub struct Engine {
    /// It serves.
    pub serving: bool,
    /// Counts the engines.
    pub generation: u64,
    /// Engines that crashed or were killed.
    pub crashes: u64,
    /// Upgrades and planned handovers.
    pub handovers: u64,
    /// How long it has served.
    pub serving_ms: u64,
}

/// All of it.
#[must_use]
pub fn prometheus(engine: &Engine, ssds: &[Observed]) -> String {
    let mut text = Text(String::new());
    text.head("godwit_engine_serving", "gauge", "Whether an engine serves.");
    text.sample("godwit_engine_serving", "", &u8::from(engine.serving));
    text.head("godwit_engine_generation", "gauge", "Counts the engines of this daemon, from 1.");
    text.sample("godwit_engine_generation", "", &engine.generation);
    text.head("godwit_engine_serving_seconds", "gauge", "How long the engine has served.");
    text.sample("godwit_engine_serving_seconds", "", &seconds(engine.serving_ms.saturating_mul(1_000_000)));
    text.head("godwit_engine_crashes_total", "counter", "Engines that crashed or were killed.");
    text.sample("godwit_engine_crashes_total", "", &engine.crashes);
    text.head("godwit_engine_handovers_total", "counter", "Upgrades and planned handovers.");
    text.sample("godwit_engine_handovers_total", "", &engine.handovers);
    text.states(ssds);
    let read: Vec<(String, &Snapshot)> =
        ssds.iter().filter_map(|ssd| Some((labels(ssd), ssd.page.as_ref()?))).collect();
    text.counter("godwit_ssd_ios_total", "I/Os that ended.", &read, |counts| counts.ios());
    text.counter(
        "godwit_ssd_bytes_total",
        "Data of I/Os that ended; of \"other\", blocks zeroed or discarded.",
        &read,
        |counts| counts.bytes,
    );
    text.counter("godwit_ssd_errors_total", "I/Os that the drive failed.", &read, |counts| counts.errors);
    text.latencies(&read);
    text.0
}

/// What names an ssd in every series. Counts are of all its namespaces.
fn labels(ssd: &Observed) -> String {
    let mut labels = format!("ssd=\"{}\"", escaped(&ssd.ssd));
    if let Some(page) = &ssd.page {
        let nsid = if page.facts.namespaces { "all" } else { "" };
        let (serial, device) = (escaped(&page.facts.serial), escaped(&page.facts.device));
        let _infallible = write!(labels, ",serial=\"{serial}\",device=\"{device}\",nsid=\"{nsid}\"");
    }
    labels
}

struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _infallible = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: &dyn core::fmt::Display) {
        let _infallible = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }

    fn states(&mut self, ssds: &[Observed]) {
        self.head("godwit_ssd_state", "gauge", "1 for the state that the ssd is in.");
        for ssd in ssds {
            for state in ["serving", "parked", "quarantined"] {
                let labels = format!("{},state=\"{state}\"", labels(ssd));
                self.sample("godwit_ssd_state", &labels, &u8::from(ssd.state == state));
            }
        }
        self.head("godwit_ssd_client_connected", "gauge", "Whether a client is connected.");
        ssds.iter()
            .for_each(|ssd| self.sample("godwit_ssd_client_connected", &labels(ssd), &u8::from(ssd.client)));
        self.head("godwit_ssd_recent_crashes", "gauge", "Crashes of engines, lately, with the ssd in hand.");
        ssds.iter().for_each(|ssd| self.sample("godwit_ssd_recent_crashes", &labels(ssd), &ssd.crashes));
    }

    fn counter(&mut self, name: &str, help: &str, read: &[(String, &Snapshot)], of: impl Fn(&Counts) -> u64) {
        self.head(name, "counter", help);
        for (labels, page) in read {
            for op in Op::ALL {
                self.sample(name, &format!("{labels},op=\"{}\"", op.name()), &of(page.of(op)));
            }
        }
    }

    fn latencies(&mut self, read: &[(String, &Snapshot)]) {
        const NAME: &str = "godwit_ssd_latency_seconds";
        self.head(
            NAME,
            "histogram",
            "Where the time of I/Os went: waiting in its queue, held back by limits, at the drive.",
        );
        for (labels, page) in read {
            // An idle ssd would else be three hundred lines of zeros.
            let done = Op::ALL.into_iter().filter(|op| page.of(*op).ios() > 0);
            for (op, part) in done.flat_map(|op| Part::ALL.map(|part| (op, part))) {
                let labels = format!("{labels},op=\"{}\",part=\"{}\"", op.name(), part.name());
                self.histogram(NAME, &labels, &page.of(op).time(part));
            }
        }
    }

    fn histogram(&mut self, name: &str, labels: &str, times: &Histogram) {
        let (mut bucket, mut below) = (0, 0_u64);
        for bound in BOUNDS {
            while bucket < BUCKETS && floor_ns(bucket + 1) <= 1 << bound {
                below = below.wrapping_add(times.counts().get(bucket).copied().unwrap_or(0));
                bucket += 1;
            }
            let labels = format!("{labels},le=\"{}\"", seconds(1 << bound));
            self.sample(&format!("{name}_bucket"), &labels, &below);
        }
        self.sample(&format!("{name}_bucket"), &format!("{labels},le=\"+Inf\""), &times.total());
        self.sample(&format!("{name}_sum"), labels, &seconds(times.sum_ns()));
        self.sample(&format!("{name}_count"), labels, &times.total());
    }
}

/// Exact, and without an exponent.
fn seconds(ns: u64) -> String {
    let text = format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A label's value: backslash, quote and line feed are escaped.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_exact() {
        assert_eq!(seconds(0), "0");
        assert_eq!(seconds(1 << 10), "0.000001024");
        assert_eq!(seconds(10_000_000_000), "10");
    }

    #[test]
    fn a_name_cannot_break_out_of_its_label() {
        assert_eq!(escaped("a\"} 1\nb\\"), "a\\\"} 1\\nb\\\\");
    }
}
