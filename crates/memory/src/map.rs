//! The snapshot of a guest's address space and the translation through it.
#![expect(unsafe_code, reason = "dereferences what it has just translated")]
// UNSAFETY: a run's addresses lie inside mappings this map holds by Arc, so for the life of `&self` they are mapped.

use crate::segment;
use crate::{Mapping, Segment, WriteLog, sigbus};
use core::fmt;
use core::mem::MaybeUninit;
use std::sync::Arc;
use zerocopy::FromBytes;

/// Regions of one address space. SPDK maps each 2 MiB hugepage by itself.
pub const REGIONS_MAX: usize = 4096;

/// An address as the device sees it: guest-physical, or IO-virtual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iova(pub u64);

/// What the *device* may do with guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Access {
    /// The device may read it.
    pub read: bool,
    /// The device may write it.
    pub write: bool,
}

impl Access {
    /// Reads only.
    pub const READ: Access = Access { read: true, write: false };
    /// Writes only.
    pub const WRITE: Access = Access { read: false, write: true };
    /// Both.
    pub const BOTH: Access = Access { read: true, write: true };

    #[inline]
    const fn bits(self) -> u32 {
        self.read as u32 | (self.write as u32) << 1
    }
}

/// Why guest memory cannot be reached: the guest's fault, or its hypervisor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No region there, or not all the way, or not in one piece where one piece was asked for.
    #[error("not mapped")]
    Unmapped,
    /// The region does not allow this access.
    #[error("access denied")]
    Denied,
    /// The region has no fd: only messages over the socket reach it, and this map may not send any.
    #[error("reachable only through the client")]
    Remote,
    /// The client shrank the file behind the region.
    #[error("the memory was taken away")]
    Poisoned,
}

/// Why a map or unmap is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// Length 0.
    #[error("a region of no bytes")]
    Empty,
    /// The end leaves 64 bits.
    #[error("the region wraps around the end of the address space")]
    Wraps,
    /// Part of the range is mapped already.
    #[error("overlaps the region at {:#x}", .0.0)]
    Overlap(Iova),
    /// See [`REGIONS_MAX`].
    #[error("more than {REGIONS_MAX} regions")]
    TooMany,
    /// The mapping is shorter than the region, or allows the device less.
    #[error("the region leaves its mapping or its rights")]
    OutsideMapping,
    /// An unmap that would cut a region in two.
    #[error("covers only part of the region at {:#x}", .0.0)]
    Partial(Iova),
    /// An unmap that covers no region.
    #[error("nothing is mapped there")]
    NotMapped,
}

/// Access to regions without an fd: one blocking round trip to the client a call.
pub trait Remote: Send + Sync {
    /// Fills `dst` from guest memory.
    ///
    /// # Errors
    /// The client is gone or refuses.
    fn read(&self, iova: Iova, dst: &mut [u8]) -> Result<(), Fault>;

    /// Stores `src` into guest memory.
    ///
    /// # Errors
    /// The client is gone or refuses.
    fn write(&self, iova: Iova, src: &[u8]) -> Result<(), Fault>;
}

/// May the holder of a map block on remote regions?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Only mapped regions; a remote one is [`Fault::Remote`].
    Mapped,
    /// Everything (a private reactor).
    WithRemote,
}

/// Where the last translation ended: guests stay in one region for long. Any value is valid for any map.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hint(u32);

/// A region as the client mapped it.
#[derive(Clone, Debug)]
pub struct Region {
    iova: u64,
    len: u64,
    access: Access,
    mapping: Option<(Arc<Mapping>, u64)>,
}

impl Region {
    /// First address.
    #[must_use]
    pub fn iova(&self) -> Iova {
        Iova(self.iova)
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What the device may do.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// No fd: reachable only through the client.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.mapping.is_none()
    }

    /// Was the file behind it shrunk?
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.mapping.as_ref().is_some_and(|(mapping, _)| mapping.is_poisoned())
    }

    /// Where it is mapped here; `None` for a remote region. Stays mapped as long as the map or the [`Mapping`] lives.
    #[must_use]
    pub fn host(&self) -> Option<Segment> {
        let (mapping, offset) = self.mapping.as_ref()?;
        let (offset, len) = (usize::try_from(*offset).ok()?, usize::try_from(self.len).ok()?);
        Some(Segment::at(mapping.host() + offset, len))
    }

    fn end(&self) -> u64 {
        self.iova + self.len // checked when the region was made
    }
}

/// A stretch of the address space that is one stretch of host memory: one region, or adjacent ones of one mapping.
#[derive(Clone, Copy, Debug)]
struct Run {
    iova: u64,
    len: u64,
    host: usize,
    /// Access bits; 0 for a remote run, so that the hot test fails.
    mapped: u32,
    access: u32,
}

/// An immutable snapshot of an address space. Changing it makes another one; holders of the old keep its memory mapped.
#[derive(Clone, Default)]
pub struct MemoryMap {
    generation: u64,
    regions: Vec<Region>,
    runs: Vec<Run>,
    remote: Option<Arc<dyn Remote>>,
    log: Option<Arc<WriteLog>>,
}

impl MemoryMap {
    /// No memory at all.
    #[must_use]
    pub fn empty() -> MemoryMap {
        MemoryMap::default()
    }

    /// This map and one region more. `mapping`: where its bytes are, from which offset of the mapping; `None`: remote.
    ///
    /// # Errors
    /// [`MapError`]; this map is unchanged in any case.
    pub fn with(
        &self,
        iova: Iova,
        len: u64,
        access: Access,
        mapping: Option<(Arc<Mapping>, u64)>,
    ) -> Result<MemoryMap, MapError> {
        let end = iova.0.checked_add(len).ok_or(MapError::Wraps)?;
        if len == 0 {
            return Err(MapError::Empty);
        }
        let at = self.regions.partition_point(|region| region.end() <= iova.0);
        if let Some(next) = self.regions.get(at).filter(|next| next.iova < end) {
            return Err(MapError::Overlap(next.iova()));
        }
        if self.regions.len() >= REGIONS_MAX {
            return Err(MapError::TooMany);
        }
        if let Some((mapping, offset)) = &mapping {
            let fits = offset.checked_add(len).is_some_and(|end| end <= mapping.len() as u64);
            if !fits || access.write && !mapping.access().write || access.read && !mapping.access().read {
                return Err(MapError::OutsideMapping);
            }
        }
        let mut regions = Vec::with_capacity(self.regions.len() + 1);
        regions.extend_from_slice(&self.regions[..at]);
        regions.push(Region { iova: iova.0, len, access, mapping });
        regions.extend_from_slice(&self.regions[at..]);
        Ok(self.next(regions))
    }

    /// This map without the regions inside the range. The range may be larger than them, but cut none.
    ///
    /// # Errors
    /// [`MapError`]; this map is unchanged in any case.
    pub fn without(&self, iova: Iova, len: u64) -> Result<MemoryMap, MapError> {
        let end = iova.0.checked_add(len).ok_or(MapError::Wraps)?;
        if len == 0 {
            return Err(MapError::Empty);
        }
        let first = self.regions.partition_point(|region| region.end() <= iova.0);
        let last = self.regions.partition_point(|region| region.iova < end);
        let Some(inside) = self.regions.get(first..last).filter(|inside| !inside.is_empty()) else {
            return Err(MapError::NotMapped);
        };
        if let Some(cut) = inside.iter().find(|region| region.iova < iova.0 || region.end() > end) {
            return Err(MapError::Partial(cut.iova()));
        }
        let mut regions = Vec::with_capacity(self.regions.len() - inside.len());
        regions.extend_from_slice(&self.regions[..first]);
        regions.extend_from_slice(&self.regions[last..]);
        Ok(self.next(regions))
    }

    /// This map without any region (unmap all).
    #[must_use]
    pub fn cleared(&self) -> MemoryMap {
        self.next(Vec::new())
    }

    /// This map for a holder that may block on remote regions.
    #[must_use]
    pub fn with_remote(&self, remote: Arc<dyn Remote>) -> MemoryMap {
        MemoryMap { remote: Some(remote), ..self.clone() }
    }

    /// This map, in which what the device stores is marked in a log, or no longer is. Windows are made anew for it.
    #[must_use]
    pub fn with_log(&self, log: Option<Arc<WriteLog>>) -> MemoryMap {
        MemoryMap { generation: self.generation + 1, log, ..self.clone() }
    }

    fn next(&self, regions: Vec<Region>) -> MemoryMap {
        let runs = runs_of(&regions);
        let (remote, log) = (self.remote.clone(), self.log.clone());
        MemoryMap { generation: self.generation + 1, regions, runs, remote, log }
    }

    /// Where what the device stores is marked.
    #[inline]
    #[must_use]
    pub fn log(&self) -> Option<&Arc<WriteLog>> {
        self.log.as_ref()
    }

    /// Marks what a drive stored into the guest's memory, if there is a log. Stores through the map itself are marked by it.
    #[inline]
    pub fn mark(&self, iova: Iova, len: u64) {
        if let Some(log) = &self.log {
            log.mark(iova, len);
        }
    }

    /// Counts the changes that led here.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// By address, ascending.
    pub fn regions(&self) -> impl ExactSizeIterator<Item = &Region> {
        self.regions.iter()
    }

    /// See [`Reach`].
    #[must_use]
    pub fn reach(&self) -> Reach {
        if self.remote.is_some() { Reach::WithRemote } else { Reach::Mapped }
    }

    /// May the holder block on remote regions?
    #[must_use]
    pub fn is_remote_reachable(&self) -> bool {
        self.remote.is_some()
    }

    /// Was the file behind any region, or behind the log, shrunk? One load when no mapping of the process is.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        let log = || self.log.as_ref().is_some_and(|log| log.is_poisoned());
        sigbus::any_poisoned() && (self.regions.iter().any(Region::is_poisoned) || log())
    }

    /// One piece of host memory of exactly `len` bytes. A range that crosses between regions which are not one piece of
    /// one mapping is [`Fault::Unmapped`] here: [`MemoryMap::segments`] is for those.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn segment(&self, hint: &mut Hint, iova: Iova, len: usize, access: Access) -> Result<Segment, Fault> {
        if let Some(run) = self.runs.get(hint.0 as usize) {
            let offset = iova.0.wrapping_sub(run.iova);
            let want = access.bits();
            if offset < run.len
                && len as u64 <= run.len - offset
                && run.mapped & want == want
                && run.mapped != 0
                && !sigbus::any_poisoned()
            {
                return Ok(run.segment(offset, len));
            }
        }
        self.segment_slow(hint, iova, len, access)
    }

    #[cold]
    #[inline(never)]
    fn segment_slow(
        &self,
        hint: &mut Hint,
        iova: Iova,
        len: usize,
        access: Access,
    ) -> Result<Segment, Fault> {
        let (index, run) = self.run_at(iova)?;
        let offset = iova.0 - run.iova;
        let want = access.bits();
        if run.access & want != want {
            return Err(Fault::Denied);
        }
        if len as u64 > run.len - offset {
            return Err(Fault::Unmapped);
        }
        if run.host == 0 {
            return Err(Fault::Remote);
        }
        if sigbus::any_poisoned() && self.is_run_poisoned(run) {
            return Err(Fault::Poisoned);
        }
        hint.0 = index;
        Ok(run.segment(offset, len))
    }

    /// The pieces of host memory of a range, in order. After an error what was emitted is to be disregarded.
    ///
    /// # Errors
    /// [`Fault`]; [`Fault::Remote`] also when remote regions are reachable, because they have no host memory.
    #[inline]
    pub fn segments(
        &self,
        hint: &mut Hint,
        iova: Iova,
        len: usize,
        access: Access,
        out: &mut impl FnMut(Segment),
    ) -> Result<(), Fault> {
        if let Ok(segment) = self.segment(hint, iova, len, access) {
            out(segment);
            return Ok(());
        }
        self.pieces(iova, len, access, &mut |_, _, segment| {
            out(segment.ok_or(Fault::Remote)?);
            Ok(())
        })
    }

    /// Walks a range run by run: where, which bytes of the range, and the host memory unless remote.
    fn pieces(
        &self,
        iova: Iova,
        len: usize,
        access: Access,
        out: &mut dyn FnMut(Iova, core::ops::Range<usize>, Option<Segment>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let want = access.bits();
        let mut done = 0;
        while done < len {
            let at = Iova(iova.0.checked_add(done as u64).ok_or(Fault::Unmapped)?);
            let (_, run) = self.run_at(at)?;
            if run.access & want != want {
                return Err(Fault::Denied);
            }
            if run.host != 0 && sigbus::any_poisoned() && self.is_run_poisoned(run) {
                return Err(Fault::Poisoned);
            }
            let offset = at.0 - run.iova;
            let count = usize::try_from(run.len - offset).unwrap_or(usize::MAX).min(len - done);
            let segment = (run.host != 0).then(|| run.segment(offset, count));
            out(at, done..done + count, segment)?;
            done += count;
        }
        Ok(())
    }

    /// Can every byte be reached through this map?
    pub(crate) fn check(&self, iova: Iova, len: usize, access: Access) -> Result<(), Fault> {
        self.pieces(iova, len, access, &mut |_, _, segment| match segment {
            None if self.remote.is_none() => Err(Fault::Remote),
            _ => Ok(()),
        })
    }

    fn run_at(&self, iova: Iova) -> Result<(u32, &Run), Fault> {
        let index = self.runs.partition_point(|run| run.iova <= iova.0).checked_sub(1);
        let index = index.ok_or(Fault::Unmapped)?;
        let run = self.runs.get(index).filter(|run| iova.0 - run.iova < run.len).ok_or(Fault::Unmapped)?;
        Ok((u32::try_from(index).map_err(|_| Fault::Unmapped)?, run))
    }

    /// A run is of one mapping, so its first region tells.
    fn is_run_poisoned(&self, run: &Run) -> bool {
        let first = self.regions.partition_point(|region| region.iova < run.iova);
        self.regions.get(first).is_some_and(Region::is_poisoned)
    }

    /// One private copy of a `T`, each byte read once.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn read<T: FromBytes>(&self, iova: Iova) -> Result<T, Fault> {
        self.read_hinted(&mut Hint::default(), iova)
    }

    /// As [`MemoryMap::read`], for the hot path.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn read_hinted<T: FromBytes>(&self, hint: &mut Hint, iova: Iova) -> Result<T, Fault> {
        if let Ok(segment) = self.segment(hint, iova, size_of::<T>(), Access::READ) {
            // SAFETY: size_of::<T>() bytes of this map, alive with &self.
            return Ok(unsafe { segment::read(segment.addr()) });
        }
        let mut value = MaybeUninit::<T>::zeroed();
        // SAFETY: zeroed, hence initialised bytes; the slice covers the value and ends before it is used.
        let bytes =
            unsafe { core::slice::from_raw_parts_mut(value.as_mut_ptr().cast::<u8>(), size_of::<T>()) };
        self.read_bytes(iova, bytes)?;
        // SAFETY: any initialised bytes are a T (FromBytes).
        Ok(unsafe { value.assume_init() })
    }

    /// Copies guest memory, over remote regions too when they are reachable.
    ///
    /// # Errors
    /// [`Fault`]; `dst` may be partly overwritten then.
    pub fn read_bytes(&self, iova: Iova, dst: &mut [u8]) -> Result<(), Fault> {
        self.pieces(iova, dst.len(), Access::READ, &mut |at, range, segment| {
            let dst = dst.get_mut(range).ok_or(Fault::Unmapped)?;
            match segment {
                // SAFETY: a segment of this map, alive with &self.
                Some(segment) => unsafe { segment.copy_to(dst) },
                None => self.remote.as_ref().ok_or(Fault::Remote)?.read(at, dst)?,
            }
            Ok(())
        })
    }

    /// Stores into guest memory, over remote regions too when they are reachable.
    ///
    /// # Errors
    /// [`Fault`]; a part may have been stored then.
    pub fn write_bytes(&self, iova: Iova, src: &[u8]) -> Result<(), Fault> {
        let stored = self.pieces(iova, src.len(), Access::WRITE, &mut |at, range, segment| {
            let src = src.get(range).ok_or(Fault::Unmapped)?;
            match segment {
                // SAFETY: a writable segment of this map, alive with &self.
                Some(segment) => unsafe { segment.copy_from(src) },
                None => self.remote.as_ref().ok_or(Fault::Remote)?.write(at, src)?,
            }
            Ok(())
        });
        // Also after a fault: a part may have been stored.
        self.mark(iova, src.len() as u64);
        stored
    }

    /// A little-endian word with acquire ordering (shadow doorbells).
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn load_u32(&self, iova: Iova) -> Result<u32, Fault> {
        match self.segment(&mut Hint::default(), iova, 4, Access::READ) {
            // SAFETY: four bytes of this map, alive with &self.
            Ok(segment) => Ok(unsafe { segment::load_u32(segment.addr()) }),
            Err(_) => self.read::<[u8; 4]>(iova).map(u32::from_le_bytes),
        }
    }

    /// A little-endian word with release ordering (EventIdx).
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn store_u32(&self, iova: Iova, value: u32) -> Result<(), Fault> {
        match self.segment(&mut Hint::default(), iova, 4, Access::WRITE) {
            Ok(segment) => {
                // SAFETY: four writable bytes of this map, alive with &self.
                unsafe { segment::store_u32(segment.addr(), value) };
                self.mark(iova, 4);
                Ok(())
            }
            Err(_) => self.write_bytes(iova, &value.to_le_bytes()),
        }
    }

    /// Stores one byte, with release ordering.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn store_u8(&self, hint: &mut Hint, iova: Iova, value: u8) -> Result<(), Fault> {
        match self.segment(hint, iova, 1, Access::WRITE) {
            Ok(segment) => {
                // SAFETY: a writable byte of this map, alive with &self.
                unsafe { segment::store_u8(segment.addr(), value) };
                self.mark(iova, 1);
                Ok(())
            }
            Err(_) => self.write_bytes(iova, &[value]),
        }
    }

    /// Asks the processor to bring a segment's first line near.
    #[inline]
    pub fn prefetch(&self, segment: Segment) {
        segment.prefetch();
    }
}

impl fmt::Debug for MemoryMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("MemoryMap");
        debug.field("generation", &self.generation).field("regions", &self.regions);
        debug.field("remote", &self.remote.is_some()).field("log", &self.log.is_some()).finish()
    }
}

impl Run {
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "offset < run.len, which fitted a usize when it was mapped"
    )]
    fn segment(&self, offset: u64, len: usize) -> Segment {
        Segment::at(self.host + offset as usize, len)
    }
}

/// Regions to runs, in one pass.
fn runs_of(regions: &[Region]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::with_capacity(regions.len());
    let mut previous: Option<&Region> = None;
    for region in regions {
        let host = region.host().map_or(0, |segment| segment.addr().addr());
        let joins = previous.is_some_and(|previous| is_continued(previous, region));
        match runs.last_mut() {
            Some(run) if joins => run.len += region.len,
            _ => {
                let access = region.access.bits();
                let mapped = if host == 0 { 0 } else { access };
                runs.push(Run { iova: region.iova, len: region.len, host, mapped, access });
            }
        }
        previous = Some(region);
    }
    runs
}

/// Does `next` go on where `region` ends, in the guest and in the same mapping, with the same rights?
fn is_continued(region: &Region, next: &Region) -> bool {
    let same_mapping = match (&region.mapping, &next.mapping) {
        (Some((a, at)), Some((b, next_at))) => Arc::ptr_eq(a, b) && at + region.len == *next_at,
        (None, None) => true,
        _ => false,
    };
    same_mapping && region.end() == next.iova && region.access == next.access
}
