//! The record that outlives a restart: made of the live state, written one at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use state::ssd::{CountersV1, NamespaceV1, RangeV1, SsdV1, TotalsV1};

use super::{Controller, Host};
use crate::limits::NAMESPACE_ALIGN_BYTES;
use crate::namespace::{LbaFormat, Namespace, NamespaceTable, SubsystemGate};
use crate::profile::Role;
use crate::sink::GroupCommand;

/// Who waits for a record to be stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PersistWish {
    /// Nobody: losing it harms nothing.
    Nobody,
    /// The work under way.
    Work,
    /// A shutdown.
    Shutdown,
    /// A group's command, by ticket.
    Ticket(u32),
}

/// One write at a time; what is wished meanwhile goes with the next.
#[derive(Debug, Default)]
pub(super) struct Persist {
    running: Option<Vec<PersistWish>>,
    next: Vec<PersistWish>,
}

/// A namespace of a record that this build cannot serve as it stands: a block size it does not know, or a place outside the ssd
/// or inside another namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "namespace {nsid} does not fit: it has an unknown block size, or lies outside the ssd or in another namespace"
)]
pub struct Unfit {
    /// The namespace.
    pub nsid: u32,
}

/// Whether every namespace of a record can be served on an ssd of this capacity. To be asked before [`Controller::new`], which
/// leaves out those that cannot, and writes the record without them.
///
/// # Errors
/// The first namespace that does not fit.
pub fn check_record(record: &SsdV1, capacity_bytes: u64) -> Result<(), Unfit> {
    let mut fitting: Vec<Namespace> = Vec::new();
    for saved in &record.namespaces {
        let clear = |ns: &Namespace| fitting.iter().all(|other| other.nsid != ns.nsid && !overlap(ns, other));
        let found = Namespace::from_record(saved, capacity_bytes).filter(clear);
        fitting.push(found.ok_or(Unfit { nsid: saved.nsid })?);
    }
    Ok(())
}

impl Persist {
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }
}

impl Controller {
    pub(crate) fn persist(&mut self, wish: PersistWish, host: &mut impl Host) {
        self.persist.next.push(wish);
        self.persist_next(host);
    }

    fn persist_next(&mut self, host: &mut impl Host) {
        if self.persist.running.is_none() && !self.persist.next.is_empty() {
            self.persist.running = Some(core::mem::take(&mut self.persist.next));
            host.persist(self.record());
        }
    }

    pub(super) fn record_stored(&mut self, ok: bool, host: &mut impl Host) {
        // Kept "running" while the wishes are granted, so that what they start comes after.
        let Some(wishes) = self.persist.running.as_mut().map(core::mem::take) else { return };
        for wish in wishes {
            match wish {
                PersistWish::Nobody => {}
                PersistWish::Work => self.work_persisted(ok, host),
                PersistWish::Shutdown if ok => self.shutdown_recorded(),
                PersistWish::Shutdown => self.fatal(),
                PersistWish::Ticket(ticket) => host.to_all(GroupCommand::Persisted { ticket, ok }),
            }
        }
        self.persist.running = None;
        self.persist_next(host);
    }

    /// The record as it would be written now.
    #[must_use]
    pub fn record(&self) -> SsdV1 {
        let table = self.work.table_to_record().unwrap_or(&self.table);
        let wipe =
            |range: &block::Range| RangeV1 { start_bytes: range.start_bytes, len_bytes: range.len_bytes };
        SsdV1 {
            capacity_bytes: self.capacity_bytes,
            profile: self.profile.name.to_owned(),
            laid_out: true,
            namespaces: table.iter().map(|ns| ns.record()).collect(),
            to_wipe: self.to_wipe.iter().map(wipe).collect(),
            sanitize: self.sanitize,
            totals: self.totals_now(),
            clean: self.clean,
            self_tests: self.self_tests.clone(),
            created: self.created,
            key_check: self.key_check,
        }
    }

    pub(crate) fn totals_now(&self) -> TotalsV1 {
        let mut live = CountersV1::default();
        for queue in &self.region.sqs {
            live = sum(
                &live,
                &CountersV1 {
                    reads: queue.reads.load(Ordering::Relaxed),
                    writes: queue.writes.load(Ordering::Relaxed),
                    read_sectors: queue.read_sectors.load(Ordering::Relaxed),
                    write_sectors: queue.write_sectors.load(Ordering::Relaxed),
                    other_changes: queue.other_changes.load(Ordering::Relaxed),
                },
            );
        }
        let here_ns = self.now.0.saturating_sub(self.opened_at.0);
        TotalsV1 {
            live,
            power_on_seconds: self.totals.power_on_seconds.saturating_add(here_ns / 1_000_000_000),
            error_log_entries: self.region.admin.error_count.load(Ordering::Acquire),
            ..self.totals
        }
    }

    /// The namespaces of a record; of a fresh one, the initial namespace over the whole capacity.
    pub(super) fn load_namespaces(&mut self, record: &SsdV1) {
        let mut namespaces: Vec<Namespace> = Vec::new();
        let has_initial = !record.laid_out && self.profile.role == Role::Io;
        let initial = has_initial.then(|| self.initial_namespace());
        for saved in record.namespaces.iter().chain(initial.iter()) {
            let found = Namespace::from_record(saved, self.capacity_bytes);
            let clear =
                |ns: &Namespace| namespaces.iter().all(|other| other.nsid != ns.nsid && !overlap(ns, other));
            match found.filter(clear) {
                Some(namespace) => {
                    if namespace.format.block_bytes() < self.block_bytes {
                        tracing::error!(
                            nsid = saved.nsid,
                            "the drive's blocks are larger: much of its I/O will fail"
                        );
                    }
                    namespaces.push(namespace);
                }
                None => tracing::error!(
                    nsid = saved.nsid,
                    "a namespace of the record does not fit this ssd: left out"
                ),
            }
        }
        if !record.laid_out {
            self.created = 1;
        }
        // Nothing is ever wiped under a namespace that is there, whatever the record says.
        let outside = |r: &block::Range| {
            r.end_bytes().is_some_and(|end| {
                let clear = |ns: &Namespace| end <= ns.start_bytes || ns_end(ns) <= r.start_bytes;
                end <= self.capacity_bytes && namespaces.iter().all(clear)
            })
        };
        self.to_wipe = record
            .to_wipe
            .iter()
            .map(|r| block::Range { start_bytes: r.start_bytes, len_bytes: r.len_bytes })
            .filter(outside)
            .collect();
        let gate = SubsystemGate::of(&record.sanitize);
        self.table = Arc::new(NamespaceTable::new(namespaces).gated(gate));
    }

    /// The LBA formats this ssd's drive can serve.
    pub(crate) fn formats(&self) -> impl Iterator<Item = LbaFormat> {
        let block_bytes = self.block_bytes;
        LbaFormat::ALL.into_iter().filter(move |format| format.block_bytes() >= block_bytes)
    }

    fn initial_namespace(&self) -> NamespaceV1 {
        let ids = self.identity.namespace_ids(0);
        let finest = self.formats().next().unwrap_or(LbaFormat::B4096);
        let shift = self.identity.initial_lba_shift.max(finest.shift());
        NamespaceV1 {
            nsid: 1,
            start_bytes: 0,
            reserved_bytes: self.capacity_bytes,
            blocks: self.capacity_bytes >> shift,
            lba_shift: shift,
            attached: true,
            eui64: ids.eui64,
            nguid: ids.nguid,
            uuid: ids.uuid,
            marks: Vec::new(),
            shared: false,
        }
    }

    /// First fit of so many bytes at 1 MiB alignment, beside the namespaces and what is still to be wiped. The last gap may
    /// end with the capacity, unaligned.
    pub(crate) fn first_fit(&self, wanted_bytes: u64) -> Option<block::Range> {
        let mut used: Vec<(u64, u64)> = self.used_ranges().collect();
        used.sort_unstable();
        used.push((self.capacity_bytes, self.capacity_bytes));
        let mut at: u64 = 0;
        for (start, end) in used {
            let room = start.saturating_sub(at);
            if room >= wanted_bytes {
                let whole = wanted_bytes.checked_next_multiple_of(NAMESPACE_ALIGN_BYTES)?;
                return Some(block::Range { start_bytes: at, len_bytes: whole.min(room) });
            }
            at = at.max(end).checked_next_multiple_of(NAMESPACE_ALIGN_BYTES)?;
        }
        None
    }

    fn used_ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let bounds = |r: block::Range| (r.start_bytes, r.start_bytes.saturating_add(r.len_bytes));
        self.table
            .iter()
            .map(move |ns| bounds(ns.reserved()))
            .chain(self.to_wipe.iter().map(move |r| bounds(*r)))
    }

    /// Bytes of the capacity that no namespace has.
    pub(crate) fn unallocated_bytes(&self) -> u64 {
        let used = self.used_ranges().fold(0_u64, |sum, (start, end)| sum.saturating_add(end - start));
        self.capacity_bytes.saturating_sub(used)
    }
}

fn overlap(a: &Namespace, b: &Namespace) -> bool {
    a.start_bytes < ns_end(b) && b.start_bytes < ns_end(a)
}

fn ns_end(ns: &Namespace) -> u64 {
    ns.start_bytes.saturating_add(ns.reserved_bytes)
}

pub(super) fn sum(a: &CountersV1, b: &CountersV1) -> CountersV1 {
    CountersV1 {
        reads: a.reads.saturating_add(b.reads),
        writes: a.writes.saturating_add(b.writes),
        read_sectors: a.read_sectors.saturating_add(b.read_sectors),
        write_sectors: a.write_sectors.saturating_add(b.write_sectors),
        other_changes: a.other_changes.saturating_add(b.other_changes),
    }
}
