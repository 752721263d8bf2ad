//! Is the machine quiet enough to measure on?

use std::time::Duration;

/// The share of all cores' time that others use, in percent, over 300 ms.
///
/// # Errors
/// `/proc/stat` cannot be read.
pub fn others_percent() -> std::io::Result<f64> {
    let before = times(&std::fs::read_to_string("/proc/stat")?);
    std::thread::sleep(Duration::from_millis(300));
    let after = times(&std::fs::read_to_string("/proc/stat")?);
    let (busy, all) = (after.0.wrapping_sub(before.0), after.1.wrapping_sub(before.1));
    Ok(f64::from(busy) / f64::from(all.max(1)) * 100.0)
}

/// Busy and all ticks of the first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal.
fn times(stat: &str) -> (u32, u32) {
    let line = stat.lines().next().unwrap_or("");
    let fields: Vec<u64> =
        line.split_whitespace().skip(1).take(8).map(|word| word.parse().unwrap_or(0)).collect();
    let all: u64 = fields.iter().sum();
    let idle: u64 = fields.iter().skip(3).take(2).sum();
    (low(all - idle), low(all))
}

/// Differences of a second are what counts; the counters of a year would not fit.
fn low(ticks: u64) -> u32 {
    (ticks & 0xFFFF_FFFF) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_waiting_for_disks_are_not_busy() {
        assert_eq!(times("cpu  10 1 5 100 20 2 3 4 0 0\ncpu0 1 1 1\n"), (25, 145));
        assert_eq!(times(""), (0, 0));
    }
}
