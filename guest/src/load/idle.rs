//! Many idle ssds: what they cost, and how long the first I/O after idling takes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::engine::{Backing, Engine, Ssd, cpu_ns};
use super::report::Report;
use super::suite::Settings;
use super::workload::Random;
use crate::nvme::{Driver, Sqe, nvm};

const SSDS: usize = 64;
const RAM_BYTES: usize = 1 << 20;
/// The engine's default `idle_us`.
const SLEEP_NS: i64 = 900_000;

/// 64 ssds, each with a guest that has a queue pair and does nothing.
///
/// # Errors
/// The engine's or a driver's.
pub fn measure(settings: &Settings, report: &mut Report) -> Result<()> {
    let name = format!("vfio-user/idle/{SSDS}-ssds");
    if !settings.wants(&name) {
        return Ok(());
    }
    let ssds: Vec<_> = (0..SSDS)
        .map(|index| Ssd { name: format!("idle{index}"), mebibytes: 64, backing: Backing::Null, disk: false })
        .collect();
    let engine = Engine::start(&settings.godwitd, settings.engine_cpu, &ssds)?;
    let mut drivers = Vec::new();
    for ssd in &ssds {
        let mut driver = engine.connect(&ssd.name, RAM_BYTES)?;
        driver.create_queue_pair(1, 64)?;
        driver.io(1, Sqe::new(nvm::FLUSH).nsid(1))?.ok()?;
        drivers.push(driver);
    }
    std::thread::sleep(Duration::from_millis(500));
    let length = if settings.quick { Duration::from_secs(2) } else { Duration::from_secs(10) };
    let (before, start) = (cpu_ns(engine.pid()), Instant::now());
    std::thread::sleep(length);
    let (spent, elapsed) = (cpu_ns(engine.pid()) - before, start.elapsed());
    let percent = Duration::from_nanos(spent).as_secs_f64() / elapsed.as_secs_f64() * 100.0;
    report.add(&name, "cpu_percent", "percent", &[percent]);
    report.add(&name, "bare_sleep_cpu_percent", "percent", &[bare_sleep_percent()]);

    let tries = if settings.quick { 10 } else { 50 };
    let mut wakes = first_ios(&mut drivers, tries)?;
    report.add(&name, "wake_ns", "ns", &wakes);
    wakes.sort_by(f64::total_cmp);
    report.add(&name, "wake_max_ns", "ns", &wakes[wakes.len() - 1..]);
    Ok(())
}

/// What a thread costs that does nothing but sleep as an idle reactor does: the floor of this machine.
fn bare_sleep_percent() -> f64 {
    let cpu = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
    };
    let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: SLEEP_NS };
    let (before, start) = (cpu(), Instant::now());
    while start.elapsed() < Duration::from_secs(2) {
        // Interrupted or not: a wake-up like any other.
        let _ = rustix::event::poll(&mut [], Some(&timeout));
    }
    (cpu() - before).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0
}

/// A read on some ssd after every one has been idle for a while, again and again.
fn first_ios(drivers: &mut [Driver], tries: u64) -> Result<Vec<f64>> {
    let mut random = Random::new(5);
    let mut wakes = Vec::new();
    for _ in 0..tries {
        std::thread::sleep(Duration::from_millis(60 + random.below(60)));
        let index = usize::try_from(random.below(drivers.len() as u64))?;
        let driver = drivers.get_mut(index).context("a driver")?;
        let buffer = driver.ram().alloc(4096)?;
        let sqe = Sqe::new(nvm::READ).nsid(1).prp(buffer.iova(), 0).blocks(0, 0);
        let start = Instant::now();
        driver.submit(1, sqe)?;
        // Without a word to the scheduler, unlike `Driver::io`.
        let done = loop {
            match driver.poll(1)? {
                Some(done) => break done,
                None => ensure!(start.elapsed() < Duration::from_secs(10), "no completion after idling"),
            }
        };
        done.ok()?;
        wakes.push(start.elapsed().as_secs_f64() * 1e9);
    }
    Ok(wakes)
}
