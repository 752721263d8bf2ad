//! Any bytes as the headers, map and journal of a pool: refused or opened, and what is opened works.
#![no_main]

use std::sync::OnceLock;

use arbitrary::Arbitrary;
use godwit_fuzz::edge::Edge;
use godwit_fuzz::pool::SparseDisk;
use libfuzzer_sys::fuzz_target;
use minicbor::Encode;
use state::migration::{DestinationStepV1, DestinationV1, MigrationV1, SourceStepV1, SourceV1};
use state::pool::{
    CHUNK_MAGIC, ChangeV1, ChunkV1, HEADER_MAGIC, HeaderV1, RECORD_MAGIC, RecordV1, RunV1, UnfitV1,
    VolumeRunsV1, VolumeV1,
};
use volume::{
    Allocation, FormatOptions, HostId, OpenOptions, Pool, PoolError, Provisioning, Severity, VolumeId,
    VolumeSpec, check,
};

const MIB: u64 = 1 << 20;
const HOST: HostId = HostId([7; 16]);
const MAP_0: u64 = 2 * MIB;
const JOURNAL_0: u64 = 5 * MIB;

#[derive(Arbitrary, Debug)]
enum Input {
    /// Bytes at places of the layout; with `sealed` in an envelope of that kind.
    Bytes(Vec<(u8, bool, Vec<u8>)>),
    /// Records with good checksums that say strange things.
    Fields {
        header: Vec<(u8, Edge)>,
        chunks: Vec<Chunk>,
        records: Vec<Vec<Change>>,
        deeds: Vec<(u8, u8, u8)>,
    },
}

#[derive(Arbitrary, Debug)]
struct Chunk {
    volumes: Vec<Volume>,
    runs: Vec<(u8, Vec<(Edge, Edge, Edge)>)>,
    unfit: Vec<(Edge, Edge, bool)>,
    next: Edge,
    strange: u8,
}

#[derive(Arbitrary, Debug)]
struct Volume {
    id: u8,
    name: u8,
    size: Edge,
    flags: u8,
    family: u8,
    parent: Option<u8>,
    attributes: u16,
    passage: Option<Passage>,
}

#[derive(Arbitrary, Debug)]
enum Change {
    Create(Volume),
    Delete(u8),
    Grow(u8, Edge),
    Map(u8, (Edge, Edge, Edge)),
    Unmap(u8, Edge, Edge),
    Derive(u8, Volume),
    Reserve(Edge, Edge),
    Adopt(u8, Edge, Edge),
    Wiped(Edge, Edge),
    Quarantine(Edge, Edge),
    Retry(Edge, Edge),
    Epoch(u8, Edge),
    Attributes(u8, u16),
    Passage(u8, Passage),
}

/// A journal of a volume's migrations: a sound one, or bytes.
#[derive(Arbitrary, Debug)]
enum Passage {
    Sound { step: u8, epoch: Edge },
    Bytes(u8, u16),
}

fn passage(passage: &Passage) -> Vec<u8> {
    let (step, epoch) = match passage {
        Passage::Bytes(byte, len) => return vec![*byte; usize::from(*len) % 5000],
        Passage::Sound { step, epoch } => (step % 7, epoch.0),
    };
    let source = |step, held| (Some(SourceV1 { held, step }), None);
    let destination = |step| (None, Some(DestinationV1 { step, fenced_by: None }));
    let (source, destination) = match step {
        0 => source(SourceStepV1::Offered, epoch.saturating_sub(1)),
        1 => source(SourceStepV1::Granted, epoch.saturating_sub(1)),
        2 => source(SourceStepV1::Gone, epoch.saturating_sub(1)),
        3 => source(SourceStepV1::TakenBack, epoch.saturating_add(1)),
        4 => destination(DestinationStepV1::Incoming),
        5 => destination(DestinationStepV1::Owned),
        _ => destination(DestinationStepV1::Dropped),
    };
    let (ssd, migration, peer, round) = ([3; 16], [4; 16], "b".to_owned(), 1);
    let (keep, closed, wiped, hypervisor, limits) = (None, None, None, None, None);
    MigrationV1 {
        ssd, peer, migration, epoch, round, source, destination, keep, closed, wiped, hypervisor, limits
    }
    .to_bytes()
    .unwrap_or_default()
}

fn volume(volume: &Volume) -> VolumeV1 {
    VolumeV1 {
        id: u64::from(volume.id),
        name: "n".repeat(usize::from(volume.name)),
        uuid: [volume.name; 16],
        // Often a size that can be.
        size_bytes: if volume.flags & 4 == 0 { (volume.size.0 % 64) * MIB } else { volume.size.0 },
        full: volume.flags & 1 != 0,
        read_only: volume.flags & 2 != 0,
        parent: volume.parent.map(u64::from),
        family: u64::from(volume.family),
        epoch: 0,
        attributes: vec![volume.name; usize::from(volume.attributes) % 1100],
        passage: volume.passage.as_ref().map(passage),
    }
}

fn run(&(logical, count, physical): &(Edge, Edge, Edge)) -> RunV1 {
    RunV1 { logical: logical.u32(), count: count.u32(), physical: physical.u32() }
}

fn change(change: &Change) -> ChangeV1 {
    match change {
        Change::Create(new) => ChangeV1::Create(volume(new)),
        Change::Delete(id) => ChangeV1::Delete(u64::from(*id)),
        Change::Grow(id, size) => ChangeV1::Grow(u64::from(*id), size.0),
        Change::Map(id, place) => ChangeV1::Map(u64::from(*id), run(place)),
        Change::Unmap(id, first, count) => ChangeV1::Unmap(u64::from(*id), first.u32(), count.u32()),
        Change::Derive(id, new) => ChangeV1::Derive(u64::from(*id), volume(new)),
        Change::Reserve(first, count) => ChangeV1::Reserve(first.u32(), count.u32()),
        Change::Adopt(id, logical, to) => ChangeV1::Adopt(u64::from(*id), logical.u32(), to.u32()),
        Change::Wiped(first, count) => ChangeV1::Wiped(first.u32(), count.u32()),
        Change::Quarantine(first, count) => ChangeV1::Quarantine(first.u32(), count.u32()),
        Change::Retry(first, count) => ChangeV1::Retry(first.u32(), count.u32()),
        Change::Epoch(id, epoch) => ChangeV1::Epoch(u64::from(*id), epoch.0),
        Change::Attributes(id, len) => {
            ChangeV1::Attributes(u64::from(*id), vec![1; usize::from(*len) % 1100])
        }
        Change::Passage(id, bytes) => ChangeV1::Passage(u64::from(*id), passage(bytes)),
    }
}

fn formatted() -> SparseDisk {
    static IMAGE: OnceLock<SparseDisk> = OnceLock::new();
    IMAGE.get_or_init(format).fork()
}

fn format() -> SparseDisk {
    let disk = SparseDisk::new(30 * MIB);
    let options = FormatOptions {
        uuid: [1; 16],
        name: "tank".to_owned(),
        host: HOST,
        extent_bytes: Some(MIB),
        zeroed: true,
        overwrite: false,
    };
    Pool::format(&disk, &options).expect("large enough");
    disk
}

fn options(nonce: u64) -> OpenOptions {
    OpenOptions { host: HOST, nonce, take_over: true }
}

fn seal<T: Encode<()>>(magic: [u8; 8], version: u32, value: &T) -> Option<(Vec<u8>, u32)> {
    let (bytes, chain) = state::pool::seal(magic, version, value).ok()?;
    (bytes.len() <= 64 << 10).then_some((bytes, chain))
}

fn header(disk: &SparseDisk) -> HeaderV1 {
    use volume::Disk as _;
    let mut block = [0; 4096];
    disk.read_at(0, &mut block).expect("in memory");
    let len = state::envelope::record_bytes(&block).expect("our own");
    state::pool::open(HEADER_MAGIC, &block[..len]).expect("our own").0
}

fn twist(header: &mut HeaderV1, field: u8, value: Edge) {
    match field % 17 {
        0 => header.generation = value.0,
        1 => header.extent_bytes = value.0,
        2 => header.extents = value.u32(),
        3 => header.data_offset_bytes = value.0,
        4 => header.map_bytes = value.0,
        5 => header.journal_bytes = value.0,
        6 => header.slot = (value.0 & 0xff) as u8,
        7 => header.map_generation = value.0,
        8 => header.map_seq = value.0,
        9 => header.map_epoch = value.0,
        10 => header.map_follows = value.0 & 1 != 0,
        11 => header.epoch = value.0,
        12 => header.nonce = value.0,
        13 => header.fence_epoch = value.0,
        14 => header.fence_seq = value.0,
        15 => header.version = Some(2).filter(|_| value.0 & 1 == 0),
        _ => header.owner = (value.0 & 1 != 0).then_some([value.0.to_le_bytes()[0]; 16]),
    }
}

/// Lays chunks and records out with the checksums they need.
fn lay(disk: &SparseDisk, header: &mut HeaderV1, chunks: &[Chunk], records: &[Vec<Change>]) {
    let (mut at, mut chain) = (MAP_0, 0);
    let count = chunks.len();
    for (index, chunk) in chunks.iter().enumerate() {
        let runs = |(id, runs): &(u8, Vec<_>)| VolumeRunsV1 {
            volume: u64::from(*id),
            runs: runs.iter().map(run).collect(),
        };
        let unfit = |&(first, count, quarantined): &(Edge, Edge, bool)| UnfitV1 {
            first: first.u32(),
            count: count.u32(),
            quarantined,
        };
        let value = ChunkV1 {
            uuid: header.uuid,
            map_generation: header.map_generation,
            index: index as u64,
            chain,
            last: index + 1 == count && chunk.strange != 1,
            seq: header.map_seq,
            epoch: header.map_epoch.wrapping_add(u64::from(chunk.strange == 2)),
            next_volume: chunk.next.0,
            volumes: chunk.volumes.iter().map(volume).collect(),
            runs: chunk.runs.iter().map(runs).collect(),
            unfit: chunk.unfit.iter().map(unfit).collect(),
        };
        let version = if chunk.strange == 3 { 3 - header.layout().min(2) } else { header.layout() };
        let Some((bytes, next)) = seal(CHUNK_MAGIC, version, &value) else { return };
        disk.put(at, &bytes);
        at += bytes.len().next_multiple_of(4096) as u64;
        chain = next;
    }
    if count > 0 {
        header.map_chain = chain;
    }
    let (mut at, mut chain) = (JOURNAL_0, header.map_chain);
    for (by, changes) in (1..).zip(records) {
        let value = RecordV1 {
            uuid: header.uuid,
            map_generation: header.map_generation,
            seq: header.map_seq.wrapping_add(by),
            epoch: header.map_epoch,
            chain,
            changes: changes.iter().map(change).collect(),
        };
        let Some((bytes, next)) = seal(RECORD_MAGIC, header.layout(), &value) else { return };
        let span = bytes.len().next_multiple_of(4096) as u64;
        if at + span > JOURNAL_0 + (256 << 10) {
            return;
        }
        disk.put(at, &bytes);
        at += span;
        chain = next;
    }
}

/// Opens what check calls sound, and works with it.
fn judge(disk: &SparseDisk, deeds: &[(u8, u8, u8)]) {
    let before = check(&disk.fork(), None);
    let damaged = match &before {
        Ok(report) => report.findings.iter().any(|finding| finding.severity == Severity::Damage),
        Err(_) => true,
    };
    let fresh = disk.fork();
    let mut pool = match Pool::open(Box::new(fresh.clone()), &options(1)) {
        Ok(pool) => {
            assert!(!damaged, "opened though {before:?}");
            pool
        }
        Err(_) => {
            // What is repairable opens after its repair.
            if !damaged && check(&fresh, Some(&options(2))).is_ok_and(|report| report.is_sound()) {
                Pool::open(Box::new(fresh.clone()), &options(3)).expect("check said that it is sound now");
            }
            return;
        }
    };
    let info = pool.info();
    assert_eq!(info.free + info.used + info.wiping + info.quarantined, info.extents);
    for (kind, one, two) in deeds {
        let ids: Vec<VolumeId> = pool.volumes().iter().map(|volume| volume.id).collect();
        let id = ids.get(usize::from(*one) % ids.len().max(1)).copied().unwrap_or(VolumeId(0));
        match kind % 11 {
            8 => drop(
                pool.set_passage(id, &passage(&Passage::Sound { step: *two, epoch: Edge(u64::from(*one)) })),
            ),
            9 => drop(pool.vacate(id)),
            10 => {
                // Whoever may open it is its owner.
                let owned = pool.passage(id).ok().flatten().map(MigrationV1::from_bytes);
                let here = owned.map(|record| record.is_ok_and(|record| record.owned_here().is_some()));
                assert!(pool.may_serve(id).is_err() || here != Some(false));
            }
            0 => drop(pool.create(&VolumeSpec {
                name: format!("made{one}"),
                uuid: [2; 16],
                size_bytes: u64::from(two % 16) * MIB,
                provisioning: if one & 1 == 0 { Provisioning::Thin } else { Provisioning::Full },
                attributes: Vec::new(),
            })),
            1 => drop(pool.delete(id)),
            2 => drop(pool.snapshot(id, &format!("snap{two}"), [3; 16])),
            3 => drop(pool.release(id, u32::from(*two) % 8..u32::from(*two) % 16)),
            4 => {
                if let Some(order) = pool.next_wipe(u32::from(*two)) {
                    pool.wiped(order).expect("the drive works");
                }
            }
            5 => pool.grace_over(pool.grace()),
            _ => {
                if let Ok(answers) = pool.allocate(&[(id, u32::from(*two) % 16)])
                    && let Some(Allocation::Copy(order)) = answers.first()
                {
                    pool.copied(&[*order]).expect("it was ordered");
                }
            }
        }
    }
    let volumes = pool.volumes();
    if volumes.iter().all(|volume| volume.size_bytes <= 1 << 40) {
        for volume in &volumes {
            drop(pool.map(volume.id));
        }
    }
    drop(pool);
    let again = match Pool::open(Box::new(fresh), &options(4)) {
        Ok(again) => again,
        // A header that somebody put just before the end of its counting reached it with the first opening.
        Err(PoolError::Damaged(why)) if why.contains("counted further") => return,
        Err(error) => panic!("what was opened once opens again: {error}"),
    };
    assert_eq!(again.volumes(), volumes);
}

fuzz_target!(|input: Input| {
    let disk = formatted();
    match input {
        Input::Bytes(places) => {
            for (place, sealed, bytes) in places {
                let bytes = &bytes[..bytes.len().min(60 << 10)];
                let (at, magic) = match place % 6 {
                    0 => (0, HEADER_MAGIC),
                    1 => (MIB, HEADER_MAGIC),
                    2 => (MAP_0, CHUNK_MAGIC),
                    3 => (MAP_0 + 4096, CHUNK_MAGIC),
                    4 => (JOURNAL_0, RECORD_MAGIC),
                    _ => (JOURNAL_0 + 4096, RECORD_MAGIC),
                };
                let sealed = sealed.then(|| {
                    state::envelope::seal(magic, 1 + u32::from(place >= 128), bytes).expect("short")
                });
                disk.put(at, sealed.as_deref().unwrap_or(bytes));
            }
            judge(&disk, &[]);
        }
        Input::Fields { header: twists, chunks, records, deeds } => {
            let mut header = header(&disk);
            for (field, value) in twists {
                twist(&mut header, field, value);
            }
            lay(&disk, &mut header, &chunks, &records);
            if let Some((bytes, _)) = seal(HEADER_MAGIC, header.layout(), &header) {
                disk.put(0, &bytes);
                disk.put(MIB, &bytes);
            }
            judge(&disk, &deeds);
        }
    }
});
