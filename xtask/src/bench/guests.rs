//! `cargo xtask bench guests`: what a move to another host costs a stock guest, by each of Godwit's doors, by QEMU's own means (its emulated `nvme`, and
//! `blockdev-mirror` over NBD), and with no disk at all.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::{Value, json};
use vmtest::daemon::{Backend, Ssd};
use vmtest::fio::{Measured, measured};
use vmtest::hosts::Host;
use vmtest::image::Image;
use vmtest::migration::Migration;
use vmtest::mirror::{self, Mirror};
use vmtest::vm::{Vm, VmBuilder, words};

use crate::run::build;

const SIZE_MIB: u64 = 256;
/// How much of it holds something.
const FILLED_MIB: u64 = 128;
const BEFORE_S: u32 = 5;
const PATIENCE: Duration = Duration::from_secs(120);

/// The bench's own arguments.
#[derive(Parser)]
#[command(name = "cargo xtask bench guests")]
struct Arguments {
    /// Moves of each guest
    #[arg(long, default_value_t = 5)]
    moves: u32,
    /// How long a guest may stand still, by QEMU's reckoning, for its last pages. The same for each way
    #[arg(long, default_value_t = 300)]
    max_stun_ms: u64,
    /// Only the ways whose names contain this
    #[arg(long, default_value = "")]
    only: String,
    /// Where the lines are written, too
    #[arg(long)]
    json: Option<PathBuf>,
}

/// How a guest has its disk, and moves.
enum Way {
    /// Memory alone: what QEMU needs in any case.
    Bare,
    /// By `godwit migrate --vm`.
    Godwit {
        hosts: Box<[Host; 2]>,
        devices: fn(VmBuilder, &Host) -> Result<VmBuilder>,
    },
    Mirror(Mirror),
}

/// What one move was like.
struct Took {
    /// From the order until the guest runs there.
    total: Duration,
    /// From QEMU's STOP here to its RESUME there.
    downtime: Duration,
    /// Of the guest's reads, as it saw them: before, and from a second before the order to the end.
    p99_us: Option<[f64; 2]>,
}

pub(super) fn command(arguments: &[String]) -> Result<()> {
    let name = "guests".to_owned();
    let arguments = Arguments::parse_from(std::iter::once(&name).chain(arguments));
    let godwitd = build("godwitd", "godwitd", true)?;
    build("cli", "godwit", true)?;
    let image = Image::ensure()?;
    let ssd = || Ssd::new("a", SIZE_MIB).on(Backend::Uring);
    let godwit = |ssd: Ssd, devices| -> Result<Way> {
        Ok(Way::Godwit { hosts: Box::new(Host::two(&godwitd, &[ssd])?), devices })
    };
    type Make<'a> = Box<dyn Fn() -> Result<Way> + 'a>;
    let ways: [(&str, &str, Make<'_>); 5] = [
        ("no disk", "", Box::new(|| Ok(Way::Bare))),
        (
            "godwit NVMe",
            "/dev/nvme0n1",
            Box::new(|| godwit(ssd(), |vm, host| Ok(vm.vfio_user("a", &host.daemon.socket("a"))))),
        ),
        (
            "godwit virtio-blk",
            "/dev/vda",
            Box::new(|| godwit(ssd().as_disk(), |vm, host| Ok(vm.vhost_user("a", &host.daemon.socket("a"))))),
        ),
        (
            "godwit under QEMU's nvme",
            "/dev/nvme0n1",
            Box::new(|| {
                godwit(ssd().as_disk(), |vm, host| {
                    let printed =
                        words(&host.daemon.tool(&["attach", "a", "--qemu-nvme", "--device-only"])?)?;
                    Ok(vm.arguments(printed.iter().map(String::as_str)))
                })
            }),
        ),
        ("QEMU nvme, blockdev-mirror", "/dev/nvme0n1", Box::new(|| Ok(Way::Mirror(Mirror::new(SIZE_MIB)?)))),
    ];
    let mut lines = Vec::new();
    for (name, disk, make) in ways.iter().filter(|(name, ..)| name.contains(&arguments.only)) {
        let took = moves(&image, make()?, disk, &arguments).with_context(|| (*name).to_owned())?;
        lines.push(line(name, &took));
        eprintln!("{}", lines.last().unwrap_or(&Value::Null));
    }
    println!("{}", table(&lines));
    if let Some(path) = arguments.json {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// One guest goes to and fro so often.
fn moves(image: &Image, mut way: Way, disk: &str, arguments: &Arguments) -> Result<Vec<Took>> {
    let mut vm = way.guest()?.boot(image)?;
    way.here(&vm)?;
    let probe = (!disk.is_empty()).then_some(Probe { disk });
    if probe.is_some() {
        vm.run_ok(&format!("for i in $(seq 100); do [ -b {disk} ] && exit; sleep 0.1; done; exit 1"))?;
        let fill = format!("dd if=/dev/urandom of={disk} bs=1M count={FILLED_MIB} oflag=direct 2>&1");
        vm.run_within(PATIENCE, &fill)?.into_ok(&fill)?;
    }
    let mut all = Vec::new();
    for number in 1..=arguments.moves {
        let before = probe.as_ref().map(|probe| probe.before(&mut vm)).transpose()?;
        let mut there = way.wait_there(image)?;
        probe.iter().try_for_each(|probe| probe.begin(&mut vm))?;
        let began = Instant::now();
        way.go(&mut vm, &mut there, arguments.max_stun_ms).with_context(|| format!("move {number}"))?;
        let total = began.elapsed();
        let downtime = vm.downtime(&mut there)?;
        std::mem::replace(&mut vm, there).kill();
        let during = probe.as_ref().map(|probe| probe.end(&mut vm)).transpose()?;
        let p99_us = before.zip(during).map(|(before, during)| [before.p99_us, during.p99_us]);
        all.push(Took { total, downtime, p99_us });
        way.turn();
    }
    Ok(all)
}

impl Way {
    fn guest(&self) -> Result<VmBuilder> {
        self.at(0)
    }

    fn at(&self, side: usize) -> Result<VmBuilder> {
        let vm = Vm::builder().root_in_memory();
        match self {
            Way::Bare => Ok(vm),
            Way::Godwit { hosts, devices } => devices(vm, &hosts[side]),
            Way::Mirror(mirror) => Ok(vm.emulated_nvme(mirror::ID, mirror.file(side))),
        }
    }

    fn here(&self, vm: &Vm) -> Result<()> {
        if let Way::Godwit { hosts, .. } = self { hosts[0].has(vm) } else { Ok(()) }
    }

    fn wait_there(&self, image: &Image) -> Result<Vm> {
        let vm = self.at(1)?.await_migration(image)?;
        if let Way::Godwit { hosts, .. } = self {
            hosts[1].has(&vm)?;
        }
        Ok(vm)
    }

    /// Until the guest runs there.
    fn go(&self, vm: &mut Vm, there: &mut Vm, max_stun_ms: u64) -> Result<()> {
        match self {
            Way::Godwit { hosts, .. } => {
                hosts[0].migrate(&hosts[1], &["--max-stun", &format!("{max_stun_ms}ms")]).map(drop)
            }
            Way::Bare => {
                let mut migration = Migration::begin_quickly(vm, there, max_stun_ms)?;
                migration.wait_held()?;
                migration.switch_over()?;
                Ok(migration.destination.run()?)
            }
            Way::Mirror(mirror) => {
                mirror.begin(vm, there)?;
                let mut migration = Migration::begin_quickly(vm, there, max_stun_ms)?;
                migration.wait_held()?;
                mirror.end(vm)?;
                migration.switch_over()?;
                Mirror::let_go(there)?;
                Ok(migration.destination.run()?)
            }
        }
    }

    /// The guest is at the other host now.
    fn turn(&mut self) {
        match self {
            Way::Bare => {}
            Way::Godwit { hosts, .. } => hosts.reverse(),
            Way::Mirror(mirror) => mirror.turn(),
        }
    }
}

/// A modest load, and what the guest sees of it.
struct Probe<'a> {
    disk: &'a str,
}

impl Probe<'_> {
    fn fio(&self, seconds: u32) -> String {
        format!(
            "fio --name=probe --filename={} --size={FILLED_MIB}m --rw=randrw --rwmixread=70 --bs=4k --iodepth=4 --rate_iops=350,150 --ioengine=io_uring \
             --direct=1 --randrepeat=0 --norandommap --time_based --runtime={seconds} --output-format=json --output=/run/probe.json",
            self.disk
        )
    }

    fn before(&self, vm: &mut Vm) -> Result<Measured> {
        vm.run_ok(&self.fio(BEFORE_S))?;
        self.figures(vm)
    }

    fn begin(&self, vm: &mut Vm) -> Result<()> {
        let fio = self.fio(3600);
        vm.run_ok(&format!("rm /run/probe.json; setsid {fio} < /dev/null > /run/probe.out 2>&1 & echo $! > /run/probe.pid; sleep 1")).map(drop)
    }

    fn end(&self, vm: &mut Vm) -> Result<Measured> {
        vm.run_ok("kill -INT $(cat /run/probe.pid); for i in $(seq 100); do [ -d /proc/$(cat /run/probe.pid) ] || exit 0; sleep 0.1; done; exit 1")?;
        self.figures(vm)
    }

    fn figures(&self, vm: &mut Vm) -> Result<Measured> {
        measured(&vm.run_ok("cat /run/probe.json")?)
    }
}

/// The middle of all moves, and the longest downtime.
fn line(name: &str, all: &[Took]) -> Value {
    let p99 = |at: usize| middle(all.iter().filter_map(|took| Some(took.p99_us?[at] / 1e3)).collect());
    json!({
        "bench": "guests",
        "way": name,
        "moves": all.len(),
        "total_ms": middle(all.iter().map(|took| took.total.as_secs_f64() * 1e3).collect()),
        "downtime_ms": middle(all.iter().map(|took| took.downtime.as_secs_f64() * 1e3).collect()),
        "downtime_max_ms": all.iter().map(|took| took.downtime.as_secs_f64() * 1e3).max_by(f64::total_cmp),
        "p99_before_ms": p99(0),
        "p99_during_ms": p99(1),
    })
}

fn middle(mut of: Vec<f64>) -> Option<f64> {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied()
}

fn table(lines: &[Value]) -> String {
    let mut text = format!(
        "{:<28}{:>9} {:>12} {:>9}   {:>8} {:>8}\n",
        "of each the middle move", "total ms", "downtime ms", "at most", "p99 ms", "during"
    );
    for line in lines {
        let number = |key: &str, digits: usize| {
            line[key].as_f64().map_or("-".to_owned(), |value| format!("{value:.digits$}"))
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<28}{:>9} {:>12} {:>9}   {:>8} {:>8}",
            line["way"].as_str().unwrap_or_default(),
            number("total_ms", 0),
            number("downtime_ms", 1),
            number("downtime_max_ms", 1),
            number("p99_before_ms", 2),
            number("p99_during_ms", 2),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Took, line, table};
    use std::time::Duration;

    #[test]
    fn the_middle_of_each_column_is_shown_and_what_is_not_known_as_such() {
        let took = |ms: u64, p99_us| Took {
            total: Duration::from_millis(ms * 10),
            downtime: Duration::from_millis(ms),
            p99_us,
        };
        let lines = [
            line(
                "one",
                &[
                    took(9, Some([1000.0, 2000.0])),
                    took(5, Some([3000.0, 4000.0])),
                    took(7, Some([2000.0, 3000.0])),
                ],
            ),
            line("none", &[took(1, None)]),
        ];
        let text = table(&lines);
        let words = |at: usize| text.lines().nth(at).map(|line| line.split_whitespace().collect::<Vec<_>>());
        assert_eq!(words(1).as_deref(), Some(&["one", "70", "7.0", "9.0", "2.00", "3.00"][..]), "{text}");
        assert_eq!(words(2).as_deref(), Some(&["none", "10", "1.0", "1.0", "-", "-"][..]), "{text}");
    }
}
