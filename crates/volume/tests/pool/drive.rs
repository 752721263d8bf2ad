//! A drive that forgets what was not flushed.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use volume::Disk;

const SECTOR: u64 = 512;
const SECTOR_LEN: usize = 512;

/// Numbers that look random and are the same for a seed.
#[derive(Clone, Debug)]
pub(crate) struct Chance(pub u64);

impl Chance {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        u32::try_from(self.next() % u64::from(limit)).expect("below a u32")
    }
}

/// Where the layout has its headers.
const HEADERS_AT: [u64; 2] = [0, 1 << 20];

type Sector = [u8; SECTOR_LEN];

#[derive(Clone, Debug, Default)]
struct Content {
    len_bytes: u64,
    /// What a read sees.
    seen: BTreeMap<u64, Sector>,
    /// What is on the medium.
    durable: BTreeMap<u64, Sector>,
    /// Written and not flushed, in order.
    pending: Vec<(u64, Sector)>,
    effects: u64,
    dies_at: Option<u64>,
    dead: bool,
    /// Where the last write went; `None` after a flush.
    last: Option<u64>,
    /// Where writes went since somebody asked.
    trail: Vec<u64>,
    /// Places that give an error.
    bad: Vec<u64>,
}

/// Shared, so that a test keeps an eye on what a pool has.
#[derive(Clone, Debug)]
pub(crate) struct SimDisk(Arc<Mutex<Content>>);

fn put(sectors: &mut BTreeMap<u64, Sector>, at: u64, sector: Sector) {
    if sector == [0; SECTOR_LEN] {
        sectors.remove(&at);
    } else {
        sectors.insert(at, sector);
    }
}

impl SimDisk {
    pub(crate) fn new(len_bytes: u64) -> Self {
        Self(Arc::new(Mutex::new(Content { len_bytes, ..Content::default() })))
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().expect("no test panics while it holds it")
    }

    /// One with the same content and a life of its own.
    pub(crate) fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.content().clone())))
    }

    /// The power fails at the `effects`-th write or flush from now (0: the next).
    pub(crate) fn die_at(&self, effects: u64) {
        let mut content = self.content();
        content.effects = 0;
        content.dies_at = Some(effects);
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.content().dead
    }

    /// What is there after the power came back: of what was not flushed, each sector stayed or not.
    pub(crate) fn after_crash(&self, seed: u64) -> Self {
        let content = self.content();
        let mut durable = content.durable.clone();
        let mut chance = Chance(seed);
        let kept_of_four = [0, 4, 1, 2, 3][usize::try_from(seed % 5).expect("small")];
        for (at, sector) in &content.pending {
            if chance.below(4) < kept_of_four {
                put(&mut durable, *at, *sector);
            }
        }
        let seen = durable.clone();
        let len_bytes = content.len_bytes;
        Self(Arc::new(Mutex::new(Content { len_bytes, seen, durable, ..Content::default() })))
    }

    /// Bytes as they are now.
    pub(crate) fn peek(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.content().read(at, &mut bytes);
        bytes
    }

    /// Changes bytes behind everybody's back, durably.
    pub(crate) fn poke(&self, at: u64, bytes: &[u8]) {
        let mut content = self.content();
        for (by, byte) in (0..).zip(bytes) {
            let place = at + by;
            let mut sector = content.seen.get(&(place / SECTOR)).copied().unwrap_or([0; SECTOR_LEN]);
            sector[usize::try_from(place % SECTOR).expect("small")] = *byte;
            put(&mut content.seen, place / SECTOR, sector);
            put(&mut content.durable, place / SECTOR, sector);
        }
    }

    /// Reads of the block at `at` fail from now on.
    pub(crate) fn spoil(&self, at: u64) {
        self.content().bad.push(at);
    }

    /// Sectors that differ from what `before` has.
    pub(crate) fn changed_since(&self, before: &Self) -> Vec<(u64, Vec<u8>)> {
        let (now, then) = (self.content(), before.content());
        let differs = |at: &&u64| now.seen.get(at) != then.seen.get(at);
        let places: std::collections::BTreeSet<u64> =
            now.seen.keys().chain(then.seen.keys()).filter(differs).copied().collect();
        let content = |at: u64| now.seen.get(&at).map_or(vec![0; SECTOR_LEN], |sector| sector.to_vec());
        places.into_iter().map(|at| (at * SECTOR, content(at))).collect()
    }

    /// Stores that come late.
    pub(crate) fn land(&self, sectors: &[(u64, Vec<u8>)]) {
        for (at, bytes) in sectors {
            self.poke(*at, bytes);
        }
    }

    pub(crate) fn set_len(&self, len_bytes: u64) {
        self.content().len_bytes = len_bytes;
    }

    /// Where the last write went, if no flush came after it.
    pub(crate) fn last_write(&self) -> Option<u64> {
        self.content().last
    }

    /// Where writes went since the last call.
    pub(crate) fn take_trail(&self) -> Vec<u64> {
        std::mem::take(&mut self.content().trail)
    }

    pub(crate) fn unflushed(&self) -> usize {
        self.content().pending.len()
    }

    pub(crate) fn effects(&self) -> u64 {
        self.content().effects
    }
}

impl Content {
    fn read(&self, at: u64, into: &mut [u8]) {
        for (place, part) in (at / SECTOR..).zip(into.chunks_mut(SECTOR_LEN)) {
            match self.seen.get(&place) {
                Some(sector) => part.copy_from_slice(&sector[..part.len()]),
                None => part.fill(0),
            }
        }
    }

    /// One more effect; whether the power fails at it.
    fn effect(&mut self) -> bool {
        self.dead |= self.dies_at == Some(self.effects);
        self.effects += 1;
        self.dead
    }
}

fn gone() -> io::Error {
    io::Error::other("the power is off")
}

impl Disk for SimDisk {
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.content().len_bytes)
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let content = self.content();
        assert_eq!((at % 4096, into.len() % 4096), (0, 0), "the pool reads whole blocks");
        assert!(at + into.len() as u64 <= content.len_bytes, "the pool stays on the drive");
        if content.dead {
            return Err(gone());
        }
        if content.bad.iter().any(|bad| (at..at + into.len() as u64).contains(bad)) {
            return Err(io::Error::other("unreadable"));
        }
        content.read(at, into);
        Ok(())
    }

    fn write_at(&self, at: u64, from: &[u8]) -> io::Result<()> {
        let mut content = self.content();
        assert_eq!((at % SECTOR, from.len() as u64 % SECTOR), (0, 0), "whole sectors");
        assert!(at + from.len() as u64 <= content.len_bytes, "the pool stays on the drive");
        if content.dead {
            return Err(gone());
        }
        let other = HEADERS_AT.iter().find(|header| HEADERS_AT.contains(&at) && **header != at);
        let half_written = |other: &u64| {
            let sector = content.seen.contains_key(&(other / SECTOR));
            sector && content.pending.iter().any(|(place, _)| *place == other / SECTOR)
        };
        assert!(!other.is_some_and(half_written), "one header is durable before the other is touched");
        content.last = Some(at);
        content.trail.push(at);
        for (place, part) in (at / SECTOR..).zip(from.chunks(SECTOR_LEN)) {
            let sector: Sector = part.try_into().expect("whole sectors");
            put(&mut content.seen, place, sector);
            content.pending.push((place, sector));
        }
        if content.effect() { Err(gone()) } else { Ok(()) }
    }

    fn flush(&self) -> io::Result<()> {
        let mut content = self.content();
        if content.dead || content.effect() {
            return Err(gone());
        }
        content.last = None;
        let pending = std::mem::take(&mut content.pending);
        for (at, sector) in pending {
            put(&mut content.durable, at, sector);
        }
        Ok(())
    }
}
