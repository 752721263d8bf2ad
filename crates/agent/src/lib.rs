//! The agent: the control plane of one host.
//!
//! ```text
//!  godwit, programs, browsers
//!     | REST on a unix socket, or over TCP with TLS (rest, serve, tls, page)
//!     v
//!   desired: a wish is checked and written down ----> store: SQLite, one transaction each
//!                                                       ^
//!   work: takes operations to their ends  --------------+
//!     | render: the desired state as a configuration
//!     v plane
//!   godwitd's control socket
//! ```
//!
//! The daemon serves what it was last told, whether there is an agent or not. The agent may be killed at any instruction: an
//! operation that was accepted (202) is written down, and the next agent takes it to its end.
//!
//! What is NOT done: more than one host; keys from a service; pools carved by namespaces.
#![forbid(unsafe_code)]

mod book;
mod desired;
mod keys;
mod page;
mod place;
mod plane;
mod refusal;
mod render;
mod rest;
mod serve;
mod store;
mod tls;
mod work;

#[cfg(test)]
mod crashes;

pub use place::Place;
pub use plane::{Daemon, How, Plane, PlaneError};
pub use rest::document;
pub use tls::Tls;
pub use work::Base;

use anyhow::Context;
use book::Book;
use rest::Desk;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{SystemTime, UNIX_EPOCH};
use store::Store;
use tokio::sync::Semaphore;
use work::Work;

/// Threads that wait for the disk or the daemon, for those who ask.
const BESIDE_MAX: usize = 8;
/// Of them for migrations, whose beginning may wait for another host.
const TELLS_MAX: usize = 4;

/// How an agent runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the desired state is kept.
    pub state: PathBuf,
    /// Where it listens.
    pub socket: PathBuf,
    /// Who may ask: the mode of the socket.
    pub mode: u32,
    /// TCP, for those who have a certificate.
    pub tls: Option<Tls>,
    /// The daemon's control socket.
    pub control: PathBuf,
    /// Where ssds' files and sockets are.
    pub place: Place,
    /// The daemon's own configuration.
    pub base: PathBuf,
}

/// Runs an agent until `stop` becomes readable.
///
/// # Errors
/// What keeps it from starting: what, and what to do.
pub fn run(options: Options, stop: OwnedFd) -> anyhow::Result<()> {
    for folder in [&options.place.ssds, &options.place.sockets] {
        std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
    }
    keys::make_folder(&options.place.keys)
        .with_context(|| format!("{}: cannot be made", options.place.keys.display()))?;
    let over_tcp = options.tls.as_ref().map(tls::Listener::bind).transpose()?;
    let store = Store::open(&options.state)?;
    let socket = serve::Socket::bind(&options.socket, options.mode)?;
    let (wake, asked) = mpsc::channel();
    let book = Book::new(store, wake)?;
    let plane: Arc<dyn Plane> = Arc::new(Daemon::new(options.control.clone()));
    let otherwise = toml::to_string(&toml::Table::from_iter([(
        "control".to_owned(),
        toml::Value::String(options.control.display().to_string()),
    )]))?;
    let base = Base { file: options.base, otherwise };
    let trouble = Arc::new(Mutex::new(None));
    let desk = Desk {
        book: book.clone(),
        plane: Arc::clone(&plane),
        place: options.place.clone(),
        base: base.clone(),
        now_ms,
        uuid,
        trouble: Arc::clone(&trouble),
        clock_ms,
        seen: Arc::default(),
        seen_stats: Arc::default(),
        seen_pools: Arc::default(),
        seen_drives: Arc::default(),
        seen_migrations: Arc::default(),
        tells: Arc::new(Semaphore::new(TELLS_MAX)),
    };
    let between = Box::new(|| {});
    let work = Work { book, plane, place: options.place, base, now_ms, uuid, trouble, told: None, between };
    std::thread::Builder::new().name("work".to_owned()).spawn(move || work.run(&asked))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BESIDE_MAX)
        .build()
        .context("cannot begin")?;
    let (tell, stopped) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("stop".to_owned()).spawn(move || {
        let _any = std::fs::File::from(stop).read(&mut [0]);
        let _ended = tell.send(());
    })?;
    tracing::info!(socket = %options.socket.display(), state = %options.state.display(), "the agent serves");
    let served = runtime.block_on(socket.serve(rest::router(desk), over_tcp, stopped));
    // Whoever still works is interrupted, which any step survives.
    runtime.shutdown_background();
    served
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Since the host was started.
fn clock_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (seconds, nanoseconds) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    seconds.saturating_mul(1000).saturating_add(nanoseconds / 1_000_000)
}

/// A new identity: random (version 4), in its canonical form.
fn uuid() -> String {
    let mut bytes = [0_u8; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    assert_eq!(filled, Ok(bytes.len()), "the kernel gives 16 random bytes at once");
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| hex.get(part).unwrap_or_default()).join("-")
}
