//! A chain as a request of the block device (virtio 1.2, 5.2.6).

use block::{Op, Range};
use memory::{Access, Hint, Iova, MemoryMap, Segment};
use spec::virtio_blk::{self as blk, DiscardWriteZeroes, RequestHeader};
use zerocopy::{FromZeros, IntoBytes};

use crate::chain::{Chain, Piece};
use crate::config::Device;
use crate::sink::Broken;

/// What is to be done with a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Parsed {
    /// At the drive. `len` is what a success reports as written, without the status.
    Drive { op: Op, range: Range, len: u32 },
    /// The serial number.
    Id,
    /// Nothing: this status.
    Status(u8),
}

const IOERR: Parsed = Parsed::Status(blk::S_IOERR);

/// Takes header and status off the chain; what stays in it is data.
#[inline]
pub(crate) fn envelope(
    map: &MemoryMap,
    hint: &mut Hint,
    chain: &mut Chain,
) -> Result<(RequestHeader, Iova), Broken> {
    while chain.writable.last().is_some_and(|piece| piece.len == 0) {
        chain.writable.pop();
    }
    let last = chain.writable.last_mut().ok_or(Broken::Header)?;
    last.len -= 1;
    let status = last.addr.checked_add(u64::from(last.len)).ok_or(Broken::Header)?;
    if last.len == 0 {
        chain.writable.pop();
    }
    let header = match chain.readable.first().copied() {
        Some(Piece { addr, len: 16 }) => {
            // Taken out without moving the rest: a piece of no bytes.
            if let Some(first) = chain.readable.first_mut() {
                first.len = 0;
            }
            map.read_hinted(hint, Iova(addr))?
        }
        _ => {
            let mut header = RequestHeader::new_zeroed();
            gather(map, &mut chain.readable, header.as_mut_bytes())?;
            header
        }
    };
    Ok((header, Iova(status)))
}

/// The first bytes of pieces, of any framing; they are taken off.
fn gather(map: &MemoryMap, pieces: &mut [Piece], mut into: &mut [u8]) -> Result<(), Broken> {
    for piece in pieces {
        let len = into.len().min(usize::try_from(piece.len).unwrap_or(usize::MAX));
        let (now, rest) = into.split_at_mut(len);
        map.read_bytes(Iova(piece.addr), now)?;
        let taken = u32::try_from(len).unwrap_or(0);
        piece.addr = piece.addr.wrapping_add(u64::from(taken));
        piece.len -= taken;
        into = rest;
        if into.is_empty() {
            return Ok(());
        }
    }
    Err(Broken::Header)
}

/// The data of a chain as host memory, or the status that says why not.
#[inline]
fn data(
    map: &MemoryMap,
    hint: &mut Hint,
    pieces: &[Piece],
    access: Access,
    max: usize,
    segments: &mut Vec<Segment>,
) -> Result<u32, u8> {
    let mut sum = 0_u32;
    for piece in pieces.iter().filter(|piece| piece.len > 0) {
        sum = sum.checked_add(piece.len).filter(|sum| *sum < u32::MAX).ok_or(blk::S_IOERR)?;
        let len = usize::try_from(piece.len).map_err(|_| blk::S_IOERR)?;
        let mut full = false;
        let mut out = |segment| {
            if segments.len() < max {
                segments.push(segment);
            } else {
                full = true;
            }
        };
        map.segments(hint, Iova(piece.addr), len, access, &mut out).map_err(|_| blk::S_IOERR)?;
        if full {
            return Err(blk::S_IOERR);
        }
    }
    Ok(sum)
}

fn is_empty(pieces: &[Piece]) -> bool {
    pieces.iter().all(|piece| piece.len == 0)
}

/// Bytes on the drive, or `None`: past the end, or not whole blocks.
#[inline]
fn range(device: &Device, sector: u64, len_bytes: u64) -> Option<Range> {
    let start_bytes = sector.checked_mul(blk::SECTOR_BYTES)?;
    let range = Range { start_bytes, len_bytes };
    let unit = u64::from(device.limits.block_bytes) - 1;
    let whole = (start_bytes | len_bytes) & unit == 0;
    (whole && range.end_bytes()? <= device.capacity.bytes()).then_some(range)
}

/// What the header asks for. `write_through`: a write is done when it is durable.
#[inline]
pub(crate) fn parse(
    device: &Device,
    map: &MemoryMap,
    hint: &mut Hint,
    header: RequestHeader,
    chain: &mut Chain,
    write_through: bool,
    segments: &mut Vec<Segment>,
) -> Parsed {
    segments.clear();
    let max = device.limits.segments_max;
    let (pieces, access, op) = match header.kind {
        blk::T_IN if is_empty(&chain.readable) => (&chain.writable, Access::WRITE, Op::Read),
        blk::T_OUT if device.read_only || !chain.writable.is_empty() => return IOERR,
        blk::T_OUT => (&chain.readable, Access::READ, Op::Write { fua: write_through }),
        _ => return parse_rare(device, map, header, chain, write_through),
    };
    let sum = match data(map, hint, pieces, access, max, segments) {
        Ok(sum) => sum,
        Err(status) => return Parsed::Status(status),
    };
    match range(device, header.sector, u64::from(sum)) {
        Some(_) if sum == 0 => Parsed::Status(blk::S_OK),
        Some(range) => Parsed::Drive { op, range, len: if op == Op::Read { sum } else { 0 } },
        None => IOERR,
    }
}

#[inline(never)]
fn parse_rare(
    device: &Device,
    map: &MemoryMap,
    header: RequestHeader,
    chain: &mut Chain,
    fua: bool,
) -> Parsed {
    match header.kind {
        blk::T_FLUSH => {
            let range = Range { start_bytes: 0, len_bytes: 0 };
            Parsed::Drive { op: Op::Flush, range, len: 0 }
        }
        blk::T_GET_ID => Parsed::Id,
        blk::T_DISCARD | blk::T_WRITE_ZEROES if device.read_only => IOERR,
        blk::T_DISCARD if !device.limits.discard => Parsed::Status(blk::S_UNSUPP),
        kind @ (blk::T_DISCARD | blk::T_WRITE_ZEROES) => {
            let mut one = DiscardWriteZeroes::new_zeroed();
            if gather(map, &mut chain.readable, one.as_mut_bytes()).is_err() || !is_empty(&chain.readable) {
                return IOERR;
            }
            let unmap = one.flags & 1 == 1;
            // 5.2.6.2: reserved flags, and unmap in a discard, are UNSUPP.
            if one.flags & !1 != 0 || kind == blk::T_DISCARD && unmap {
                return Parsed::Status(blk::S_UNSUPP);
            }
            let Some(range) = range(device, one.sector, u64::from(one.num_sectors) * blk::SECTOR_BYTES)
            else {
                return IOERR;
            };
            if range.len_bytes == 0 {
                return Parsed::Status(blk::S_OK);
            }
            let zeroes = Op::WriteZeroes { deallocate: unmap, fua };
            let op = if kind == blk::T_DISCARD { Op::Discard } else { zeroes };
            Parsed::Drive { op, range, len: 0 }
        }
        blk::T_IN => IOERR,
        _ => Parsed::Status(blk::S_UNSUPP),
    }
}

/// Writes the serial number; returns status and bytes written.
pub(crate) fn write_id(device: &Device, map: &MemoryMap, chain: &Chain) -> (u8, u32) {
    let mut left: &[u8] = &device.serial;
    for piece in &chain.writable {
        let len = left.len().min(usize::try_from(piece.len).unwrap_or(usize::MAX));
        let (now, rest) = left.split_at(len);
        if map.write_bytes(Iova(piece.addr), now).is_err() {
            return (blk::S_IOERR, 0);
        }
        left = rest;
    }
    let written = device.serial.len() - left.len();
    (blk::S_OK, u32::try_from(written).unwrap_or(0))
}
