//! The raw peer: fio's io_uring engine on the file itself.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::workload::{Direction, Workload};

/// What fio measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Raw {
    /// Commands a second.
    pub iops: f64,
    /// Mean latency.
    pub mean_ns: f64,
    /// Median latency.
    pub p50_ns: f64,
    /// The 99th percentile.
    pub p99_ns: f64,
}

/// Installs fio with apt when it is missing.
///
/// # Errors
/// It is missing and cannot be installed.
pub fn ensure_installed() -> Result<()> {
    let there = || Command::new("fio").arg("--version").output().is_ok_and(|output| output.status.success());
    if there() {
        return Ok(());
    }
    let status = Command::new("apt-get").args(["install", "-y", "-q", "fio"]).status();
    ensure!(status.is_ok_and(|status| status.success()) && there(), "fio is missing: apt-get install fio");
    Ok(())
}

/// Runs a load on `file` from one job on `cpu`, with registered file and buffers as the engine has them.
///
/// # Errors
/// fio fails or says something unknown.
pub fn run(
    file: &Path,
    size_bytes: u64,
    load: &Workload,
    cpu: usize,
    warm_up: Duration,
    time: Duration,
) -> Result<Raw> {
    let output = Command::new("fio")
        .args(["--name=raw", "--ioengine=io_uring", "--direct=1", "--registerfiles=1", "--fixedbufs=1"])
        .args(["--numjobs=1", "--time_based=1", "--norandommap=1", "--randrepeat=0"])
        .args(["--lat_percentiles=1", "--clat_percentiles=0", "--output-format=json"])
        .arg(format!("--filename={}", file.display()))
        .arg(format!("--size={size_bytes}"))
        .arg(format!("--rw={}", load.fio_rw()))
        .arg(format!("--bs={}", load.block_bytes))
        .arg(format!("--iodepth={}", load.depth))
        .arg(format!("--cpus_allowed={cpu}"))
        .arg(format!("--ramp_time={}ms", warm_up.as_millis()))
        .arg(format!("--runtime={}ms", time.as_millis()))
        .output()
        .context("cannot start fio")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "fio failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    parse(&text, load.direction)
}

fn parse(text: &str, direction: Direction) -> Result<Raw> {
    let start = text.find('{').context("fio printed no JSON")?;
    let json: Value = serde_json::from_str(&text[start..]).context("fio's JSON")?;
    let side = if direction == Direction::Read { "read" } else { "write" };
    let number = |pointer: &str| {
        let at = format!("/jobs/0/{side}{pointer}");
        json.pointer(&at).and_then(Value::as_f64).with_context(|| format!("fio's JSON has no {at}"))
    };
    let raw = Raw {
        iops: number("/iops")?,
        mean_ns: number("/lat_ns/mean")?,
        p50_ns: number("/lat_ns/percentile/50.000000")?,
        p99_ns: number("/lat_ns/percentile/99.000000")?,
    };
    ensure!(raw.iops > 0.0, "fio did no I/O");
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_side_of_the_direction_is_read() {
        let text = r#"note {"jobs":[{"read":{"iops":0.0},"write":{"iops":12.5,"lat_ns":{"mean":80000.0,
            "percentile":{"50.000000":70000,"99.000000":90000}}}}]}"#;
        let raw = parse(text.strip_prefix("note ").unwrap(), Direction::Write).unwrap();
        assert!((raw.iops - 12.5).abs() < 1e-9 && (raw.mean_ns - 80_000.0).abs() < 1e-9);
        assert!(parse(text.strip_prefix("note ").unwrap(), Direction::Read).is_err());
    }
}
