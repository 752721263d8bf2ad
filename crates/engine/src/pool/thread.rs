//! The thread of one pool: turns its steward (`volume::steward`), which alone changes the map, and answers who asks.

use super::disk::PoolDisk;
use super::{Purpose, Wish};
use crate::keeper::Keeper;
use crate::mailbox::Mailbox;
use anyhow::{Context, ensure};
use api::config;
use api::control::{PoolRequest, Response};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use volume::door::{Gate, Ticket};
use volume::steward::{News, Next, Settling, Steward};
use volume::{Pool, Provisioning, VolumeId, VolumeSpec};

/// Between two looks at whether I/O by an old map has ended.
const GRACE_PAUSE_NS: u64 = 200_000;

/// The pool, and what is done for doors and people.
pub(super) type Stewarded = Steward<Arc<PoolDisk>>;

/// What a pool's thread is asked.
pub(crate) enum Order {
    /// See [`volume::door::Allocator::own`].
    Own(VolumeId, u32),
    /// See [`volume::door::Allocator::release`].
    Release(VolumeId, (u32, u32), Arc<Ticket>),
    /// An ssd's volume; whether it gives extents back comes with it.
    Volume(Wish, SyncSender<anyhow::Result<(Arc<Gate>, bool)>>),
    /// Makes the volume of an ssd that is to come.
    Reserve(Wish, SyncSender<anyhow::Result<()>>),
    /// The journal of a volume's migrations, by the volume's name; `None` also where there is no such volume.
    Passage(String, SyncSender<anyhow::Result<Option<Vec<u8>>>>),
    /// Replaces it.
    SetPassage(String, Vec<u8>, SyncSender<anyhow::Result<()>>),
    /// Gives back the space of a volume that is another host's.
    Vacate(String, SyncSender<anyhow::Result<()>>),
    /// Whether a volume can grow to this size.
    CanGrow(VolumeId, u64, SyncSender<anyhow::Result<()>>),
    /// It grows.
    Grow(VolumeId, u64, SyncSender<anyhow::Result<()>>),
    /// What a migration wants of it.
    With(Box<dyn FnOnce(&mut Stewarded) + Send>),
    /// Somebody asks by the keeper.
    Request(PoolRequest, SyncSender<Response>),
    /// What waits for space fails.
    RefuseParked,
    /// End.
    Rest,
}

/// An answer, or one that is due when a snapshot or clone has settled.
pub(super) enum Answer {
    Now(Response),
    Settled(Settling, String),
}

/// See the module.
pub(super) struct Worker {
    pub(super) name: String,
    pub(super) steward: Stewarded,
    mailbox: Arc<Mailbox<Order>>,
    keeper: Option<Arc<Keeper>>,
    /// Answers that are due when a snapshot or clone has settled.
    settling: Vec<(Settling, SyncSender<Response>, String)>,
}

impl Worker {
    pub(super) fn new(
        config: &config::Pool,
        pool: Pool,
        disk: Arc<PoolDisk>,
        mailbox: Arc<Mailbox<Order>>,
        keeper: Option<Arc<Keeper>>,
    ) -> Self {
        let (name, steward) = (config.name.clone(), Steward::new(pool, disk));
        Self { name, steward, mailbox, keeper, settling: Vec::new() }
    }

    pub(super) fn run(mut self) {
        loop {
            for order in self.mailbox.take() {
                match order {
                    Order::Rest => return,
                    Order::Request(PoolRequest::Export { .. }, reply) if !self.steward.is_served() => {
                        let answer = self.export();
                        let _ =
                            reply.send(answer.unwrap_or_else(|error| Response::Error(format!("{error:#}"))));
                        return;
                    }
                    order => self.obey(order),
                }
            }
            let next = self.steward.turn();
            self.tell();
            self.answer_settled();
            match next {
                Next::Turn => {}
                Next::Look => _ = self.mailbox.sleep(&[], Some(GRACE_PAUSE_NS)),
                Next::Rest => _ = self.mailbox.sleep(&[], None),
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Own(volume, extent) => self.steward.own(volume, extent),
            Order::Release(volume, extents, ticket) => self.steward.release(volume, extents, &ticket),
            Order::Volume(wish, reply) => _ = reply.send(self.volume(&wish)),
            Order::Reserve(wish, reply) => _ = reply.send(self.found_or_made(&wish).map(drop)),
            Order::Passage(name, reply) => {
                let pool = self.steward.pool();
                let found =
                    pool.find(&name).map(|id| pool.passage(id).map(|bytes| bytes.map(<[u8]>::to_vec)));
                let _ = reply.send(found.transpose().map(Option::flatten).map_err(Into::into));
            }
            Order::SetPassage(name, bytes, reply) => {
                let id = self.find(&name);
                let _ = reply.send(id.and_then(|id| Ok(self.steward.set_passage(id, &bytes)?)));
            }
            Order::Vacate(name, reply) => {
                let id = self.find(&name);
                let _ = reply.send(id.and_then(|id| Ok(self.steward.vacate(id)?)));
                self.steward.look_again();
            }
            Order::CanGrow(id, size_bytes, reply) => {
                let _ = reply.send(self.steward.pool().can_grow(id, size_bytes).map_err(Into::into));
            }
            Order::Grow(id, size_bytes, reply) => {
                let _ = reply.send(self.steward.grow(id, size_bytes).map_err(Into::into));
            }
            Order::With(act) => act(&mut self.steward),
            Order::Request(request, reply) => {
                match self.answer(request) {
                    Ok(Answer::Now(response)) => _ = reply.send(response),
                    Ok(Answer::Settled(settling, text)) => self.settling.push((settling, reply, text)),
                    Err(error) => _ = reply.send(Response::Error(format!("{error:#}"))),
                }
                self.steward.look_again();
            }
            Order::RefuseParked => self.steward.refuse_parked(),
            Order::Rest => {}
        }
    }

    fn answer_settled(&mut self) {
        let steward = &self.steward;
        self.settling.retain(|(settling, reply, text)| {
            let due = steward.is_settled(*settling);
            if due {
                let _nobody_waits = reply.send(Response::Done(text.clone()));
            }
            !due
        });
    }

    /// The volume that an ssd of the configuration wants, and its gate.
    fn volume(&mut self, wish: &Wish) -> anyhow::Result<(Arc<Gate>, bool)> {
        let id = self.found_or_made(wish)?;
        // Before anything of it changes.
        match wish.purpose {
            Purpose::Serve => self.steward.pool().may_serve(id)?,
            Purpose::Land | Purpose::Await(_) => self.steward.pool().may_land(id)?,
        }
        let info = self.steward.pool().volume(id).context("a volume that is not there")?;
        ensure!(!info.read_only, "\"{}\" is a snapshot; clone it, and serve the clone", wish.name);
        ensure!(
            wish.size_bytes >= info.size_bytes,
            "\"{}\" has {} bytes, the configuration says {}: an ssd does not shrink, so write its size there",
            wish.name,
            info.size_bytes,
            wish.size_bytes
        );
        if wish.size_bytes > info.size_bytes
            && let Err(error) = self.steward.grow(id, wish.size_bytes)
        {
            // An ssd that there is: its data is not kept from its guest for what it was to have beside it.
            self.fault(format!(
                "ssd \"{}\" cannot grow from {} to {} bytes and is served as it is: {error:#}",
                wish.name, info.size_bytes, wish.size_bytes
            ));
        }
        let gate = match wish.purpose {
            Purpose::Serve => self.steward.serve(id)?,
            Purpose::Land | Purpose::Await(_) => self.steward.land(id)?,
        };
        Ok((gate, info.provisioning == Provisioning::Thin))
    }

    fn found_or_made(&mut self, wish: &Wish) -> anyhow::Result<VolumeId> {
        if let Some(id) = self.steward.pool().find(&wish.name) {
            return Ok(id);
        }
        let provisioning = if wish.thin { Provisioning::Thin } else { Provisioning::Full };
        let (name, size_bytes) = (wish.name.clone(), wish.size_bytes);
        let (uuid, attributes) = (super::random()?, Vec::new());
        Ok(self.steward.create(&VolumeSpec { name, uuid, size_bytes, provisioning, attributes })?)
    }

    fn tell(&mut self) {
        for news in self.steward.take_news() {
            match news {
                News::Fault(why) => self.fault(why),
                News::Remark(what) => tracing::warn!(what, pool = self.name, "a pool refuses"),
            }
        }
    }

    fn fault(&self, why: String) {
        match &self.keeper {
            Some(keeper) => keeper.fault(None, format!("pool \"{}\": {why}", self.name)),
            None => tracing::error!(why, pool = self.name, "a pool has trouble"),
        }
    }
}
