//! The keeper replaces itself: the new program is executed in this very process, so that the engine stays its child and the
//! clients' sockets stay connected. Guests' I/O does not pass through the keeper and does not notice.
//!
//! ```text
//!  asked --> a child of the new program reads a copy of the state --it can--> at rest --> executed, state on standard input
//!                     | cannot, dies, is late                     | never       | fails
//!                     v                                           v             v
//!                  nothing has changed                   nothing has changed   nothing has changed
//! ```
//!
//! The descriptors wait in a socket (`vault`) meanwhile, which is the new program's standard input; only io_urings, which no
//! socket takes, stay open by their numbers. What is half in or half out of a socket is in the record.

use crate::carry::{Descriptors, Links, Naming, instant};
use crate::console::Console;
use crate::history::History;
use crate::island;
use crate::keeper::{Keeper, Options};
use crate::listener::Listener;
use crate::messages::monotonic_ns;
use crate::poller::Token;
use crate::process::{Binary, Engine, Stage};
use crate::session::Session;
use crate::ssd::Ssd;
use crate::upgrade::Probation;
use crate::vault::{self, Vault};
use anyhow::{Context, bail, ensure};
use api::config::Config;
use api::control::Response;
use rustix::fs::{MemfdFlags, OFlags, SealFlags};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use state::keeper::{EngineV1, Fd, KeeperV1, KeptSessionV1, ProbationV1, read_all};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How this program is executed anew.
#[derive(Clone, Debug)]
pub struct Again {
    /// Where its file is.
    pub program: PathBuf,
    /// The arguments with which it calls [`Keeper::resume`].
    pub resume: Vec<OsString>,
    /// The arguments with which it calls [`check`].
    pub check: Vec<OsString>,
}

/// A keeper after this one, until it is executed.
#[derive(Debug)]
pub(crate) struct Succession {
    binary: Binary,
    guest: Option<u32>,
    checker: Option<Checker>,
    /// By when the stage must be over.
    pub(crate) by: Instant,
    /// Until then people's questions are answered first.
    polite_until: Instant,
}

/// The child that looks whether it could.
#[derive(Debug)]
struct Checker {
    pidfd: OwnedFd,
    /// What it says when it cannot.
    words: std::fs::File,
}

/// What a program says that could go on from the state.
const CAN_RESUME: &str = "godwitd: the keeper's state can be read";
/// How long the new program may look at the state.
const CHECK_TIME: Duration = Duration::from_secs(20);
/// How long to wait for a moment in which nothing is under way.
const REST_TIME: Duration = Duration::from_secs(3);
/// How long others' questions go first.
const POLITE_TIME: Duration = Duration::from_millis(500);
/// The record's id among the descriptors.
const RECORD: u32 = u32::MAX;
/// The longest record that is read.
const RECORD_BYTES_MAX: u64 = 1 << 30;
/// The most words of a checker that are passed on.
const WORDS_MAX: usize = 2000;

/// Numbers the descriptors in the order of their first mention.
#[derive(Default)]
struct Bag {
    ids: HashMap<RawFd, u32>,
    order: Vec<RawFd>,
}

impl Naming for Bag {
    fn shared(&mut self, fd: &Arc<OwnedFd>) -> Fd {
        self.lone(fd.as_fd())
    }

    fn lone(&mut self, fd: BorrowedFd<'_>) -> Fd {
        let raw = fd.as_raw_fd();
        let next = u32::try_from(self.order.len()).unwrap_or(RECORD);
        let id = *self.ids.entry(raw).or_insert(next);
        if id == next {
            self.order.push(raw);
        }
        Fd(id)
    }
}

// ---- the keeper that goes

impl Keeper {
    /// Begins to replace this keeper. Errors are for people; nothing has changed then.
    pub(crate) fn begin_succession(
        &mut self,
        path: Option<PathBuf>,
        guest: Option<u32>,
        now: Instant,
    ) -> Result<(), String> {
        if self.stopping {
            return Err("the daemon is stopping".to_owned());
        }
        if self.upgrade.is_some() || self.succession.is_some() {
            return Err("another upgrade is under way; wait for it (`godwit status` shows it)".to_owned());
        }
        if self.change.is_some() {
            return Err("a change of the configuration is under way; wait for it and try again".to_owned());
        }
        let Some(again) = self.options.again.clone() else {
            return Err("this keeper cannot replace itself".to_owned());
        };
        if self.active().is_none_or(|engine| engine.stage != Stage::Serving) {
            return Err("no engine is serving now; try again when `godwit status` says serving".to_owned());
        }
        let result = Binary::open(&path.unwrap_or(again.program)).and_then(|binary| {
            let checker = self.check_by(&binary, &again.check)?;
            Ok((binary, checker))
        });
        let (binary, checker) = result.map_err(|error| format!("{error:#}; nothing has changed"))?;
        self.poller.set(Token::Checker, &checker.pidfd, (true, false));
        let by = now + CHECK_TIME;
        self.succession = Some(Succession { binary, guest, checker: Some(checker), by, polite_until: now });
        Ok(())
    }

    /// Starts the new program as a child that reads a copy of the state.
    fn check_by(&self, binary: &Binary, arguments: &[OsString]) -> anyhow::Result<Checker> {
        let (keeper, sessions, _) = self.to_kept(None);
        let record = record_memfd(&keeper, &sessions)?;
        let words = std::fs::File::from(rustix::fs::memfd_create("godwit-words", MemfdFlags::CLOEXEC)?);
        let mut command = Command::new(format!("/proc/self/fd/{}", binary.file.as_raw_fd()));
        command.arg0(&binary.path).args(arguments).process_group(0);
        command.stdin(record).stdout(words.try_clone()?).stderr(words.try_clone()?);
        let child = command.spawn().with_context(|| format!("cannot start {}", binary.path.display()))?;
        let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        Ok(Checker { pidfd, words })
    }

    /// The child has ended.
    pub(crate) fn checker_ended(&mut self, now: Instant) {
        let Some(succession) = &mut self.succession else { return };
        let Some(checker) = &mut succession.checker else { return };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = match rustix::process::waitid(WaitId::PidFd(checker.pidfd.as_fd()), options) {
            Ok(None) => return,
            Ok(Some(status)) => status.exit_status(),
            Err(_) => None,
        };
        let words = checker.words();
        succession.checker = None;
        self.poller.closed(Token::Checker);
        // Many a program ends well without having understood anything.
        if status != Some(0) || !words.contains(CAN_RESUME) {
            let words = words.trim();
            let words = if words.is_empty() { "it says nothing" } else { words };
            return self.fail_succession(&format!("the new program cannot take over: {words}"));
        }
        succession.by = now + REST_TIME;
        succession.polite_until = now + POLITE_TIME;
        if let Some(guest) = succession.guest {
            self.progress(guest, "the new program can read the keeper's state; it takes over");
        }
    }

    fn fail_succession(&mut self, why: &str) {
        let Some(succession) = self.succession.take() else { return };
        if let Some(checker) = &succession.checker {
            let _ = rustix::process::pidfd_send_signal(&checker.pidfd, Signal::KILL);
            let _ = rustix::process::waitid(WaitId::PidFd(checker.pidfd.as_fd()), WaitIdOptions::EXITED);
            self.poller.closed(Token::Checker);
        }
        let text = format!("the keeper was not replaced: {why}; nothing has changed");
        tracing::error!("{text}");
        self.answer(succession.guest, Response::Error(text));
    }

    /// Executes the new program when it is time to. `stop`: a request to stop goes first.
    pub(crate) fn succeed_keeper(&mut self, now: Instant, stop: &impl AsFd) {
        let Some(succession) = &self.succession else { return };
        if self.stopping {
            return self.fail_succession("the daemon stops");
        }
        let (by, checked) = (succession.by, succession.checker.is_none());
        if checked && self.is_at_rest(now) {
            return self.execute_anew(stop);
        }
        if by <= now {
            self.fail_succession(match checked {
                false => "the new program takes too long to read the state",
                true => "no moment came in which nothing else was under way",
            });
        }
    }

    /// When to look again whether it is time.
    pub(crate) fn succession_deadline(&self, now: Instant) -> Option<Instant> {
        let succession = self.succession.as_ref()?;
        match succession.checker {
            Some(_) => Some(succession.by),
            None => Some(succession.by.min(now + Duration::from_millis(1))),
        }
    }

    /// Nothing is under way that the record has no place for.
    fn is_at_rest(&mut self, now: Instant) -> bool {
        let asker = self.succession.as_ref().and_then(|succession| succession.guest);
        let waiter = self.probation.as_ref().and_then(|probation| probation.guest);
        let polite_until = self.succession.as_ref().map(|succession| succession.polite_until);
        let others = self.console.others([asker, waiter]);
        let Some(engine) = self.active_mut() else { return false };
        engine.flush();
        let calm = engine.stage == Stage::Serving
            && engine.outbox.is_empty()
            && engine.deadline.is_none()
            && engine.lost_session.is_none()
            && engine.expelled.is_none()
            && engine.refused.is_none();
        let alone = self.engines.len() == 1 && self.upgrade.is_none();
        calm && alone && (!others || polite_until.is_none_or(|until| until <= now))
    }

    fn execute_anew(&mut self, stop: &impl AsFd) {
        island::hold_stop_signals(true);
        let result = if is_readable(stop) { Ok(()) } else { self.try_to_execute() };
        // Still here: everything goes on as before.
        island::hold_stop_signals(false);
        if let Err(error) = result {
            self.fail_succession(&format!("{error:#}"));
        }
    }

    /// Returns only with an error, having undone what it did.
    fn try_to_execute(&mut self) -> anyhow::Result<()> {
        let again = self.options.again.clone().context("this keeper cannot replace itself")?;
        let succession = self.succession.as_ref().context("nobody asked")?;
        let arguments = [succession.binary.path.clone().into_os_string()].into_iter().chain(again.resume);
        let stdin = std::io::stdin().as_fd().try_clone_to_owned().ok();
        let (keeper, sessions, bag) = self.to_kept(stdin.as_ref());
        let record = record_memfd(&keeper, &sessions)?;
        let vault = Vault::new()?;
        vault.put(&[(RECORD, record.as_fd())])?;
        self.fill(&vault, &bag, stdin.as_ref())
            .context("the descriptors find no place in a socket (RLIMIT_NOFILE?)")?;
        let rings: Vec<&Arc<OwnedFd>> =
            self.engines.values().flat_map(|engine| engine.rings.values()).chain(&self.old_rings).collect();
        tracing::info!(program = %succession.binary.path.display(), "executing the next keeper");
        let keep = |keep| rings.iter().try_for_each(|ring| island::keep_over_execution(ring, keep));
        let result = keep(true).and_then(|()| island::set_stdin(vault.read.as_fd()));
        let error = match result {
            Ok(()) => island::execute(succession.binary.file.as_fd(), arguments.collect()),
            Err(error) => error,
        };
        let _ = keep(false);
        match &stdin {
            Some(stdin) => _ = island::set_stdin(stdin.as_fd()),
            None => _ = island::set_stdin(open_null()?.as_fd()),
        }
        bail!("{} cannot be executed: {error}", succession.binary.path.display())
    }

    /// Puts all descriptors into the socket, in the order of their ids.
    fn fill(&self, vault: &Vault, bag: &Bag, stdin: Option<&OwnedFd>) -> anyhow::Result<()> {
        let mut by_number: HashMap<RawFd, BorrowedFd<'_>> = HashMap::new();
        self.each_descriptor(&mut |fd| _ = by_number.insert(fd.as_raw_fd(), fd));
        by_number.extend(stdin.map(|fd| (fd.as_raw_fd(), fd.as_fd())));
        let entries: Option<Vec<_>> =
            (0..).zip(&bag.order).map(|(id, raw)| Some((id, *by_number.get(raw)?))).collect();
        vault.put(&entries.context("a descriptor of the record is not there")?)?;
        Ok(())
    }

    /// All that the record may name.
    fn each_descriptor<'a>(&'a self, tell: &mut dyn FnMut(BorrowedFd<'a>)) {
        self.console.each_descriptor(tell);
        let probation = self.probation.iter().map(|probation| &probation.former);
        let running = self.engines.values().map(|engine| &engine.binary);
        for binary in probation.chain(running).chain([&self.binary]) {
            tell(binary.file.as_fd());
        }
        for engine in self.engines.values() {
            [engine.pidfd.as_fd(), engine.link.as_fd(), engine.blame.as_fd()]
                .into_iter()
                .for_each(&mut *tell);
        }
        let leaving = self.change.iter().flat_map(|change| change.leaving.iter());
        for ssd in self.ssds.values().chain(leaving) {
            tell(ssd.listener.as_fd());
            ssd.memory.values().for_each(|fd| tell(fd.as_fd()));
            if let Some(session) = &ssd.session {
                session.each_descriptor(tell);
            }
        }
    }

    /// All as a record, and the descriptors in the order of their ids.
    fn to_kept(&self, stdin: Option<&OwnedFd>) -> (KeeperV1, Vec<KeptSessionV1>, Bag) {
        let mut bag = Bag::default();
        let mut ssds = Vec::new();
        let mut sessions = Vec::new();
        for (number, ssd) in self.in_order() {
            ssds.push(ssd.to_kept(number, &mut bag));
            let session = ssd.session.as_ref();
            sessions.extend(session.map(|session| session.to_kept(&ssd.name, Links::Live, &mut bag)));
        }
        let asker = self.succession.as_ref().and_then(|succession| succession.guest);
        let asker = asker.and_then(|guest| self.console.socket(guest)).map(|fd| bag.lone(fd));
        let probation = self.probation.as_ref().map(|probation| ProbationV1 {
            former: probation.former.to_kept(&mut bag),
            until_ns: ns_from_now(probation.until),
            asker: probation.guest.and_then(|guest| self.console.socket(guest)).map(|fd| bag.lone(fd)),
        });
        let keeper = KeeperV1 {
            engine: self.active().map(|engine| engine.to_kept(Links::Live, &mut bag)),
            probation,
            asker,
            ssds,
            stdin: stdin.map(|fd| bag.lone(fd.as_fd())),
            old_rings: self.old_rings.iter().filter_map(number).collect(),
            shelf: self.store.as_ref().map_or_else(Vec::new, |store| store.lock().names()),
            ..self.kept_common(&mut bag)
        };
        (keeper, sessions, bag)
    }

    /// What every record of this keeper says.
    pub(crate) fn kept_common(&self, naming: &mut impl Naming) -> KeeperV1 {
        KeeperV1 {
            generation: self.generation,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            config_path: self.options.config_path.display().to_string(),
            config_text: self.options.config_text.clone(),
            file_text: (self.file_text != self.options.config_text).then(|| self.file_text.clone()),
            next_ssd: Some(self.next_ssd),
            stats: self.options.stats.as_ref().map(|path| path.display().to_string()),
            console: self.console.listener().map(|listener| listener.to_kept(naming)),
            next_session: self.next_session,
            last_engine: self.last_generation,
            program: Some(self.binary.to_kept(naming)),
            ends: self.history.to_kept(),
            crashes: self.history.crashes,
            handovers: self.history.handovers,
            has_served: self.has_served,
            left_ns: monotonic_ns(Instant::now()),
            ..KeeperV1::default()
        }
    }
}

impl Checker {
    fn words(&mut self) -> String {
        let mut bytes = Vec::new();
        let _ = self.words.seek(SeekFrom::Start(0));
        let _ = (&mut self.words).take(WORDS_MAX as u64).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Session {
    fn each_descriptor<'a>(&'a self, tell: &mut dyn FnMut(BorrowedFd<'a>)) {
        let streams =
            self.client.iter().map(|client| (client.socket.as_fd(), &client.intake, &client.outbox));
        let links = self.link.iter().map(|link| (link.socket.as_fd(), &link.intake, &link.outbox));
        for (socket, intake, outbox) in streams.chain(links) {
            tell(socket);
            intake.begun().1.iter().for_each(|fd| tell(fd.as_fd()));
            outbox.waiting().0.flat_map(|parcel| &parcel.fds).for_each(|fd| tell(fd.as_fd()));
        }
        self.unanswered.iter().flat_map(|pending| &pending.fds).for_each(|fd| tell(fd.as_fd()));
        self.kept.values().for_each(|fd| tell(fd.as_fd()));
    }
}

impl Engine {
    pub(crate) fn to_kept(&self, links: Links, naming: &mut impl Naming) -> EngineV1 {
        let live = links == Links::Live;
        let numbers = |(theirs, ring): (&u32, &Arc<OwnedFd>)| Some((*theirs, number(ring)?));
        let hello = self.hello.clone().unwrap_or_default();
        EngineV1 {
            generation: self.generation,
            pid: self.pid,
            pidfd: naming.shared(&self.pidfd),
            link: live.then(|| naming.lone(self.link.as_fd())),
            blame: naming.shared(&self.blame),
            program: self.binary.to_kept(naming),
            rings: self.rings.iter().filter(|_| live).filter_map(numbers).collect(),
            release: hello.release,
            link_version: hello.version,
            ready_ns: self.ready_at.map_or(0, monotonic_ns),
        }
    }

    fn from_kept(kept: &EngineV1, fds: &Descriptors) -> anyhow::Result<Self> {
        let link = kept.link.context("the engine's link has ended")?;
        let mut rings = BTreeMap::new();
        for (theirs, ours) in &kept.rings {
            rings.insert(*theirs, Arc::new(island::adopt(*ours).context("an io_uring of the engine")?));
        }
        let hello = link::control::Hello {
            version: kept.link_version,
            release: kept.release.clone(),
            formats: Vec::new(),
        };
        let binary = Arc::new(Binary::from_kept(&kept.program, fds)?);
        let link = link::control::Link::new(fds.lone(link)?);
        let process = (kept.pid, fds.shared(kept.pidfd)?);
        let (blame, stage) = (fds.shared(kept.blame)?, Stage::Serving);
        let engine = Self::with(kept.generation, stage, process, link, blame, binary);
        Ok(Self { rings, hello: Some(hello), ready_at: Some(instant(kept.ready_ns)), ..engine })
    }
}

fn number(fd: &Arc<OwnedFd>) -> Option<u32> {
    u32::try_from(fd.as_raw_fd()).ok()
}

fn ns_from_now(at: Instant) -> u64 {
    let left = at.saturating_duration_since(Instant::now());
    monotonic_ns(Instant::now()).saturating_add(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX))
}

fn is_readable(fd: &impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let ready = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    ready.is_ok() && fds[0].revents().contains(PollFlags::IN)
}

fn open_null() -> anyhow::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, rustix::fs::Mode::empty())?)
}

/// The records in memory that nobody changes any more, to be read from its beginning.
fn record_memfd(keeper: &KeeperV1, sessions: &[KeptSessionV1]) -> anyhow::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("godwit-keeper", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(&keeper.to_bytes()?)?;
    for session in sessions {
        file.write_all(&session.to_bytes()?)?;
    }
    file.seek(SeekFrom::Start(0))?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

fn read_record(from: OwnedFd) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut file = std::fs::File::from(from);
    file.seek(SeekFrom::Start(0)).context("the state is in no file")?;
    file.take(RECORD_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

// ---- the keeper that comes

/// Says, on the standard output, whether this program could go on from the keeper's state on its standard input. Changes
/// nothing.
///
/// # Errors
/// It could not: why.
pub fn check() -> anyhow::Result<()> {
    let (keeper, sessions) = read_all(&read_record(std::io::stdin().as_fd().try_clone_to_owned()?)?)?;
    let config = Config::parse(Path::new(&keeper.config_path), &keeper.config_text)?;
    let same = config.ssds.len() == keeper.ssds.len()
        && config.ssds.iter().zip(&keeper.ssds).all(|(ssd, kept)| ssd.name == kept.name);
    ensure!(same, "the ssds that are kept are not those of the configuration");
    for session in &sessions {
        ensure!(keeper.ssds.iter().any(|ssd| ssd.name == session.ssd), "a session of no ssd");
        crate::carry::protocol(link::control::Door(session.door))?;
    }
    let engine = keeper.engine.context("no engine is serving")?;
    ensure!(engine.link_version >= 1, "the engine speaks no link of ours");
    println!("{CAN_RESUME}");
    Ok(())
}

impl Keeper {
    /// Goes on from the state that another keeper, which executed this program, left on the standard input.
    ///
    /// # Errors
    /// It cannot be read: the sessions are lost.
    pub fn resume(options: Options) -> anyhow::Result<Self> {
        let from = std::io::stdin().as_fd().try_clone_to_owned()?;
        island::set_stdin(open_null()?.as_fd())?;
        let mut fds = Descriptors::default();
        while let Some(packet) = vault::take(from.as_fd(), false)? {
            fds.0.extend(packet.into_iter().map(|(id, fd)| (id, Arc::new(fd))));
        }
        drop(from);
        let (keeper, sessions) = read_all(&read_record(fds.lone(Fd(RECORD))?)?)?;
        if let Some(stdin) = keeper.stdin {
            island::set_stdin(fds.shared(stdin)?.as_fd())?;
        }
        // Of a program executed by its descriptor the name would be the descriptor's number.
        let _ = rustix::thread::set_name(c"godwitd");
        let options = Options {
            config_path: PathBuf::from(&keeper.config_path),
            config_text: keeper.config_text.clone(),
            stats: keeper.stats.as_ref().map(PathBuf::from),
            ..options
        };
        let mut resumed = Self::from_kept(options, &keeper, &sessions, &fds)?;
        resumed.greet(&keeper, &fds)?;
        resumed.settle_again(&keeper.shelf)?;
        Ok(resumed)
    }

    fn from_kept(
        options: Options,
        keeper: &KeeperV1,
        sessions: &[KeptSessionV1],
        fds: &Descriptors,
    ) -> anyhow::Result<Self> {
        let now = Instant::now();
        let patience = (options.limits.frame_time, options.limits.send_time);
        let config = Config::parse(&options.config_path, &options.config_text)?;
        let mut ssds = BTreeMap::new();
        for (place, kept) in (0..).zip(&keeper.ssds) {
            let what = || format!("ssd \"{}\"", kept.name);
            let listener = kept.listener.as_ref().with_context(what)?;
            let config = config.ssd(&kept.name).with_context(what)?;
            let mut ssd = Ssd::new(config, Listener::from_kept(listener, fds).with_context(what)?);
            ssd.resume(kept, fds).with_context(what)?;
            if let Some(kept) = sessions.iter().find(|session| session.ssd == kept.name) {
                ssd.session = Some(Session::from_kept(kept, fds, now, patience).with_context(what)?);
            }
            ssds.insert(kept.number.unwrap_or(place), ssd);
        }
        let listener = keeper.console.as_ref().map(|kept| Listener::from_kept(kept, fds)).transpose()?;
        let mut resumed = Self::assemble(options, ssds, Console::new(listener))?;
        resumed.take_up(keeper, fds)?;
        if let Some(text) = &keeper.file_text {
            resumed.file_text.clone_from(text);
        }
        let engine = keeper.engine.as_ref().context("no engine is serving")?;
        let engine = Engine::from_kept(engine, fds)?;
        resumed.poller.set(Token::Process(engine.generation), &engine.pidfd, (true, false));
        resumed.active = Some(engine.generation);
        resumed.engines.insert(engine.generation, engine);
        resumed.start_at = None;
        for number in &keeper.old_rings {
            resumed.old_rings.push(Arc::new(island::adopt(*number).context("an old io_uring")?));
        }
        Ok(resumed)
    }

    /// The plain facts of a record.
    pub(crate) fn take_up(&mut self, keeper: &KeeperV1, fds: &Descriptors) -> anyhow::Result<()> {
        self.generation = keeper.generation + 1;
        self.next_session = keeper.next_session;
        self.last_generation = keeper.last_engine;
        self.has_served = keeper.has_served;
        self.next_ssd = self.next_ssd.max(keeper.next_ssd.unwrap_or(0));

        self.history = History::from_kept(&keeper.ends, keeper.crashes, keeper.handovers);
        if let Some(program) = &keeper.program {
            self.binary = Arc::new(Binary::from_kept(program, fds)?);
        }
        Ok(())
    }

    /// Tells whoever waits, and goes on with the probation.
    fn greet(&mut self, keeper: &KeeperV1, fds: &Descriptors) -> anyhow::Result<()> {
        if let Some(kept) = &keeper.probation {
            let guest = kept.asker.map(|fd| fds.lone(fd)).transpose()?;
            let guest = guest.map(|socket| self.console.adopt(&mut self.poller, socket));
            let former = Arc::new(Binary::from_kept(&kept.former, fds)?);
            let left = kept.until_ns.saturating_sub(monotonic_ns(Instant::now()));
            let until = Instant::now() + Duration::from_nanos(left);
            self.probation = Some(Probation { former, until, guest });
        }
        let asker = keeper.asker.map(|fd| fds.lone(fd)).transpose()?;
        let asker = asker.map(|socket| self.console.adopt(&mut self.poller, socket));
        let since_us = monotonic_ns(Instant::now()).saturating_sub(keeper.left_ns) / 1000;
        let sessions = self.ssds.values().filter(|ssd| ssd.session.is_some()).count();
        tracing::info!(
            generation = self.generation,
            former = keeper.release,
            since_us,
            sessions,
            "this keeper goes on"
        );
        let text = format!("keeper {} goes on after {since_us} µs, {sessions} sessions", self.generation);
        self.answer(asker, Response::Done(text));
        Ok(())
    }
}
