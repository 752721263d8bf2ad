//! Resident memory of the engine, guest RAM left out.

use std::fs;

use anyhow::{Context, Result};

use super::engine::{Backing, Engine, Ssd};
use super::report::Report;
use super::suite::Settings;
use crate::nvme::Driver;
use crate::ram::MEMFD_NAME;

/// Resident bytes by kind, and those that are the guest's own memory (not counted in the others).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// Private memory.
    pub anonymous: u64,
    /// Mapped files: the program itself.
    pub file: u64,
    /// Shared memory: state regions, doorbell pages.
    pub shared: u64,
    /// Guest RAM.
    pub guest: u64,
}

impl Resident {
    /// Reads `/proc/PID/smaps`.
    ///
    /// # Errors
    /// No such process.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps");
        Ok(Self::parse(&fs::read_to_string(&path).context(path)?))
    }

    /// Everything but guest RAM.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.anonymous + self.file + self.shared
    }

    fn parse(text: &str) -> Self {
        let mut resident = Resident::default();
        let (mut shared, mut guest, mut rss) = (false, false, 0);
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let Some(key) = words.next() else { continue };
            if !key.ends_with(':') {
                // "start-end perms offset dev inode path"
                let path = words.nth(4).unwrap_or("");
                shared = path.starts_with("/memfd:")
                    || path.starts_with("/dev/zero")
                    || path.starts_with("/dev/shm");
                guest = path.starts_with(&format!("/memfd:{MEMFD_NAME}"));
                continue;
            }
            let bytes = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0) * 1024;
            match key {
                "Rss:" => rss = bytes,
                "Anonymous:" if guest => resident.guest += rss,
                "Anonymous:" => {
                    resident.anonymous += bytes;
                    let rest = rss.saturating_sub(bytes);
                    *(if shared { &mut resident.shared } else { &mut resident.file }) += rest;
                }
                _ => {}
            }
        }
        resident
    }
}

const RAM_BYTES: usize = 32 << 20;
const PAIRS: u16 = 64;
const DEPTH: u32 = 256;

/// The engine with one ssd: at rest, with one queue pair, and what each of 63 more adds.
///
/// # Errors
/// The engine's or the driver's.
pub fn measure(settings: &Settings, report: &mut Report) -> Result<()> {
    let name = "vfio-user/memory/1-ssd";
    if !settings.wants(name) {
        return Ok(());
    }
    let ssd = Ssd { name: "memory".into(), mebibytes: 1024, backing: Backing::Null, disk: false };
    let engine = Engine::start(&settings.godwitd, settings.engine_cpu, std::slice::from_ref(&ssd))?;
    report.add(name, "rss_listening_bytes", "bytes", &[float(Resident::of(engine.pid())?.total())]);
    let mut driver = engine.connect(&ssd.name, RAM_BYTES)?;
    add_pair(&mut driver, 1)?;
    let one = Resident::of(engine.pid())?;
    report.add(name, "rss_bytes", "bytes", &[float(one.total())]);
    report.add(name, "rss_anon_bytes", "bytes", &[float(one.anonymous)]);
    report.add(name, "rss_file_bytes", "bytes", &[float(one.file)]);
    report.add(name, "rss_shmem_bytes", "bytes", &[float(one.shared)]);
    for qid in 2..=PAIRS {
        add_pair(&mut driver, qid)?;
    }
    let all = Resident::of(engine.pid())?;
    let growth = float(all.total().saturating_sub(one.total())) / f64::from(PAIRS - 1);
    report.add(name, "rss_per_queue_pair_bytes", "bytes", &[growth]);
    Ok(())
}

/// A queue pair that has been used once round, so that its memory is there.
fn add_pair(driver: &mut Driver, qid: u16) -> Result<()> {
    driver.create_queue_pair(qid, DEPTH)?;
    let buffer = driver.ram().alloc(4096)?;
    for slba in 0..u64::from(DEPTH) {
        driver.read(qid, 1, slba, 1, &buffer)?.ok()?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "memory sizes are far below 2^53")]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_left_out_and_the_rest_is_sorted_by_kind() {
        let text = "\
00400000-00500000 r-xp 00000000 08:01 99 /usr/bin/godwitd
Rss:                 100 kB
Anonymous:            10 kB
7f0000000000-7f0001000000 rw-s 00000000 00:01 12 /memfd:guest-ram (deleted)
Rss:                5000 kB
Anonymous:             0 kB
7f0002000000-7f0003000000 rw-s 00000000 00:01 13 /memfd:godwit-state (deleted)
Rss:                  20 kB
Anonymous:             0 kB
7f0004000000-7f0005000000 rw-p 00000000 00:00 0
Rss:                   7 kB
Anonymous:             7 kB
";
        let resident = Resident::parse(text);
        let expected = Resident { anonymous: 17 << 10, file: 90 << 10, shared: 20 << 10, guest: 5000 << 10 };
        assert_eq!(resident, expected);
        assert_eq!(resident.total(), 127 << 10);
    }
}
