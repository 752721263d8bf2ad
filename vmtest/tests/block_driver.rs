//! QEMU's block driver `virtio-blk-vhost-user` (libblkio) as a client of a disk: a second opinion on the door, with no guest.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use vmtest::daemon::{Daemon, Ssd};
use vmtest::image::Image;

const SIZE_MIB: u64 = 64;
/// Of 4 KiB: many times round the disk.
const BENCH_REQUESTS: u32 = 100_000;
/// A bench that is killed less often proves little.
const KILLS_LEAST: u32 = 3;

struct Bed {
    image: Image,
    daemon: Daemon,
    _folder: TempDir,
}

impl Bed {
    fn new() -> Result<Bed> {
        let image = Image::ensure()?;
        let folder = TempDir::with_prefix("bed-")?;
        let daemon = Daemon::start(folder.path(), &[Ssd::new("a", SIZE_MIB).as_disk()])?;
        Ok(Bed { image, daemon, _folder: folder })
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = self.image.program(program);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Executes these commands, each of which must succeed.
    fn qemu_io(&self, commands: &[&str]) -> Result<String> {
        let words = commands.iter().flat_map(|command| ["-c", command]);
        let drive = drive(&self.daemon.socket("a"));
        let mut command = self.command("qemu-io", &["--image-opts", &drive]);
        let output = command.args(words).output().context("run qemu-io")?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        // Of a pattern that is not there it says so, and ends with 0.
        ensure!(
            output.status.success() && !said.contains("failed"),
            "qemu-io ended with {}: {said}",
            output.status
        );
        Ok(said)
    }

    fn bench(&self, arguments: &[&str]) -> Result<Child> {
        let requests = BENCH_REQUESTS.to_string();
        let mut command =
            self.command("qemu-img", &["bench", "-c", &requests, "-d", "64", "-s", "4096", "-t", "none"]);
        command.args(arguments).args(["--image-opts", &drive(&self.daemon.socket("a"))]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start qemu-img")
    }
}

fn drive(socket: &Path) -> String {
    format!(
        "driver=raw,file.driver=virtio-blk-vhost-user,file.path={},file.cache.direct=on",
        socket.display()
    )
}

fn ended_well(bench: Child) -> Result<()> {
    let output = bench.wait_with_output().context("wait for qemu-img")?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(
        output.status.success() && !said.contains("rror"),
        "qemu-img ended with {}: {said}",
        output.status
    );
    Ok(())
}

#[test]
fn qemu_io_finds_a_disk_of_its_size_that_holds_patterns_and_zeros() -> Result<()> {
    let mut bed = Bed::new()?;
    let said = bed.qemu_io(&["length", "read -P 0 0 64M"])?;
    ensure!(said.contains("64 MiB"), "{said}");
    bed.qemu_io(&[
        "write -P 0xa5 0 8M",
        "write -P 0x5a 1M 512",
        "aio_write -P 0x77 2M 64k",
        "aio_flush",
        "writev -P 0x33 3M 4k 64k 512",
        "discard 4M 1M",
        "write -z 6M 128k",
        "write -z -u 7M 64k",
        "flush",
    ])?;
    // Another client, after the first has gone.
    let read = [
        "read -P 0xa5 0 1M",
        "read -P 0x5a 1M 512",
        "read -P 0xa5 1049088 1048064",
        "read -P 0x77 2M 64k",
        "read -P 0x33 3M 70144",
        "read -P 0 4M 1M",
        "read -P 0xa5 5M 1M",
        "read -P 0 6M 128k",
        "read -P 0 7M 64k",
        "read -P 0xa5 7405568 64k",
    ];
    bed.qemu_io(&read)?;
    ensure!(bed.qemu_io(&["read -P 0x11 0 4k"]).is_err(), "a wrong pattern was not noticed");
    bed.daemon.restart()?;
    bed.qemu_io(&read)?;
    bed.daemon.stop()
}

#[test]
fn a_bench_of_qemu_img_does_not_notice_that_the_engine_is_killed_and_upgraded() -> Result<()> {
    let mut bed = Bed::new()?;
    ended_well(bed.bench(&[])?)?;
    let mut kills = 0;
    // Once, but on a machine that does all of it between two kills.
    while kills <= KILLS_LEAST {
        let mut bench = bed.bench(&["-w", "--pattern=195", "--flush-interval=1000"])?;
        while bench.try_wait().context("look after qemu-img")?.is_none() {
            std::thread::sleep(Duration::from_millis(150));
            if kills % 4 == 3 {
                bed.daemon.upgrade()?;
            } else {
                bed.daemon.kill_engine()?;
            }
            kills += 1;
        }
        ended_well(bench)?;
    }
    // It never comes to the last block.
    bed.qemu_io(&["read -P 195 0 67104768", "read -P 0 67104768 4k"])?;
    bed.daemon.stop()
}
