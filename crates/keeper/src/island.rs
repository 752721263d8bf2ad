//! What only system calls without a safe face can do: executing the program of a descriptor in this process, holding signals
//! back meanwhile, and taking descriptors by their numbers.
#![expect(unsafe_code, reason = "system calls that rustix has no safe face for")]
// UNSAFETY: `execute` passes pointers into arrays that live across the call, ended by null. `Signals` changes the mask of this
// thread only, by local sets. `adopt` takes a number that nobody else in this process owns: see there.

use rustix::io::FdFlags;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;

/// Executes the program in this process, with this process's environment. Returns only when it could not.
pub(crate) fn execute(program: BorrowedFd<'_>, arguments: Vec<OsString>) -> io::Error {
    let Ok(arguments) = strings(arguments) else { return io::ErrorKind::InvalidInput.into() };
    let environment = std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    let Ok(environment) = strings(environment.collect()) else { return io::ErrorKind::InvalidInput.into() };
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(&arguments), pointers(&environment));
    // SAFETY: both arrays end with a null pointer; they and the strings they name live until the call returns.
    unsafe { libc::fexecve(program.as_raw_fd(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

fn strings(list: Vec<OsString>) -> Result<Vec<CString>, std::ffi::NulError> {
    list.into_iter().map(|string| CString::new(string.into_vec())).collect()
}

/// The signals that ask a daemon to stop.
const STOP_SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGUSR2];

/// Holds back signals that ask us to stop (across `execute`, too), or lets those come that were held back.
pub(crate) fn hold_stop_signals(hold: bool) {
    // SAFETY: an all-zero set is a value for `sigemptyset` to make a set of; the pointers are to locals.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in STOP_SIGNALS {
            libc::sigaddset(&raw mut set, signal);
        }
        let how = if hold { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK };
        libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut());
    }
}

/// Takes a descriptor that was open when this program was executed, by its number.
///
/// Only for numbers that whoever executed this program wrote down for us (a sealed record of our predecessor's, the service
/// manager's LISTEN_FDS), and once for each: then nothing else in this process owns it.
///
/// # Errors
/// No descriptor has this number.
pub(crate) fn adopt(number: u32) -> io::Result<OwnedFd> {
    let raw = RawFd::try_from(number).map_err(io::Error::other)?;
    // SAFETY: no memory involved.
    if raw <= 2 || unsafe { libc::fcntl(raw, libc::F_GETFD) } < 0 {
        return Err(io::Error::other(format!("descriptor {number} was not left open")));
    }
    // SAFETY: it is open, and nobody else in this process owns it (above).
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Makes `fd` the standard input; what that was is closed.
pub(crate) fn set_stdin(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory involved. The standard input is nobody's own in a Rust program: it is only ever borrowed.
    match unsafe { libc::dup2(fd.as_raw_fd(), libc::STDIN_FILENO) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a descriptor stays open when another program is executed.
pub(crate) fn keep_over_execution(fd: impl AsFd, keep: bool) -> io::Result<()> {
    let flags = if keep { FdFlags::empty() } else { FdFlags::CLOEXEC };
    Ok(rustix::io::fcntl_setfd(fd, flags)?)
}
