//! One of the two hosts: a daemon with a folder of its own, and the way to it.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use serde_json::{Value, json};

use crate::relay::Relay;
use crate::verify::daemon::{Backing, Daemon, Frontend, Process, Ssd, engines_of, signal};

/// A request must be answered by then.
const ANSWER_BY: Duration = Duration::from_secs(30);
/// Of a host's pool.
const POOL_MIB: u64 = 512;
/// An ssd that takes what is left of a pool, and what it leaves.
const FILLER: &str = "filler";
const LEFT_EXTENTS: u64 = 4;

/// An ssd that moves, and what it lies on at each of the hosts.
#[derive(Clone, Debug)]
pub struct Mover {
    /// As it is at the first host.
    pub ssd: Ssd,
    /// At both.
    pub backings: [Backing; 2],
}

/// What a host is made of.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) number: usize,
    pub(crate) folder: PathBuf,
    pub(crate) godwitd: PathBuf,
    pub(crate) keys: PathBuf,
    pub(crate) movers: Vec<Mover>,
    pub(crate) reactors: usize,
}

/// See the module.
pub(crate) struct Host {
    /// For people.
    pub(crate) name: &'static str,
    daemon: Daemon,
    /// The way from the other host to here.
    pub(crate) way: Relay,
    listen: SocketAddr,
    plan: Plan,
    words: Mutex<Words>,
}

/// What its configuration says now that it did not say always.
#[derive(Clone, Default)]
struct Words {
    /// The ssds that may come, whatever is here of them.
    incoming: Vec<String>,
    filler_mib: Option<u64>,
}

/// What every host is called, beside other names.
const FIRST_NAME: &str = "127.0.0.1";

/// An address that nobody listens at. It is given up before a daemon takes it: nobody else is given one that was just free.
///
/// # Errors
/// The machine has no such address.
pub(crate) fn free_address(address: IpAddr) -> std::io::Result<SocketAddr> {
    TcpListener::bind((address, 0))?.local_addr()
}

/// Makes an authority and a certificate for this machine's own address and other names, as an operator does.
///
/// # Errors
/// `godwit tls` has them.
pub(crate) fn make_keys(godwit: &Path, folder: &Path, names: &[&str]) -> Result<()> {
    for words in [vec!["tls", "init"], [&["tls", "host", FIRST_NAME][..], names].concat()] {
        let output = Command::new(godwit).args(&words).arg("--folder").arg(folder).output();
        let output = output.with_context(|| format!("cannot start {}", godwit.display()))?;
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{} {words:?}: {why}", godwit.display());
    }
    Ok(())
}

impl Host {
    /// Starts its daemon, which listens at an address; `way` goes there.
    pub(crate) fn start(plan: Plan, listen: SocketAddr, way: Relay) -> Result<Self> {
        std::fs::create_dir(&plan.folder)?;
        let (name, mut words) = (["a", "b"][plan.number], Words::default());
        if plan.number == 1 {
            words.incoming = plan.movers.iter().map(|mover| mover.ssd.name.clone()).collect();
        }
        let text = plan.configuration(&words, listen);
        let sockets: Vec<PathBuf> = plan.movers.iter().map(|mover| plan.socket(&mover.ssd.name)).collect();
        let daemon = Daemon::start_with(&plan.godwitd, &plan.folder, &text, &sockets, true)?;
        Ok(Host { name, daemon, way, listen, plan, words: Mutex::new(words) })
    }

    /// Where its daemon takes ssds of other hosts.
    pub(crate) fn listen(&self) -> SocketAddr {
        self.listen
    }

    pub(crate) fn socket(&self, ssd: &str) -> PathBuf {
        self.plan.socket(ssd)
    }

    /// The file of an ssd that has one of its own here.
    pub(crate) fn file(&self, mover: &Mover) -> Option<PathBuf> {
        self.plan.file(mover)
    }

    pub(crate) fn process(&self) -> &Process {
        self.daemon.process_ref()
    }

    pub(crate) fn log_tail(&self) -> String {
        format!("host {}: {}", self.name, self.daemon.log_tail())
    }

    pub(crate) fn stop(&mut self) -> bool {
        self.daemon.is_alive() && self.daemon.stop()
    }

    /// SIGKILL to its engine, if it has one at this moment.
    pub(crate) fn kill_engine(&self) {
        engines_of(self.daemon.pid()).into_iter().for_each(|engine| _ = signal(engine, Signal::KILL));
    }

    /// From now on every write of its engine behind `bytes` of a file fails; `None`: none does.
    pub(crate) fn fail_writes_behind(&self, bytes: Option<u64>) {
        for process in engines_of(self.daemon.pid()) {
            let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
            let _gone_already = prlimit(pid, Resource::Fsize, Rlimit { current: bytes, maximum: None });
        }
    }

    /// The last word on a request of the control socket (`crates/api/src/control.rs`: a line of JSON, answered by lines).
    ///
    /// # Errors
    /// The connection's. A refusal is an answer: `{"error": ...}`.
    pub(crate) fn ask(&self, request: &Value) -> Result<Value> {
        let path = self.plan.control();
        let mut socket = UnixStream::connect(&path).with_context(|| path.display().to_string())?;
        socket.set_read_timeout(Some(ANSWER_BY))?;
        socket.write_all(format!("{request}\n").as_bytes())?;
        for line in BufReader::new(socket).lines() {
            let answer: Value = serde_json::from_str(&line?)?;
            if answer.get("progress").is_none() {
                return Ok(answer);
            }
        }
        bail!("{request} had no answer")
    }

    /// As [`Host::ask`], for what must be done.
    pub(crate) fn insist(&self, request: &Value) -> Result<()> {
        let answer = self.ask(request)?;
        ensure!(answer.get("error").is_none(), "host {}: {request}: {}", self.name, answer["error"]);
        Ok(())
    }

    /// How an ssd stands here, in the product's word. `None`: nobody can be asked.
    pub(crate) fn standing(&self, ssd: &str) -> Option<String> {
        let answer = self.ask(&json!({"command": "status"})).ok()?;
        let ssds = answer["status"]["ssds"].as_array()?;
        let found = ssds.iter().find(|found| found["name"] == ssd)?;
        Some(found["state"].as_str()?.to_owned())
    }

    /// The last migration of an ssd, as this host sees it. `None`: it knows of none. `Err`: nobody can be asked.
    pub(crate) fn migration(&self, ssd: &str) -> Result<Option<Value>> {
        let answer = self.ask(&json!({"command": "engine", "question": "migrations"}))?;
        let list = answer["migrations"].as_array().with_context(|| answer.to_string())?;
        Ok(list.iter().find(|found| found["ssd"] == ssd).cloned())
    }

    pub(crate) fn steer(&self, ssd: &str, steer: &str) -> Result<Value> {
        self.ask(&json!({"command": "engine", "question": "steer", "ssd": ssd, "steer": steer}))
    }

    /// Writes `incoming` for an ssd that has left, as an operator does who expects it again.
    pub(crate) fn expect(&self, ssd: &str) -> Result<()> {
        let mut words = self.words();
        if words.incoming.iter().any(|name| name == ssd) {
            return Ok(());
        }
        let mut next = words.clone();
        next.incoming.push(ssd.to_owned());
        self.apply(&next)?;
        *words = next;
        Ok(())
    }

    /// Takes nearly all that is left of the pool.
    pub(crate) fn fill(&self) -> Result<()> {
        let answer = self.ask(&json!({"command": "pool", "operation": "list"}))?;
        let pool = &answer["pool"][0];
        let number = |key: &str| pool[key].as_u64().with_context(|| answer.to_string());
        let (free, extent_bytes) = (number("free")?, number("extent_bytes")?);
        let mut words = self.words();
        let mut next = words.clone();
        next.filler_mib = Some(free.saturating_sub(LEFT_EXTENTS).max(1) * (extent_bytes >> 20));
        self.apply(&next)?;
        *words = next;
        Ok(())
    }

    /// Gives it back.
    pub(crate) fn empty(&self) -> Result<()> {
        let mut words = self.words();
        if words.filler_mib.is_none() {
            return Ok(());
        }
        let next = Words { filler_mib: None, ..words.clone() };
        self.apply(&next)?;
        *words = next;
        let delete = json!({"command": "pool", "operation": "delete", "pool": "p", "volume": FILLER});
        let deadline = Instant::now() + ANSWER_BY;
        // Its doors close a moment after the change.
        while let Err(error) = self.insist(&delete) {
            ensure!(Instant::now() < deadline, "{error:#}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn words(&self) -> MutexGuard<'_, Words> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, words: &Words) -> Result<()> {
        let text = self.plan.configuration(words, self.listen);
        self.insist(&json!({"command": "apply", "config": text}))?;
        // What a keeper reads that starts from nothing.
        Ok(std::fs::write(self.plan.folder.join("godwit.toml"), text)?)
    }
}

impl Plan {
    fn control(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    fn socket(&self, ssd: &str) -> PathBuf {
        self.folder.join(format!("{ssd}.sock"))
    }

    fn file(&self, mover: &Mover) -> Option<PathBuf> {
        Ssd { backing: mover.backings[self.number], ..mover.ssd.clone() }.file(&self.folder)
    }

    fn configuration(&self, words: &Words, listen: SocketAddr) -> String {
        let (folder, keys) = (&self.folder, &self.keys);
        let (pool, control) = (folder.join("pool.img"), self.control());
        let key = |what: &str| keys.join(what);
        let mut text = format!(
            "control = {control:?}\n[engine]\nreactors = {}\n\n[migration]\nlisten = \"{listen}\"\ncertificate = {:?}\nkey = {:?}\n\
             authority = {:?}\n\n[[pool]]\nname = \"p\"\npath = {pool:?}\nsize = \"{POOL_MIB}MiB\"\n",
            self.reactors,
            key(&format!("{FIRST_NAME}.pem")),
            key(&format!("{FIRST_NAME}.key")),
            key("ca.pem"),
        );
        for mover in &self.movers {
            let Ssd { name, mebibytes, frontend, .. } = &mover.ssd;
            let own = |what: &str| folder.join(format!("{name}.{what}"));
            let backend = match (mover.backings[self.number], self.file(mover)) {
                (Backing::Pool { thin }, _) => format!("{{ type = \"pool\", pool = \"p\", thin = {thin} }}"),
                (_, Some(file)) => {
                    format!("{{ type = \"uring\", path = {file:?} }}\njournal = {:?}", own("migration"))
                }
                (_, None) => "{ type = \"ram\" }".to_owned(),
            };
            let door = match frontend {
                Frontend::Nvme { lba } => {
                    format!("socket = {:?}\nlba = {lba}\nstate = {:?}", own("sock"), own("state"))
                }
                Frontend::Disk { .. } => format!("vhost_socket = {:?}", own("sock")),
            };
            let incoming = words.incoming.contains(name);
            let _infallible = write!(
                text,
                "\n[[ssd]]\nname = {name:?}\nsize = \"{mebibytes}MiB\"\nincoming = {incoming}\n{door}\nbackend = {backend}\n"
            );
        }
        if let Some(mib) = words.filler_mib {
            let socket = self.socket(FILLER);
            let _infallible = write!(
                text,
                "\n[[ssd]]\nname = {FILLER:?}\nsize = \"{mib}MiB\"\nvhost_socket = {socket:?}\nbackend = {{ type = \"pool\", pool = \"p\" }}\n"
            );
        }
        text
    }
}
