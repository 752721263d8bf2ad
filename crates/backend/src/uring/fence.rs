//! The rings of a process that was killed: has everything they took ended?
//!
//! A ring lives as long as anyone has its descriptor. What a dead submitter left in it is ended by the kernel all the same
//! (the work deferred to its threads goes to a worker of the kernel's when they exit), and its completions are counted in the
//! ring. So: every entry the kernel consumed (`SqHead`) gets exactly one completion (`CqTail`), because no request of ours has
//! several or none; when the two are equal, nothing of the dead process is at the drive any more. (Seen on Linux 6.18 with
//! COOP_TASKRUN and SINGLE_ISSUER: 240 writes in flight at the end of a process had ended within 15 ms.)
//!
//! The counts are read from the `fdinfo` of whoever holds the descriptor: the kernel refuses to send rings over sockets, so a
//! successor need not have one itself.
//!
//! The completion queue cannot overflow: it has as many entries as its doors have slots together, and a slot has one request.

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_micros(100);

/// A ring of a process that has ended, held by this or another process.
#[derive(Debug)]
pub struct OldRing {
    fdinfo: PathBuf,
}

impl OldRing {
    /// The ring that process `holder` has as descriptor `number`.
    ///
    /// # Errors
    /// There is no such ring, or it may not be looked at.
    pub fn new(holder: u32, number: RawFd) -> io::Result<Self> {
        let ring = Self { fdinfo: PathBuf::from(format!("/proc/{holder}/fdinfo/{number}")) };
        ring.in_flight().map(|_| ring)
    }

    /// Requests that the kernel took and has not ended.
    ///
    /// # Errors
    /// It is no ring; completions were put aside, so that the counts mean nothing (not with rings of this crate).
    pub fn in_flight(&self) -> io::Result<u32> {
        // The kernel says nothing while somebody is at the ring: its submitter is dead, so that is soon over.
        for _ in 0..1000 {
            let text = std::fs::read_to_string(&self.fdinfo)?;
            if let Some(count) = count(&text)? {
                return Ok(count);
            }
            if !text.contains("mnt_id:") {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, "a descriptor that is no io_uring"))
    }

    /// Waits until nothing is in flight. The owner of the ring must have ended. Returns how many were in flight at first.
    ///
    /// # Errors
    /// As [`OldRing::in_flight`]; `TimedOut` after `patience`.
    pub fn wait(&self, patience: Duration) -> io::Result<u32> {
        let first = self.in_flight()?;
        let start = Instant::now();
        while self.in_flight()? != 0 {
            if start.elapsed() > patience {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(PAUSE);
        }
        Ok(first)
    }
}

/// `None`: the text does not tell now.
fn count(text: &str) -> io::Result<Option<u32>> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().parse::<u32>().ok()
    };
    let overflown = text.lines().skip_while(|line| !line.starts_with("CqOverflowList")).nth(1);
    if overflown.is_some_and(|line| line.starts_with(' ')) {
        return Err(io::Error::other("completions of the old ring were put aside"));
    }
    Ok(field("SqHead").zip(field("CqTail")).map(|(taken, ended)| taken.wrapping_sub(ended)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_and_has_not_ended_is_counted_over_the_wrap() {
        let text =
            "pos:\t0\nmnt_id:\t15\nSqMask:\t0x1\nSqHead:\t3\nSqTail:\t3\nCqHead:\t1\nCqTail:\t4294967295\n";
        assert_eq!(count(text).unwrap(), Some(4));
        assert_eq!(count("pos:\t0\nmnt_id:\t15\n").unwrap(), None);
        assert!(count(&format!("{text}CqOverflowList:\n  user_data=1\n")).is_err());
        assert_eq!(count(&format!("{text}CqOverflowList:\n")).unwrap(), Some(4));
    }
}
