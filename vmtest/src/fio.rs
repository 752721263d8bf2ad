//! fio's jobs and its JSON.

use anyhow::{Context, Result};
use serde_json::Value;

/// What one fio job measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Operations a second.
    pub iops: f64,
    /// The median completion latency.
    pub p50_us: f64,
    /// The 99th percentile of the completion latency.
    pub p99_us: f64,
}

/// Reads the first job's figures, of its reads if it read, else of its writes.
pub fn measured(json: &str) -> Result<Measured> {
    // fio may print warnings before the JSON.
    let start = json.find('{').context("fio printed no JSON")?;
    let report: Value = serde_json::from_str(&json[start..]).context("fio's JSON")?;
    let job = &report["jobs"][0];
    let side = if job["read"]["iops"].as_f64() > Some(0.0) { &job["read"] } else { &job["write"] };
    let percentile = |name: &str| side["clat_ns"]["percentile"][name].as_f64().map(|ns| ns / 1000.0);
    Ok(Measured {
        iops: side["iops"].as_f64().context("fio's report holds no IOPS")?,
        p50_us: percentile("50.000000").context("fio's report holds no median")?,
        p99_us: percentile("99.000000").context("fio's report holds no p99")?,
    })
}

#[cfg(test)]
mod tests {
    use super::measured;

    #[test]
    fn the_side_that_did_the_work_is_read() {
        let side = |iops: u32| {
            let percentiles = r#"{"50.000000":2000,"99.000000":9000}"#;
            format!(r#"{{"iops":{iops}.0,"clat_ns":{{"percentile":{percentiles}}}}}"#)
        };
        let report = format!(r#"note: x{{"jobs":[{{"read":{},"write":{}}}]}}"#, side(0), side(70));
        let figures = measured(&report).unwrap();
        assert_eq!((figures.iops, figures.p50_us, figures.p99_us), (70.0, 2.0, 9.0));
    }

    #[test]
    fn a_report_without_figures_is_refused() {
        assert!(measured("fio: bad option").is_err());
        assert!(measured(r#"{"jobs":[]}"#).is_err());
    }
}
