//! The controller: registers, life cycle, admin queue, and everything that concerns the whole ssd.
//!
//! ```text
//!  register and config writes --> life (enable, reset, shutdown) ----+
//!  admin doorbell --> queue --> admin::* (one file a family) --------+--> Host: backend requests, group commands,
//!  group events, backend completions, persisted --> work, waits -----+          records to persist, interrupts
//! ```
//!
//! Pure: what happens depends only on the calls and their order. All that a successor needs is in the region or in the
//! persisted record; the rest (the error log's entries, a self-test under way, an unfinished command's reply) is
//! re-made or re-executed.
//!
//! Not implemented: controller memory buffer, persistent memory region, boot partitions, subsystem shutdown (NSSD), more than
//! one controller a subsystem, weighted round robin.

mod life;
mod record;
#[cfg(test)]
mod redelivered;
mod registers;
pub mod saved;
mod turn;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use block::Now;
use memory::{DoorbellPage, MemoryMap, SharedRegion};
use spec::nvme::log::ErrorInformation;
use state::region::ControllerRegion;
use state::ssd::{SanitizeV1, SelfTestV1, SsdV1, TotalsV1};

use crate::admin::lba_status::Surveys;
use crate::admin::queue::AdminQueue;
use crate::admin::self_test::SelfTest;
use crate::management::Management;
use crate::namespace::NamespaceTable;
use crate::profile::{Identity, Profile};
use crate::work::{Work, wipe::Wiper};
use life::{Life, Shutdown};
pub(crate) use record::PersistWish;
pub use record::{Unfit, check_record};

pub use crate::host::{AllocationList, AllocationQuery, Bar, Host, Survey, Unsurveyed};

/// What a controller is made of.
pub struct ControllerConfig {
    /// The shared region; used or fresh.
    pub region: Arc<SharedRegion<ControllerRegion>>,
    /// The doorbell page the guest stores into.
    pub doorbells: Arc<SharedRegion<DoorbellPage>>,
    /// Device model.
    pub profile: Profile,
    /// Identity.
    pub identity: Identity,
    /// Size of the ssd's drive. A record that says less is of a smaller one: the ssd grows.
    pub capacity_bytes: u64,
    /// What the home reactor's backend can do.
    pub limits: block::Limits,
}

/// Bit 63: the tokens of the controller's own backend requests.
pub const TOKEN_BIT: u64 = 1 << 63;

/// What an acknowledgement is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The groups' reset.
    Reset,
    /// The drain before a shutdown.
    Shutdown,
    /// The current step of the work under way.
    Work,
    /// An Abort command, by slot.
    Abort(u16),
    /// A Doorbell Buffer Config command, by slot.
    DoorbellBuffer(u16),
}

/// Deletion of an I/O queue under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deleting {
    pub(crate) completion_queue: bool,
    pub(crate) qid: u16,
    pub(crate) slot: u16,
}

/// One NVMe controller on its home reactor. See the module.
pub struct Controller {
    pub(crate) region: Arc<SharedRegion<ControllerRegion>>,
    pub(crate) doorbells: Arc<SharedRegion<DoorbellPage>>,
    pub(crate) profile: Profile,
    pub(crate) identity: Identity,
    pub(crate) capacity_bytes: u64,
    /// What its drive has: more, while it has yet to grow.
    pub(crate) room_bytes: u64,
    /// Blocks of the drive: no namespace has smaller ones.
    pub(crate) block_bytes: u32,
    pub(crate) map: Arc<MemoryMap>,
    pub(crate) queue: Option<AdminQueue>,
    life: Life,
    shutdown: Option<Shutdown>,
    /// The hold that drains for a shutdown stays until the reset.
    shutdown_hold: Option<u32>,
    pub(crate) waits: BTreeMap<u32, Wait>,
    pub(crate) deleting: Vec<Deleting>,
    next_id: u32,
    next_token: u64,
    pub(crate) table: Arc<NamespaceTable>,
    pub(crate) work: Work,
    pub(crate) wiper: Option<Wiper>,
    pub(crate) self_test: Option<SelfTest>,
    /// Buffers of aborted tests, until the reads that name them end.
    pub(crate) self_test_remains: Vec<(block::Token, Vec<u8>)>,
    persist: record::Persist,
    pub(crate) to_wipe: Vec<block::Range>,
    pub(crate) sanitize: SanitizeV1,
    pub(crate) totals: TotalsV1,
    /// When the record was last written because of a media error.
    media_errors_recorded_at: Option<Now>,
    pub(crate) self_tests: Vec<SelfTestV1>,
    pub(crate) created: u64,
    /// Carried along: of whoever encrypts the data.
    key_check: Option<[u8; 16]>,
    clean: bool,
    pub(crate) errors: VecDeque<ErrorInformation>,
    pub(crate) needs_remote: bool,
    /// A predecessor left something half done; the first turn goes on with it.
    resume: bool,
    /// Commands a predecessor accepted are being executed again.
    pub(crate) replaying: bool,
    opened_at: Now,
    pub(crate) management: Management,
    pub(crate) surveys: Surveys,
    /// The latest time handed in.
    pub(crate) now: Now,
    cq_head_seen: u32,
}

impl Controller {
    /// A controller over a region. A used region (of a predecessor that ended at any instruction) is gone on with; a fresh one is
    /// a controller just powered on. The record says what namespaces there are; a fresh record gets the initial one,
    /// over the whole capacity.
    #[must_use]
    pub fn new(config: ControllerConfig, record: &SsdV1, now: Now) -> Self {
        let ControllerConfig { region, doorbells, profile, identity, capacity_bytes, limits } = config;
        let fresh = life::is_fresh(&region);
        let room_bytes = capacity_bytes.min(limits.capacity_bytes) & !0xfff;
        let known_bytes = if record.laid_out { record.capacity_bytes & !0xfff } else { 0 };
        let mut controller = Self {
            region,
            doorbells,
            profile,
            identity,
            capacity_bytes: if known_bytes == 0 { room_bytes } else { known_bytes.min(room_bytes) },
            room_bytes,
            block_bytes: limits.block_bytes,
            map: Arc::new(MemoryMap::empty()),
            queue: None,
            life: Life::Disabled,
            shutdown: None,
            shutdown_hold: None,
            waits: BTreeMap::new(),
            deleting: Vec::new(),
            next_id: 1,
            next_token: 0,
            table: Arc::new(NamespaceTable::default()),
            work: Work::default(),
            wiper: None,
            self_test: None,
            self_test_remains: Vec::new(),
            persist: record::Persist::default(),
            to_wipe: Vec::new(),
            sanitize: record.sanitize,
            totals: record.totals,
            media_errors_recorded_at: None,
            self_tests: record.self_tests.clone(),
            created: record.created,
            key_check: record.key_check,
            clean: record.clean,
            errors: VecDeque::new(),
            needs_remote: false,
            resume: true,
            replaying: false,
            opened_at: now,
            management: Management::default(),
            surveys: Surveys::default(),
            now,
            cq_head_seen: 0,
        };
        controller.load_namespaces(record);
        if fresh {
            controller.power_on(record);
        } else {
            controller.take_over(record);
        }
        controller
    }

    /// Every event of the groups, aggregated by the engine.
    pub fn event(&mut self, event: crate::sink::GroupEvent, now: Now, host: &mut impl Host) {
        self.now = now;
        self.handle(event, host);
        self.ring(host);
    }

    /// The end of one of the controller's own backend requests.
    pub fn complete(&mut self, token: block::Token, outcome: block::Outcome, now: Now, host: &mut impl Host) {
        self.now = now;
        self.backend_ended(token, outcome, host);
        self.ring(host);
    }

    /// The end of the write that [`Host::persist`] started.
    pub fn persisted(&mut self, ok: bool, now: Now, host: &mut impl Host) {
        self.now = now;
        self.record_stored(ok, host);
        self.ring(host);
    }

    /// Guest memory changed: adopts the map for the admin queue and goes on with what waited for it.
    pub fn memory(&mut self, map: Arc<MemoryMap>, now: Now, host: &mut impl Host) {
        self.now = now;
        self.map = Arc::clone(&map);
        self.needs_remote = false;
        if let Some(queue) = &mut self.queue {
            queue.adopt(&self.region, &map);
        }
        self.note_remote();
        self.resume_if_due(host);
        self.retry_stalled(host);
        self.ring(host);
    }

    /// The drive has so many bytes now. The ssd grows when nothing else is done to its namespaces, and its host is told.
    pub fn grow(&mut self, capacity_bytes: u64, now: Now, host: &mut impl Host) {
        self.now = now;
        self.room_bytes = self.room_bytes.max(capacity_bytes & !0xfff);
        // Before the first turn: that one sees to it.
        if !self.resume {
            self.grow_if_due(host);
        }
        self.ring(host);
    }

    /// A reset from outside, as a function level reset.
    pub fn reset(&mut self, now: Now, host: &mut impl Host) {
        self.now = now;
        self.start_reset(life::ResetKind::Function, host);
        self.ring(host);
    }

    /// No reset, shutdown, format or other operation is in progress, and no order of a management controller's or look at the drive's map.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        !self.resume
            && !self.is_resetting()
            && self.work.is_idle()
            && self.self_test.is_none()
            && self.management.is_idle()
            && self.surveys.is_idle()
    }

    /// A reset or a shutdown is in progress. Unlike [`Self::is_quiet`] this ends soon: a sanitize may take hours, and
    /// outlives any reset.
    #[must_use]
    pub fn is_resetting(&self) -> bool {
        matches!(self.life, Life::Resetting { .. })
            || matches!(
                self.shutdown,
                Some(Shutdown::Draining | Shutdown::Flushing { .. } | Shutdown::Recording)
            )
    }

    /// A region without fd is needed: the engine must move the ssd to a private reactor.
    #[must_use]
    pub fn needs_remote(&self) -> bool {
        self.needs_remote
    }

    /// The namespaces as they are now.
    #[must_use]
    pub fn namespaces(&self) -> &Arc<NamespaceTable> {
        &self.table
    }

    pub(crate) fn next_id(&mut self, wait: Wait) -> u32 {
        // Never 0 nor the greatest, which are the engine's; never one that is waited for since long ago.
        let mut id = self.next_id;
        while id == 0 || id == u32::MAX || self.waits.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        self.next_id = id.wrapping_add(1);
        self.waits.insert(id, wait);
        id
    }

    pub(crate) fn next_token(&mut self) -> block::Token {
        self.next_token = self.next_token.wrapping_add(1) & !TOKEN_BIT;
        block::Token(TOKEN_BIT | self.next_token)
    }
}
