//! Guests that move between two hosts with their disks, by `godwit migrate --vm`: their memory by QEMU's own migration, all else by the two daemons.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vmtest::daemon::{Ssd, binary};
use vmtest::hosts::Host;
use vmtest::image::Image;
use vmtest::load::Load;
use vmtest::vm::{Vm, VmBuilder, words};

const PATIENCE: Duration = Duration::from_secs(120);
/// A busy machine, where a guest has no help of the hardware.
const QUICKLY: [&str; 2] = ["--max-stun", "2s"];
/// So slowly that memory does not arrive.
const SLOWLY: [&str; 5] = ["--bandwidth", "4MiB", "--max-stun", "2s", "--no-wait"];

type Devices = fn(VmBuilder, &Host) -> Result<VmBuilder>;

const NVME: Devices = |vm, host| Ok(vm.vfio_user("a", &host.daemon.socket("a")));
const DISK: Devices = |vm, host| Ok(vm.vhost_user("a", &host.daemon.socket("a")));
const BOTH: Devices = |vm, host| Ok(NVME(vm, host)?.vhost_user("b", &host.daemon.socket("b")));
/// As it is printed for an operator.
const EMULATED: Devices = |vm, host| {
    let printed = words(&host.daemon.tool(&["attach", "a", "--qemu-nvme", "--device-only"])?)?;
    Ok(vm.arguments(printed.iter().map(String::as_str)))
};

fn nvme() -> [Ssd; 1] {
    [Ssd::new("a", 96)]
}

fn both() -> [Ssd; 2] {
    [Ssd::new("a", 96), Ssd::new("b", 96).as_disk()]
}

/// A guest, where it is, where it goes, and what it does.
struct Move {
    image: Image,
    from: Host,
    to: Host,
    devices: Devices,
    vm: Vm,
    load: Load,
}

impl Move {
    fn begin(ssds: &[Ssd], disks: &[&str], devices: Devices) -> Result<Move> {
        let image = Image::ensure()?;
        let [from, to] = Host::two(&binary()?, ssds)?;
        let mut vm = devices(Vm::builder().root_in_memory(), &from)?.boot(&image)?;
        from.has(&vm)?;
        let load = Load::begin(&mut vm, disks)?;
        Ok(Move { image, from, to, devices, vm, load })
    }

    /// The QEMU that the guest would come to.
    fn wait_there(&self) -> Result<Vm> {
        let vm = (self.devices)(Vm::builder().root_in_memory(), &self.to)?;
        let vm = vm.await_migration(&self.image).with_context(|| self.to.daemon.log_tail())?;
        self.to.has(&vm)?;
        Ok(vm)
    }

    /// The guest is there.
    fn moved(&mut self, there: Vm) -> Result<()> {
        std::mem::replace(&mut self.vm, there).kill();
        std::mem::swap(&mut self.from, &mut self.to);
        self.load.goes_on(&mut self.vm, 2)
    }

    fn go(&mut self) -> Result<()> {
        let there = self.wait_there()?;
        println!("{}", self.from.migrate(&self.to, &QUICKLY)?.trim());
        self.moved(there)
    }

    fn end(self) -> Result<()> {
        let Move { mut vm, mut from, mut to, load, .. } = self;
        load.end(&mut vm)?;
        vm.shutdown()?;
        from.daemon.stop()?;
        to.daemon.stop()
    }

    /// Until QEMU holds the guest for its ssds. `false`: it was not seen so, and has gone on.
    fn at_pre_switchover(&mut self) -> Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let told = self.vm.qmp("query-migrate", &json!({})).unwrap_or_default();
            match told["status"].as_str() {
                Some("pre-switchover") => return Ok(true),
                None | Some("setup" | "active" | "none" | "failed" | "cancelled")
                    if self.vm.is_alive()? => {}
                _ => return Ok(false),
            }
        }
        anyhow::bail!("QEMU does not come to pre-switchover\n{}", self.from.daemon.log_tail())
    }

    /// Waits until the guest runs on one of the two hosts; whether that is the other one.
    fn runs_there(&mut self, there: &mut Vm) -> Result<bool> {
        let runs = |vm: &mut Vm| {
            vm.qmp("query-status", &json!({})).is_ok_and(|status| status["running"].as_bool() == Some(true))
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            match (runs(&mut self.vm), runs(there)) {
                (true, true) => anyhow::bail!("the guest runs twice"),
                (false, false) => ensure!(
                    Instant::now() < deadline,
                    "the guest runs nowhere\n{}\n{}",
                    self.from.daemon.log_tail(),
                    self.to.daemon.log_tail()
                ),
                (_, there) => return Ok(there),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The guest goes on, wherever it is.
    fn goes_on(&mut self, mut there: Vm) -> Result<bool> {
        let is_there = self.runs_there(&mut there)?;
        if is_there {
            self.moved(there)?;
        } else {
            self.load.goes_on(&mut self.vm, 1)?;
            there.kill();
        }
        self.from.until_over()?;
        self.to.until_over()?;
        Ok(is_there)
    }
}

/// A guest under I/O goes to and fro.
fn moves(ssds: &[Ssd], disks: &[&str], devices: Devices) -> Result<()> {
    let mut guest = Move::begin(ssds, disks, devices)?;
    guest.go()?;
    guest.go()?;
    guest.end()
}

#[test]
fn a_guest_with_a_virtio_blk_disk_under_io_goes_to_another_host_and_comes_back() -> Result<()> {
    moves(&[Ssd::new("a", 96).as_disk()], &["/dev/vda"], DISK)
}

#[test]
fn a_guest_with_an_nvme_disk_under_io_goes_to_another_host_and_comes_back() -> Result<()> {
    moves(&nvme(), &["/dev/nvme0n1"], NVME)
}

/// What ends a move before the guest is gone leaves it where it is.
fn comes_to_nothing(guest: &mut Move, ends: &str) -> Result<()> {
    let waiting = guest.wait_there()?;
    guest.from.migrate(&guest.to, &SLOWLY)?;
    guest.from.until(|list| list.iter().any(|migration| migration["state"] == "copying memory"))?;
    match ends {
        "source engine killed" => guest.from.daemon.kill_engine()?,
        "destination engine killed" => guest.to.daemon.kill_engine()?,
        _ => _ = guest.from.daemon.tool(&["migration", "cancel", "a"])?,
    }
    guest.from.until_over()?;
    guest.load.goes_on(&mut guest.vm, 1)?;
    guest.to.until_over()?;
    waiting.kill();
    Ok(())
}

/// And the next one goes.
#[test]
fn a_guest_whose_move_comes_to_nothing_goes_on_where_it_is() -> Result<()> {
    let mut guest = Move::begin(&nvme(), &["/dev/nvme0n1"], NVME)?;
    for ends in ["source engine killed", "destination engine killed", "cancelled"] {
        comes_to_nothing(&mut guest, ends).context(ends)?;
    }
    guest.go()?;
    guest.end()
}

/// 24 MiB of its memory are other ones in each pass, and 100 ms are a sixth of the time that they take.
#[test]
fn a_guest_that_writes_memory_faster_than_it_is_copied_is_held_back_until_it_moves() -> Result<()> {
    let mut guest = Move::begin(&nvme(), &["/dev/nvme0n1"], NVME)?;
    guest.vm.run_ok(
        "dd if=/dev/urandom of=/run/one bs=1M count=24 2> /dev/null
         setsid sh -c 'while :; do cat /run/one > /run/other; done' > /dev/null 2>&1 < /dev/null &
         echo $! > /run/writer",
    )?;
    let there = guest.wait_there()?;
    guest.vm.run_ok("kill -0 $(cat /run/writer) && test -s /run/one")?;
    let said = guest.from.migrate(&guest.to, &["--bandwidth", "40MiB", "--max-stun", "100ms"])?;
    ensure!(said.contains("its processors are held back by"), "{said}");
    guest.moved(there)?;
    guest.vm.run_ok("kill $(cat /run/writer)")?;
    guest.end()
}

/// Its controller is QEMU's, over a disk of Godwit's: QEMU moves all of it but the data.
#[test]
fn a_guest_with_qemus_own_nvme_over_a_disk_under_io_goes_to_another_host_and_comes_back() -> Result<()> {
    let mut guest = Move::begin(&[Ssd::new("a", 96).as_disk()], &["/dev/nvme0n1"], EMULATED)?;
    comes_to_nothing(&mut guest, "cancelled")?;
    guest.go()?;
    guest.go()?;
    guest.end()
}

/// The worst moment: the guest stands still, its ssds are on their way. It goes on here or there, with all of them, and moves again.
#[test]
fn a_guest_with_two_ssds_goes_on_when_an_engine_is_killed_at_pre_switchover_and_moves_afterwards()
-> Result<()> {
    let mut guest = Move::begin(&both(), &["/dev/nvme0n1", "/dev/vda"], BOTH)?;
    for of_source in [true, false] {
        let mut tries = 0..4;
        loop {
            let there = guest.wait_there()?;
            guest.from.migrate(&guest.to, &[&QUICKLY[..], &["--no-wait"]].concat())?;
            let is_held = guest.at_pre_switchover()?;
            if is_held {
                let host = if of_source { &mut guest.from } else { &mut guest.to };
                host.daemon.kill_engine()?;
            }
            let is_there = guest.goes_on(there).with_context(|| format!("source's engine: {of_source}"))?;
            println!(
                "killed the source's engine: {of_source}, at pre-switchover: {is_held}, moved: {is_there}"
            );
            if is_held {
                break;
            }
            tries.next().context("QEMU is never seen at pre-switchover")?;
        }
    }
    guest.go()?;
    guest.go()?;
    guest.end()
}

/// Between the grants of two ssds: one is at the other host, as is the guest's memory, and of the other nothing is on record.
#[test]
fn a_guest_one_of_whose_ssds_was_granted_when_the_engine_died_goes_on_with_both_at_the_other_host()
-> Result<()> {
    let mut guest = Move::begin(&both(), &["/dev/nvme0n1", "/dev/vda"], BOTH)?;
    // Of two ssds that name different hypervisors at the destination no guest comes, whatever its source says.
    let config = guest.to.folder.path().join("godwit.toml");
    let text = fs::read_to_string(&config)?;
    let at = text.rfind("qemu.qmp").context("no hypervisor")?;
    fs::write(&config, format!("{}other.qmp{}", &text[..at], &text[at + 8..]))?;
    guest.to.daemon.restart()?;
    let refused = guest.from.migrate(&guest.to, &["--dry-run"]).err().context("it was not refused")?;
    ensure!(refused.to_string().contains("different sockets"), "{refused:#}");
    fs::write(&config, text)?;
    guest.to.daemon.restart()?;

    let there = guest.wait_there()?;
    guest.from.migrate(&guest.to, &[&QUICKLY[..], &["--no-wait"]].concat())?;
    ensure!(guest.at_pre_switchover()?, "QEMU is not seen at pre-switchover");
    // The journal of the one cannot be written from now on.
    let blocked = guest.from.folder.path().join("b.migration.new");
    fs::create_dir(&blocked)?;
    guest.from.until(|list| list.iter().any(|ssd| ssd["ssd"] == "a" && ssd["state"] == "moved"))?;
    guest.from.daemon.kill_engine()?;
    fs::remove_dir(&blocked)?;
    ensure!(guest.goes_on(there)?, "it has not gone");
    guest.go()?;
    guest.end()
}
