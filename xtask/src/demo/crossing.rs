//! Two hosts on this machine: a guest crosses from one to the other with its disk, to and fro, while it writes, reads and checks.

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use guest::load::floor;
use guest::load::space::{ADDRESSES, Spaces};
use serde_json::Value;
use vmtest::daemon::{Backend, Ssd};
use vmtest::hosts::Host;
use vmtest::image::Image;
use vmtest::load::Load;
use vmtest::vm::{Vm, VmBuilder};

use super::show::Show;

const CROSSINGS: usize = 5;
const SIZE_MIB: u64 = 256;
const NAME: &str = "disk";
const DEVICE: &str = "/dev/nvme0n1";
const PORT: u16 = 8010;
/// QEMU uses what it is allowed, and slows a guest down that writes too much to keep to it.
const MAX_STUN: &str = "100ms";
/// A host looks at the guest's I/O for three seconds after it has come.
const LOOK: Duration = Duration::from_secs(3);

/// What one crossing was like.
struct Row {
    bytes: f64,
    seconds: f64,
    floor_seconds: f64,
    stun_ms: f64,
    p99_ms: [Option<f64>; 3],
}

pub(super) fn demo(show: &mut Show, image: &Image, godwitd: &Path, folder: &Path) -> Result<()> {
    show.step("Two hosts: network namespaces that a pair of virtual interfaces joins, a daemon with a pool in each, certificates of one authority");
    let spaces = Spaces::new();
    if spaces.is_none() {
        show.text("no namespaces without root and iproute2: both hosts are at 127.0.0.1");
    }
    let mut hosts = two_hosts(godwitd, spaces.as_ref())?;
    let slowest = link(spaces.as_ref())?.min(floor::file(folder, SIZE_MIB, 0)?);
    show.text(&format!(
        "the slowest of link, reads and writes takes {:.0} MiB/s",
        slowest / (1 << 20) as f64
    ));

    show.step("A guest at the first: fio writes and verifies, a reader compares through the page cache, a checker looks at memory");
    let mut vm = guest(&hosts[0]).boot(image)?;
    hosts[0].has(&vm)?;
    let load = Load::begin(&mut vm, &[DEVICE])?;

    show.step(&format!("It goes to the other host, and back: {CROSSINGS} times"));
    let mut rows = Vec::new();
    for _ in 0..CROSSINGS {
        let mut there = guest(&hosts[1]).await_migration(image)?;
        hosts[1].has(&there)?;
        let said = hosts[0].migrate(&hosts[1], &["--max-stun", MAX_STUN])?;
        show.text(&said);
        vm.kill();
        load.goes_on(&mut there, 1)?;
        std::thread::sleep(LOOK);
        rows.push(row(&status(&hosts[0])?, &status(&hosts[1])?, slowest));
        vm = there;
        hosts.reverse();
    }
    show.text(&table(&rows));
    picture(show, &hosts, folder)?;

    show.step("The end: each byte was as it was written, the kernel is the one that was booted, and complained of nothing");
    load.end(&mut vm)?;
    vm.shutdown()?;
    hosts.iter_mut().try_for_each(|host| host.daemon.stop())
}

fn two_hosts(godwitd: &Path, spaces: Option<&Spaces>) -> Result<[Host; 2]> {
    let ssds = [Ssd::new(NAME, SIZE_MIB).on(Backend::Thin)];
    let Some(spaces) = spaces else { return Host::two(godwitd, &ssds) };
    let addresses = ADDRESSES.map(|address| SocketAddr::new(address, PORT));
    Host::two_at(godwitd, &ssds, addresses, |host, start| spaces.within(host, start)?)
}

/// Bytes a second from one host to the other.
fn link(spaces: Option<&Spaces>) -> Result<f64> {
    let address = spaces.map_or("127.0.0.1".parse()?, |_| ADDRESSES[1]);
    let listener = Spaces::within_any(spaces, 1, || Ok(TcpListener::bind((address, 0))?))?;
    let to = listener.local_addr()?;
    floor::link(listener, || Spaces::within_any(spaces, 0, || Ok(TcpStream::connect(to)?)))
}

fn guest(host: &Host) -> VmBuilder {
    Vm::builder().root_in_memory().vfio_user(NAME, &host.daemon.socket(NAME))
}

/// The ssd's last migration, as a host tells it.
fn status(host: &Host) -> Result<Value> {
    host.migrations()?
        .into_iter()
        .find(|it| it["ssd"] == NAME)
        .ok_or_else(|| anyhow!("nothing is known of the migration"))
}

fn row(source: &Value, destination: &Value, slowest: f64) -> Row {
    let number = |status: &Value, key: &str| status[key].as_f64();
    let of = |key: &str| number(source, key).unwrap_or(0.0);
    let bytes = of("sent_bytes") + of("memory_bytes");
    let p99 = [number(source, "p99_before_ns"), number(source, "p99_ns"), number(destination, "p99_ns")];
    Row {
        bytes,
        seconds: of("elapsed_ms") / 1e3,
        floor_seconds: bytes / slowest,
        stun_ms: of("stun_ns") / 1e6,
        p99_ms: p99.map(|ns| ns.map(|ns| ns / 1e6)),
    }
}

/// The last crossing's time line, of both hosts. They were exchanged after it.
fn picture(show: &mut Show, [came, left]: &[Host; 2], folder: &Path) -> Result<()> {
    let (json, svg) = (folder.join("timeline.json"), folder.join("timeline.svg"));
    fs::write(&json, came.daemon.tool(&["migration", "timeline", NAME])?).context("write a time line")?;
    let [json, svg] = [&json, &svg].map(|path| path.display().to_string());
    left.daemon.tool(&["migration", "timeline", NAME, "--svg", &svg, "--with", &json])?;
    show.text(&format!("the guest's I/O in the last crossing, a bin each 10 ms: {svg}"));
    Ok(())
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<10}{:>7} {:>8} {:>8} {:>8} {:>9}   {:>7} {:>7} {:>7}\n",
        "crossing", "MiB", "total s", "floor s", "x floor", "stun ms", "p99 ms", "during", "after"
    );
    for (number, row) in (1..).zip(rows) {
        let [before, during, after] = row.p99_ms.map(|ms| ms.map_or("-".to_owned(), |ms| format!("{ms:.2}")));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{number:<10}{:>7.0} {:>8.2} {:>8.2} {:>8.1} {:>9.1}   {before:>7} {during:>7} {after:>7}",
            row.bytes / (1 << 20) as f64,
            row.seconds,
            row.floor_seconds,
            row.seconds / row.floor_seconds,
            row.stun_ms
        );
    }
    text + "\nBytes are those on the wire, the ssd's and the memory's; the floor is these by the slowest of link, reads and writes. The guest's processors are emulated here,\n\
            beside two daemons and two QEMUs: total and stun are mostly theirs."
}

#[cfg(test)]
mod tests {
    use super::{Row, row, table};
    use serde_json::json;

    #[test]
    fn every_crossing_has_a_line_of_figures() {
        let source = json!({"sent_bytes": 50 << 20, "memory_bytes": 50 << 20, "elapsed_ms": 2000, "stun_ns": 12_300_000, "p99_ns": 2e6});
        let rows: Vec<Row> = (0..2).map(|_| row(&source, &json!({}), (100 << 20) as f64)).collect();
        let text = table(&rows);
        let line = text.lines().nth(2).unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words, ["2", "100", "2.00", "1.00", "2.0", "12.3", "-", "2.00", "-"], "{text}");
        assert_eq!(text.lines().next().map(str::len), Some(line.len()), "{text}");
    }
}
