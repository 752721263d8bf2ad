//! A checked run of mapped memory, and the only copies that touch memory others write.
#![expect(unsafe_code, reason = "the copies to and from memory that a guest writes at any time")]
// UNSAFETY: every access to guest bytes in this crate ends in one of the functions here. They use volatile or atomic
// accesses, or the C library's copy as foreign code, on raw pointers; no reference to such bytes exists. A torn value is possible
// and is the guest's business; every bit pattern of a byte is a byte.

use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use core::{ffi::c_void, mem::MaybeUninit, ptr};
use zerocopy::FromBytes;

/// From this length on a call of the C library beats word by word.
const BULK_MIN_BYTES: usize = 192;
/// From this length on it pays to go past the caches.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const STREAM_MIN_BYTES: usize = 512;
#[cfg(all(target_arch = "x86_64", not(miri)))]
const LINE_BYTES: usize = 64;

/// A run of memory that was mapped when it was made. Same layout as `struct iovec`.
///
/// Making one is safe: it is two numbers. Touching the memory is what is unsafe, because nothing here keeps it mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    addr: usize,
    len: usize,
}

const _: () = assert!(size_of::<Segment>() == size_of::<libc::iovec>());
const _: () = assert!(align_of::<Segment>() == align_of::<libc::iovec>());

impl Segment {
    /// A segment of an address whose provenance was exposed.
    #[inline]
    #[must_use]
    pub(crate) const fn at(addr: usize, len: usize) -> Segment {
        Segment { addr, len }
    }

    /// Private memory, such as a bounce buffer. The caller keeps it alive while the segment is in use.
    #[inline]
    #[must_use]
    pub fn of(bytes: &mut [u8]) -> Segment {
        Segment { addr: bytes.as_mut_ptr().expose_provenance(), len: bytes.len() }
    }

    /// Memory behind a raw pointer, for owners of buffers that are not slices. The caller keeps it alive while in use.
    #[inline]
    #[must_use]
    pub fn from_raw(start: *mut u8, len: usize) -> Segment {
        Segment { addr: start.expose_provenance(), len }
    }

    /// Bytes.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// No bytes.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first byte.
    #[inline]
    #[must_use]
    pub fn addr(&self) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.addr)
    }

    /// The first `n` bytes and the rest. `n` beyond the end gives everything and an empty rest.
    #[inline]
    #[must_use]
    pub fn split_at(self, n: usize) -> (Segment, Segment) {
        let n = n.min(self.len);
        (Segment { addr: self.addr, len: n }, Segment { addr: self.addr + n, len: self.len - n })
    }

    /// The two as one when `next` begins where this ends.
    #[inline]
    #[must_use]
    pub fn join(self, next: Segment) -> Option<Segment> {
        (self.addr + self.len == next.addr).then(|| Segment { addr: self.addr, len: self.len + next.len })
    }

    /// Copies out of the segment. Copies the shorter of both lengths.
    ///
    /// # Safety
    /// The segment is still mapped.
    #[inline]
    pub unsafe fn copy_to(self, dst: &mut [u8]) {
        let len = dst.len().min(self.len);
        // SAFETY: `len` bytes are mapped (the caller's promise) and `dst` is ours alone.
        unsafe { copy_out(self.addr(), dst.as_mut_ptr(), len) }
    }

    /// Copies into the segment. Copies the shorter of both lengths.
    ///
    /// # Safety
    /// The segment is still mapped, and writable.
    #[inline]
    pub unsafe fn copy_from(self, src: &[u8]) {
        let len = src.len().min(self.len);
        // SAFETY: `len` bytes are mapped and writable (the caller's promise).
        unsafe { copy_in(src.as_ptr(), self.addr(), len) }
    }

    /// Copies to another segment that does not overlap this one. Copies the shorter of both lengths. Bytes that others
    /// change meanwhile, on either side, arrive as one of their values.
    ///
    /// # Safety
    /// Both segments are still mapped, and `to` is writable.
    #[inline]
    pub unsafe fn copy_into(self, to: Segment) {
        // SAFETY: as promised to us; the two do not overlap.
        unsafe { copy(self.addr(), to.addr(), self.len.min(to.len)) }
    }

    /// As [`Self::copy_into`], for bytes that no processor looks at soon, such as those of a drive: where the processor can, they go
    /// past its caches, which spares it from fetching what is overwritten. Complete, and before all later stores, on return.
    ///
    /// # Safety
    /// As [`Self::copy_into`].
    #[inline]
    pub unsafe fn stream_into(self, to: Segment) {
        // SAFETY: as promised to us; the two do not overlap.
        unsafe { stream(self.addr(), to.addr(), self.len.min(to.len)) }
    }

    /// Sets every byte.
    ///
    /// # Safety
    /// The segment is still mapped, and writable.
    pub unsafe fn fill(self, byte: u8) {
        let (addr, mut at) = (self.addr(), 0);
        let word = u64::from_ne_bytes([byte; 8]);
        while at < self.len && !(self.addr + at).is_multiple_of(8) {
            // SAFETY: at < len, mapped and writable.
            unsafe { addr.add(at).write_volatile(byte) };
            at += 1;
        }
        while self.len - at >= 8 {
            // SAFETY: at + 8 <= len, aligned by the loop above.
            unsafe { addr.add(at).cast::<u64>().write_volatile(word) };
            at += 8;
        }
        while at < self.len {
            // SAFETY: at < len.
            unsafe { addr.add(at).write_volatile(byte) };
            at += 1;
        }
    }

    /// Asks the processor to bring the first line near. Never faults, whatever is mapped.
    #[inline]
    pub fn prefetch(self) {
        prefetch(self.addr());
    }
}

/// Asks the processor to bring the line at this address near. Never faults, whatever is mapped.
#[inline]
pub fn prefetch<T>(at: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch is a hint; it never faults, even on unmapped addresses.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// One private copy of a `T`, by 8-byte loads where aligned.
///
/// # Safety
/// `size_of::<T>()` bytes at `src` are mapped.
#[inline]
pub(crate) unsafe fn read<T: FromBytes>(src: *const u8) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: mapped source; the destination is a local of that size. After the copy all its bytes are initialised,
    // and any initialised bytes are a T (FromBytes).
    unsafe {
        copy_out(src, value.as_mut_ptr().cast(), size_of::<T>());
        value.assume_init()
    }
}

/// Shared to private.
///
/// # Safety
/// `len` bytes at `src` are mapped; `len` bytes at `dst` are writable and nobody else's.
#[inline]
pub(crate) unsafe fn copy_out(src: *const u8, dst: *mut u8, len: usize) {
    if src.addr().is_multiple_of(8) && len.is_multiple_of(8) && len < BULK_MIN_BYTES {
        for at in (0..len).step_by(8) {
            // SAFETY: at + 8 <= len on both sides; src is aligned, dst is written unaligned.
            unsafe {
                let word = src.add(at).cast::<u64>().read_volatile();
                dst.add(at).cast::<u64>().write_unaligned(word);
            }
        }
    } else {
        // SAFETY: as promised to us.
        unsafe { copy(src, dst, len) }
    }
}

/// Private to shared.
///
/// # Safety
/// `len` bytes at `src` are readable; `len` bytes at `dst` are mapped and writable.
#[inline]
pub(crate) unsafe fn copy_in(src: *const u8, dst: *mut u8, len: usize) {
    if dst.addr().is_multiple_of(8) && len.is_multiple_of(8) && len < BULK_MIN_BYTES {
        for at in (0..len).step_by(8) {
            // SAFETY: at + 8 <= len on both sides; dst is aligned, src is read unaligned.
            unsafe {
                let word = src.add(at).cast::<u64>().read_unaligned();
                dst.add(at).cast::<u64>().write_volatile(word);
            }
        }
    } else {
        // SAFETY: as promised to us.
        unsafe { copy(src, dst, len) }
    }
}

/// Any length, any alignment, either side shared.
///
/// # Safety
/// `len` bytes are readable at `src` and writable at `dst`, and the two do not overlap.
#[inline(never)]
unsafe fn copy(src: *const u8, dst: *mut u8, len: usize) {
    if len >= BULK_MIN_BYTES {
        // SAFETY: as promised to us.
        return unsafe { copy_bulk(src, dst, len) };
    }
    let mut at = 0;
    if src.addr() % 8 == dst.addr() % 8 {
        while at < len && !(src.addr() + at).is_multiple_of(8) {
            // SAFETY: at < len.
            unsafe { dst.add(at).write_volatile(src.add(at).read_volatile()) };
            at += 1;
        }
        while len - at >= 8 {
            // SAFETY: at + 8 <= len; both aligned by the loop above.
            unsafe { dst.add(at).cast::<u64>().write_volatile(src.add(at).cast::<u64>().read_volatile()) };
            at += 8;
        }
    }
    while at < len {
        // SAFETY: at < len.
        unsafe { dst.add(at).write_volatile(src.add(at).read_volatile()) };
        at += 1;
    }
}

/// The C library's copy, which knows the processor best. It is called through a pointer the compiler cannot see through:
/// the copy is foreign code to it, so it can assume nothing of bytes that change underneath, and they are just bytes.
///
/// # Safety
/// As [`copy`].
#[inline]
unsafe fn copy_bulk(src: *const u8, dst: *mut u8, len: usize) {
    #[cfg(not(miri))]
    {
        type Copy = unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> *mut c_void;
        let foreign = core::hint::black_box(libc::memcpy as Copy);
        // SAFETY: the ranges are valid and do not overlap (the caller's promise).
        unsafe { foreign(dst.cast(), src.cast(), len) };
    }
    #[cfg(miri)]
    for at in 0..len {
        // SAFETY: at < len.
        unsafe { dst.add(at).write_volatile(src.add(at).read_volatile()) };
    }
}

/// Whole lines of aligned memory past the caches; all else by [`copy`].
///
/// # Safety
/// As [`copy`].
#[inline]
unsafe fn stream(src: *const u8, dst: *mut u8, len: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if dst.addr().is_multiple_of(16) && len.is_multiple_of(LINE_BYTES) && len >= STREAM_MIN_BYTES {
        // SAFETY: as promised to us, and checked above.
        return unsafe { stream_lines(src, dst, len) };
    }
    // SAFETY: as promised to us.
    unsafe { copy(src, dst, len) }
}

/// Assembly for the reason of [`copy_bulk`]: the compiler can assume nothing of the bytes. The fence at the end is there because such
/// stores may otherwise become visible after later ones, a completion for instance.
///
/// # Safety
/// As [`copy`]; `dst` is a multiple of 16, and `len` of a line's length and not 0.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
unsafe fn stream_lines(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: reads and writes `len` bytes (the caller's promise) in steps that divide it; SSE2 is part of x86-64.
    unsafe {
        core::arch::asm!(
            "2:",
            "movdqu {a}, [{src} + {at}]",
            "movdqu {b}, [{src} + {at} + 16]",
            "movdqu {c}, [{src} + {at} + 32]",
            "movdqu {d}, [{src} + {at} + 48]",
            "movntdq [{dst} + {at}], {a}",
            "movntdq [{dst} + {at} + 16], {b}",
            "movntdq [{dst} + {at} + 32], {c}",
            "movntdq [{dst} + {at} + 48], {d}",
            "add {at}, 64",
            "cmp {at}, {len}",
            "jb 2b",
            "sfence",
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            at = inout(reg) 0_usize => _,
            src = in(reg) src,
            dst = in(reg) dst,
            len = in(reg) len,
            options(nostack),
        );
    }
}

/// One atomic load with acquire ordering, or four byte loads where the address is not aligned.
///
/// # Safety
/// Four bytes at `at` are mapped.
#[inline]
pub(crate) unsafe fn load_u32(at: *mut u8) -> u32 {
    if at.addr().is_multiple_of(4) {
        // SAFETY: mapped and aligned; all accesses of ours to such words are atomic or volatile.
        u32::from_le(unsafe { AtomicU32::from_ptr(at.cast()) }.load(Ordering::Acquire))
    } else {
        // SAFETY: mapped.
        u32::from_le_bytes(unsafe { read(at) })
    }
}

/// One atomic store with release ordering, or four byte stores where the address is not aligned.
///
/// # Safety
/// Four bytes at `at` are mapped and writable.
#[inline]
pub(crate) unsafe fn store_u32(at: *mut u8, value: u32) {
    if at.addr().is_multiple_of(4) {
        // SAFETY: mapped, writable and aligned.
        unsafe { AtomicU32::from_ptr(at.cast()) }.store(value.to_le(), Ordering::Release);
    } else {
        // SAFETY: mapped and writable.
        unsafe { copy_in(value.to_le_bytes().as_ptr(), at, 4) }
    }
}

/// As [`load_u32`], of two bytes.
///
/// # Safety
/// Two bytes at `at` are mapped.
#[inline]
pub(crate) unsafe fn load_u16(at: *mut u8) -> u16 {
    if at.addr().is_multiple_of(2) {
        // SAFETY: mapped and aligned; all accesses of ours to such words are atomic or volatile.
        u16::from_le(unsafe { AtomicU16::from_ptr(at.cast()) }.load(Ordering::Acquire))
    } else {
        // SAFETY: mapped.
        u16::from_le_bytes(unsafe { read(at) })
    }
}

/// As [`store_u32`], of two bytes.
///
/// # Safety
/// Two bytes at `at` are mapped and writable.
#[inline]
pub(crate) unsafe fn store_u16(at: *mut u8, value: u16) {
    if at.addr().is_multiple_of(2) {
        // SAFETY: mapped, writable and aligned.
        unsafe { AtomicU16::from_ptr(at.cast()) }.store(value.to_le(), Ordering::Release);
    } else {
        // SAFETY: mapped and writable.
        unsafe { copy_in(value.to_le_bytes().as_ptr(), at, 2) }
    }
}

/// As [`store_u32`], of eight bytes.
///
/// # Safety
/// Eight bytes at `at` are mapped and writable.
#[inline]
pub(crate) unsafe fn store_u64(at: *mut u8, value: u64) {
    if at.addr().is_multiple_of(8) {
        // SAFETY: mapped, writable and aligned.
        unsafe { AtomicU64::from_ptr(at.cast()) }.store(value.to_le(), Ordering::Release);
    } else {
        // SAFETY: mapped and writable.
        unsafe { copy_in(value.to_le_bytes().as_ptr(), at, 8) }
    }
}

/// One byte, with release ordering.
///
/// # Safety
/// The byte at `at` is mapped and writable.
#[inline]
pub(crate) unsafe fn store_u8(at: *mut u8, value: u8) {
    // SAFETY: mapped and writable; a byte is always aligned.
    unsafe { AtomicU8::from_ptr(at) }.store(value, Ordering::Release);
}

/// Sets bits of a byte that others set bits of too.
///
/// # Safety
/// The byte at `at` is mapped and writable.
#[inline]
pub(crate) unsafe fn or_u8(at: *mut u8, bits: u8) {
    // SAFETY: mapped and writable; a byte is always aligned.
    unsafe { AtomicU8::from_ptr(at) }.fetch_or(bits, Ordering::SeqCst);
}

/// One byte, of which others set and clear bits.
///
/// # Safety
/// The byte at `at` is mapped.
#[inline]
pub(crate) unsafe fn load_u8(at: *mut u8) -> u8 {
    // SAFETY: mapped; a byte is always aligned.
    unsafe { AtomicU8::from_ptr(at) }.load(Ordering::Relaxed)
}

/// Keeps only these bits of a byte that others set bits of. What those stored before is visible after this.
///
/// # Safety
/// The byte at `at` is mapped and writable.
#[inline]
pub(crate) unsafe fn and_u8(at: *mut u8, bits: u8) {
    // SAFETY: mapped and writable; a byte is always aligned.
    unsafe { AtomicU8::from_ptr(at) }.fetch_and(bits, Ordering::SeqCst);
}

/// The four dwords of a completion entry.
#[expect(clippy::cast_possible_truncation, reason = "quarters")]
pub(crate) fn dwords(entry: u128) -> [u32; 4] {
    [0, 32, 64, 96].map(|shift| (entry >> shift) as u32)
}

/// A 16-byte completion entry: dword 3, which holds the phase, is never visible before the rest.
///
/// # Safety
/// Sixteen bytes at `at` are mapped and writable.
#[inline]
pub(crate) unsafe fn store_completion(at: *mut u8, entry: u128) {
    #[expect(clippy::cast_possible_truncation, reason = "halves")]
    let [low, high] = [entry as u64, (entry >> 64) as u64].map(u64::to_le);
    if at.addr().is_multiple_of(8) {
        // SAFETY: mapped, writable and aligned. Dwords 2 and 3 land in one store, after the first two.
        unsafe {
            at.cast::<u64>().write_volatile(low);
            AtomicU64::from_ptr(at.add(8).cast()).store(high, Ordering::Release);
        }
    } else {
        // SAFETY: as promised to us.
        unsafe { store_completion_unaligned(at, entry) }
    }
}

/// Where a client mapped its queue at an odd offset of its file.
///
/// # Safety
/// As [`store_completion`].
#[cold]
#[inline(never)]
unsafe fn store_completion_unaligned(at: *mut u8, entry: u128) {
    let dwords = dwords(entry);
    // SAFETY: mapped and writable: 12 bytes, then the last 4.
    unsafe {
        store_u32(at, dwords[0]);
        store_u32(at.add(4), dwords[1]);
        store_u32(at.add(8), dwords[2]);
        core::sync::atomic::fence(Ordering::Release);
        store_u32(at.add(12), dwords[3]);
    }
}

/// On private memory, so that Miri can go through every access: `cargo +nightly miri test -p memory --lib`.
#[cfg(test)]
mod tests {
    use super::*;

    /// Miri is slow.
    const BYTES: usize = if cfg!(miri) { 240 } else { 640 };
    const EDGE: u8 = 0xee;

    /// Offsets and lengths that take each path: word by word, byte by byte, both, in bulk, past the caches.
    fn shapes() -> impl Iterator<Item = (usize, usize, usize)> {
        let all = [0, 1, 7, 8, 9, 15, 16, 17, 24, 192, 200, 191, 193, 512, 513, 576];
        let lens = all.into_iter().take(if cfg!(miri) { 11 } else { all.len() });
        lens.flat_map(|len| {
            let sides = [(0, 0), (0, 1), (3, 0), (5, 5), (1, 6), (8, 16)];
            sides.map(|(from, to)| (len, from, to))
        })
    }

    fn pattern() -> Vec<u8> {
        (0..=250).cycle().step_by(7).take(BYTES).collect()
    }

    fn check(bytes: &[u8], at: usize, expected: &[u8], what: &str) {
        assert_eq!(&bytes[at..at + expected.len()], expected, "{what}");
        let outside = bytes[..at].iter().chain(&bytes[at + expected.len()..]);
        assert!(outside.copied().all(|byte| byte == EDGE), "{what}: a byte outside was changed");
    }

    #[test]
    fn copies_of_any_length_and_alignment_change_what_they_name_and_nothing_else() {
        for (len, from, to) in shapes() {
            let (mut source, what) = (pattern(), format!("{len} bytes from {from} to {to}"));
            let expected = source[from..from + len].to_vec();
            let fresh = || vec![EDGE; BYTES];
            let shared = |bytes: &mut Vec<u8>, at: usize| Segment::of(&mut bytes[at..at + len]);
            let mut copied = fresh();
            // SAFETY: vectors of this function.
            unsafe { shared(&mut source, from).copy_to(&mut copied[to..to + len]) };
            check(&copied, to, &expected, &what);
            let mut copied = fresh();
            // SAFETY: as above.
            unsafe { shared(&mut copied, to).copy_from(&source[from..from + len]) };
            check(&copied, to, &expected, &what);
            let mut copied = fresh();
            // SAFETY: as above, and two vectors do not overlap.
            unsafe { shared(&mut source, from).copy_into(shared(&mut copied, to)) };
            check(&copied, to, &expected, &what);
            let mut copied = fresh();
            // SAFETY: as above.
            unsafe { shared(&mut source, from).stream_into(shared(&mut copied, to)) };
            check(&copied, to, &expected, &what);
            let mut filled = fresh();
            // SAFETY: as above.
            unsafe { shared(&mut filled, to).fill(0x5a) };
            check(&filled, to, &vec![0x5a; len], &what);
        }
    }

    #[test]
    fn words_at_any_alignment_are_stored_and_loaded_little_endian() {
        for at in 0..17 {
            let mut bytes = vec![EDGE; 48];
            let start = Segment::of(&mut bytes).addr();
            // SAFETY: at most sixteen bytes from `at` on, of 48.
            let seen = unsafe {
                let place = start.add(at);
                store_u64(place, 0x1122_3344_5566_7788);
                let words = (read::<[u8; 8]>(place), load_u32(place), load_u16(place));
                store_u32(place.add(8), 0xaabb_ccdd);
                store_u16(place.add(12), 0x0102);
                (words, load_u32(place.add(8)), load_u16(place.add(12)))
            };
            let bytes_of = [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11];
            assert_eq!(seen, ((bytes_of, 0x5566_7788, 0x7788), 0xaabb_ccdd, 0x0102), "at {at}");
            let expected = [&bytes_of[..], &[0xdd, 0xcc, 0xbb, 0xaa, 2, 1]].concat();
            check(&bytes, at, &expected, "words");
        }
    }

    #[test]
    fn a_completion_is_sixteen_bytes_wherever_the_queue_lies() {
        for at in 0..17 {
            let mut bytes = vec![EDGE; 48];
            let start = Segment::of(&mut bytes).addr();
            // SAFETY: sixteen bytes from `at` on, of 48.
            unsafe { store_completion(start.add(at), 0x8000_0004_0000_0003_0000_0002_0000_0001) };
            check(&bytes, at, &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0x80], "a completion");
        }
    }

    #[test]
    fn a_segment_splits_and_joins_without_losing_a_byte() {
        let mut bytes = pattern();
        let whole = Segment::of(&mut bytes);
        for n in [0, 1, 8, BYTES, BYTES + 1] {
            let (head, tail) = whole.split_at(n);
            assert_eq!((head.len() + tail.len(), head.join(tail)), (BYTES, Some(whole)));
            let mut out = vec![0; tail.len()];
            // SAFETY: the vector of this function.
            unsafe { tail.copy_to(&mut out) };
            assert_eq!(out, pattern()[head.len()..]);
        }
    }
}
