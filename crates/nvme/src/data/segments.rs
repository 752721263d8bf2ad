//! A data pointer as host memory, for the backend.

use memory::{Access, Hint, Iova, MemoryMap, Segment};

use super::{Direction, Refused, Visit};

/// Bytes of the buffer that takes what a host does not want.
const BUCKET_BYTES: usize = 64 << 10;

/// A reusable list. Runs that continue each other in host memory are one segment.
#[derive(Debug)]
pub struct Segments {
    list: Vec<Segment>,
    /// Its length.
    count: usize,
    max: usize,
    hint: Hint,
    access: Access,
    /// Written by the drive, read by nobody.
    bucket: Vec<u8>,
}

impl Segments {
    /// For backends that take at most `max` segments in a request.
    #[must_use]
    pub fn new(max: usize) -> Self {
        let max = max.clamp(1, 4096);
        Self {
            list: Vec::with_capacity(max),
            count: 0,
            max,
            hint: Hint::default(),
            access: Access::READ,
            bucket: Vec::new(),
        }
    }

    /// Empties the list and sets the direction of what will be visited.
    #[inline]
    pub fn clear(&mut self, direction: Direction) {
        self.list.clear();
        self.count = 0;
        self.access = direction.access();
    }

    /// What was visited.
    #[must_use]
    #[inline]
    pub fn as_slice(&self) -> &[Segment] {
        // By the count beside it: address and length of the list are neighbours and would be read together, which waits for the
        // store of the length just before.
        self.list.get(..self.count).unwrap_or(&[])
    }

    #[inline]
    fn push(&mut self, segment: Segment) -> Result<(), Refused> {
        if let Some(last) = self.list.last_mut() {
            if let Some(joined) = last.join(segment) {
                *last = joined;
                return Ok(());
            }
            if self.list.len() >= self.max {
                return Err(Refused::Scattered);
            }
        }
        self.add(segment);
        Ok(())
    }

    #[inline]
    fn add(&mut self, segment: Segment) {
        self.list.push(segment);
        self.count += 1;
    }

    #[cold]
    fn push_pieces(&mut self, map: &MemoryMap, address: u64, len_bytes: usize) -> Result<(), Refused> {
        let mut refused = None;
        let (mut hint, access) = (Hint::default(), self.access);
        let walked = map.segments(&mut hint, Iova(address), len_bytes, access, &mut |segment| {
            if refused.is_none() {
                refused = self.push(segment).err();
            }
        });
        match (walked, refused) {
            // Remote is met where the map reaches it only by messages: through a buffer then.
            (Err(memory::Fault::Remote), _) if map.is_remote_reachable() => Err(Refused::Scattered),
            (Err(fault), _) => Err(fault.into()),
            (Ok(()), Some(refused)) => Err(refused),
            (Ok(()), None) => Ok(()),
        }
    }
}

impl Visit for Segments {
    #[inline]
    fn memory(&mut self, map: &MemoryMap, address: u64, len_bytes: usize) -> Result<(), Refused> {
        match map.segment(&mut self.hint, Iova(address), len_bytes, self.access) {
            Ok(segment) => self.push(segment),
            Err(_) => self.push_pieces(map, address, len_bytes),
        }
    }

    fn bucket(&mut self, mut len_bytes: usize) -> Result<(), Refused> {
        if self.bucket.is_empty() {
            self.bucket = vec![0; BUCKET_BYTES];
        }
        let whole = Segment::of(&mut self.bucket);
        while len_bytes > 0 {
            let (segment, _) = whole.split_at(len_bytes.min(BUCKET_BYTES));
            len_bytes -= segment.len();
            if self.list.len() >= self.max {
                return Err(Refused::Scattered);
            }
            // Not joined: each use is the same memory again.
            self.add(segment);
        }
        Ok(())
    }
}
