//! Where the clients of one disk plug in, one after the other, over links to the keeper.
//!
//! A session here is a loop over the client's commands. Each is answered by one message that is also the deposit and the list of
//! the descriptors to keep, so that a successor finds the session as it was before a command or as it was after it.

use super::Order;
use super::disk::{Disk, Frozen};
use super::saved::{read, written};
use crate::blame::Line;
use crate::channel::LinkChannel;
use crate::crew::Crew;
use crate::keeper::{Keeper, PowerCycle};
use crate::message::Message;
use crate::slot::Plug;
use crate::ssd::Ssd;
use anyhow::Context;
use frontend::vhost_user::{Announcer, ClientFd, HEADER_BYTES, Header, Outcome, Session};
use link::control::Role;
use link::session::{Answer, Command, Deposit, EngineFds, Restore};
use nvme::queue::Left;
use rustix::fs::MemfdFlags;
use state::vhost_session::VhostUserV1;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use virtio::config::Capacity;

/// How long a command of a client at hand may take when the engine pauses. One that takes longer is done again.
const PAUSE_PATIENCE: Duration = Duration::from_millis(500);
/// The most log lines about one client's faults.
const LOG_LINES_MAX: u32 = 20;

/// A disk on its way to be served.
pub(crate) struct VhostPlan {
    pub(crate) ssd: Arc<Ssd>,
    pub(crate) keeper: Arc<Keeper>,
    /// A predecessor has powered it on.
    pub(crate) found: bool,
    /// The client there is already.
    pub(crate) client: Option<Plug>,
    pub(crate) crew: Arc<Crew>,
}

enum Job {
    Serve(Plug),
    Stop,
}

/// What other threads reach of the session there is.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    stopping: bool,
    /// No command is begun any more, for good.
    paused: bool,
    /// A command is begun and not answered.
    at_work: bool,
    channel: Option<Arc<LinkChannel>>,
    /// Tells the client that the disk has grown.
    announcer: Option<Announcer>,
    /// It grew since the command at hand was begun.
    grown: bool,
}

impl Gate {
    /// Before a command. Does not return when the engine is paused.
    fn enter(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_while(state, |state| state.paused);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        (state.at_work, state.grown) = (true, false);
    }

    /// After a command. Whether the disk grew meanwhile: then the client may have been told its old size, or not yet have said how
    /// to tell it.
    fn leave(&self, announcer: Option<Announcer>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.at_work = false;
        state.announcer = announcer;
        self.changed.notify_all();
        state.grown
    }

    /// The disk grows.
    fn grow(&self, capacity: &Capacity, capacity_bytes: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        capacity.grow(capacity_bytes);
        state.grown = true;
        if let Some(announcer) = &state.announcer {
            announcer.announce();
        }
    }

    /// Whether the command at hand was answered in time.
    fn pause(&self, patience: Duration) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.paused = true;
        let waited = self.changed.wait_timeout_while(state, patience, |state| state.at_work);
        !waited.unwrap_or_else(PoisonError::into_inner).0.at_work
    }

    fn stop(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.stopping = true;
        if let Some(channel) = &state.channel {
            channel.stop();
        }
    }

    fn set_channel(&self, channel: Option<Arc<LinkChannel>>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channel.as_ref().filter(|_| state.stopping) {
            channel.stop();
        }
        state.channel = channel;
    }
}

/// One disk's thread, as others see it.
pub(crate) struct VhostSlot {
    ssd: Arc<Ssd>,
    crew: Arc<Crew>,
    disk: Arc<Mutex<Disk>>,
    jobs: Sender<Job>,
    gate: Arc<Gate>,
    frozen: Frozen,
    capacity: Capacity,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl VhostSlot {
    pub(crate) fn ssd(&self) -> &Arc<Ssd> {
        &self.ssd
    }

    /// Starts the disk's thread; `ready` hears when the disk is served, or why it is not.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn start(plan: VhostPlan, ready: Sender<anyhow::Result<Left>>) -> std::io::Result<Self> {
        let (jobs, inbox) = channel();
        let gate = Arc::new(Gate::default());
        let (ssd, crew, shared) = (Arc::clone(&plan.ssd), Arc::clone(&plan.crew), Arc::clone(&gate));
        let disk = Disk::new(Arc::clone(&ssd), Arc::clone(&crew));
        let (frozen, capacity) = (disk.frozen(), disk.capacity());
        let disk = Arc::new(Mutex::new(disk));
        let theirs = Arc::clone(&disk);
        let thread = std::thread::Builder::new()
            .name(format!("ssd-{}", ssd.id.0))
            .stack_size(256 << 10)
            .spawn(move || Keeping::run(plan, theirs, &inbox, shared, ready))?;
        Ok(Self { ssd, crew, disk, jobs, gate, frozen, capacity, thread })
    }

    /// The disk, for who moves its rings. May wait for a command of the client, and for I/O.
    pub(crate) fn disk(&self) -> Arc<Mutex<Disk>> {
        Arc::clone(&self.disk)
    }

    /// A new client.
    pub(crate) fn plug(&self, plug: Plug) {
        // A thread that is gone has said why.
        let _ = self.jobs.send(Job::Serve(plug));
    }

    /// Ends the session there is and makes all durable.
    pub(crate) fn stop(&self) {
        self.gate.stop();
        let _ = self.jobs.send(Job::Stop);
    }

    /// Waits for the end that [`VhostSlot::stop`] asked for.
    pub(crate) fn join(self) -> anyhow::Result<()> {
        let result = self.thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the ssd's thread panicked")));
        result.with_context(|| format!("ssd \"{}\"", self.ssd.name))
    }

    /// Says that the drive has so many bytes now: the client is told.
    pub(crate) fn announcement(&self, capacity_bytes: u64) -> impl FnOnce() + use<> {
        let (gate, capacity) = (Arc::clone(&self.gate), self.capacity.clone());
        move || gate.grow(&capacity, capacity_bytes)
    }

    /// No command of the client begins any more, and nothing of the guest; returns when nothing is at the drive.
    pub(crate) fn pause(&self) {
        if !self.gate.pause(PAUSE_PATIENCE) {
            tracing::warn!(ssd = self.ssd.name, "a client's command takes long: it will be done again");
        }
        *self.frozen.lock().unwrap_or_else(PoisonError::into_inner) = true;
        let answers: Vec<_> = self
            .crew
            .manned()
            .map(|reactor| {
                let (reply, answer) = sync_channel(1);
                self.crew.address(reactor).send(Message::Vhost(self.ssd.id, Order::Pause(reply)));
                answer
            })
            .collect();
        // Where there is no seat there is nothing to stop.
        answers.into_iter().for_each(|answer| _ = answer.recv());
    }
}

/// The thread's own view.
struct Keeping {
    ssd: Arc<Ssd>,
    disk: Arc<Mutex<Disk>>,
    keeper: Arc<Keeper>,
    gate: Arc<Gate>,
}

/// A session that is set up and not yet served.
struct Ready {
    number: u64,
    channel: Arc<LinkChannel>,
    session: Session,
}

impl Keeping {
    fn run(
        plan: VhostPlan,
        disk: Arc<Mutex<Disk>>,
        inbox: &Receiver<Job>,
        gate: Arc<Gate>,
        ready: Sender<anyhow::Result<Left>>,
    ) -> anyhow::Result<()> {
        let line = Line::of_other();
        line.turn_to(Some(plan.ssd.id.0));
        let name = plan.ssd.name.clone();
        let begun = Self::begin(plan, disk, gate).with_context(|| format!("ssd \"{name}\""));
        line.turn_to(None);
        let (mut keeping, mut session) = match begun {
            Ok((keeping, session)) => {
                let unanswered = keeping.disk().take_replayed();
                if unanswered > 0 {
                    tracing::info!(ssd = name, unanswered, "going on where a predecessor ended");
                }
                let _ = ready.send(Ok(Left { unanswered, ..Left::default() }));
                (keeping, session)
            }
            Err(error) => {
                let _ = ready.send(Err(error));
                return Ok(());
            }
        };
        // Whoever counts the ssds waits until the last of these is gone.
        drop(ready);
        loop {
            if let Some(session) = session.take() {
                keeping.serve(session)?;
            }
            match inbox.recv() {
                Ok(Job::Serve(plug)) => session = keeping.open(plug)?,
                Ok(Job::Stop) | Err(_) => return keeping.close(),
            }
        }
    }

    /// Held while the client is obeyed, or a ring moves.
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(
        plan: VhostPlan,
        disk: Arc<Mutex<Disk>>,
        gate: Arc<Gate>,
    ) -> anyhow::Result<(Self, Option<Ready>)> {
        let VhostPlan { ssd, keeper, found, client, .. } = plan;
        let mut keeping = Self { ssd, disk, keeper, gate };
        if !found {
            keeping.power_on(None)?;
        }
        let session = match client {
            Some(plug) => keeping.open(plug)?,
            None => None,
        };
        Ok((keeping, session))
    }

    /// A power cycle, by which the keeper forgets a session that is over. A disk keeps nothing over it but its drive.
    fn power_on(&self, ended: Option<u64>) -> anyhow::Result<()> {
        let ssd = &self.ssd;
        let mut parts = Vec::new();
        if ended.is_none() {
            let mark = rustix::fs::memfd_create("godwit-powered", MemfdFlags::CLOEXEC)?;
            parts.push((Role::POWERED, mark));
            parts.extend(ssd.drive_parts()?);
            parts.extend(ssd.page_part()?);
        }
        Ok(self.keeper.power_on(ssd.id.0, PowerCycle { ended, parts, record: None })?)
    }

    /// Takes up a session, new or a predecessor's, whose rings run again when this returns.
    fn connect(&mut self, plug: Plug) -> anyhow::Result<Ready> {
        let (channel, restore) = LinkChannel::open(plug.link)?;
        let Restore { deposit, fds } = restore;
        let other_hand = Arc::clone(&channel);
        let mut disk = self.disk();
        disk.enter(move || frontend::vfio_user::Channel::hang_up(&*other_hand));
        let session = match deposit {
            None => Session::new(&*disk),
            Some(bytes) => {
                let saved = read(&VhostUserV1::from_bytes(&bytes)?);
                Session::restore(&saved, fds, &mut *disk)?
            }
        };
        Ok(Ready { number: plug.session, channel, session })
    }

    /// A client's session. `None`: it cannot be served, such as one that took its memory or wrote nonsense into its in-flight region
    /// before the last engine died. It is hung up on, and the disk is there for the next.
    fn open(&mut self, plug: Plug) -> anyhow::Result<Option<Ready>> {
        let number = plug.session;
        match self.connect(plug) {
            Ok(ready) => Ok(Some(ready)),
            Err(error) => {
                let why = format!("its client cannot be served and was hung up on: {error:#}");
                self.keeper.fault(Some(self.ssd.id.0), why);
                self.disk().leave();
                self.power_on(Some(number))?;
                Ok(None)
            }
        }
    }

    /// Serves a client until it leaves.
    fn serve(&mut self, ready: Ready) -> anyhow::Result<()> {
        let Ready { number, channel, mut session } = ready;
        self.gate.set_channel(Some(Arc::clone(&channel)));
        if self.gate.leave(session.announcer()) {
            // It grew while the session was taken up.
            session.announce(&*self.disk());
        }
        self.commands(&channel, &mut session);
        if channel.is_orphaned() {
            wait_for_the_end();
        }
        self.gate.set_channel(None);
        self.gate.leave(None);
        self.disk().leave();
        self.power_on(Some(number))?;
        // The link is closed after the keeper heard that the session is over.
        drop(channel);
        Ok(())
    }

    fn commands(&mut self, channel: &LinkChannel, session: &mut Session) {
        let name = self.ssd.name.clone();
        let mut lines = 0;
        let mut hung_up = false;
        loop {
            let command = match channel.command() {
                Ok(Some(command)) => command,
                Ok(None) => return,
                Err(error) => return tracing::debug!(ssd = name, %error, "session over"),
            };
            // What comes after we hung up is not for us.
            if hung_up {
                continue;
            }
            self.gate.enter();
            let (answer, close) = self.command(session, command, &mut lines);
            let sent = answer.map_or(Ok(()), |answer| channel.done(&answer));
            if self.gate.leave(session.announcer()) {
                session.announce(&*self.disk());
            }
            if close || sent.is_err() {
                hung_up = true;
                frontend::vfio_user::Channel::hang_up(channel);
            }
        }
    }

    /// One command; whether the session is over.
    fn command(
        &mut self,
        session: &mut Session,
        command: Command,
        lines: &mut u32,
    ) -> (Option<Answer>, bool) {
        let Command { seq, frame, fds, surplus_fds } = command;
        let name = &self.ssd.name;
        let header = frame.first_chunk::<HEADER_BYTES>().map(Header::parse);
        let Some(Ok(header)) = header else {
            tracing::warn!(
                ssd = name,
                "a client's message is longer than any that the protocol needs: hung up"
            );
            return (None, true);
        };
        let payload = frame.get(HEADER_BYTES..).unwrap_or(&[]).to_vec();
        let fds = fds.into_iter().map(|(id, fd)| ClientFd { id, fd }).collect();
        let request = header.request.0;
        let message = frontend::vhost_user::Message { header, payload, fds, surplus_fds };
        let outcome = session.handle(message, &mut *self.disk());
        if let Some(refusal) = outcome.refused.filter(|_| *lines < LOG_LINES_MAX) {
            *lines += 1;
            tracing::warn!(ssd = self.ssd.name, request, %refusal, "vhost-user message refused");
        }
        let close = outcome.close;
        match answer(seq, session, outcome) {
            Ok(answer) => (Some(answer), close),
            Err(error) => {
                tracing::error!(
                    ssd = self.ssd.name,
                    error = format!("{error:#}"),
                    "a session cannot be saved"
                );
                (None, true)
            }
        }
    }

    /// Makes all durable, with no client connected.
    fn close(self) -> anyhow::Result<()> {
        let mut disk = self.disk();
        let flushed = disk.flush();
        disk.leave();
        flushed.map(drop).context("its data cannot be made durable")
    }
}

/// What is said to the keeper: the deposit with the descriptors that it names, and the reply with its own.
fn answer(seq: u64, session: &Session, outcome: Outcome) -> anyhow::Result<Answer> {
    let Outcome { reply, changed, made, .. } = outcome;
    let (reply, for_client) = reply.map_or((Vec::new(), None), |reply| (reply.bytes, reply.fd));
    let deposit = if changed {
        let saved = session.saved();
        let bytes = written(&saved).to_bytes()?;
        let mut keep = saved.fd_ids();
        keep.sort_unstable();
        keep.dedup();
        Some(Deposit { bytes, keep })
    } else {
        None
    };
    // Ids count up from the client's descriptor, if there is one; only those after it are kept.
    let count = u32::from(for_client.is_some());
    let first = made.first().map_or(link::session::ENGINE_FDS, |(id, _)| id.wrapping_sub(count));
    let fds = EngineFds {
        first,
        for_client: usize::from(for_client.is_some()),
        fds: for_client.into_iter().chain(made.into_iter().map(|(_, fd)| fd)).collect(),
    };
    Ok(Answer { seq, reply, deposit, fds })
}

/// The keeper is gone, and with it the control link: the process is about to exit as it is. The client has not left, so nothing
/// may be stopped; a keeper to come goes on with what is there.
fn wait_for_the_end() {
    std::thread::sleep(Duration::from_secs(1));
}
