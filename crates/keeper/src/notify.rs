//! Telling a service manager how things are (sd_notify(3)): ready, alive, stopping.
//!
//! And giving it descriptors to keep for the process after this one (FDSTORE), see `store`.

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, sendmsg_addr, sendto, socket_with,
};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The service manager, if one started us.
#[derive(Debug, Default)]
pub struct Notify {
    to: Option<Arc<(OwnedFd, SocketAddrUnix)>>,
    /// It keeps descriptors for us.
    stores: bool,
    /// How often it wants to hear that we live.
    every: Option<Duration>,
    next: Option<Instant>,
}

impl Notify {
    /// The one that the environment names (NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID, FDSTORE).
    #[must_use]
    pub fn from_environment() -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let notify = Self::new(
            variable("NOTIFY_SOCKET").as_deref(),
            variable("WATCHDOG_USEC").as_deref(),
            variable("WATCHDOG_PID").as_deref(),
        );
        // systemd 254 and later say how many they keep.
        let room = variable("FDSTORE").and_then(|room| room.parse::<u32>().ok()).unwrap_or(0);
        Self { stores: notify.to.is_some() && room >= STORE_DESCRIPTORS, ..notify }
    }

    /// The one at `socket`. A watchdog for another process is none of ours.
    #[must_use]
    pub fn new(socket: Option<&str>, watchdog_usec: Option<&str>, watchdog_pid: Option<&str>) -> Self {
        let to = socket.and_then(|path| {
            let address = match path.strip_prefix('@') {
                Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()),
                None => SocketAddrUnix::new(path),
            };
            let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
            match (socket, address) {
                (Ok(socket), Ok(address)) => Some(Arc::new((socket, address))),
                (socket, address) => {
                    tracing::warn!(path, ?socket, ?address, "the service manager cannot be told anything");
                    None
                }
            }
        });
        let ours = watchdog_pid.is_none_or(|pid| pid == std::process::id().to_string());
        let usec = watchdog_usec.and_then(|usec| usec.parse().ok()).filter(|usec| ours && *usec > 0);
        // Half the time it allows, as sd_watchdog_enabled(3) advises.
        let every = usec.filter(|_| to.is_some()).map(|usec| Duration::from_micros(usec) / 2);
        Self { to, stores: false, every, next: every.map(|_| Instant::now()) }
    }

    /// Sends a state, such as "READY=1". That nobody listens is nobody's fault.
    pub(crate) fn say(&self, state: &str) {
        if let Some(to) = &self.to {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            if let Err(error) = sendto(&to.0, state.as_bytes(), flags, &to.1) {
                tracing::warn!(state, %error, "the service manager did not hear");
            }
        }
    }

    /// The service manager's descriptor store, if it has one for us.
    pub(crate) fn store(&self) -> Option<Shelf> {
        self.to.clone().filter(|_| self.stores).map(Shelf)
    }

    /// When it must hear from us again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// Says that we live, when it is time to.
    pub(crate) fn look_at_clock(&mut self, now: Instant) {
        if self.next.is_some_and(|next| next <= now) {
            self.say("WATCHDOG=1");
            self.next = self.every.map(|every| now + every);
        }
    }
}

/// The most descriptors that are in the store at once: a root and two ends of a vault, twice while they change.
const STORE_DESCRIPTORS: u32 = 8;

/// The service manager's descriptor store. A message is with it as soon as it is sent, even if we die then: descriptors wait
/// in its socket, which it reads before it looks at the dead.
#[derive(Clone, Debug)]
pub(crate) struct Shelf(Arc<(OwnedFd, SocketAddrUnix)>);

impl Shelf {
    /// Keep this one. It is not to be looked at (FDPOLL=0): what is in the store often has nobody at its other end.
    pub(crate) fn put(&self, name: &str, fd: BorrowedFd<'_>) -> std::io::Result<()> {
        self.send(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), &[fd])
    }

    /// Close all of this name.
    pub(crate) fn remove(&self, name: &str) -> std::io::Result<()> {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
    }

    /// Waits for room, unlike other messages: this one must not be lost.
    fn send(&self, state: &str, fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        let (socket, address) = &*self.0;
        let parts = [IoSlice::new(state.as_bytes())];
        sendmsg_addr(socket.as_fd(), address, &parts, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    fn heard(manager: &UnixDatagram) -> Option<String> {
        let mut bytes = [0; 100];
        manager.set_nonblocking(true).expect("set");
        let count = manager.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..count]).into_owned())
    }

    #[test]
    fn a_service_manager_hears_what_we_say_and_that_we_live() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("bound");
        let mut notify = Notify::new(path.to_str(), Some("2000000"), None);
        notify.say("READY=1");
        assert_eq!(heard(&manager).as_deref(), Some("READY=1"));
        let now = Instant::now();
        notify.look_at_clock(now);
        assert_eq!(heard(&manager).as_deref(), Some("WATCHDOG=1"));
        notify.look_at_clock(now + Duration::from_millis(999));
        assert_eq!(heard(&manager), None);
        assert_eq!(notify.deadline(), Some(now + Duration::from_secs(1)));
        notify.look_at_clock(now + Duration::from_secs(1));
        assert_eq!(heard(&manager).as_deref(), Some("WATCHDOG=1"));
    }

    #[test]
    fn without_a_manager_or_with_anothers_watchdog_nothing_is_due() {
        assert_eq!(Notify::new(None, Some("1000"), None).deadline(), None);
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("nobody");
        let notify = Notify::new(path.to_str(), Some("1000"), Some("1"));
        assert_eq!(notify.deadline(), None);
        notify.say("READY=1");
        for nonsense in ["", "0", "-1", "x"] {
            assert_eq!(Notify::new(path.to_str(), Some(nonsense), None).deadline(), None);
        }
    }
}
