//! A client of an ssd's socket.

use crate::double::frame;
use guest::PATIENCE;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
};
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

pub struct Client {
    pub stream: UnixStream,
    next_id: u16,
}

/// A message as it came.
#[derive(Debug)]
pub struct Message {
    pub id: u16,
    pub flags: u32,
    pub text: String,
    pub fds: Vec<OwnedFd>,
}

impl Client {
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.set_write_timeout(Some(PATIENCE)).expect("set");
        Self { stream, next_id: 0 }
    }

    /// Sends a command and does not wait.
    pub fn send(&mut self, text: &str) -> u16 {
        self.send_with(text, 0, &[])
    }

    pub fn send_with(&mut self, text: &str, flags: u32, fds: &[BorrowedFd<'_>]) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        self.raw(&frame(self.next_id, 9, flags, text.as_bytes()), fds);
        self.next_id
    }

    pub fn raw(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let flags = rustix::net::SendFlags::NOSIGNAL;
        let sent =
            rustix::net::sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, flags).expect("sent");
        self.stream.write_all(&bytes[sent..]).expect("sent");
    }

    /// The next message; `None`: the keeper hung up.
    pub fn receive(&mut self) -> Option<Message> {
        let mut header = [0; 16];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
        let got =
            rustix::net::recvmsg(&self.stream, &mut [IoSliceMut::new(&mut header)], &mut control, flags);
        match got {
            Ok(got) if got.bytes == 16 => {}
            Ok(_) | Err(rustix::io::Errno::CONNRESET) => return None,
            Err(error) => panic!("no message came: {error}"),
        }
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                fds.extend(more);
            }
        }
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four"));
        let mut payload = vec![0; word(4) as usize - 16];
        self.stream.read_exact(&mut payload).expect("the rest");
        let text = String::from_utf8_lossy(&payload).into_owned();
        Some(Message { id: u16::from_le_bytes([header[0], header[1]]), flags: word(8), text, fds })
    }

    /// Sends a command and takes its reply.
    pub fn call(&mut self, text: &str) -> String {
        let id = self.send(text);
        let reply = self.receive().expect("a reply");
        assert_eq!((reply.id, reply.flags), (id, 1), "{}", reply.text);
        reply.text
    }
}
