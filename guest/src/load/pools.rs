//! A pool's ssds beside a plain file of the same file system: what the map, new extents and encryption cost.
//!
//! In each run all ssds are new. Each is written once from end to end, in order; for a thin one that is an extent to be found, recorded and
//! given again and again. Then each is read at random. They take turns, the plain file among them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::engine::{Backing, Engine, Ssd};
use super::lane::{Lane, Namespace};
use super::report::{Report, median};
use super::suite::{Settings, busy, write_file};
use super::workload::{Direction, Workload};
use crate::nvme::{Driver, Prp, Sqe, nvm};

/// The plain file first: the others are compared with it.
const NAMES: [&str; 5] = ["raw", "full", "thin", "raw-encrypted", "thin-encrypted"];
const WRITE_BYTES: usize = 128 << 10;
const WRITE_DEPTH: usize = 32;
const READ_DEPTH: usize = 32;
const RAM_BYTES: usize = 16 << 20;
/// Longer than that without a completion is a failure.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the runs gave for one ssd.
#[derive(Default)]
struct Got {
    written: Vec<f64>,
    read: Vec<f64>,
    busy: Vec<f64>,
}

/// Runs what is wanted.
///
/// # Errors
/// The engine's or a driver's, or the files'.
pub fn measure(settings: &Settings, report: &mut Report) -> Result<()> {
    let name = |of: &str| format!("vfio-user/pool/{of}");
    if !NAMES.iter().any(|of| settings.wants(&name(of))) {
        return Ok(());
    }
    let mut all: [Got; NAMES.len()] = Default::default();
    for run in 0..settings.runs {
        let directory = tempfile::Builder::new().prefix("godwit-bench").tempdir_in(&settings.directory)?;
        one(settings, run, directory.path(), &mut all)?;
    }
    let [first, ..] = &all;
    let raw = (median(&first.written), median(&first.read));
    for (of, got) in NAMES.iter().zip(&all).filter(|(of, _)| settings.wants(&name(of))) {
        let name = name(of);
        report.add(&name, "first_write_bytes", "bytes", &got.written);
        report.add(&name, "first_write_ratio", "ratio", &[median(&got.written) / raw.0]);
        report.add(&name, "randread_iops", "1/s", &got.read);
        report.add(&name, "randread_ratio", "ratio", &[median(&got.read) / raw.1]);
        report.add(&name, "engine_busy_ns_per_read", "ns", &got.busy);
        eprint!("{}", Report { records: report.records[report.records.len() - 5..].to_vec() }.table());
    }
    Ok(())
}

/// All ssds anew, on one engine.
fn one(settings: &Settings, run: usize, directory: &Path, all: &mut [Got]) -> Result<()> {
    let mebibytes = (settings.disk_mebibytes / 4).max(16);
    let key = directory.join("key");
    std::fs::write(&key, (0..64).collect::<Vec<u8>>())?;
    let pool = directory.join("pool.img");
    let pool_mebibytes = mebibytes * 3 + 64;
    let more = format!("[[pool]]\nname = \"p\"\npath = {pool:?}\nsize = \"{pool_mebibytes}MiB\"\n");
    let ssd = |of: &&str| {
        let file = directory.join(format!("{of}.img"));
        let backing = if of.starts_with("raw") {
            write_file(&file, mebibytes)?;
            Backing::Uring(file)
        } else {
            Backing::Pool { thin: of.starts_with("thin") }
        };
        let encrypted = of.ends_with("encrypted");
        let backing = if encrypted { Backing::Encrypted(Box::new(backing), key.clone()) } else { backing };
        Ok(Ssd { name: (*of).to_owned(), mebibytes, backing, disk: false })
    };
    let ssds = NAMES.iter().map(ssd).collect::<Result<Vec<_>>>()?;
    let start = || Engine::start_with(&settings.godwitd, settings.engine_cpu, &ssds, &more);
    drop(start()?);
    // The pool is made. What is measured is it, not how the file system under it finds its blocks.
    fill_holes(&pool, pool_mebibytes)?;
    let engine = start()?;
    let connect = |ssd: &Ssd| engine.connect(&ssd.name, RAM_BYTES);
    let mut drivers = ssds.iter().map(connect).collect::<Result<Vec<_>>>()?;
    for (driver, got) in drivers.iter_mut().zip(all.iter_mut()) {
        got.written.push(write_once(driver)?);
    }
    for (driver, got) in drivers.iter_mut().zip(all.iter_mut()) {
        let plan = settings.plan(Workload::random(Direction::Read, READ_DEPTH), run);
        let mut lane = Lane::new(driver, 2, &plan.workload)?;
        let outcome = lane.run(driver, &settings.clock, &plan, || engine.spent());
        lane.close(driver)?;
        let outcome = outcome?;
        got.read.push(outcome.iops());
        got.busy.push(busy(&outcome));
    }
    Ok(())
}

/// Writes the zeros that are only said to be there.
fn fill_holes(path: &Path, mebibytes: u64) -> Result<()> {
    let open = File::options().read(true).write(true).open(path);
    let file = open.with_context(|| path.display().to_string())?;
    let mut bytes = vec![0; 1 << 20];
    for at in (0..mebibytes).map(|mebibyte| mebibyte << 20) {
        file.read_exact_at(&mut bytes, at)?;
        file.write_all_at(&bytes, at)?;
    }
    Ok(file.sync_all()?)
}

/// Bytes a second over the whole ssd, from its first block to its last.
#[expect(clippy::cast_precision_loss, reason = "sizes of a bench are far below 2^53")]
fn write_once(driver: &mut Driver) -> Result<f64> {
    let namespace = Namespace::identify(driver, 1)?;
    driver.create_queue_pair(1, 64)?;
    let mut buffers = Vec::new();
    for _ in 0..WRITE_DEPTH {
        let buffer = driver.ram().alloc(WRITE_BYTES)?;
        buffer.fill(0xA5);
        let prp = Prp::new(driver.ram(), buffer.iova(), WRITE_BYTES)?;
        buffers.push((buffer, prp));
    }
    let blocks = WRITE_BYTES / namespace.lba_bytes;
    let count = namespace.blocks / blocks as u64;
    let (mut free, mut out): (Vec<_>, _) = ((0..WRITE_DEPTH).collect(), std::collections::HashMap::new());
    let (begin, mut heard) = (Instant::now(), Instant::now());
    let (mut next, mut done) = (0, 0);
    while done < count {
        while next < count
            && let Some(at) = free.pop()
        {
            let prp = &buffers[at].1;
            let sqe = Sqe::new(nvm::WRITE).nsid(1).prp(prp.prp1, prp.prp2);
            let cid = driver.submit(1, sqe.blocks(next * blocks as u64, u16::try_from(blocks - 1)?))?;
            out.insert(cid, at);
            next += 1;
        }
        match driver.poll(1)? {
            Some(completion) => {
                completion.ok()?;
                free.push(
                    out.remove(&completion.cid).context("a completion of a command that is not there")?,
                );
                (done, heard) = (done + 1, Instant::now());
            }
            None => {
                ensure!(heard.elapsed() < PATIENCE, "a write does not end");
                std::thread::yield_now();
            }
        }
    }
    let elapsed = begin.elapsed();
    driver.delete_queue_pair(1)?;
    Ok((count * WRITE_BYTES as u64) as f64 / elapsed.as_secs_f64())
}
