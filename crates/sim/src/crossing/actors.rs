//! The product's blocking code as something that a world turns: each of its threads runs only while the world waits for it, up to the
//! next thing that it asks of the world.
//!
//! ```text
//!  World --Reply--> one actor: Precopy, a Stream's pass, Receiver::serve ... until it needs something: --Ask--> World
//! ```
//! All of what is shared is the world's and is touched between two turns, so a seed replays. Killed, an actor unwinds past everything that a
//! process which has ended would not do any more.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use transfer::receive::Arrived;

use crate::world::message;

/// Names an actor.
pub(super) type ActorId = usize;
/// Names a connection, and which end of it: 0 is the source's.
pub(super) type End = (usize, usize);

/// What an actor needs.
pub(super) enum Ask {
    /// Others may go first.
    Yield,
    /// Writes are noted from here on, and what was at the drive has ended.
    Arm,
    /// Runs of pages that have something.
    Allocated,
    Read {
        start_bytes: u64,
        len_bytes: u64,
    },
    Write {
        start_bytes: u64,
        bytes: Vec<u8>,
    },
    Zero {
        start_bytes: u64,
        len_bytes: u64,
    },
    Flush,
    Connect {
        stream: u16,
    },
    /// The next connection that brings pages.
    Accept,
    Send(End, Vec<u8>),
    Receive(End, usize),
    /// This end is not used any more.
    Close(End),
    Sleep {
        nanos: u64,
    },
    /// So many actors beside this one.
    Spawn(usize),
    /// They have all ended.
    Join,
    /// Little is left: the guest is to stand still.
    Near,
    /// The rest is on its way.
    Rested,
    /// There will be no copy.
    Failed(String),
    Arrived(Box<Arrived>),
    Ended,
    Panicked(String),
}

/// What it is given.
pub(super) enum Reply {
    Go,
    Bytes(Vec<u8>),
    Count(usize),
    Runs(Vec<(u64, u64)>),
    Connected(End),
    Accepted(End, Port),
    Ports(Vec<Port>),
    /// The controller's state: it stands still.
    State(Vec<u8>),
    Failed(ErrorKind),
    /// Its process has ended.
    Dead,
}

/// What a killed actor unwinds with.
struct Killed;

/// An actor's way to the world.
pub(super) struct Port {
    id: ActorId,
    asks: Sender<(ActorId, Ask)>,
    replies: Receiver<Reply>,
    dead: bool,
}

thread_local! {
    static PORT: RefCell<Option<Port>> = const { RefCell::new(None) };
}

/// Asks the world, on the thread of an actor.
pub(super) fn ask(ask: Ask) -> Reply {
    let reply = PORT.with_borrow_mut(|port| {
        let port = port.as_mut().filter(|port| !port.dead)?;
        let _ = port.asks.send((port.id, ask));
        let reply = port.replies.recv().ok().filter(|reply| !matches!(reply, Reply::Dead));
        port.dead = reply.is_none();
        reply
    });
    reply.unwrap_or_else(|| {
        if !std::thread::panicking() {
            resume_unwind(Box::new(Killed));
        }
        Reply::Dead
    })
}

/// The life of an actor on its own thread.
pub(super) fn enter(port: Port, body: impl FnOnce()) {
    let begins = matches!(port.replies.recv(), Ok(Reply::Go));
    let (id, asks) = (port.id, port.asks.clone());
    let mut last = Ask::Ended;
    if begins {
        PORT.set(Some(port));
        if let Err(end) = catch_unwind(AssertUnwindSafe(body))
            && !end.is::<Killed>()
        {
            last = Ask::Panicked(message(&*end));
        }
        PORT.set(None);
    }
    let _ = asks.send((id, last));
}

/// What an actor is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Copies the ssd elsewhere.
    Copy,
    /// Takes what comes.
    Landing,
}

/// One actor, as the world knows it.
pub(super) struct Actor {
    pub(super) id: ActorId,
    pub(super) host: usize,
    pub(super) role: Role,
    /// What it waits for, and since when. `None`: to begin.
    pub(super) pending: Option<Ask>,
    pub(super) since: u64,
    parent: Option<ActorId>,
    replies: Sender<Reply>,
    thread: Option<JoinHandle<()>>,
}

impl Actor {
    /// For people.
    pub(super) fn wants(&self) -> String {
        match &self.pending {
            None => "to begin".to_owned(),
            Some(Ask::Read { start_bytes, len_bytes }) => format!("read {start_bytes}+{len_bytes}"),
            Some(Ask::Send(end, bytes)) => {
                format!("send {} bytes by {end:?} since {}", bytes.len(), self.since)
            }
            Some(Ask::Receive(end, _)) => format!("receive by {end:?} since {}", self.since),
            Some(Ask::Sleep { nanos }) => format!("sleep {nanos} since {}", self.since),
            Some(Ask::Accept) => "accept".to_owned(),
            Some(Ask::Arm) => "arm".to_owned(),
            Some(Ask::Join) => "join".to_owned(),
            Some(Ask::Near) => "the guest to stand still".to_owned(),
            Some(_) => "something short".to_owned(),
        }
    }
}

/// All of them.
pub(super) struct Actors {
    /// Where each says what it asks, and where that is heard.
    say: Sender<(ActorId, Ask)>,
    heard: Receiver<(ActorId, Ask)>,
    list: Vec<Actor>,
    next: ActorId,
}

impl Default for Actors {
    fn default() -> Self {
        let (say, heard) = channel();
        Self { say, heard, list: Vec::new(), next: 0 }
    }
}

impl Actors {
    /// A place for one more; it begins when it is resumed first.
    pub(super) fn port(&mut self, host: usize, role: Role, parent: Option<ActorId>) -> Port {
        let (replies, inbox) = channel();
        let id = self.next;
        self.next += 1;
        self.list.push(Actor { id, host, role, pending: None, since: 0, parent, replies, thread: None });
        Port { id, asks: self.say.clone(), replies: inbox, dead: false }
    }

    /// A thread of the process.
    pub(super) fn spawn(&mut self, host: usize, role: Role, body: impl FnOnce() + Send + 'static) {
        let port = self.port(host, role, None);
        let thread = std::thread::spawn(move || enter(port, body));
        if let Some(actor) = self.list.last_mut() {
            actor.thread = Some(thread);
        }
    }

    pub(super) fn list(&self) -> &[Actor] {
        &self.list
    }

    pub(super) fn get(&self, id: ActorId) -> Option<&Actor> {
        self.list.iter().find(|actor| actor.id == id)
    }

    /// Whether there is any of this process and role.
    pub(super) fn any(&self, host: usize, role: Role) -> bool {
        self.list.iter().any(|actor| actor.host == host && actor.role == role)
    }

    pub(super) fn has_children(&self, id: ActorId) -> bool {
        self.list.iter().any(|actor| actor.parent == Some(id))
    }

    /// What it waits for; it waits for nothing until it is resumed or put back.
    pub(super) fn take(&mut self, id: ActorId) -> Option<Ask> {
        self.list.iter_mut().find(|actor| actor.id == id)?.pending.take()
    }

    pub(super) fn put_back(&mut self, id: ActorId, ask: Ask) {
        if let Some(actor) = self.list.iter_mut().find(|actor| actor.id == id) {
            actor.pending = Some(ask);
        }
    }

    /// Lets it go on, up to what it asks next.
    ///
    /// # Errors
    /// It panicked.
    pub(super) fn resume(&mut self, id: ActorId, reply: Reply, now: u64) -> Result<(), String> {
        let Some(actor) = self.get(id) else { return Ok(()) };
        let _ = actor.replies.send(reply);
        let Ok((who, ask)) = self.heard.recv() else { return Ok(()) };
        assert_eq!(who, id, "one actor runs at a time");
        match ask {
            Ask::Ended => self.remove(id),
            Ask::Panicked(why) => {
                self.remove(id);
                return Err(why);
            }
            ask => {
                if let Some(actor) = self.list.iter_mut().find(|actor| actor.id == id) {
                    (actor.pending, actor.since) = (Some(ask), now);
                }
            }
        }
        Ok(())
    }

    fn remove(&mut self, id: ActorId) {
        if let Some(at) = self.list.iter().position(|actor| actor.id == id)
            && let Some(thread) = self.list.remove(at).thread
        {
            let _ = thread.join();
        }
    }

    /// Ends those of a process, the youngest first: who spawned them waits for their threads.
    ///
    /// # Errors
    /// One panicked.
    pub(super) fn kill(&mut self, host: usize, role: Option<Role>) -> Result<(), String> {
        let is_it = |actor: &&Actor| actor.host == host && role.is_none_or(|role| actor.role == role);
        let ids: Vec<ActorId> = self.list.iter().filter(is_it).map(|actor| actor.id).collect();
        ids.into_iter().rev().try_for_each(|id| self.resume(id, Reply::Dead, 0))
    }
}

impl Drop for Actors {
    fn drop(&mut self) {
        for id in (0..self.next).rev() {
            let _ = self.resume(id, Reply::Dead, 0);
        }
    }
}
