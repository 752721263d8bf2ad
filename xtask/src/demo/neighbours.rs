//! Two guests on one pool, one of them noisy: made through the agent, limited while it runs, and looked at from outside.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use vmtest::daemon::Daemon;
use vmtest::fio::{Measured, measured};
use vmtest::image::Image;
use vmtest::kernel_log::nvme_complaints;
use vmtest::vm::Vm;
use webtest::agent::Agent;
use webtest::browser::{Browser, Scheme};
use webtest::relay::Relay;

use super::show::{Program, Show};

/// How long the quiet guest is watched in each phase.
const SECONDS: u32 = 25;
/// From the beginning of a phase until the look at it.
const LOOK: Duration = Duration::from_secs(15);
/// The noisy guest's load ends by itself, should the demo not do it.
const NOISE_SECONDS: u32 = 300;
const WIDTH: u32 = 1360;
const DEVICE: &str = "/dev/nvme0n1";
const PHASES: [&str; 3] = ["alone", "beside the noisy one", "beside the limited one"];

/// What runs.
struct Host {
    godwit: Program,
    quiet: Vm,
    noisy: Vm,
}

pub(super) fn demo(show: &mut Show, image: &Image, godwitd: &Path, folder: &Path) -> Result<()> {
    let folder = &folder.join("host");
    std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    show.step(
        "Two guests on one pool. A daemon that serves nothing yet, and the agent that is told what to serve",
    );
    let mut daemon = Daemon::start_binary(godwitd, folder, &[])?;
    let agent = Agent::start(godwitd, folder)?;
    let godwit = Program::new(&godwitd.with_file_name("godwit"))
        .with("GODWIT_AGENT", &agent.socket())
        .with("GODWIT_CONFIG", &folder.join("godwit.toml"));
    let pool = folder.join("pool.img").display().to_string();
    show.host(&godwit, &["pool", "create", "p1", &pool, "--size", "2GiB", "--wait"])?;
    for name in ["quiet", "noisy"] {
        show.host(&godwit, &["ssd", "create", name, "--size", "512MiB", "--pool", "p1", "--wait"])?;
    }
    show.host(&godwit, &["ssd", "list"])?;

    show.step("Booting both guests");
    let boot = |name: &str| {
        Vm::builder().memory_mib(512).cpus(1).vfio_user(name, &agent.ssd_socket(name)).boot(image)
    };
    let mut host = Host { godwit, quiet: boot("quiet")?, noisy: boot("noisy")? };
    for vm in [&mut host.quiet, &mut host.noisy] {
        show.guest(vm, "nvme list")?;
    }
    // Written once: what was never written is zeros, and no drive is asked for them.
    host.quiet.run_ok(&format!(
        "fio --name=fill --filename={DEVICE} --rw=write --bs=1m --size=128m --direct=1 --ioengine=io_uring"
    ))?;

    let relay = Relay::start(&agent.socket())?;
    let browser = Browser::start()?;
    browser.size(WIDTH, 900)?;
    browser.open(&relay.url())?;
    phases(show, &mut host)?;
    pictures(show, &browser, folder)?;

    show.step("The end: the noisy guest's ssd is deleted, and its space wiped");
    for vm in [host.quiet, host.noisy] {
        let log = vm.shutdown()?;
        let complaints = nvme_complaints(&log, &[]);
        anyhow::ensure!(complaints.is_empty(), "a guest's kernel complains:\n{}", complaints.join("\n"));
    }
    show.host(&host.godwit, &["ssd", "delete", "noisy", "--yes", "--wait"])?;
    show.host(&host.godwit, &["pool", "list"])?;
    drop(agent);
    daemon.stop()?;
    std::fs::remove_file(folder.join("pool.img")).context("remove the pool")
}

/// The quiet guest by itself, then beside its noisy neighbour, then with limits on that one.
fn phases(show: &mut Show, host: &mut Host) -> Result<()> {
    show.step(&format!("The quiet guest reads 4 KiB at a time for {SECONDS} s, alone"));
    let mut got = vec![watched(show, host)?];

    show.step("The noisy guest begins: writes of 128 KiB, 32 at a time");
    host.noisy.run_ok(&format!(
        "fio --name=noise --filename={DEVICE} --rw=randwrite --bs=128k --iodepth=32 --ioengine=io_uring --direct=1 \
         --time_based --runtime={NOISE_SECONDS} >/run/noise 2>&1 &"
    ))?;
    got.push(watched(show, host)?);

    show.step("Limits on, while it runs");
    show.host(&host.godwit, &["ssd", "limit", "noisy", "--bandwidth", "16MiB", "--wait"])?;
    got.push(watched(show, host)?);
    host.noisy.run_ok("pkill fio; true")?;
    show.text(&table(&got));
    Ok(())
}

/// One phase: what the quiet guest measures, and a frame of `godwit top` in the middle of it.
fn watched(show: &mut Show, host: &mut Host) -> Result<Measured> {
    let script = format!(
        "fio --name=quiet --filename={DEVICE} --size=128m --rw=randread --bs=4k --iodepth=1 --ioengine=io_uring --direct=1 \
         --rate_iops=200 --time_based --runtime={SECONDS} --norandommap --randrepeat=0 --output-format=json"
    );
    let Host { godwit, quiet, .. } = host;
    let report = std::thread::scope(|scope| {
        let fio = scope.spawn(|| quiet.run_within(Duration::from_secs(180), &script)?.into_ok(&script));
        std::thread::sleep(LOOK);
        let frame = show.host(godwit, &["top", "--once", "--every", "5"]);
        let report = fio.join().map_err(|_| anyhow::anyhow!("the quiet guest's thread panicked"))?;
        frame.and(report)
    })?;
    measured(&report)
}

fn pictures(show: &mut Show, browser: &Browser, folder: &Path) -> Result<()> {
    show.step("The page that the agent serves, in Chromium");
    let cells = "[...document.querySelectorAll('#maps canvas')].some((map) => Number(map.dataset.cells) > 0)";
    browser.wait("the heat maps have colour", cells)?;
    for scheme in [Scheme::Light, Scheme::Dark] {
        browser.scheme(scheme)?;
        browser.size(WIDTH, 0)?;
        let path: PathBuf = folder.join(format!("page-{}.png", scheme.word()));
        std::fs::write(&path, browser.picture()?).with_context(|| format!("write {}", path.display()))?;
        show.text(&format!("its picture: {}", path.display()));
    }
    Ok(())
}

fn table(got: &[Measured]) -> String {
    let mut text = format!("{:<24}{:>8} {:>10} {:>10}\n", "the quiet guest", "IOPS", "p50 µs", "p99 µs");
    for (phase, got) in PHASES.iter().zip(got) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{phase:<24}{:>8.0} {:>10.0} {:>10.0}", got.iops, got.p50_us, got.p99_us);
    }
    text + "\nIts processor is emulated here and shares two cores with the other guest's, which is in these times; godwit top's are the engine's."
}

#[cfg(test)]
mod tests {
    use super::{Measured, table};

    #[test]
    fn every_phase_has_a_line_of_figures() {
        let got = Measured { iops: 200.0, p50_us: 123_456.0, p99_us: 9.0 };
        let text = table(&[got; 3]);
        let ends: Vec<usize> = text.lines().take(4).map(|line| line.chars().count()).collect();
        assert!(ends.iter().all(|end| *end == ends[0]), "{text}");
    }
}
