//! The memory of a guest: one small anonymous file, mapped once a process, seen through maps of several shapes.

use std::fs::File;
use std::sync::{Arc, OnceLock};

use arbitrary::Arbitrary;
use memory::{Access, Fault, Iova, Mapping, MemoryMap, Remote, WriteLog};

use crate::edge::Edge;

/// Bytes of it.
pub const BYTES: u64 = 96 * 4096;
/// Where the device may read and write: the first three quarters.
pub const SHARED_END: u64 = 48 * 4096;
/// Where the device may only read, up to [`WRITE_ONLY`].
pub const READ_ONLY: u64 = 0x10_0000;
/// Where the device may only write.
pub const WRITE_ONLY: u64 = 0x10_8000;
/// Memory without a descriptor.
pub const REMOTE: u64 = 0x20_0000;
/// The last page of the address space.
pub const LAST: u64 = u64::MAX - 4095;
/// Pages for rings alone: no address an input names lies here (see [`clean`]), so that no data ever lands on a ring.
pub const RINGS: u64 = 0x5ca1_ab1e_0000;
/// Bytes of them.
pub const RINGS_BYTES: u64 = 32 * 4096;

fn mapping() -> &'static Arc<Mapping> {
    static MAPPING: OnceLock<Arc<Mapping>> = OnceLock::new();
    MAPPING.get_or_init(|| file("guest", BYTES))
}

/// A log of written pages, of fewer than there are.
#[must_use]
pub fn log() -> Arc<WriteLog> {
    static LOG: OnceLock<Arc<WriteLog>> = OnceLock::new();
    let make = || Arc::new(WriteLog::flat(file("log", 4096)).expect("writable"));
    Arc::clone(LOG.get_or_init(make))
}

fn file(name: &str, bytes: u64) -> Arc<Mapping> {
    let fd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    let file = File::from(fd);
    file.set_len(bytes).expect("length");
    Mapping::new(file.into(), 0, bytes, Access::BOTH).expect("mapping")
}

/// Everything, to read and write: the guest's own view. Offsets are file offsets.
#[must_use]
pub fn own() -> Arc<MemoryMap> {
    static OWN: OnceLock<Arc<MemoryMap>> = OnceLock::new();
    let make = || {
        let part = Some((Arc::clone(mapping()), 0));
        Arc::new(MemoryMap::empty().with(Iova(0), BYTES, Access::BOTH, part).expect("map"))
    };
    Arc::clone(OWN.get_or_init(make))
}

/// Zeroes the memory, so that each input begins alike.
pub fn clear() {
    static ZEROS: [u8; BYTES as usize] = [0; BYTES as usize];
    own().write_bytes(Iova(0), &ZEROS).expect("clear");
}

/// An address as an input names it.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Place {
    /// In memory the device may use.
    Page {
        page: u8,
        offset: u8,
    },
    MidPage {
        page: u8,
        offset: u16,
    },
    ReadOnly {
        page: u8,
    },
    WriteOnly {
        page: u8,
    },
    Remote {
        page: u8,
        offset: u8,
    },
    Last(u8),
    Any(Edge),
}

impl Place {
    #[must_use]
    pub fn address(self) -> u64 {
        let page = |page: u8, pages: u8| u64::from(page % pages) << 12;
        clean(match self {
            Self::Page { page: at, offset } => {
                page(at, 48) + if offset & 0xc0 == 0xc0 { u64::from(offset) & 60 } else { 0 }
            }
            Self::MidPage { page: at, offset } => page(at, 48) + u64::from(offset % 4096),
            Self::ReadOnly { page: at } => READ_ONLY + page(at, 9),
            Self::WriteOnly { page: at } => WRITE_ONLY + page(at, 5),
            Self::Remote { page: at, offset } => REMOTE + page(at, 5) + u64::from(offset) * 8,
            Self::Last(back) => u64::MAX - u64::from(back) * 16,
            Self::Any(edge) => edge.0,
        })
    }
}

/// An address of an input, led away from the rings.
#[must_use]
pub fn clean(address: u64) -> u64 {
    if (RINGS - 0x20_0000..RINGS + RINGS_BYTES).contains(&address) { address & 0xffff } else { address }
}

/// The guest's own view, by the addresses it gives the device.
fn view() -> &'static MemoryMap {
    static VIEW: OnceLock<MemoryMap> = OnceLock::new();
    VIEW.get_or_init(|| build(0, true))
}

/// The guest stores bytes; where it has no memory nothing happens.
pub fn poke(address: u64, bytes: &[u8]) {
    let _ = view().write_bytes(Iova(address), bytes);
}

/// The guest loads bytes.
#[must_use]
pub fn peek<const N: usize>(address: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    view().read_bytes(Iova(address), &mut bytes).ok().map(|()| bytes)
}

/// A client that answers every request for remote memory, each time with other bytes.
pub struct Client(pub std::sync::atomic::AtomicU64);

impl Client {
    fn check(iova: Iova, len: usize) {
        let end = iova.0.checked_add(len as u64).expect("no wrap");
        assert!(
            len > 0 && REMOTE <= iova.0 && end <= REMOTE + 4 * 4096,
            "a message for memory that is not remote"
        );
    }
}

impl Remote for Client {
    fn read(&self, iova: Iova, dst: &mut [u8]) -> Result<(), Fault> {
        Self::check(iova, dst.len());
        for chunk in dst.chunks_mut(8) {
            let count = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            // Mostly small page addresses, so that lists make sense and change between two looks.
            let word =
                if count % 5 == 0 { count.wrapping_mul(0x9e37_79b9_7f4a_7c15) } else { (count % 60) << 12 };
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }

    fn write(&self, iova: Iova, src: &[u8]) -> Result<(), Fault> {
        Self::check(iova, src.len());
        if self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 11 == 10 {
            Err(Fault::Remote)
        } else {
            Ok(())
        }
    }
}

/// What the device sees. Shape 0 is all of it; each bit takes a part away, and bit 4 makes remote memory reachable.
///
/// ```text
///  0x0 .. 0x30000 both (two regions that touch at 0x10000)   0x100000 read only   0x108000 write only
///  0x200000 remote   last page of the address space but one byte   RINGS both
/// ```
#[must_use]
pub fn map(shape: u8) -> Arc<MemoryMap> {
    let map = build(shape, false);
    Arc::new(if shape & 16 == 0 { map } else { map.with_remote(Arc::new(Client(0.into()))) })
}

fn build(shape: u8, full_access: bool) -> MemoryMap {
    let part = |offset: u64| Some((Arc::clone(mapping()), offset));
    let page = 4096_u64;
    let mut map = MemoryMap::empty();
    let mut add = |iova: u64, len: u64, access: Access, at: Option<(Arc<Mapping>, u64)>| {
        let access = if full_access { Access::BOTH } else { access };
        map = map.with(Iova(iova), len, access, at).expect("regions do not overlap");
    };
    if shape & 1 == 0 {
        add(0, 16 * page, Access::BOTH, part(0));
    }
    if shape & 2 == 0 {
        add(16 * page, SHARED_END - 16 * page, Access::BOTH, part(16 * page));
    }
    if shape & 4 == 0 {
        add(READ_ONLY, 8 * page, Access::READ, part(SHARED_END));
        add(WRITE_ONLY, 4 * page, Access::WRITE, part(SHARED_END + 8 * page));
    }
    if shape & 8 == 0 {
        add(REMOTE, 4 * page, Access::BOTH, None);
        add(LAST, page - 1, Access::BOTH, part(SHARED_END + 12 * page));
    }
    if shape & 32 == 0 {
        add(RINGS, RINGS_BYTES, Access::BOTH, part(SHARED_END + 13 * page));
    }
    map
}

/// A fingerprint of the memory that the device may only read.
#[must_use]
pub fn read_only_bytes() -> Vec<u8> {
    let mut bytes = vec![0; 8 * 4096];
    own().read_bytes(Iova(SHARED_END), &mut bytes).expect("our own");
    bytes
}

/// Whether a host range lies in memory that the device may use so, in this map.
#[must_use]
pub fn allows(map: &MemoryMap, addr: usize, len: usize, write: bool) -> bool {
    let fits = |from: usize, to: usize| {
        map.regions().any(|region| {
            let right = if write { region.access().write } else { region.access().read };
            region.host().is_some_and(|host| {
                let start = host.addr().addr();
                right && start <= from && to <= start + host.len()
            })
        })
    };
    let Some(end) = addr.checked_add(len) else { return false };
    // Adjacent regions may be joined: check page by page.
    let mut at = addr;
    while at < end {
        let next = ((at | 4095) + 1).min(end);
        if !fits(at, next) {
            return false;
        }
        at = next;
    }
    true
}

/// Whether a host address is the guest's at all (else it is one of the device's own buffers).
#[must_use]
pub fn owns(addr: usize) -> bool {
    own().regions().any(|region| {
        region
            .host()
            .is_some_and(|host| (host.addr().addr()..host.addr().addr() + host.len()).contains(&addr))
    })
}
