//! The whole map, as chunks in one of the two map areas.

use state::pool::{CHUNK_MAGIC, ChunkV1, HeaderV1, RunV1, UnfitV1, VolumeRunsV1};

use crate::geometry::{BLOCK_BYTES, Geometry};
use crate::ledger::{Ledger, Unfit, saved_bytes};
use crate::load::{Judge, Loader};
use crate::records::{self, Found};
use crate::{Disk, PoolError};

/// A chunk is closed when it may have grown so long.
const CHUNK_FILL_BYTES: u64 = 56 << 10;

/// What stands in every chunk of a map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub(crate) uuid: [u8; 16],
    pub(crate) generation: u64,
    pub(crate) seq: u64,
    pub(crate) epoch: u64,
    /// Of the layout.
    pub(crate) version: u32,
}

/// Takes a chunk and its place in the area.
type Sink<'a> = dyn FnMut(u64, &[u8]) -> Result<(), PoolError> + 'a;

/// Writes chunks one after another.
struct Writer<'a> {
    sink: &'a mut Sink<'a>,
    chunk: ChunkV1,
    version: u32,
    filled_bytes: u64,
    at: u64,
}

impl Writer<'_> {
    fn close(&mut self, last: bool) -> Result<(), PoolError> {
        self.chunk.last = last;
        let (bytes, chain) = records::seal(CHUNK_MAGIC, self.version, &self.chunk)?;
        (self.sink)(self.at, &bytes)?;
        self.at += bytes.len() as u64;
        self.chunk.chain = chain;
        self.chunk.index += 1;
        self.chunk.volumes.clear();
        self.chunk.runs.clear();
        self.chunk.unfit.clear();
        self.filled_bytes = 0;
        Ok(())
    }

    fn room(&mut self, bytes: u64) -> Result<(), PoolError> {
        if self.filled_bytes + bytes > CHUNK_FILL_BYTES {
            self.close(false)?;
        }
        self.filled_bytes += bytes;
        Ok(())
    }

    fn run(&mut self, volume: u64, run: RunV1) -> Result<(), PoolError> {
        self.room(16)?;
        match self.chunk.runs.last_mut() {
            Some(last) if last.volume == volume => last.runs.push(run),
            _ => {
                self.filled_bytes += 16;
                self.chunk.runs.push(VolumeRunsV1 { volume, runs: vec![run] });
            }
        }
        Ok(())
    }
}

/// Gives a map's chunks to `sink`, each with its place in the area. Returns the last one's checksum.
pub(crate) fn encode<'a>(ledger: &Ledger, stamp: Stamp, sink: &'a mut Sink<'a>) -> Result<u32, PoolError> {
    let chunk = ChunkV1 {
        uuid: stamp.uuid,
        map_generation: stamp.generation,
        seq: stamp.seq,
        epoch: stamp.epoch,
        next_volume: ledger.next_volume,
        ..ChunkV1::default()
    };
    let mut writer = Writer { sink, chunk, version: stamp.version, filled_bytes: 0, at: 0 };
    for volume in ledger.volumes.values() {
        writer.room(saved_bytes(&volume.saved))?;
        writer.chunk.volumes.push(volume.saved.clone());
        for run in volume.map.iter() {
            let run = RunV1 { logical: run.first, count: run.count, physical: run.value.0 };
            writer.run(volume.saved.id, run)?;
        }
    }
    for run in ledger.unfit.iter() {
        writer.room(16)?;
        let quarantined = run.value == Unfit::Quarantined;
        writer.chunk.unfit.push(UnfitV1 { first: run.first, count: run.count, quarantined });
    }
    writer.close(true)?;
    Ok(writer.chunk.chain)
}

/// Writes a map into an area; not flushed. Returns the last chunk's checksum.
pub(crate) fn write(
    disk: &dyn Disk,
    geometry: &Geometry,
    slot: u8,
    ledger: &Ledger,
    stamp: Stamp,
) -> Result<u32, PoolError> {
    let area = geometry.map_at(slot);
    encode(ledger, stamp, &mut |at, bytes| {
        if at + bytes.len() as u64 > geometry.map_bytes {
            return Err(PoolError::MapFull);
        }
        disk.write_at(area + at, bytes)
            .map_err(|source| PoolError::Drive { doing: "writing its map", source })
    })
}

/// What a map's chunks said of the whole.
pub(crate) struct MapEnd {
    pub(crate) seq: u64,
    pub(crate) epoch: u64,
    pub(crate) chain: u32,
}

/// Reads the map of a generation.
pub(crate) fn read(
    disk: &dyn Disk,
    geometry: &Geometry,
    header: &HeaderV1,
    slot: u8,
    generation: u64,
    judge: &mut Judge,
) -> Result<(Ledger, MapEnd), PoolError> {
    let (mut at, end) = (geometry.map_at(slot), geometry.map_at(slot) + geometry.map_bytes);
    let mut loader = Loader::new(geometry, header.layout());
    let mut first: Option<MapEnd> = None;
    for index in 0..geometry.map_bytes / BLOCK_BYTES {
        let Found::<ChunkV1> { value: chunk, chain, version, span_bytes } =
            records::read(disk, CHUNK_MAGIC, at, end)?.map_err(|why| {
                PoolError::Damaged(format!("piece {index} of map {slot} (byte {at} of the drive): {why}"))
            })?;
        let before = first.as_ref().map_or(0, |map| map.chain);
        let follows = first.as_ref().is_none_or(|map| map.seq == chunk.seq && map.epoch == chunk.epoch);
        if chunk.uuid != header.uuid || chunk.map_generation != generation {
            return Err(PoolError::Damaged(format!(
                "piece {index} of map {slot} is of another pool or time: generation {} for {generation}",
                chunk.map_generation
            )));
        }
        if version != header.layout() {
            return Err(PoolError::Damaged(format!(
                "piece {index} of map {slot} has version {version}, its pool {}",
                header.layout()
            )));
        }
        if chunk.index != index || chunk.chain != before || !follows {
            return Err(PoolError::Damaged(format!(
                "piece {index} of map {slot} does not follow the one before"
            )));
        }
        loader.chunk(&chunk, judge)?;
        first = Some(MapEnd { seq: chunk.seq, epoch: chunk.epoch, chain });
        at += span_bytes;
        if chunk.last {
            let next_volume = chunk.next_volume;
            let ledger = loader.end(next_volume, judge)?;
            return first.map(|map| (ledger, map)).ok_or(PoolError::NoPool);
        }
    }
    Err(PoolError::Damaged(format!("map {slot} has no end")))
}
