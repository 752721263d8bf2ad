//! One controller region for the whole process, zeroed between inputs where it was used: making a new one for each input
//! would be most of the time.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use memory::SharedRegion;
use state::region::ControllerRegion;

/// The region, all zeros.
#[must_use]
pub fn fresh() -> Arc<SharedRegion<ControllerRegion>> {
    static REGION: OnceLock<Arc<SharedRegion<ControllerRegion>>> = OnceLock::new();
    let region = REGION.get_or_init(|| Arc::new(SharedRegion::private()));
    clear(region);
    Arc::clone(region)
}

fn zero32(words: &[AtomicU32]) {
    for word in words {
        word.store(0, Relaxed);
    }
}

fn zero64(words: &[AtomicU64]) {
    for word in words {
        word.store(0, Relaxed);
    }
}

fn clear(region: &ControllerRegion) {
    let ControllerRegion { header, registers, pci, admin, cqs, sqs, slots } = region;
    header.magic.store(0, Relaxed);
    header.size_bytes.store(0, Relaxed);
    header.layout_version.store(0, Relaxed);
    header.power_cycle.store(0, Relaxed);
    header.loaded_file.store(0, Relaxed);
    for word in [&registers.cc, &registers.csts, &registers.aqa, &registers.interrupt_mask] {
        word.store(0, Relaxed);
    }
    for word in [&registers.asq, &registers.acq, &registers.reset_count, &registers.reset_kind] {
        word.store(0, Relaxed);
    }
    zero32(&pci.config);
    pci.msix_table.iter().for_each(|entry| zero32(entry));
    zero32(&pci.msix_pending);
    zero32(&admin.features);
    zero64(&admin.features_set);
    zero64(&admin.vector_coalescing_disabled);
    zero64(&admin.host_identifier);
    zero64(&admin.timestamp);
    zero32(&admin.parked_events);
    zero32(&admin.pending_events);
    admin.masked_event_types.store(0, Relaxed);
    admin.host_behavior.store(0, Relaxed);
    for word in [
        &admin.shadow_doorbells,
        &admin.event_indices,
        &admin.changed_namespaces,
        &admin.keep_alive_ns,
        &admin.error_count,
    ] {
        word.store(0, Relaxed);
    }
    for cq in cqs {
        cq.base.store(0, Relaxed);
        for word in [&cq.size, &cq.interrupt, &cq.tail_phase, &cq.head] {
            word.store(0, Relaxed);
        }
    }
    for (sq, slots) in sqs.iter().zip(slots) {
        let counters = [&sq.reads, &sq.writes, &sq.read_sectors, &sq.write_sectors, &sq.other_changes];
        let words = [&sq.base, &sq.head_seq].into_iter().chain(counters);
        let used = words.clone().any(|word| word.load(Relaxed) != 0) || sq.size.load(Relaxed) != 0;
        words.for_each(|word| word.store(0, Relaxed));
        sq.size.store(0, Relaxed);
        sq.cqid.store(0, Relaxed);
        if !used {
            continue;
        }
        for slot in slots {
            zero64(&slot.command);
            slot.word.store(0, Relaxed);
            zero64(&slot.completion);
            zero64(&slot.progress);
        }
    }
}
