//! A guest with a virtio-blk disk moves from one daemon to another under I/O, by stock QEMU's own live migration. What the device writes into the
//! guest's memory meanwhile comes along by its log of written pages; the disk's data is copied while the guest stands still.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use vmtest::daemon::{Daemon, Ssd};
use vmtest::image::Image;
use vmtest::kernel_log::nvme_complaints;
use vmtest::migration::Migration;
use vmtest::vm::{Vm, VmBuilder};

const PATIENCE: Duration = Duration::from_secs(300);
const KNOWN_MIB: u32 = 24;

/// Reads known data through the page cache, which the device writes to, and looks at it twice: when it has been read, and later, when it still
/// lies there. After `/run/hold` the second look waits until the guest has moved.
const READER: &str = r"
bytes=$((24 << 20))
while :; do
    hold=; [ -e /run/hold ] && hold=1
    echo 1 > /proc/sys/vm/drop_caches
    cmp -n $bytes /tmp/known /dev/vda >> /run/bad 2>&1 || echo 'as it was read' >> /run/bad
    if [ $hold ]; then
        touch /run/held
        while [ ! -e /run/moved ]; do sleep 0.2; done
    fi
    cmp -n $bytes /tmp/known /dev/vda >> /run/bad 2>&1 || echo 'as it was kept' >> /run/bad
    [ $hold ] && break
done
touch /run/reader.done
";
/// Reads 8 MiB into a buffer before the guest moves, and the next 8 MiB into the same buffer after `/run/hold`: of these the device alone has written, and
/// they are looked at when the guest has moved.
const BUFFER: &str = r"
mkfifo /run/buffer.pipe
dd if=/dev/vda of=/run/buffer.pipe bs=8M count=2 iflag=direct &
exec 3< /run/buffer.pipe
# What dd still has to write of the first keeps it from reading the second.
dd bs=64k count=100 iflag=fullblock of=/run/first.a <&3
touch /run/buffer.ready
while [ ! -e /run/hold ]; do sleep 0.2; done
dd bs=64k count=28 iflag=fullblock of=/run/first.b <&3
dd bs=64k count=1 iflag=fullblock of=/run/second.a <&3
touch /run/buffer.held
while [ ! -e /run/moved ]; do sleep 0.2; done
dd bs=64k count=127 iflag=fullblock of=/run/second.b <&3
cat /run/first.a /run/first.b /run/second.a /run/second.b > /run/buffer.read
cmp -n $((16 << 20)) /tmp/known /run/buffer.read >> /run/bad 2>&1 || echo 'as it was in a buffer' >> /run/bad
touch /run/buffer.done
";
/// Writes and verifies, past the page cache, until the guest has moved and once more.
const WRITER: &str = "
last=
until [ $last ]; do
    [ -e /run/moved ] && last=1
    fio --name=verify --filename=/dev/vda --offset=64m --size=16m --rw=randrw --bs=4k --iodepth=16 --ioengine=io_uring \
        --direct=1 --verify=crc32c --verify_fatal=1 --randrepeat=0 > /run/fio.out 2>&1 || cat /run/fio.out >> /run/bad
done
touch /run/writer.done
";

/// A daemon with a disk, and its folder.
struct Host {
    daemon: Daemon,
    folder: TempDir,
}

impl Host {
    fn start() -> Result<Host> {
        let folder = TempDir::with_prefix("host-").context("create a folder for a host")?;
        Ok(Host { daemon: Daemon::start(folder.path(), &[Ssd::new("a", 96).as_disk()])?, folder })
    }

    fn guest(&self) -> VmBuilder {
        // Without zeros that the guest's kernel stores into each page that it gets: they would tell QEMU of pages that are the device's to tell of.
        Vm::builder()
            .root_in_memory()
            .kernel_arguments("init_on_alloc=0")
            .vhost_user("a", &self.daemon.socket("a"))
    }

    fn image(&self) -> std::path::PathBuf {
        self.folder.path().join("a.img")
    }
}

/// Copies the disk in place: the destination's daemon has its file open.
fn copy_disk(from: &Path, to: &Path) -> Result<()> {
    let mut to = File::options().write(true).open(to).context("the destination's file")?;
    io::copy(&mut File::open(from).context("the source's file")?, &mut to).context("copy the disk")?;
    to.sync_all().context("the destination's file")
}

fn begin_io(vm: &mut Vm) -> Result<()> {
    vm.run_ok("for i in $(seq 600); do [ -b /dev/vda ] && exit; sleep 0.1; done; exit 1")?;
    vm.run_ok(&format!(
        "dd if=/dev/urandom of=/tmp/known bs=1M count={KNOWN_MIB} 2>&1 && dd if=/tmp/known of=/dev/vda bs=1M oflag=direct 2>&1"
    ))?;
    for (name, script) in [("reader", READER), ("buffer", BUFFER), ("writer", WRITER)] {
        vm.run_ok(&format!(
            "cat > /run/{name} <<'END'\n{script}\nEND\nsetsid sh /run/{name} < /dev/null > /run/{name}.out 2>&1 &"
        ))?;
    }
    wait_for(vm, "/run/buffer.ready")
}

/// Waits for a file in the guest; who waits for what when it does not come is said.
fn wait_for(vm: &mut Vm, file: &str) -> Result<()> {
    let script = format!(
        "for i in $(seq 600); do [ -e {file} ] && exit; sleep 0.2; done
        ps; cat /run/bad /run/*.out /sys/block/vda/inflight; echo w > /proc/sysrq-trigger; dmesg | tail -60; exit 1"
    );
    vm.run_within(PATIENCE, &script)?.into_ok(&script).map(drop)
}

fn boot_id(vm: &mut Vm) -> Result<String> {
    vm.run_ok("cat /proc/sys/kernel/random/boot_id")
}

/// Moves a guest under I/O; `meanwhile` is done to the source's daemon while memory is copied.
fn move_a_guest(meanwhile: impl Fn(&mut Daemon) -> Result<()>) -> Result<()> {
    let image = Image::ensure()?;
    let (mut here, mut there) = (Host::start()?, Host::start()?);
    let mut source = here.guest().boot(&image)?;
    begin_io(&mut source)?;
    let id = boot_id(&mut source)?;
    let mut destination = there.guest().await_migration(&image)?;
    let mut migration = Migration::begin(&source, &destination)?;
    // What is read from now on was copied before: only the device's log tells of it.
    migration.wait_first_pass()?;
    source.run_ok("touch /run/hold")?;
    meanwhile(&mut here.daemon)?;
    wait_for(&mut source, "/run/buffer.held")?;
    wait_for(&mut source, "/run/held")?;
    migration.hurry()?;
    copy_disk(&here.image(), &there.image())?;
    migration.switch_over()?;
    migration.destination.run()?;
    source.kill();
    destination.run_ok("touch /run/moved")?;
    wait_for(&mut destination, "/run/buffer.done")?;
    wait_for(&mut destination, "/run/reader.done")?;
    wait_for(&mut destination, "/run/writer.done")?;
    let bad = destination.run_ok("cat /run/bad")?;
    ensure!(bad.is_empty(), "the guest read what it should not: {bad}");
    ensure!(boot_id(&mut destination)? == id, "another kernel runs");
    let log = destination.kernel_log()?;
    let complaints = nvme_complaints(&log, &[]);
    ensure!(complaints.is_empty(), "the guest's kernel complains:\n{}", complaints.join("\n"));
    destination.shutdown()?;
    for host in [&mut here, &mut there] {
        let log = host.daemon.log();
        ensure!(!log.contains("refused"), "{log}");
        host.daemon.stop()?;
    }
    Ok(())
}

#[test]
fn a_guest_under_io_moves_to_another_daemon_with_all_that_its_disk_wrote_into_its_memory() -> Result<()> {
    move_a_guest(|_| Ok(()))
}

#[test]
fn a_guest_moves_while_its_engine_is_killed_and_upgraded() -> Result<()> {
    move_a_guest(|daemon| {
        for _ in 0..3 {
            daemon.kill_engine()?;
            std::thread::sleep(Duration::from_millis(700));
        }
        daemon.upgrade()
    })
}
