//! `cargo xtask demo`: a stock guest on a Godwit SSD, from nothing to a table of figures; then two guests on one pool;
//! then a guest that crosses between two hosts.

mod crossing;
mod neighbours;
mod show;
mod speed;

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use vmtest::daemon::{Daemon, Ssd};
use vmtest::image::{Image, cache_folder};
use vmtest::kernel_log::nvme_complaints;
use vmtest::vm::Vm;

use crate::run::build;
use show::Show;

const SIZE_MIB: u64 = 2048;
/// How the guest tells QEMU's own drive from Godwit's.
const PEER: &str = "qemu-own";

/// What the demo has.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// A guest on an ssd.
    Guest,
    /// Two guests on one pool.
    Neighbours,
    /// A guest that crosses between two hosts.
    Crossing,
}

pub(crate) fn command(only: Option<Part>) -> Result<()> {
    let folder = cache_folder()?.join("demo");
    // What an earlier demo left may be in the way; that there was none is no error.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let mut show = Show::new(&folder.join("demo.log"))?;
    let outcome = demo(&mut show, &folder, only);
    if let Err(error) = &outcome {
        show.note(&format!("{error:#}"));
    }
    outcome.with_context(|| format!("the demo failed; its logs are in {}", folder.display()))
}

fn demo(show: &mut Show, folder: &Path, only: Option<Part>) -> Result<()> {
    show.step("Guest image: Debian's kernel, QEMU 11, nvme-cli, fio (built once, then cached)");
    let image = Image::ensure()?;
    show.text(&image.root().display().to_string());

    show.step("Building godwitd and godwit (release)");
    build("cli", "godwit", true)?;
    let godwitd = build("godwitd", "godwitd", true)?;

    let is_wanted = |part| only.is_none_or(|only| only == part);
    if is_wanted(Part::Guest) {
        guest(show, &image, &godwitd, folder)?;
    }
    if is_wanted(Part::Neighbours) {
        neighbours::demo(show, &image, &godwitd, folder)?;
    }
    if is_wanted(Part::Crossing) {
        crossing::demo(show, &image, &godwitd, folder)?;
    }
    Ok(())
}

/// A guest on an ssd from a file, from the first look to a table of figures.
fn guest(show: &mut Show, image: &Image, godwitd: &Path, folder: &Path) -> Result<()> {
    show.step(&format!(
        "A drive for the ssd: a file of {SIZE_MIB} MiB, written once so that reads reach the disk"
    ));
    let drive = folder.join("drive.img");
    fill(image, &drive)?;

    show.step("Starting godwitd");
    let mut ssd = Ssd::new("demo", SIZE_MIB);
    ssd.file = Some(drive.clone());
    let mut daemon = Daemon::start_binary(godwitd, folder, &[ssd])?;
    show.text(&fs::read_to_string(folder.join("godwit.toml")).context("read the configuration")?);

    show.step("Booting a stock Debian kernel in QEMU, with vfio-user-pci on godwitd's socket");
    let mut vm = Vm::builder()
        .memory_mib(1024)
        .vfio_user("godwit", &daemon.socket("demo"))
        .emulated_nvme(PEER, &drive)
        .boot(image)?;
    let godwit = device(&mut vm, &format!("! grep -q {PEER}"))?;
    let peer = device(&mut vm, &format!("grep -q {PEER}"))?;
    show.guest(&mut vm, "uname -sr")?;

    use_it(show, &mut vm, &godwit)?;
    let table = speed::compare(show, image, &mut vm, &drive, [&godwit, &peer])?;

    show.step("The guest's kernel log and godwitd's end");
    let log = vm.shutdown()?;
    let complaints = nvme_complaints(&log, &[]);
    ensure!(complaints.is_empty(), "the guest's kernel complains:\n{}", complaints.join("\n"));
    daemon.stop()?;
    show.text("no NVMe complaint; guest and daemon ended cleanly");
    println!("\n{table}");
    fs::remove_file(drive).context("remove the drive")
}

fn use_it(show: &mut Show, vm: &mut Vm, device: &str) -> Result<()> {
    show.step("What the guest sees");
    show.guest(vm, "nvme list")?;
    show.guest(
        vm,
        &format!("nvme id-ctrl {device} | grep -E '^(vid|sn|mn|fr|mdts|ver|oacs|oncs|nn|subnqn) '"),
    )?;

    show.step("A file system, and data verified by fio");
    // nodiscard: a discarded file is holes, and the table would compare drives that read nothing.
    show.guest(vm, &format!("mkfs.ext4 -q -E nodiscard {device} && mount {device} /mnt && df -h /mnt"))?;
    show.guest(
        vm,
        "fio --name=verify --filename=/mnt/data --size=64m --rw=randwrite --bs=4k --iodepth=32 --ioengine=io_uring \
         --direct=1 --verify=crc32c --verify_fatal=1 | grep -E 'read:|write:|err='",
    )?;
    show.guest(vm, "sha256sum /mnt/data | tee /mnt/sum && umount /mnt")?;

    show.step("The guest reboots; its data is still there");
    vm.reboot()?;
    show.guest(vm, &format!("mount {device} /mnt && cd /mnt && sha256sum -c sum; cd / && umount /mnt"))
}

/// The namespace of the controller whose serial number passes a test.
fn device(vm: &mut Vm, test: &str) -> Result<String> {
    let script = format!(
        "for c in /sys/class/nvme/nvme*; do if {test} $c/serial; then echo /dev/$(basename $c)n1; exit 0; fi; done; exit 1"
    );
    Ok(vm.run_ok(&script)?.trim().to_owned())
}

fn fill(image: &Image, drive: &Path) -> Result<()> {
    File::create(drive)?.set_len(SIZE_MIB << 20).with_context(|| format!("create {}", drive.display()))?;
    let mut fio = image.program("fio");
    fio.args([
        "--name=fill",
        "--rw=write",
        "--bs=1m",
        "--direct=1",
        "--ioengine=io_uring",
        "--iodepth=8",
        "--end_fsync=1",
    ]);
    fio.arg(format!("--filename={}", drive.display())).arg(format!("--size={SIZE_MIB}m"));
    let output = fio.output().context("start fio")?;
    ensure!(
        output.status.success(),
        "fio cannot write {} (needs a file system with O_DIRECT and {SIZE_MIB} MiB of room): {}",
        drive.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
