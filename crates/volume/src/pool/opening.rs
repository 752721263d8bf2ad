//! Format, open, export: who has the pool.

use state::pool::{HeaderV1, VERSION_PLAIN};

use super::extents::Copies;
use super::wipes::Wipes;
use super::{FormatOptions, HostId, OpenOptions, Pool, PoolInfo, info_of};
use crate::geometry::{BLOCK, Geometry};
use crate::header::{self, Copy};
use crate::ledger::{Ledger, Unfit, check_name};
use crate::load::{Judge, load};
use crate::map_area::{self, Stamp};
use crate::{Disk, PoolError};

/// What is before the map: the headers, and nothing else.
const HEAD_BYTES: u64 = 2 << 20;
/// Counters on the drive beyond this were never reached by counting.
const COUNT_MAX: u64 = 1 << 62;

impl Pool {
    /// Makes a drive a pool without volumes. Whatever was on it is lost.
    ///
    /// # Errors
    /// The drive is too small, carries a pool already, or fails.
    pub fn format(disk: &dyn Disk, options: &FormatOptions) -> Result<(), PoolError> {
        check_name(&options.name).map_err(PoolError::Invalid)?;
        let geometry = Geometry::choose(drive_bytes(disk)?, options.extent_bytes)?;
        let copies = header::read(disk);
        if !options.overwrite {
            match header::newest(&copies) {
                Err(PoolError::NoPool) => {}
                Ok(there) => return Err(PoolError::Exists { name: there.name }),
                Err(error) => return Err(error),
            }
        }
        if copies.iter().any(|copy| matches!(copy, Copy::Whole(there) if there.uuid == options.uuid)) {
            // Old records of the same pool would be taken for its own.
            return Err(PoolError::Invalid("a new pool needs a new identity".to_owned()));
        }
        header::erase(disk)?;
        clear_head(disk)?;
        let mut ledger = Ledger::new(geometry.extent_bytes, geometry.extents);
        if !options.zeroed {
            ledger.load_unfit(0, geometry.extents, Unfit::Wiping).map_err(PoolError::Invalid)?;
        }
        let stamp = Stamp { uuid: options.uuid, generation: 1, seq: 0, epoch: 0, version: VERSION_PLAIN };
        let map_chain = map_area::write(disk, &geometry, 0, &ledger, stamp)?;
        disk.flush().map_err(|source| PoolError::Drive { doing: "making its map durable", source })?;
        let header = HeaderV1 {
            uuid: options.uuid,
            name: options.name.clone(),
            generation: 1,
            extent_bytes: geometry.extent_bytes,
            extents: geometry.extents,
            data_offset_bytes: geometry.data_offset_bytes,
            map_bytes: geometry.map_bytes,
            journal_bytes: geometry.journal_bytes,
            slot: 0,
            map_generation: 1,
            map_seq: 0,
            map_epoch: 0,
            map_chain,
            map_follows: false,
            epoch: 0,
            nonce: 0,
            fence_epoch: 0,
            fence_seq: 0,
            owner: Some(options.host.0),
            version: None,
        };
        header::write_first(disk, &header)
    }

    /// Opens the pool on a drive and fences off whoever had it open before.
    ///
    /// # Errors
    /// There is none, it is damaged, of a newer version, or another host's.
    pub fn open(disk: Box<dyn Disk + Send>, options: &OpenOptions) -> Result<Self, PoolError> {
        let (header, geometry) = find(&*disk)?;
        may_have(&header, options)?;
        // Looked at whole before it is taken: a pool that cannot be opened is not taken from its owner.
        load(&*disk, &geometry, &header, &mut Judge::Strict)?;
        let (header, geometry) = match find(&*disk)? {
            // Its owner may have switched maps since.
            (newer, geometry) if newer.uuid == header.uuid => (newer, geometry),
            (other, _) => {
                return Err(PoolError::Damaged(format!("it became pool {:?} meanwhile", other.name)));
            }
        };
        may_have(&header, options)?;
        let mut header = claim(&*disk, &header, options)?;
        // Once more: its owner may have made a change until it was fenced off.
        let loaded = load(&*disk, &geometry, &header, &mut Judge::Strict)?;
        header.generation += 1;
        header.fence_epoch = header.epoch;
        header.fence_seq = loaded.tail.seq;
        header::write(&*disk, &header)?;
        let wipes = Wipes::of(&loaded.ledger);
        let pool = Self {
            disk,
            header,
            geometry,
            ledger: loaded.ledger,
            tail: loaded.tail,
            stopped: false,
            maps: std::collections::BTreeMap::new(),
            cursor: 0,
            copies: Copies::default(),
            wipes,
        };
        pool.check_fence()?;
        Ok(pool)
    }

    /// What pool is on a drive, without taking it: for lists. Of a pool that is open elsewhere, it is a moment's look.
    ///
    /// # Errors
    /// There is none, it is damaged, or of a newer version.
    pub fn peek(disk: &dyn Disk) -> Result<PoolInfo, PoolError> {
        let (header, geometry) = find(disk)?;
        let loaded = load(disk, &geometry, &header, &mut Judge::Strict)?;
        Ok(info_of(&header, &loaded.ledger))
    }

    /// Gives the pool up: any host may open it afterwards.
    ///
    /// # Errors
    /// The drive fails, or another has the pool already.
    pub fn export(mut self) -> Result<(), PoolError> {
        self.ready()?;
        self.check_fence()?;
        self.header.generation += 1;
        self.header.epoch += 1;
        self.header.nonce = 0;
        self.header.fence_epoch = self.header.epoch;
        self.header.fence_seq = self.tail.seq;
        self.header.owner = None;
        header::write(&*self.disk, &self.header)
    }
}

/// The header that holds and its geometry, both possible.
pub(crate) fn find(disk: &dyn Disk) -> Result<(HeaderV1, Geometry), PoolError> {
    let header = header::newest(&header::read(disk))?;
    let geometry = accept(&header, drive_bytes(disk)?).map_err(PoolError::Damaged)?;
    Ok((header, geometry))
}

/// The geometry of a header whose numbers can be.
pub(crate) fn accept(header: &HeaderV1, len_bytes: u64) -> Result<Geometry, String> {
    let counts = [header.generation, header.map_generation, header.map_seq, header.epoch, header.fence_seq];
    if counts.iter().any(|count| *count >= COUNT_MAX) {
        return Err("its header has counted further than anyone can".to_owned());
    }
    if header.map_epoch > header.epoch || header.fence_epoch > header.epoch {
        return Err("its header knows an epoch after its own".to_owned());
    }
    Geometry::of(header, len_bytes)
}

/// Whether this host may have the pool.
pub(crate) fn may_have(header: &HeaderV1, options: &OpenOptions) -> Result<(), PoolError> {
    match header.owner.map(HostId) {
        Some(owner) if owner != options.host && !options.take_over => Err(PoolError::ForeignHost { owner }),
        _ => Ok(()),
    }
}

/// Takes the pool: whoever had it finds out before its next change is told to anyone.
pub(crate) fn claim(
    disk: &dyn Disk,
    header: &HeaderV1,
    options: &OpenOptions,
) -> Result<HeaderV1, PoolError> {
    let mut claimed = header.clone();
    claimed.generation += 1;
    claimed.epoch += 1;
    claimed.nonce = options.nonce;
    claimed.owner = Some(options.host.0);
    header::write(disk, &claimed)?;
    // Another opening at the same moment may have written over it: then that one has the pool.
    let there = header::newest(&header::read(disk))?;
    if there == claimed {
        Ok(claimed)
    } else {
        Err(PoolError::Fenced { ours: claimed.epoch, theirs: there.epoch })
    }
}

fn drive_bytes(disk: &dyn Disk) -> Result<u64, PoolError> {
    disk.len_bytes().map_err(|source| PoolError::Drive { doing: "asking for its size", source })
}

/// Zeroes what is before the map: nobody shall see a partition table or file system there any more. Only the mark in the first block stays.
fn clear_head(disk: &dyn Disk) -> Result<(), PoolError> {
    let zeros = vec![0_u8; 16 * BLOCK];
    for at in (0..HEAD_BYTES).step_by(zeros.len()) {
        let doing = "clearing its head";
        let kept = if at == 0 { BLOCK } else { 0 };
        disk.write_at(at + kept as u64, &zeros[kept..])
            .map_err(|source| PoolError::Drive { doing, source })?;
    }
    Ok(())
}
