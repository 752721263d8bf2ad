//! The benches of the second door: virtio-blk over vhost-user, and QEMU's storage daemon beside it where there is one.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::clock;
use super::engine::{Backing, Engine, Spent, Ssd, cpu_ns};
use super::fio;
use super::lane::{Outcome, Plan};
use super::report::Report;
use super::suite::{GUEST_RAM_BYTES, Settings, compare, random_loads, summarise, write_file};
use super::workload::Workload;
use crate::vhost_user::lane::Lane;
use crate::vhost_user::{Driver, Options};

/// Runs all that is wanted.
///
/// # Errors
/// The first bench that cannot be run.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    null(settings, report, false).context("null")?;
    null(settings, report, true).context("packed rings")?;
    uring(settings, report).context("uring")?;
    peer(settings, report).context("qemu-storage-daemon")
}

fn null(settings: &Settings, report: &mut Report, packed: bool) -> Result<()> {
    let backing = if packed { "null-packed" } else { "null" };
    let loads = settings.wanted_at("vhost-user", backing, random_loads());
    if loads.is_empty() {
        return Ok(());
    }
    let engine = serve(settings, Backing::Null)?;
    for (name, load) in loads {
        let outcomes = (0..settings.runs)
            .map(|run| {
                one(settings, &engine.socket("bench"), packed, &settings.plan(load, run), || engine.spent())
            })
            .collect::<Result<Vec<_>>>()?;
        summarise(settings, report, &name, &outcomes);
    }
    Ok(())
}

/// A file, with fio on the same file in turn.
fn uring(settings: &Settings, report: &mut Report) -> Result<()> {
    let loads = settings.wanted_at("vhost-user", "uring", random_loads());
    if loads.is_empty() {
        return Ok(());
    }
    fio::ensure_installed()?;
    let directory = tempfile::Builder::new().prefix("godwit-bench").tempdir_in(&settings.directory)?;
    let file = directory.path().join("disk.img");
    write_file(&file, settings.disk_mebibytes)?;
    let engine = serve(settings, Backing::Uring(file.clone()))?;
    for (name, load) in loads {
        let (mut outcomes, mut raws) = (Vec::new(), Vec::new());
        for run in 0..settings.runs {
            let plan = settings.plan_beside_fio(load, run);
            outcomes.push(one(settings, &engine.socket("bench"), false, &plan, || engine.spent())?);
            let size_bytes = settings.disk_mebibytes << 20;
            let (warm_up, time) = (settings.warm_up, settings.measured);
            raws.push(fio::run(&file, size_bytes, &load, settings.engine_cpu, warm_up, time)?);
        }
        summarise(settings, report, &name, &outcomes);
        compare(settings, report, &name, &load, &outcomes, &raws);
    }
    Ok(())
}

fn serve(settings: &Settings, backing: Backing) -> Result<Engine> {
    let ssd = Ssd { name: "bench".into(), mebibytes: settings.disk_mebibytes, backing, disk: true };
    Engine::start(&settings.godwitd, settings.engine_cpu, std::slice::from_ref(&ssd))
}

/// A session of its own for each run: rings and memory are set up anew.
fn one(
    settings: &Settings,
    socket: &Path,
    packed: bool,
    plan: &Plan,
    spent: impl FnMut() -> Spent,
) -> Result<Outcome> {
    // Guests ask for both of these.
    let options = Options {
        ram_bytes: GUEST_RAM_BYTES,
        packed,
        kick: true,
        event_idx: true,
        indirect: true,
        ..Options::default()
    };
    let mut driver = connect(socket, options)?;
    let mut lane = Lane::new(&driver, 0, &plan.workload)?;
    Ok(lane.run(&mut driver, &settings.clock, plan, spent)?)
}

/// The one before may still be leaving.
fn connect(socket: &Path, options: Options) -> Result<Driver> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match Driver::connect(socket, options) {
            Ok(driver) => return Ok(driver),
            Err(error) => ensure!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// QEMU's storage daemon on its own null device, found by `GODWIT_QEMU_STORAGE_DAEMON` (a program, perhaps with arguments) or in
/// the path. It has no count of its busy time: what it spends is the CPU time of its process, at depth 128 all of it busy.
fn peer(settings: &Settings, report: &mut Report) -> Result<()> {
    let loads = settings.wanted_at("qemu-storage-daemon", "null", random_loads());
    if loads.is_empty() {
        return Ok(());
    }
    let Some(peer) = Peer::start(settings)? else {
        eprintln!("qemu-storage-daemon is not installed: no peer's row");
        return Ok(());
    };
    for (name, load) in loads {
        let outcomes =
            (0..settings.runs).map(|run| peer.one(settings, load, run)).collect::<Result<Vec<_>>>()?;
        summarise(settings, report, &name, &outcomes);
    }
    Ok(())
}

struct Peer {
    child: Child,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Peer {
    fn start(settings: &Settings) -> Result<Option<Self>> {
        let words = std::env::var("GODWIT_QEMU_STORAGE_DAEMON").unwrap_or("qemu-storage-daemon".into());
        let mut words = words.split_whitespace();
        let Some(program) = words.next() else { return Ok(None) };
        let directory = tempfile::Builder::new().prefix("godwit-bench").tempdir()?;
        let socket = directory.path().join("bench.sock");
        let size = settings.disk_mebibytes << 20;
        let mut command = Command::new("taskset");
        command.args(["-c", &settings.engine_cpu.to_string(), program]).args(words);
        command.args(["--object", "iothread,id=t,poll-max-ns=32768"]);
        command.args(["--blockdev", &format!("null-co,node-name=n,size={size},read-zeroes=off")]);
        let export = format!(
            "vhost-user-blk,id=e,node-name=n,iothread=t,writable=on,addr.type=unix,addr.path={}",
            socket.display()
        );
        command.args(["--export", &export]).stdin(Stdio::null()).stderr(Stdio::null());
        let Ok(mut child) = clock::unpinned(|| command.spawn())? else { return Ok(None) };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            if child.try_wait()?.is_some() {
                return Ok(None);
            }
            ensure!(Instant::now() < deadline, "it opens no socket");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Some(Self { child, socket, _directory: directory }))
    }

    fn one(&self, settings: &Settings, load: Workload, run: usize) -> Result<Outcome> {
        let pid = self.child.id();
        let spent = || {
            let cpu_ns = cpu_ns(pid);
            Spent { busy_ns: cpu_ns, cpu_ns, commands: 0 }
        };
        one(settings, &self.socket, false, &settings.plan(load, run), spent)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _status = self.child.wait();
    }
}
