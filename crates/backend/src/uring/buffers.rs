//! Guest memory registered with the ring: the kernel pins it once instead of at each request.
//!
//! Registration is best effort. What the kernel refuses (locked-memory limit, file-backed memory) is used unregistered.
#![expect(unsafe_code, reason = "io_uring's buffer registration is an unsafe method")]
// UNSAFETY: what is registered lies in mappings that `map` keeps alive, and is unregistered before `map` is let go;
// the kernel holds its own pins besides.

use io_uring::Submitter;
use memory::{MemoryMap, Segment};
use std::io;
use std::sync::Arc;

/// Slots of the ring's buffer table.
const BUFFERS_MAX: u32 = 1024;
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
    /// The kernel has a table.
    ready: bool,
    pieces: Vec<Piece>,
    free: Vec<u16>,
    /// Keeps the registered memory mapped, so that its addresses cannot be reused before it is forgotten.
    map: Option<Arc<MemoryMap>>,
}

impl Buffers {
    /// Makes the (empty) table. Without one, everything stays unregistered.
    pub(crate) fn prepare(&mut self, submitter: &Submitter<'_>) {
        match submitter.register_buffers_sparse(BUFFERS_MAX) {
            Ok(()) => {
                self.ready = true;
                self.free = (0..u16::try_from(BUFFERS_MAX).unwrap_or(u16::MAX)).rev().collect();
            }
            Err(error) => tracing::warn!(%error, "the ring takes no buffers: going on without"),
        }
    }

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

    /// Forgets what is gone and registers what came.
    pub(crate) fn changed(&mut self, submitter: &Submitter<'_>, map: &Arc<MemoryMap>) {
        if !self.ready {
            return;
        }
        let mut wanted: Vec<(usize, usize)> = map
            .regions()
            .filter(|region| region.access().write && !region.is_poisoned())
            .filter_map(|region| region.host())
            .flat_map(pieces_of)
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        let (kept, gone): (Vec<Piece>, Vec<Piece>) = core::mem::take(&mut self.pieces)
            .into_iter()
            .partition(|piece| wanted.binary_search(&(piece.start, piece.end)).is_ok());
        self.pieces = kept;
        for piece in gone {
            // An index that could not be cleared is not used again.
            if update(submitter, piece.index, Segment::default()).is_ok() {
                self.free.push(piece.index);
            }
        }
        let mut refused: Option<io::Error> = None;
        for (start, end) in wanted {
            if self.pieces.iter().any(|piece| piece.start < end && start < piece.end) {
                continue;
            }
            let Some(index) = self.free.pop() else { break };
            let segment = Segment::from_raw(core::ptr::with_exposed_provenance_mut(start), end - start);
            match update(submitter, index, segment) {
                Ok(()) => {
                    let at = self.pieces.partition_point(|piece| piece.start < start);
                    self.pieces.insert(at, Piece { start, end, index });
                }
                Err(error) => {
                    self.free.push(index);
                    refused = Some(error);
                    break;
                }
            }
        }
        if let Some(error) = refused {
            tracing::warn!(%error, "guest memory stays unregistered: raise the locked-memory limit to change that");
        }
        self.map = Some(Arc::clone(map));
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
