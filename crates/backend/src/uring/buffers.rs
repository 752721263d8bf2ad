//! Guest memory registered with the ring: the kernel pins it once instead of at each request.
//!
//! Registration is best effort. What the kernel refuses (locked-memory limit, file-backed memory) is used unregistered.
#![expect(unsafe_code, reason = "io_uring's buffer registration is an unsafe method")]
// UNSAFETY: what is registered lies in mappings that `map` keeps alive, and is unregistered before `map` is let go;
// the kernel holds its own pins besides.

use super::ring::Lane;
use io_uring::Submitter;
use memory::{MemoryMap, Segment};
use std::io;
use std::sync::Arc;

/// The kernel's own limit for one buffer.
const PIECE_BYTES: usize = 1 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: usize,
    end: usize,
    index: u16,
}

/// What is registered, by address.
#[derive(Default)]
pub(crate) struct Buffers {
    pieces: Vec<Piece>,
    /// Keeps the registered memory mapped, so that its addresses cannot be reused before it is forgotten.
    map: Option<Arc<MemoryMap>>,
}

impl Buffers {
    /// The buffer that holds all of a segment.
    #[inline]
    pub(crate) fn find(&self, segment: Segment) -> Option<u16> {
        if self.pieces.is_empty() {
            return None;
        }
        let start = segment.addr().addr();
        let at = self.pieces.partition_point(|piece| piece.start <= start).checked_sub(1)?;
        let piece = self.pieces.get(at)?;
        (start + segment.len() <= piece.end).then_some(piece.index)
    }

    /// Forgets what is gone and registers what came. Without a table, everything stays unregistered.
    pub(crate) fn changed(&mut self, lane: &Lane, map: &Arc<MemoryMap>) {
        let mut wanted: Vec<(usize, usize)> = map
            .regions()
            .filter(|region| region.access().write && !region.is_poisoned())
            .filter_map(|region| region.host())
            .flat_map(pieces_of)
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        let changed = lane.with_buffers(|submitter, free| {
            self.forget(submitter, free, |piece| wanted.binary_search(&(piece.start, piece.end)).is_err());
            self.register(submitter, free, wanted)
        });
        if let Some(Err(error)) = changed {
            tracing::warn!(%error, "guest memory stays unregistered: raise the locked-memory limit to change that");
        }
        self.map = Some(Arc::clone(map));
    }

    /// Forgets all. Before the lane is given up.
    pub(crate) fn clear(&mut self, lane: &Lane) {
        lane.with_buffers(|submitter, free| self.forget(submitter, free, |_| true));
        self.map = None;
    }

    fn forget(&mut self, submitter: &Submitter<'_>, free: &mut Vec<u16>, is_gone: impl Fn(&Piece) -> bool) {
        let (gone, kept): (Vec<Piece>, Vec<Piece>) =
            core::mem::take(&mut self.pieces).into_iter().partition(is_gone);
        self.pieces = kept;
        for piece in gone {
            // An index that could not be cleared is not used again.
            if update(submitter, piece.index, Segment::default()).is_ok() {
                free.push(piece.index);
            }
        }
    }

    fn register(
        &mut self,
        submitter: &Submitter<'_>,
        free: &mut Vec<u16>,
        wanted: Vec<(usize, usize)>,
    ) -> io::Result<()> {
        for (start, end) in wanted {
            if self.pieces.iter().any(|piece| piece.start < end && start < piece.end) {
                continue;
            }
            let Some(index) = free.pop() else { break };
            let segment = Segment::from_raw(core::ptr::with_exposed_provenance_mut(start), end - start);
            if let Err(error) = update(submitter, index, segment) {
                free.push(index);
                return Err(error);
            }
            let at = self.pieces.partition_point(|piece| piece.start < start);
            self.pieces.insert(at, Piece { start, end, index });
        }
        Ok(())
    }
}

fn pieces_of(segment: Segment) -> impl Iterator<Item = (usize, usize)> {
    let start = segment.addr().addr();
    let end = start + segment.len();
    (start..end).step_by(PIECE_BYTES).map(move |at| (at, end.min(at + PIECE_BYTES)))
}

fn update(submitter: &Submitter<'_>, index: u16, segment: Segment) -> io::Result<()> {
    let base = if segment.is_empty() { core::ptr::null_mut() } else { segment.addr().cast() };
    let iovec = libc::iovec { iov_base: base, iov_len: segment.len() };
    // SAFETY: mapped for as long as it is registered (see the module); an empty one clears the slot.
    unsafe { submitter.register_buffers_update(u32::from(index), &[iovec], None) }.map(drop)
}
