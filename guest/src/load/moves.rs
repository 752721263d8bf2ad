//! Migrations: how long one takes against what its bytes take alone, how long its ssd stands still, and what its guest feels meanwhile.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use super::clock;
use super::floor;
use super::histogram::Histogram;
use super::report::Report;
use super::space::{ADDRESSES, Spaces};
use super::suite::Settings;
use super::workload::Random;
use crate::relay::Relay;
use crate::verify::daemon::{Backing, Frontend, Ssd};
use crate::verify::door::{Door, Kind, Op};
use crate::verify::migrations::Mover;
use crate::verify::migrations::berth::{Berth, Connection, Errand, Follower, Found};
use crate::verify::migrations::host::{Host, Plan as HostPlan, free_address, make_keys};
use crate::verify::plug::Plan;

const BLOCK_BYTES: u64 = 4096;
const DEPTH: usize = 32;
const NAME: &str = "mover";
/// What `--max-stun` is, as where nobody says it.
const STUN_MAX: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(120);
const CONNECT: Duration = Duration::from_secs(20);
/// The load before a migration, and between two.
const BEFORE: Duration = Duration::from_secs(1);
/// An idle guest looks in so often.
const IDLE_PER_S: f64 = 1000.0;
/// Of a link, by the load that is not idle.
const SHARE: f64 = 0.5;

/// A way between two hosts.
struct Link {
    name: &'static str,
    bits_per_s: u64,
    delay: Duration,
    /// What is on the ssd: so much that it takes some seconds, beside which what each migration takes for itself is little.
    mebibytes: u64,
}

const LINKS: [Link; 4] = [
    Link { name: "10gbit", bits_per_s: 10_000_000_000, delay: Duration::ZERO, mebibytes: 2048 },
    Link { name: "1gbit", bits_per_s: 1_000_000_000, delay: Duration::ZERO, mebibytes: 1024 },
    Link { name: "1gbit-1ms", bits_per_s: 1_000_000_000, delay: Duration::from_millis(1), mebibytes: 1024 },
    Link { name: "1gbit-20ms", bits_per_s: 1_000_000_000, delay: Duration::from_millis(20), mebibytes: 1024 },
];

/// What its client does, and on how large an ssd.
struct Load {
    name: &'static str,
    is_idle: bool,
    /// Of the ssd, where it is larger than what is on it.
    mebibytes: Option<u64>,
    /// A link's name, if it is measured over no other.
    only: Option<&'static str>,
}

const LOADS: [Load; 3] = [
    Load { name: "idle", is_idle: true, mebibytes: None, only: None },
    Load { name: "mixed", is_idle: false, mebibytes: None, only: None },
    Load { name: "sparse-1tib", is_idle: true, mebibytes: Some(1 << 20), only: Some("1gbit") },
];

/// Runs all that is wanted.
///
/// # Errors
/// The first bench that cannot be run.
pub fn measure(settings: &Settings, report: &mut Report) -> Result<()> {
    let wanted: Vec<_> = LINKS
        .iter()
        .flat_map(|link| LOADS.iter().map(move |load| (link, load)))
        .filter(|(link, load)| load.only.is_none_or(|only| only == link.name))
        .map(|(link, load)| (format!("migration/{}/{}", load.name, link.name), link, load))
        .filter(|(name, ..)| settings.wants(name))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let spaces = Spaces::new();
    match &spaces {
        Some(_) => eprintln!("migration: between two network namespaces, the link shaped by tbf"),
        None => eprintln!(
            "migration: over 127.0.0.1 (no namespaces without root and ip), the link paced by a relay"
        ),
    }
    for (name, link, load) in wanted {
        let case = Case { settings, spaces: spaces.as_ref(), link, load };
        // Two hosts and a client: on the client's core alone a migration takes five times as long.
        clock::unpinned(|| case.measure(report, &name))?.with_context(|| name.clone())?;
    }
    Ok(())
}

/// One load over one link.
struct Case<'a> {
    settings: &'a Settings,
    spaces: Option<&'a Spaces>,
    link: &'a Link,
    load: &'a Load,
}

/// What each migration showed.
#[derive(Default)]
struct Figures {
    /// By what had to go: what is written while it goes does so once more.
    to_floor: Vec<f64>,
    /// By what is on the ssd.
    to_size: Vec<f64>,
    p99_ratio: Vec<f64>,
    iops_ratio: Vec<f64>,
    stuns: Histogram,
    engine_stuns: Histogram,
}

impl Case<'_> {
    fn measure(&self, report: &mut Report, name: &str) -> Result<()> {
        let folder = tempfile::Builder::new().prefix("godwit-bench").tempdir_in(&self.settings.directory)?;
        if let Some(spaces) = self.spaces {
            spaces.shape(self.link.bits_per_s)?;
        }
        let slowest = self.slowest(folder.path())?;
        let hosts = self.hosts(folder.path())?;
        let mut client = Client::new(&hosts, self.ssd(), self.link.mebibytes, slowest, self.load.is_idle)?;
        client.fill()?;
        let mut figures = Figures::default();
        for _ in 0..self.settings.runs.max(4) {
            client.run_until(Instant::now() + BEFORE, || false)?;
            let before = client.take();
            let moved = self.migrate(&hosts, &mut client)?;
            figures.to_floor.push(moved.total.as_secs_f64() * slowest / moved.bytes as f64);
            figures.to_size.push(moved.total.as_secs_f64() * slowest / (self.link.mebibytes << 20) as f64);
            figures
                .p99_ratio
                .push(ratio(moved.during.latency.quantile(990) as f64, before.latency.quantile(990) as f64));
            figures.iops_ratio.push(ratio(moved.during.per_s(), before.per_s()));
            figures.stuns.record(moved.stun_ns);
            figures.engine_stuns.record(moved.engine_stun_ns);
        }
        report.add(name, "total_to_floor", "ratio", &figures.to_floor);
        report.add(name, "total_to_size", "ratio", &figures.to_size);
        let mut add = |metric, histogram: &Histogram, per_mille| {
            let value = histogram.quantile(per_mille) as f64;
            report.add(name, metric, "ns", &vec![value; figures.to_floor.len()]);
        };
        add("stun_p50_ns", &figures.stuns, 500);
        add("stun_p99_ns", &figures.stuns, 990);
        add("engine_stun_p50_ns", &figures.engine_stuns, 500);
        add("engine_stun_p99_ns", &figures.engine_stuns, 990);
        report.add(name, "guest_p99_ratio", "ratio", &figures.p99_ratio);
        report.add(name, "iops_ratio", "ratio", &figures.iops_ratio);
        report.add(name, "floor_bytes_per_s", "1/s", &[slowest]);
        let from = report.records.len().saturating_sub(9);
        eprint!("{}", Report { records: report.records[from..].to_vec() }.table());
        Ok(())
    }

    fn ssd(&self) -> Ssd {
        Ssd {
            name: NAME.to_owned(),
            mebibytes: self.load.mebibytes.unwrap_or(self.link.mebibytes),
            backing: Backing::Uring,
            frontend: Frontend::Nvme { lba: 4096 },
        }
    }

    fn within<T: Send>(&self, host: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        Spaces::within_any(self.spaces, host, work)
    }

    fn address(&self, host: usize) -> IpAddr {
        if self.spaces.is_some() { ADDRESSES[host] } else { Ipv4Addr::LOCALHOST.into() }
    }

    /// From the other host to an address of this one. Where the kernel shapes the link it only delays.
    fn way(&self, to: usize, target: SocketAddr) -> Result<Relay> {
        let way = self.within(1 - to, || Ok(Relay::new(target)?))?;
        way.delay(self.link.delay);
        if self.spaces.is_none() {
            way.slow_down(self.link.bits_per_s / 8);
        }
        Ok(way)
    }

    /// Where the other host finds this one.
    fn door(&self, host: &Host) -> SocketAddr {
        let is_direct = self.spaces.is_some() && self.link.delay.is_zero();
        if is_direct { host.listen() } else { host.way.address() }
    }

    fn hosts(&self, folder: &Path) -> Result<[Host; 2]> {
        let keys = folder.join("keys");
        let names = ADDRESSES.map(|address| address.to_string());
        make_keys(&godwit()?, &keys, &names.each_ref().map(String::as_str))?;
        let ssd = self.ssd();
        let movers = vec![Mover { ssd, backings: [Backing::Uring; 2] }];
        let start = |number: usize| {
            let plan = HostPlan {
                number,
                folder: folder.join(["a", "b"][number]),
                godwitd: self.settings.godwitd.clone(),
                keys: keys.clone(),
                movers: movers.clone(),
                reactors: 1,
            };
            let address = self.address(number);
            let listen = self.within(number, || Ok(free_address(address)?))?;
            let way = self.way(number, listen)?;
            self.within(number, || Host::start(plan, listen, way))
        };
        Ok([start(0)?, start(1)?])
    }

    /// Bytes a second of the slowest of the link and the drive, each alone.
    fn slowest(&self, folder: &Path) -> Result<f64> {
        let address = self.address(1);
        let listener = self.within(1, || Ok(TcpListener::bind((address, 0))?))?;
        let target = listener.local_addr()?;
        let way = self.way(1, target)?;
        let is_direct = self.spaces.is_some() && self.link.delay.is_zero();
        let to = if is_direct { target } else { way.address() };
        let link = floor::link(listener, || self.within(0, || Ok(TcpStream::connect(to)?)))?;
        Ok(link.min(floor::file(folder, self.link.mebibytes, self.settings.engine_cpu)?))
    }

    fn migrate(&self, hosts: &[Host; 2], client: &mut Client) -> Result<Moved> {
        let (from, to) = (client.at, 1 - client.at);
        let peer = self.door(&hosts[to]).to_string();
        client.wait_at(to)?;
        std::thread::scope(|scope| {
            let start = Instant::now();
            // What is short beside the way alone is never reached.
            let stun_max = STUN_MAX + self.link.delay * 8;
            let watch = scope.spawn(move || watch(&hosts[from], &peer, stun_max, start));
            let deadline = start + PATIENCE;
            // It has moved when it is answered there.
            client.run_until(deadline, || watch.is_finished())?;
            let (total, status) = watch.join().map_err(|_| anyhow!("the watch panicked"))??;
            let during = client.during.take().context("its client did not move")?;
            let stun_ns = client.stun_ns.take().context("its client was not answered there")?;
            let engine_stun_ns = status["stun_ns"].as_u64().unwrap_or_default();
            client.take();
            let bytes = status["sent_bytes"].as_u64().context("nothing says how much went")?;
            Ok(Moved { total, bytes: bytes.max(self.link.mebibytes << 20), stun_ns, engine_stun_ns, during })
        })
    }
}

/// A migration.
struct Moved {
    total: Duration,
    /// On the wire.
    bytes: u64,
    stun_ns: u64,
    engine_stun_ns: u64,
    during: Window,
}

/// Has it begin and end; how long that took, and how the source saw it.
fn watch(host: &Host, peer: &str, stun_max: Duration, start: Instant) -> Result<(Duration, Value)> {
    let terms = json!({"max_stun_us": stun_max.as_micros()});
    let request =
        json!({"command": "engine", "question": "migrate", "ssd": NAME, "to": peer, "terms": terms});
    loop {
        let answer = host.ask(&request)?;
        if answer.get("done").is_some() {
            break;
        }
        ensure!(start.elapsed() < CONNECT, "it cannot be moved: {answer}");
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut total = None;
    loop {
        let status = host.migration(NAME)?.unwrap_or_default();
        let state = status["state"].as_str().unwrap_or_default();
        if state == "moved" {
            total.get_or_insert(start.elapsed());
        }
        if let Some(total) = total.filter(|_| status["over"] == true) {
            return Ok((total, status));
        }
        if status["over"] == true || start.elapsed() > PATIENCE {
            bail!("it did not move: {status}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What the client saw in a while.
struct Window {
    latency: Histogram,
    since: Instant,
    time: Duration,
}

impl Window {
    fn new() -> Self {
        Window { latency: Histogram::default(), since: Instant::now(), time: Duration::ZERO }
    }

    fn per_s(&self) -> f64 {
        self.latency.count() as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

/// One queue's worth of reads and writes, at a rate, which follows its ssd.
struct Client {
    sockets: [PathBuf; 2],
    ssd: Ssd,
    /// What it reads and writes is the first so many blocks.
    blocks: u64,
    at: usize,
    door: Box<dyn Door>,
    _line: Connection,
    /// What it had at the other host.
    left: Option<(Box<dyn Door>, Connection)>,
    /// By tag: when it was sent.
    out: std::collections::HashMap<u32, Instant>,
    random: Random,
    per_s: f64,
    writes_percent: u64,
    due: f64,
    clock: Instant,
    window: Window,
    last: Instant,
    found: (Sender<Found>, Receiver<Found>),
    follower: Option<Follower>,
    /// What was seen at the source, from the beginning of a migration to its end.
    during: Option<Window>,
    stun_ns: Option<u64>,
    left_at: Option<Instant>,
    data: Vec<u8>,
}

fn plan() -> Plan {
    Plan { lanes: 1, depth: DEPTH, seed: 7, patience: PATIENCE }
}

impl Client {
    fn new(hosts: &[Host; 2], ssd: Ssd, mebibytes: u64, slowest: f64, is_idle: bool) -> Result<Self> {
        let sockets = hosts.each_ref().map(|host| host.socket(NAME));
        let berth = Berth::connect(&sockets[0], &ssd, &plan(), CONNECT)?;
        let (door, line) = berth.split();
        let now = Instant::now();
        let per_s = if is_idle { IDLE_PER_S } else { slowest * SHARE / BLOCK_BYTES as f64 };
        let mut random = Random::new(0x5EED);
        // What cannot be made smaller.
        let data = (0..256 << 10).map(|_| u8::try_from(random.below(256)).unwrap_or(0)).collect();
        Ok(Client {
            sockets,
            ssd,
            blocks: (mebibytes << 20) / BLOCK_BYTES,
            at: 0,
            door,
            _line: line,
            left: None,
            out: std::collections::HashMap::new(),
            random,
            per_s,
            writes_percent: if is_idle { 0 } else { 30 },
            due: 0.0,
            clock: now,
            window: Window::new(),
            last: now,
            found: channel(),
            follower: None,
            during: None,
            stun_ns: None,
            left_at: None,
            data,
        })
    }

    /// Every block is there before anything is measured.
    fn fill(&mut self) -> Result<()> {
        let blocks = u32::try_from(self.data.len() as u64 / BLOCK_BYTES)?;
        for start in (0..self.blocks).step_by(blocks as usize) {
            self.door.submit(0, &Op { kind: Kind::Write { fua: false }, start, blocks }, &self.data)?;
            self.door.ring(0)?;
            let sent = Instant::now();
            while self.door.poll(0)?.is_none() {
                ensure!(sent.elapsed() < PATIENCE, "no answer while it is filled");
                std::thread::yield_now();
            }
            self.door.ring(0)?;
        }
        Ok(())
    }

    /// What was seen since the last call.
    fn take(&mut self) -> Window {
        let mut window = std::mem::replace(&mut self.window, Window::new());
        window.time = window.since.elapsed();
        (self.clock, self.due) = (Instant::now(), 0.0);
        window
    }

    /// Somebody connects there already.
    fn wait_at(&mut self, to: usize) -> Result<()> {
        self.left = None;
        let host = |host: usize| (host, self.sockets[host].clone());
        let errand = Errand {
            guest: 0,
            number: 0,
            ssd: self.ssd.clone(),
            plan: plan(),
            hosts: [host(to), host(1 - to)],
            asks_both: false,
            // Who connects anew has to make its memory first, which takes longer than the standstill that is measured.
            patience: PATIENCE,
        };
        self.follower = Some(Follower::start(errand, self.found.0.clone())?);
        Ok(())
    }

    fn run_until(&mut self, deadline: Instant, mut end: impl FnMut() -> bool) -> Result<()> {
        let (follows, mut ended) = (self.follower.is_some(), None);
        loop {
            let is_there = !follows || (self.follower.is_none() && self.left_at.is_none());
            if end() {
                // What did not move is not waited for.
                let since = ended.get_or_insert_with(Instant::now);
                if is_there || since.elapsed() > CONNECT {
                    return Ok(());
                }
            }
            if Instant::now() > deadline {
                return Ok(());
            }
            self.turn()?;
            if let Ok(found) = self.found.1.try_recv() {
                self.go_over(found)?;
            }
        }
    }

    fn turn(&mut self) -> Result<()> {
        let due = (self.clock.elapsed().as_secs_f64() * self.per_s).min(self.due + DEPTH as f64);
        let mut worked = false;
        while self.due < due && self.out.len() < DEPTH - 1 {
            let is_write = self.random.below(100) < self.writes_percent;
            let kind = if is_write { Kind::Write { fua: false } } else { Kind::Read };
            let start = self.random.below(self.blocks);
            let at = usize::try_from(self.random.below(32)).unwrap_or(0) * 4096;
            let data = if is_write { &self.data[at..at + 4096] } else { &[] };
            let tag = self.door.submit(0, &Op { kind, start, blocks: 1 }, data)?;
            self.out.insert(tag, Instant::now());
            self.due += 1.0;
            worked = true;
        }
        // What the drive did not keep up with is not asked for later.
        self.due = self.due.max(self.clock.elapsed().as_secs_f64() * self.per_s - DEPTH as f64);
        if worked {
            self.door.ring(0)?;
        }
        while let Some(answer) = self.door.poll(0)? {
            ensure!(answer.failure.is_none(), "a command failed: {answer:?}");
            let now = Instant::now();
            if let Some(sent) = self.out.remove(&answer.tag) {
                let ns = u64::try_from((now - sent).as_nanos()).unwrap_or(u64::MAX);
                self.window.latency.record(ns);
            }
            if let Some(left) = self.left_at.take() {
                self.stun_ns = Some(u64::try_from((now - left).as_nanos()).unwrap_or(u64::MAX));
            }
            self.last = now;
            worked = true;
        }
        if worked {
            self.door.ring(0)?;
        } else {
            std::thread::sleep(Duration::from_micros(20));
        }
        Ok(())
    }

    /// The ssd is there now.
    fn go_over(&mut self, found: Found) -> Result<()> {
        self.follower = None;
        let last = self.last;
        let mut during = self.take();
        during.time = last.saturating_duration_since(during.since);
        (self.during, self.left_at) = (Some(during), Some(last));
        self.out.clear();
        self.at = found.host;
        let (door, line) = found.berth.split();
        // To give back the memory of the old one takes longer than the standstill that is measured.
        self.left = Some((std::mem::replace(&mut self.door, door), std::mem::replace(&mut self._line, line)));
        Ok(())
    }
}

fn ratio(now: f64, before: f64) -> f64 {
    if before > 0.0 { now / before } else { f64::NAN }
}

/// `GODWIT`, or the command line built beside this program.
fn godwit() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("GODWIT") {
        return Ok(path.into());
    }
    let path = std::env::current_exe()?.with_file_name("godwit");
    ensure!(path.exists(), "{} is missing: cargo build --release -p cli", path.display());
    Ok(path)
}
