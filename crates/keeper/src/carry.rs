//! What a keeper holds as a record with descriptors beside it, and back: for a keeper after this one (`reexec`, `store`).

use crate::history::History;
use crate::listener::Listener;
use crate::process::Binary;
use crate::protocol::{Protocol, VFIO_USER, VHOST_USER};
use crate::requests::Requests;
use crate::session::{Client, EndReason, LinkEnd, Pending, Session};
use crate::ssd::Ssd;
use anyhow::{Context, anyhow};
use api::control::Restart;
use link::control::{Door, Role, Standing};
use link::frame::{Frame, Intake};
use link::outbox::{Outbox, Parcel};
use state::keeper::{
    EndV1, Fd, KeptSessionV1, KeptSsdV1, ListenerV1, ParcelV1, PendingV1, ProgramV1, StandingV1, StreamV1,
};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Gives descriptors their ids.
pub(crate) trait Naming {
    /// Of one that several may hold.
    fn shared(&mut self, fd: &Arc<OwnedFd>) -> Fd;
    /// Of one that has a single holder.
    fn lone(&mut self, fd: BorrowedFd<'_>) -> Fd;
}

/// Descriptors by their ids.
#[derive(Debug, Default)]
pub(crate) struct Descriptors(pub(crate) BTreeMap<u32, Arc<OwnedFd>>);

impl Descriptors {
    pub(crate) fn shared(&self, fd: Fd) -> anyhow::Result<Arc<OwnedFd>> {
        self.0.get(&fd.0).cloned().with_context(|| format!("descriptor {} of the record is missing", fd.0))
    }

    /// One of its own: a duplicate.
    pub(crate) fn lone(&self, fd: Fd) -> anyhow::Result<OwnedFd> {
        Ok(self.shared(fd)?.try_clone()?)
    }
}

/// Engines' links may live on (a re-exec) or have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    Live,
    Ended,
}

fn parcel(bytes: Vec<u8>, fds: Vec<Fd>) -> ParcelV1 {
    ParcelV1 { bytes, fds }
}

fn stream(fd: Fd, intake: &Intake, outbox: &Outbox, naming: &mut impl Naming) -> StreamV1 {
    let (bytes, fds, surplus_fds) = intake.begun();
    let begun = parcel(bytes.to_vec(), fds.iter().map(|fd| naming.lone(fd.as_fd())).collect());
    let (waiting, sent) = outbox.waiting();
    let waiting = waiting.map(|waits| {
        let bytes = [&waits.head[..], &waits.body[..]].concat();
        parcel(bytes, waits.fds.iter().map(|fd| naming.shared(fd)).collect())
    });
    StreamV1 {
        fd,
        begun,
        surplus_fds,
        waiting: waiting.collect(),
        sent: u64::try_from(sent).unwrap_or(u64::MAX),
        ..StreamV1::default()
    }
}

fn intake_of(
    shape: &'static link::frame::Shape,
    saved: &StreamV1,
    fds: &Descriptors,
) -> anyhow::Result<Intake> {
    let held: anyhow::Result<Vec<OwnedFd>> = saved.begun.fds.iter().map(|fd| fds.lone(*fd)).collect();
    let begun = Frame { bytes: saved.begun.bytes.clone(), fds: held?, surplus_fds: saved.surplus_fds };
    Intake::resume(shape, begun).map_err(|bad| anyhow!("a message that has begun: {bad}"))
}

fn outbox_of(saved: &StreamV1, fds: &Descriptors) -> anyhow::Result<Outbox> {
    let whole = |waits: &ParcelV1| {
        let held: anyhow::Result<Vec<_>> = waits.fds.iter().map(|fd| fds.shared(*fd)).collect();
        anyhow::Ok(Parcel::whole(waits.bytes.clone(), held?))
    };
    let parcels: anyhow::Result<Vec<Parcel>> = saved.waiting.iter().map(whole).collect();
    Outbox::resume(parcels?, usize::try_from(saved.sent)?).context("messages that wait")
}

impl Session {
    /// As a record.
    pub(crate) fn to_kept(&self, ssd: &str, links: Links, naming: &mut impl Naming) -> KeptSessionV1 {
        let client = self.client.as_ref().map(|client| {
            let fd = naming.shared(&client.socket);
            let ending = match client.ending {
                None => 0,
                Some(EndReason::Disconnected) => 1,
                Some(_) => 2,
            };
            StreamV1 { ending, ..stream(fd, &client.intake, &client.outbox, naming) }
        });
        let link = self.link.as_ref().filter(|_| links == Links::Live).map(|link| {
            let fd = naming.lone(link.socket.as_fd());
            let ending = u8::from(link.ended);
            StreamV1 { ending, ..stream(fd, &link.intake, &link.outbox, naming) }
        });
        let unanswered = self.unanswered.iter().map(|pending| PendingV1 {
            seq: pending.seq,
            frame: parcel(pending.frame.to_vec(), pending.fds.iter().map(|fd| naming.shared(fd)).collect()),
            fd_first: pending.fd_first,
            surplus_fds: pending.surplus_fds,
        });
        let unanswered = unanswered.collect();
        let engine_id = |id: &Option<u16>| id.filter(|_| links == Links::Live);
        KeptSessionV1 {
            id: self.id,
            door: self.protocol.door.0,
            client,
            link,
            unanswered,
            next_seq: self.next_seq,
            next_fd: self.next_fd,
            deposit: self.deposit.as_ref().map(|bytes| bytes.to_vec()),
            kept: self.kept.iter().map(|(id, fd)| (*id, naming.shared(fd))).collect(),
            requests: self.requests.waiting.iter().map(|(ours, id)| (*ours, engine_id(id))).collect(),
            next_request: self.requests.next,
            answered: self.answered,
            ssd: ssd.to_owned(),
        }
    }

    /// Out of a record. Clocks that ran begin anew: `patience` for the frame that has begun and the message that waits.
    pub(crate) fn from_kept(
        kept: &KeptSessionV1,
        fds: &Descriptors,
        now: Instant,
        patience: (Duration, Duration),
    ) -> anyhow::Result<Self> {
        let protocol = protocol(Door(kept.door))?;
        let mut session = Self::new(kept.id, protocol);
        if let Some(saved) = &kept.client {
            let mut client = Client::new(fds.shared(saved.fd)?, protocol);
            client.intake = intake_of(&protocol.shape, saved, fds)?;
            client.outbox = outbox_of(saved, fds)?;
            client.frame_by = client.intake.is_begun().then(|| now + patience.0);
            client.read_by = (!client.outbox.is_empty()).then(|| now + patience.1);
            client.ending = match saved.ending {
                0 => None,
                1 => Some(EndReason::Disconnected),
                _ => Some(EndReason::HangUp),
            };
            session.client = Some(client);
        }
        if let Some(saved) = &kept.link {
            let mut link = LinkEnd::new(fds.lone(saved.fd)?);
            link.intake = intake_of(&link::session::SHAPE, saved, fds)?;
            link.outbox = outbox_of(saved, fds)?;
            link.ended = saved.ending != 0;
            session.link = Some(link);
        }
        for pending in &kept.unanswered {
            let held: anyhow::Result<Vec<_>> = pending.frame.fds.iter().map(|fd| fds.shared(*fd)).collect();
            session.unanswered.push_back(Pending {
                seq: pending.seq,
                frame: Arc::new(pending.frame.bytes.clone()),
                fd_first: pending.fd_first,
                fds: held?,
                surplus_fds: pending.surplus_fds,
            });
        }
        session.next_seq = kept.next_seq;
        session.next_fd = kept.next_fd;
        session.deposit = kept.deposit.clone().map(Arc::new);
        for (id, fd) in &kept.kept {
            session.kept.insert(*id, fds.shared(*fd)?);
        }
        session.requests = Requests::resume(kept.requests.iter().copied(), kept.next_request);
        session.answered = kept.answered;
        Ok(session)
    }
}

pub(crate) fn protocol(door: Door) -> anyhow::Result<&'static Protocol> {
    let known = [&VFIO_USER, &VHOST_USER].into_iter().find(|protocol| protocol.door == door);
    known.with_context(|| format!("a client of a kind that this build does not know (door {})", door.0))
}

impl Ssd {
    /// As a record, without its session.
    pub(crate) fn to_kept(&self, number: u32, naming: &mut impl Naming) -> KeptSsdV1 {
        KeptSsdV1 {
            number: Some(number),
            name: self.name.clone(),
            listener: Some(self.listener.to_kept(naming)),
            memory: self.memory.iter().map(|(role, fd)| (role.0, naming.shared(fd))).collect(),
            record: self.record.clone(),
            quarantined: self.quarantined.clone(),
            fault: self.fault.clone(),
            standing: self.standing.clone().map(|Standing { word, why, holds }| StandingV1 {
                word,
                why,
                holds,
            }),
            cell: None,
        }
    }

    /// Takes what is kept of an ssd; the listener is this one's already.
    pub(crate) fn resume(&mut self, kept: &KeptSsdV1, fds: &Descriptors) -> anyhow::Result<()> {
        for (role, fd) in &kept.memory {
            self.memory.insert(Role(*role), fds.shared(*fd)?);
        }
        self.record.clone_from(&kept.record);
        self.quarantined.clone_from(&kept.quarantined);
        self.fault.clone_from(&kept.fault);
        let standing = kept.standing.clone();
        self.standing = standing.map(|StandingV1 { word, why, holds }| Standing { word, why, holds });
        Ok(())
    }
}

impl Listener {
    pub(crate) fn to_kept(&self, naming: &mut impl Naming) -> ListenerV1 {
        ListenerV1 { fd: naming.shared(&self.socket), path: self.path.display().to_string() }
    }

    pub(crate) fn from_kept(kept: &ListenerV1, fds: &Descriptors) -> anyhow::Result<Self> {
        let path = Path::new(&kept.path);
        Self::adopt(fds.shared(kept.fd)?, path.to_owned())
            .with_context(|| format!("the socket file {} is gone", kept.path))
    }
}

impl Binary {
    pub(crate) fn to_kept(&self, naming: &mut impl Naming) -> ProgramV1 {
        ProgramV1 { fd: naming.shared(&self.file), path: self.path.display().to_string() }
    }

    pub(crate) fn from_kept(kept: &ProgramV1, fds: &Descriptors) -> anyhow::Result<Self> {
        Ok(Self { file: fds.shared(kept.fd)?, path: Path::new(&kept.path).to_owned() })
    }
}

impl History {
    pub(crate) fn to_kept(&self) -> Vec<EndV1> {
        let end = |restart: Restart| EndV1 {
            generation: restart.generation,
            unix_s: restart.unix_s,
            reason: restart.reason,
            planned: restart.planned,
            blackout_us: restart.blackout_us,
            replayed: restart.replayed,
            reposted: restart.reposted,
            fenced: restart.fenced,
        };
        self.restarts().into_iter().map(end).collect()
    }

    pub(crate) fn from_kept(ends: &[EndV1], crashes: u64, handovers: u64) -> Self {
        let restart = |end: &EndV1| Restart {
            generation: end.generation,
            unix_s: end.unix_s,
            reason: end.reason.clone(),
            planned: end.planned,
            blackout_us: end.blackout_us,
            replayed: end.replayed,
            reposted: end.reposted,
            fenced: end.fenced,
        };
        Self::resume(ends.iter().map(restart), crashes, handovers)
    }
}

/// The moment that CLOCK_MONOTONIC shows as `at_ns`; far in the past, or to come: now.
pub(crate) fn instant(at_ns: u64) -> Instant {
    let now = Instant::now();
    let ago = Duration::from_nanos(crate::messages::monotonic_ns(now).saturating_sub(at_ns));
    now.checked_sub(ago).unwrap_or(now)
}
