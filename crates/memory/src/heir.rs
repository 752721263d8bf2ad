//! An heir: a process that shares this one's memory and does nothing but take it apart when this one has ended.
//!
//! The kernel tells of a process's end only when its memory is unmapped, page by page. For guests of many GiB in 4 KiB pages
//! that takes hundreds of milliseconds, in which nobody serves them. But it is the last process with the memory that unmaps it:
//!
//! ```text
//!  engine  --- killed: threads end, descriptors close --> its end is told; the successor serves
//!  heir    -------------- sees the pipe close --------------> ends, and unmaps
//! ```
#![expect(unsafe_code, reason = "clone(2) with the memory shared and nothing else has no safe form")]
// UNSAFETY: the heir runs `wait_and_go` on a stack of its own, which is never given back. It shares the memory, and with it
// the thread-local storage, of the thread that made it: so it makes system calls and nothing else, and ends by one.

use std::ffi::{c_int, c_long, c_void};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::OnceLock;

const STACK_BYTES: usize = 64 * 1024;
const NAME: &std::ffi::CStr = c"heir";

/// The end that closes with this process.
static LIFELINE: OnceLock<OwnedFd> = OnceLock::new();

/// Makes the heir of this process, if it has none. It holds no descriptor of this process, catches no signal, and runs at the
/// lowest priority.
///
/// # Errors
/// No process, memory or descriptor is left. All works without an heir; the end of the process is only told later.
pub fn appoint() -> io::Result<()> {
    let mut ends = [0; 2];
    // SAFETY: fills the array.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: new descriptors, ours alone.
    let (watched, lifeline) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    if LIFELINE.set(lifeline).is_err() {
        return Ok(());
    }
    let top = stack()?;
    let watched_raw: *mut c_void = ptr::without_provenance_mut(watched.as_raw_fd().cast_unsigned() as usize);
    // SAFETY: signal sets on this stack; the mask is this thread's, and as it was in the end.
    unsafe {
        let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let heir = libc::clone(wait_and_go, top, libc::CLONE_VM, watched_raw);
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
        if heir < 0 { Err(error) } else { Ok(()) }
    }
}

/// The upper end of a new stack.
fn stack() -> io::Result<*mut c_void> {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
    let base = unsafe { libc::mmap(ptr::null_mut(), STACK_BYTES, prot, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: one past the end of the mapping.
    Ok(unsafe { base.byte_add(STACK_BYTES) })
}

/// The heir's life. Without the means to close what it got it goes at once: it would hold the engine's sockets open.
extern "C" fn wait_and_go(watched: *mut c_void) -> c_int {
    let watched: c_long = watched.addr().cast_signed() as c_long;
    let mut byte = 0_u8;
    // SAFETY: system calls on descriptors of this process, a local byte and a static name.
    unsafe {
        let below = watched == 0 || libc::syscall(libc::SYS_close_range, 0, watched - 1, 0) == 0;
        let above = libc::syscall(libc::SYS_close_range, watched + 1, c_long::from(u32::MAX), 0) == 0;
        if below && above {
            libc::syscall(libc::SYS_prctl, libc::PR_SET_NAME, NAME.as_ptr(), 0, 0, 0);
            libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, 19);
            // Nobody writes: it returns when the other end is closed.
            libc::syscall(libc::SYS_read, watched, &raw mut byte, 1);
        }
        libc::syscall(libc::SYS_exit, 0);
    }
    0
}
