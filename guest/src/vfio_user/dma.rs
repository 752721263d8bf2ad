//! Guest memory the server has no fd for: it asks, the client answers (DMA_READ, DMA_WRITE).

use super::frame::{Fields, Frame, HEADER_BYTES, Header, Payload, command};
use crate::Result;
use crate::ram::Ram;

const EFAULT: u32 = 14;
const EINVAL: u32 = 22;
const EOPNOTSUPP: u32 = 95;
/// What one request may move.
const COUNT_MAX: u64 = 16 << 20;

/// Memory the client answers DMA requests from.
pub trait DmaMemory: Send + Sync {
    /// Copies guest memory out; false when it is not all there.
    fn dma_read(&self, iova: u64, target: &mut [u8]) -> bool;
    /// Copies into guest memory; false when it is not all there.
    fn dma_write(&self, iova: u64, source: &[u8]) -> bool;
}

impl DmaMemory for Ram {
    fn dma_read(&self, iova: u64, target: &mut [u8]) -> bool {
        self.offset_of(iova, target.len()).map(|offset| self.mapping().read(offset, target)).is_some()
    }

    fn dma_write(&self, iova: u64, source: &[u8]) -> bool {
        self.offset_of(iova, source.len()).map(|offset| self.mapping().write(offset, source)).is_some()
    }
}

/// The reply to a server's request: header and payload.
pub(super) fn answer(request: &Frame, memory: Option<&dyn DmaMemory>) -> Result<Vec<u8>> {
    let outcome = match request.header.command {
        command::DMA_READ => read(&Fields(&request.payload), memory)?,
        command::DMA_WRITE => write(&request.payload, memory)?,
        _ => Err(EOPNOTSUPP),
    };
    let (payload, flags, errno) = match outcome {
        Ok(payload) => (payload, Header::REPLY, 0),
        Err(errno) => (Vec::new(), Header::REPLY | Header::ERROR, errno),
    };
    let mut header = Header::command(request.header.id, request.header.command, payload.len());
    (header.flags, header.errno) = (flags, errno);
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend_from_slice(&header.to_bytes());
    bytes.extend_from_slice(&payload);
    Ok(bytes)
}

fn read(fields: &Fields<'_>, memory: Option<&dyn DmaMemory>) -> Result<std::result::Result<Vec<u8>, u32>> {
    let (address, count) = (fields.u64(0)?, fields.u64(8)?);
    let Some(size) = usize::try_from(count).ok().filter(|_| count <= COUNT_MAX) else {
        return Ok(Err(EINVAL));
    };
    let mut data = vec![0; size];
    if !memory.is_some_and(|memory| memory.dma_read(address, &mut data)) {
        return Ok(Err(EFAULT));
    }
    Ok(Ok(Payload::default().u64(address).u64(count).bytes(&data).0))
}

fn write(payload: &[u8], memory: Option<&dyn DmaMemory>) -> Result<std::result::Result<Vec<u8>, u32>> {
    let fields = Fields(payload);
    let (address, count) = (fields.u64(0)?, fields.u64(8)?);
    let data = &payload[16..];
    if data.len() as u64 != count {
        return Ok(Err(EINVAL));
    }
    if !memory.is_some_and(|memory| memory.dma_write(address, data)) {
        return Ok(Err(EFAULT));
    }
    Ok(Ok(Payload::default().u64(address).u64(count).0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(command: u16, payload: Vec<u8>) -> Frame {
        Frame { header: Header::command(7, command, payload.len()), payload, fds: Vec::new() }
    }

    #[test]
    fn a_write_request_is_stored_and_a_read_request_returns_it() {
        let ram = Ram::new(4096, 0x1000).unwrap();
        let payload = Payload::default().u64(0x1010).u64(4).bytes(b"abcd").0;
        let reply = answer(&request(command::DMA_WRITE, payload), Some(&*ram)).unwrap();
        assert_eq!(reply.len(), 32);
        let payload = Payload::default().u64(0x1010).u64(4).0;
        let reply = answer(&request(command::DMA_READ, payload), Some(&*ram)).unwrap();
        assert_eq!(&reply[32..], b"abcd");
        assert_eq!(reply[0], 7);
    }

    #[test]
    fn a_request_outside_memory_is_answered_with_an_errno() {
        let ram = Ram::new(4096, 0x1000).unwrap();
        let payload = Payload::default().u64(0x1FFF).u64(4).0;
        let reply = answer(&request(command::DMA_READ, payload), Some(&*ram)).unwrap();
        assert_eq!(reply.len(), HEADER_BYTES);
        assert_eq!(u32::from(reply[12]), EFAULT);
    }
}
