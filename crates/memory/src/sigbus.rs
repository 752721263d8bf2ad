//! A client may shrink the file behind its memory at any time; touching it then raises SIGBUS.
//!
//! The handler puts anonymous zeros in the place of the whole mapping, marks it poisoned, and the interrupted access
//! goes on. A SIGBUS anywhere else meets the action that was there before.
//!
//! ```text
//!  slot.start: 0 free -> 1 claimed -> address (Release; end and flag are set before) -> 0 free
//! ```
#![expect(unsafe_code, reason = "a signal handler that replaces a mapping in place")]
// UNSAFETY: the handler runs on the thread that touched a registered mapping, which is therefore alive: its slot does
// not change meanwhile. It calls only mmap and sigaction (async-signal-safe) and touches only atomics of this module.

use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::io;
use std::sync::OnceLock;

/// Mappings of the whole process at once.
pub(crate) const MAPPINGS_MAX: usize = 65_536;
const CLAIMED: usize = 1;

struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    poisoned: AtomicBool,
}

static SLOTS: [Slot; MAPPINGS_MAX] = [const {
    Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0), poisoned: AtomicBool::new(false) }
}; MAPPINGS_MAX];
/// No slot at or beyond this was ever used.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Where the search for a free slot begins.
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// Live mappings that are poisoned: the hot path looks only here.
static POISONED: AtomicU32 = AtomicU32::new(0);
/// The action before ours. Leaked once, so that the handler may read it.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

/// A registered address range.
#[derive(Debug)]
pub(crate) struct Registration(usize);

impl Registration {
    /// Puts a mapping under watch. `None` when [`MAPPINGS_MAX`] are.
    pub(crate) fn new(start: usize, len: usize) -> Option<Registration> {
        let first = NEXT.load(Ordering::Relaxed);
        for step in 0..MAPPINGS_MAX {
            let index = (first + step) % MAPPINGS_MAX;
            let slot = &SLOTS[index];
            if slot.start.compare_exchange(0, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_err() {
                continue;
            }
            slot.end.store(start + len, Ordering::Relaxed);
            slot.poisoned.store(false, Ordering::Relaxed);
            USED.fetch_max(index + 1, Ordering::Release);
            slot.start.store(start, Ordering::Release);
            NEXT.store((index + 1) % MAPPINGS_MAX, Ordering::Relaxed);
            return Some(Registration(index));
        }
        None
    }

    /// Was an access of this range answered with zeros?
    pub(crate) fn is_poisoned(&self) -> bool {
        SLOTS[self.0].poisoned.load(Ordering::Acquire)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let slot = &SLOTS[self.0];
        if slot.poisoned.swap(false, Ordering::AcqRel) {
            POISONED.fetch_sub(1, Ordering::Relaxed);
        }
        slot.start.store(0, Ordering::Release);
        NEXT.store(self.0, Ordering::Relaxed);
    }
}

/// Is any live mapping of the process poisoned? One load.
#[inline]
pub(crate) fn any_poisoned() -> bool {
    POISONED.load(Ordering::Relaxed) != 0
}

/// Installs the handler, once a process. Called by the first `Mapping`; calling it early is harmless.
///
/// # Errors
/// What `sigaction` says.
pub fn install() -> io::Result<()> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    DONE.get_or_init(install_once).map_err(io::Error::from_raw_os_error)
}

fn install_once() -> Result<(), i32> {
    let errno = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
    // SAFETY: all-zero is a valid sigaction (default action, empty mask).
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut previous = Box::new(action);
    // SAFETY: reads the present action into our box.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut *previous) } != 0 {
        return Err(errno());
    }
    PREVIOUS.store(Box::into_raw(previous), Ordering::Release);
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_sigbus;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the handler has the signature SA_SIGINFO asks for and is async-signal-safe (see the module).
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) } != 0 {
        return Err(errno());
    }
    Ok(())
}

extern "C" fn on_sigbus(_signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: errno of this thread; saved because the interrupted code may be about to read it.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler; a positive code means a fault with an address.
    let (code, addr) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    if code <= 0 || !replace_with_zeros(addr) {
        let previous = PREVIOUS.load(Ordering::Acquire);
        // SAFETY: `previous` was filled before the handler was installed and is never freed. The access faults again
        // after we return and meets that action.
        unsafe { libc::sigaction(libc::SIGBUS, previous, ptr::null_mut()) };
        if code <= 0 {
            // SAFETY: sent by somebody, not by an access: send it on.
            unsafe { libc::raise(libc::SIGBUS) };
        }
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

fn replace_with_zeros(addr: usize) -> bool {
    for slot in &SLOTS[..USED.load(Ordering::Acquire).min(MAPPINGS_MAX)] {
        let start = slot.start.load(Ordering::Acquire);
        let end = slot.end.load(Ordering::Acquire);
        if start <= CLAIMED || addr < start || addr >= end || slot.start.load(Ordering::Acquire) != start {
            continue;
        }
        // SAFETY: [start, end) is one of our mappings and alive, since this very thread was accessing it. All accesses
        // to it are raw and volatile, so bytes that become zero are no surprise to anyone.
        let zeros = unsafe {
            libc::mmap(
                ptr::with_exposed_provenance_mut(start),
                end - start,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if zeros == libc::MAP_FAILED {
            return false;
        }
        if !slot.poisoned.swap(true, Ordering::AcqRel) {
            POISONED.fetch_add(1, Ordering::Relaxed);
        }
        return true;
    }
    false
}
