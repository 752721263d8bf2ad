//! The state of a vhost-user session as it is written down, and back.

use frontend::vhost_user::{Saved, SavedAddr, SavedInflight, SavedLog, SavedVring, TableEntry};
use state::vhost_session::{AreaV1, InflightV1, RegionV1, VhostUserV1, VringAddrV1, VringV1};

/// For a deposit.
pub(crate) fn written(saved: &Saved) -> VhostUserV1 {
    let region = |entry: &TableEntry| {
        let &TableEntry { guest_address, size, user_address, mmap_offset, fd } = entry;
        RegionV1 { guest_address, size, user_address, mmap_offset, fd }
    };
    let addr = |addr: SavedAddr| {
        let SavedAddr { descriptor, used, available, log } = addr;
        VringAddrV1 { descriptor, used, available, log }
    };
    let vring = |vring: &SavedVring| {
        let &SavedVring { num, addr: places, base, started, enabled, kick, call, err } = vring;
        VringV1 { num, addr: places.map(addr), base, started, enabled, kick, call, err }
    };
    VhostUserV1 {
        features: saved.features,
        protocol_features: saved.protocol_features,
        status: saved.status,
        writeback: saved.writeback,
        regions: saved.regions.iter().map(region).collect(),
        vrings: saved.vrings.iter().map(vring).collect(),
        inflight: saved.inflight.map(|inflight| InflightV1 {
            area: AreaV1 { fd: inflight.fd, offset: inflight.offset, size: inflight.size },
            num_queues: inflight.num_queues,
            queue_size: inflight.queue_size,
            own: inflight.own,
        }),
        log: saved.log.map(|SavedLog { fd, offset, size }| AreaV1 { fd, offset, size }),
        log_event: saved.log_event,
        backend_channel: saved.backend_channel,
        told_sectors: saved.told_sectors,
        forget: saved.forget,
    }
}

/// From a deposit.
pub(crate) fn read(written: &VhostUserV1) -> Saved {
    let region = |region: &RegionV1| {
        let &RegionV1 { guest_address, size, user_address, mmap_offset, fd } = region;
        TableEntry { guest_address, size, user_address, mmap_offset, fd }
    };
    let addr = |addr: VringAddrV1| {
        let VringAddrV1 { descriptor, used, available, log } = addr;
        SavedAddr { descriptor, used, available, log }
    };
    let vring = |vring: &VringV1| {
        let &VringV1 { num, addr: places, base, started, enabled, kick, call, err } = vring;
        SavedVring { num, addr: places.map(addr), base, started, enabled, kick, call, err }
    };
    Saved {
        features: written.features,
        protocol_features: written.protocol_features,
        status: written.status,
        writeback: written.writeback,
        regions: written.regions.iter().map(region).collect(),
        vrings: written.vrings.iter().map(vring).collect(),
        inflight: written.inflight.map(|InflightV1 { area, num_queues, queue_size, own }| SavedInflight {
            fd: area.fd,
            offset: area.offset,
            size: area.size,
            num_queues,
            queue_size,
            own,
        }),
        log: written.log.map(|AreaV1 { fd, offset, size }| SavedLog { fd, offset, size }),
        log_event: written.log_event,
        backend_channel: written.backend_channel,
        told_sectors: written.told_sectors,
        forget: written.forget,
    }
}
