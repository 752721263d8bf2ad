//! `cargo xtask soak guests`: a stock guest with an NVMe ssd and a virtio-blk disk goes to and fro between two daemons, and verifies all that it reads.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::{Value, json};
use vmtest::daemon::Ssd;
use vmtest::hosts::Host;
use vmtest::image::Image;
use vmtest::load::Load;
use vmtest::vm::{Vm, VmBuilder};

use crate::run::build;

/// The soak's own arguments.
#[derive(Parser)]
#[command(name = "cargo xtask soak guests")]
struct Arguments {
    /// How often the guest goes to the other host
    #[arg(long, default_value_t = 20)]
    count: u32,
    /// How long it may stand still when QEMU and Godwit predict it
    #[arg(long, default_value = "300ms")]
    max_stun: String,
    /// Where the line is written, too
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What one move took.
struct Took {
    /// From the order to its end.
    total: Duration,
    /// From QEMU's STOP here to its RESUME there.
    downtime: Duration,
    /// The longest of its ssds, as the source says.
    stun: Duration,
}

pub(super) fn command(arguments: &[String]) -> Result<()> {
    let name = "guests".to_owned();
    let arguments = Arguments::parse_from(std::iter::once(&name).chain(arguments));
    let godwitd = build("godwitd", "godwitd", true)?;
    build("cli", "godwit", true)?;
    let image = Image::ensure()?;
    let ssds = [Ssd::new("a", 96), Ssd::new("b", 96).as_disk()];
    let mut hosts = Host::two(&godwitd, &ssds)?;
    let mut vm = guest(&hosts[0]).boot(&image)?;
    hosts[0].has(&vm)?;
    let load = Load::begin(&mut vm, &["/dev/nvme0n1", "/dev/vda"])?;
    let mut moves = Vec::new();
    let ended = cross(&arguments, &image, &mut hosts, &mut vm, &load, &mut moves);
    let ended = ended.and_then(|()| load.end(&mut vm));
    let line = json!({
        "soak": "guests",
        "moves": moves.len(),
        "errors": u32::from(ended.is_err()),
        "total_ms": spread(&moves, |took| took.total),
        "downtime_ms": spread(&moves, |took| took.downtime),
        "stun_ms": spread(&moves, |took| took.stun),
    });
    println!("{line}");
    if let Some(path) = arguments.json {
        std::fs::write(&path, format!("{line}\n")).with_context(|| format!("write {}", path.display()))?;
    }
    ended
}

fn guest(host: &Host) -> VmBuilder {
    let vm = Vm::builder().root_in_memory().vfio_user("a", &host.daemon.socket("a"));
    vm.vhost_user("b", &host.daemon.socket("b"))
}

fn cross(
    arguments: &Arguments,
    image: &Image,
    hosts: &mut [Host; 2],
    vm: &mut Vm,
    load: &Load,
    moves: &mut Vec<Took>,
) -> Result<()> {
    for number in 1..=arguments.count {
        let mut there = guest(&hosts[1]).await_migration(image)?;
        hosts[1].has(&there)?;
        let began = Instant::now();
        hosts[0]
            .migrate(&hosts[1], &["--max-stun", &arguments.max_stun])
            .with_context(|| format!("move {number}\n{}", hosts[0].daemon.log_tail()))?;
        let total = began.elapsed();
        let downtime = vm.downtime(&mut there)?;
        let took = Took { total, downtime, stun: stun(&hosts[0])? };
        eprintln!("move {number}: {total:.1?}, downtime {downtime:.1?}, stun of the ssds {:.1?}", took.stun);
        moves.push(took);
        std::mem::replace(vm, there).kill();
        load.goes_on(vm, 1).with_context(|| format!("after move {number}"))?;
        hosts.reverse();
    }
    Ok(())
}

/// How long I/O of the guest's ssds stood still in the move that is over.
fn stun(host: &Host) -> Result<Duration> {
    let list = host.migrations()?;
    let stuns: Vec<u64> = list.iter().filter_map(|migration| migration["stun_ns"].as_u64()).collect();
    ensure!(stuns.len() == 2, "of two ssds {} stood still", stuns.len());
    Ok(Duration::from_nanos(stuns.into_iter().max().unwrap_or(0)))
}

/// The least, the middle one and the most, in milliseconds.
fn spread(moves: &[Took], of: impl Fn(&Took) -> Duration) -> Value {
    let mut all: Vec<u128> = moves.iter().map(|took| of(took).as_millis()).collect();
    all.sort_unstable();
    json!({ "min": all.first(), "p50": all.get(all.len() / 2), "max": all.last() })
}
