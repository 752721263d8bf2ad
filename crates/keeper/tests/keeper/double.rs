//! An engine that does what the client's messages say. It runs in a process of its own: this test program, started again.
//!
//! Its whole state is a number: the commands it was asked to `count`. It deposits the number with each answer that changes
//! it, so that a lost, repeated or invented command shows.

use link::blame;
use link::control::*;
use link::frame::Wait;
use link::session::{self, Answer, Command, Deposit as SessionDeposit, EngineFds, ToEngine as Heard};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Set in a process that is to be an engine.
pub const ENGINE: &str = "DOUBLE_ENGINE";
/// What it does out of the ordinary: words separated by spaces.
pub const HABITS: &str = "DOUBLE_HABITS";

/// Not a test: the engine's `main`. Without its variable it does nothing.
#[test]
fn engine_double() {
    if std::env::var(ENGINE).is_err() {
        return;
    }
    let link = std::io::stdin().as_fd().try_clone_to_owned().expect("the link");
    let mut habits = std::env::var(HABITS).unwrap_or_default();
    // A program of another name has habits of its own.
    let name = std::env::args().next().unwrap_or_default();
    if let Some((_, own)) = name.split_once("habits-") {
        habits = own.to_owned();
    }
    let link = Arc::new(Link::new(link));
    Double { link, habits, generation: 0, ssds: Vec::new(), blame: None, served: Vec::new() }.run();
}

struct Double {
    link: Arc<Link>,
    habits: String,
    generation: u64,
    ssds: Vec<Slot>,
    blame: Option<OwnedFd>,
    served: Vec<(Session, OwnedFd)>,
}

impl Double {
    fn has(&self, habit: &str) -> bool {
        self.habits.split(' ').any(|word| word == habit || word == format!("{habit}@{}", self.generation))
    }

    /// The word behind `habit=`.
    fn habit(&self, habit: &str) -> Option<&str> {
        self.habits.split(' ').find_map(|word| word.strip_prefix(habit)?.strip_prefix('='))
    }

    /// A drive with its lock, and a ring that holds it. Whoever comes later can have it when nobody holds the dead one's ring.
    fn lock(&self, path: &str) {
        let drive = std::fs::OpenOptions::new().create(true).append(true).open(path).expect("a drive");
        if self.generation > 1 {
            assert!(drive.try_lock().is_err(), "the ring is not held");
            self.say(&ToKeeper::Fenced, &[]);
        }
        drive.lock().expect("locked");
        let number = std::os::fd::AsRawFd::as_raw_fd(&drive).try_into().expect("a number");
        self.say(&ToKeeper::Ring { number }, &[]);
        assert!(matches!(
            self.link.receive::<ToEngine>(Wait::Block),
            Ok(Received::Message(ToEngine::RingKept { kept: true, .. }, _))
        ));
        // As long as this process lives.
        std::mem::forget(drive);
    }

    fn run(mut self) {
        loop {
            let message = match self.link.receive::<ToEngine>(Wait::Block) {
                Ok(Received::Message(message, fds)) => (message, fds),
                // The keeper is gone.
                _ => std::process::exit(1),
            };
            self.heard(message.0, message.1);
        }
    }

    /// Is ready for a change that was given up long ago, until it is told so.
    fn answer_late(&self) {
        self.say(&ToKeeper::Prepared(Prepared { change: 999, refused: None }), &[]);
        loop {
            match self.link.receive::<ToEngine>(Wait::Block) {
                Ok(Received::Message(ToEngine::Forget { change: 999 }, _)) => return,
                Ok(Received::Message(ToEngine::Commit { .. }, _)) => panic!("it is carried out"),
                Ok(Received::Message(..)) => {}
                _ => std::process::exit(0),
            }
        }
    }

    fn say(&self, message: &ToKeeper, fds: &[&OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        self.link.send(message, &fds).expect("the keeper listens");
    }

    fn heard(&mut self, message: ToEngine, mut fds: Vec<OwnedFd>) {
        match message {
            ToEngine::Welcome(welcome) => {
                self.generation = welcome.generation;
                self.ssds = welcome.ssds;
                self.blame = fds.pop();
                let release = format!("double-{}", self.habits);
                self.say(
                    &ToKeeper::Hello(Hello { version: link::VERSION, release, formats: Vec::new() }),
                    &[],
                );
                if self.has("die-early") {
                    std::process::abort();
                }
            }
            ToEngine::Check if self.has("refuse-check") => self.refuse("cannot read it", None),
            ToEngine::Check => self.say(&ToKeeper::Ready(Ready::default()), &[]),
            ToEngine::Session(session) => {
                let link = fds.pop().expect("its link");
                self.served.push((session, link));
                // After the start a session is served at once.
                if self.blame.is_none() {
                    self.serve_all();
                }
            }
            ToEngine::Start => self.start(),
            ToEngine::Prepare(_) if self.has("die-at-prepare") => kill_myself(),
            ToEngine::Prepare(change) => {
                if self.has("answer-late") {
                    self.answer_late();
                }
                let refused = self.has("refuse-change").then(|| "the drive is in use".to_owned());
                self.ssds = change.added;
                self.say(&ToKeeper::Prepared(Prepared { change: change.change, refused }), &[]);
            }
            ToEngine::Commit { .. } if self.has("die-at-commit") => kill_myself(),
            ToEngine::Commit { change } => {
                for slot in std::mem::take(&mut self.ssds) {
                    power_on(&self.link, slot.number.expect("a number"), None);
                }
                if self.has("die-in-commit") {
                    kill_myself();
                }
                self.say(&ToKeeper::Changed { change }, &[]);
            }
            ToEngine::Pause => {
                if self.has("never-pause") {
                    return;
                }
                self.say(&ToKeeper::Paused, &[]);
                std::process::exit(0);
            }
            ToEngine::Stop => std::process::exit(if self.has("fail-stop") { 3 } else { 0 }),
            _ => {}
        }
    }

    fn refuse(&self, reason: &str, ssd: Option<u32>) {
        self.say(&ToKeeper::Refused(Refused { reason: reason.to_owned(), ssd }), &[]);
        std::process::exit(2);
    }

    fn start(&mut self) {
        if self.has("refuse-start") {
            self.refuse("the drive is not there", None);
        }
        if self.has("refuse-ssd-1") && self.ssds.get(1).is_some_and(|slot| !slot.parked) {
            self.refuse("its region is torn", Some(1));
        }
        if self.has("die-at-start") {
            std::process::abort();
        }
        if let Some(path) = self.habit("lock") {
            self.lock(path);
        }
        for slot in self.ssds.iter().filter(|slot| !slot.saved && !slot.parked) {
            power_on(&self.link, slot.number.expect("a number"), None);
        }
        self.say(&ToKeeper::Ready(Ready { replayed: 7, reposted: 0, fenced: 1 }), &[]);
        // From here on sessions are served as they come.
        let blame = self.blame.take().expect("a page");
        BLAME.get_or_init(|| blame);
        self.serve_all();
    }

    fn serve_all(&mut self) {
        for (session, link) in self.served.drain(..) {
            let (control, generation) = (Arc::clone(&self.link), self.generation);
            let habits = self.habits.clone();
            std::thread::spawn(move || serve(session, link, &control, generation, &habits));
        }
    }
}

static BLAME: std::sync::OnceLock<OwnedFd> = std::sync::OnceLock::new();

fn power_on(link: &Link, ssd: u32, ended: Option<u64>) {
    let memfd = |name| rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    let (region, doorbells) = (memfd("region"), memfd("doorbells"));
    let message = PowerOn { ssd, ended, roles: vec![Role::REGION, Role::DOORBELLS], record: Some(vec![1]) };
    link.send(&ToKeeper::PowerOn(message), &[region.as_fd(), doorbells.as_fd()]).expect("the keeper listens");
}

/// What a client's thread knows.
struct Desk {
    ssd: u32,
    generation: u64,
    count: u64,
    kept: Vec<(u32, OwnedFd)>,
    sender: session::Sender,
    replies: Receiver<Vec<u8>>,
}

fn serve(session: Session, link: OwnedFd, control: &Link, generation: u64, habits: &str) {
    let raw = link.try_clone().expect("a duplicate");
    let (mut receiver, sender) = session::open(link).expect("opened");
    let Ok(Some(Heard::Restore(restore))) = receiver.receive() else { return };
    let count = restore.deposit.map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().expect("a number")));
    let (to_desk, commands) = channel();
    let (to_asker, replies) = channel::<Vec<u8>>();
    let desk = Desk { ssd: session.ssd, generation, count, kept: restore.fds, sender, replies };
    let worker = std::thread::spawn(move || work(desk, &commands, &raw));
    read(&mut receiver, &to_desk, &to_asker);
    drop((to_desk, to_asker));
    let _ = worker.join();
    if habits.split(' ').any(|word| word == format!("die-at-farewell@{generation}")) {
        std::process::abort();
    }
    power_on(control, session.ssd, Some(session.session));
}

fn read(receiver: &mut session::Receiver, commands: &Sender<Command>, replies: &Sender<Vec<u8>>) {
    while let Ok(Some(message)) = receiver.receive() {
        match message {
            Heard::Command(command) => _ = commands.send(command),
            Heard::Reply { frame } => _ = replies.send(frame),
            Heard::Restore(_) => unreachable!("link refuses it"),
        }
    }
}

fn work(mut desk: Desk, commands: &Receiver<Command>, raw: &OwnedFd) {
    for command in commands {
        let payload = String::from_utf8_lossy(command.frame.get(16..).unwrap_or(&[])).into_owned();
        let mut words = payload.split(' ');
        let verb = words.next().unwrap_or_default().to_owned();
        let until: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        desk.carry_out(command, &verb, until, raw);
    }
}

impl Desk {
    fn carry_out(&mut self, command: Command, verb: &str, until: u64, raw: &OwnedFd) {
        // "die 2": engines up to the second die.
        let doomed = self.generation <= until;
        let mut reply = format!("{verb} {} {}", self.generation, self.count);
        let mut answer = Answer { seq: command.seq, ..Answer::default() };
        match verb {
            "die" if doomed => std::process::abort(),
            "kill" if doomed => kill_myself(),
            "poison" if doomed => {
                blame_me(self.ssd);
                std::process::abort();
            }
            "half" if doomed => {
                // Half an answer, as a process leaves it that is killed in the middle of writing.
                let fd = Arc::new(
                    rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("eventfd"),
                );
                let _ = &fd;
                let header =
                    [&[0x81, 0, 0, 0][..], &[0; 12], &100u32.to_le_bytes(), &[0; 4], &[7; 50]].concat();
                rustix::io::write(raw, &header).expect("written");
                kill_myself();
            }
            "ask" => {
                let request = frame(77, 11, 0, b"data please");
                self.sender.requests(vec![request]).expect("sent");
                if doomed {
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    kill_myself();
                }
                let answered = self.replies.recv().expect("an answer");
                assert_eq!(&answered[..2], &77u16.to_le_bytes());
                reply = String::from_utf8_lossy(&answered[16..]).into_owned();
            }
            "count" => self.count += 1,
            "keep" => {
                self.kept.extend(command.fds);
                self.count += 1;
            }
            "drop" => {
                self.kept.clear();
                self.count += 1;
            }
            // Shows what it keeps: rings each.
            "ring" => {
                for (_, fd) in &self.kept {
                    rustix::io::write(fd, &1u64.to_ne_bytes()).expect("an eventfd");
                }
                reply = format!("ring {}", self.kept.len());
            }
            "gift" => {
                let fd = rustix::event::eventfd(41, rustix::event::EventfdFlags::CLOEXEC).expect("eventfd");
                answer.fds =
                    EngineFds { first: session::ENGINE_FDS + 5, for_client: 1, fds: vec![Arc::new(fd)] };
            }
            "surplus" => reply = format!("surplus {} {}", command.surplus_fds, command.fds.len()),
            "hangup" => {
                self.answer(answer, &command.frame, reply.as_bytes());
                return self.sender.hang_up().expect("sent");
            }
            "sleep" => std::thread::sleep(std::time::Duration::from_millis(until)),
            "big" => reply = "x".repeat(1 << 20),
            _ => {}
        }
        if matches!(verb, "count" | "keep" | "drop") {
            reply = format!("{verb} {} {}", self.generation, self.count);
            let keep = self.kept.iter().map(|(id, _)| *id).collect();
            answer.deposit = Some(SessionDeposit { bytes: self.count.to_le_bytes().to_vec(), keep });
        }
        self.answer(answer, &command.frame, reply.as_bytes());
        if verb == "after" && doomed {
            kill_myself();
        }
    }

    fn answer(&self, mut answer: Answer, asked: &[u8], reply: &[u8]) {
        let no_reply = asked[8] & 0x10 != 0;
        if !no_reply {
            let id = u16::from_le_bytes([asked[0], asked[1]]);
            answer.reply = frame(id, u16::from_le_bytes([asked[2], asked[3]]), 1, reply);
        }
        self.sender.answer(&answer).expect("sent");
    }
}

/// A vfio-user message.
pub fn frame(id: u16, command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(16 + payload.len()).expect("small");
    let head =
        [&id.to_le_bytes()[..], &command.to_le_bytes(), &size.to_le_bytes(), &flags.to_le_bytes(), &[0; 4]];
    [&head.concat()[..], payload].concat()
}

fn kill_myself() {
    let me = rustix::process::getpid();
    rustix::process::kill_process(me, rustix::process::Signal::KILL).expect("killed");
    std::thread::sleep(std::time::Duration::from_secs(5));
}

/// Says in the page of blame that this thread, with this ssd in hand, fails.
fn blame_me(ssd: u32) {
    let page = BLAME.get().expect("a page");
    let line = [(ssd + 1).to_ne_bytes(), 1u32.to_ne_bytes()].concat();
    rustix::io::pwrite(page, &line, 64 * blame::FIRST_OTHER as u64).expect("written");
}
