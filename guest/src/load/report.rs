//! Medians, a table for people and one JSON object a line for machines.

use std::fmt::Write as _;

use serde_json::json;

/// One figure of one bench.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Such as `vfio-user/null/randread-4k-qd128`.
    pub name: String,
    /// Such as `iops`.
    pub metric: &'static str,
    /// The median of `runs`.
    pub value: f64,
    /// Such as `1/s`, `ns`, `bytes`, `ratio`, `percent`.
    pub unit: &'static str,
    /// How many runs.
    pub runs: usize,
}

impl Record {
    /// One JSON object, no line end.
    #[must_use]
    pub fn json(&self) -> String {
        json!({
            "name": self.name, "metric": self.metric, "value": self.value, "unit": self.unit, "runs": self.runs,
        })
        .to_string()
    }
}

/// The middle value; 0 of none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

/// All figures, in the order they came.
#[derive(Debug, Default)]
pub struct Report {
    /// The figures.
    pub records: Vec<Record>,
}

impl Report {
    /// Adds the median of some runs.
    pub fn add(&mut self, name: &str, metric: &'static str, unit: &'static str, runs: &[f64]) {
        let record = Record { name: name.to_owned(), metric, value: median(runs), unit, runs: runs.len() };
        self.records.push(record);
    }

    /// One line a bench: its name and its figures.
    #[must_use]
    pub fn table(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for record in &self.records {
            if !names.contains(&record.name.as_str()) {
                names.push(&record.name);
            }
        }
        let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
        let mut table = String::new();
        for name in names {
            let _infallible = write!(table, "{name:width$}");
            for record in self.records.iter().filter(|record| record.name == name) {
                let _infallible = write!(table, "  {} {}", record.metric, human(record.value, record.unit));
            }
            table.push('\n');
        }
        table
    }
}

/// A figure as people read it.
fn human(value: f64, unit: &str) -> String {
    match unit {
        "1/s" if value >= 1e6 => format!("{:.2} M", value / 1e6),
        "1/s" if value >= 1e3 => format!("{:.1} k", value / 1e3),
        "1/s" => format!("{value:.0}"),
        "ns" if value.abs() >= 1e6 => format!("{:.2} ms", value / 1e6),
        "ns" if value.abs() >= 1e4 => format!("{:.1} µs", value / 1e3),
        "ns" => format!("{value:.0} ns"),
        "bytes" if value >= 1024.0 * 1024.0 => format!("{:.1} MiB", value / 1024.0 / 1024.0),
        "bytes" => format!("{:.1} KiB", value / 1024.0),
        "percent" => format!("{value:.2} %"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_odd_and_even_counts() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
    }

    #[test]
    fn a_line_of_json_has_the_five_fields() {
        let mut report = Report::default();
        report.add("a/b", "iops", "1/s", &[2.0, 1.0, 3.0]);
        let json: serde_json::Value = serde_json::from_str(&report.records[0].json()).unwrap();
        assert_eq!(json["name"], "a/b");
        assert_eq!(json["metric"], "iops");
        assert_eq!(json["value"], 2.0);
        assert_eq!(json["unit"], "1/s");
        assert_eq!(json["runs"], 3);
    }

    #[test]
    fn the_table_has_a_line_a_bench() {
        let mut report = Report::default();
        report.add("one", "iops", "1/s", &[5.5e6]);
        report.add("one", "mean_ns", "ns", &[930.0]);
        report.add("three", "rss_bytes", "bytes", &[2.0 * 1024.0 * 1024.0]);
        assert_eq!(report.table(), "one    iops 5.50 M  mean_ns 930 ns\nthree  rss_bytes 2.0 MiB\n");
    }
}
