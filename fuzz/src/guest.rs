//! The memory of a guest: one small anonymous file, mapped once a process, seen through maps of several shapes.

use std::fs::File;
use std::sync::{Arc, OnceLock};

use memory::{Access, Iova, Mapping, MemoryMap};

/// Bytes of it.
pub const BYTES: u64 = 64 * 4096;
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

fn mapping() -> &'static Arc<Mapping> {
    static MAPPING: OnceLock<Arc<Mapping>> = OnceLock::new();
    MAPPING.get_or_init(|| {
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        let file = File::from(fd);
        file.set_len(BYTES).expect("length");
        Mapping::new(file.into(), 0, BYTES, Access::BOTH).expect("mapping")
    })
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
    own().write_bytes(Iova(0), &[0; BYTES as usize]).expect("clear");
}

/// What the device sees. The shape: 0 and everything unnamed is the full one; others lack parts.
///
/// ```text
///  0x0 .. 0x30000 both (two regions that touch at 0x10000)   0x100000 read only   0x108000 write only
///  0x200000 remote   last page of the address space but one byte
/// ```
#[must_use]
pub fn map(shape: u8) -> Arc<MemoryMap> {
    let part = |offset: u64| Some((Arc::clone(mapping()), offset));
    let page = 4096_u64;
    let mut map = MemoryMap::empty();
    let mut add = |iova: u64, len: u64, access: Access, at: Option<(Arc<Mapping>, u64)>| {
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
    Arc::new(map)
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
        region.host().is_some_and(|host| (host.addr().addr()..host.addr().addr() + host.len()).contains(&addr))
    })
}
