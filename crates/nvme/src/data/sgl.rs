//! Scatter gather lists (Base 2.1, 4.3.2). Data may be at any byte address (SGLS bits 1:0 = 01b); lengths must add up to exactly
//! the transfer (SGLS bit 18 clear).

use memory::{Iova, MemoryMap};
use spec::nvme::Status;
use spec::nvme::prp_sgl::{SGL_DESCRIPTOR_BYTES, SglDescriptor, SglSubType, SglType};
use zerocopy::IntoBytes;

use super::{Direction, Refused, SGL_DESCRIPTORS_MAX, Visit};

/// Descriptors read at a time.
const CHUNK: usize = 32;

/// A segment still to be walked.
struct Next {
    address: u64,
    descriptors: usize,
    is_last: bool,
}

pub(super) fn walk(
    first: SglDescriptor,
    len_bytes: usize,
    direction: Direction,
    map: &MemoryMap,
    visit: &mut impl Visit,
) -> Result<(), Refused> {
    let mut rest = len_bytes;
    let mut left = SGL_DESCRIPTORS_MAX;
    let mut next = match segment_of(&first)? {
        Some(segment) => Some(segment),
        None => {
            data(&first, &mut rest, direction, map, visit)?;
            None
        }
    };
    while let Some(segment) = next {
        left = left.checked_sub(segment.descriptors).ok_or(Status::INVALID_SGL_DESCRIPTOR_COUNT)?;
        next = walk_segment(&segment, &mut rest, direction, map, visit)?;
    }
    if rest == 0 { Ok(()) } else { Err(Status::DATA_SGL_LENGTH_INVALID.into()) }
}

/// One segment; what comes back is the segment it ends in. The caller bounded its length.
fn walk_segment(
    segment: &Next,
    rest: &mut usize,
    direction: Direction,
    map: &MemoryMap,
    visit: &mut impl Visit,
) -> Result<Option<Next>, Refused> {
    let mut chunk = [SglDescriptor::default(); CHUNK];
    let mut done = 0;
    while done < segment.descriptors {
        let count = CHUNK.min(segment.descriptors - done);
        let Some(descriptors) = chunk.get_mut(..count) else { break };
        let offset = (done * SGL_DESCRIPTOR_BYTES) as u64;
        let address = segment.address.checked_add(offset).ok_or(Status::DATA_TRANSFER_ERROR)?;
        map.read_bytes(Iova(address), descriptors.as_mut_bytes())?;
        for descriptor in descriptors {
            done += 1;
            let at_end = done == segment.descriptors;
            match segment_of(descriptor)? {
                Some(_) if segment.is_last => return Err(Status::INVALID_SGL_SEGMENT_DESCRIPTOR.into()),
                Some(_) if !at_end => return Err(Status::INVALID_SGL_DESCRIPTOR_COUNT.into()),
                Some(next) => return Ok(Some(next)),
                None if at_end && !segment.is_last => {
                    return Err(Status::INVALID_SGL_SEGMENT_DESCRIPTOR.into());
                }
                None => data(descriptor, rest, direction, map, visit)?,
            }
        }
    }
    Ok(None)
}

/// The segment a descriptor points to, if it is a Segment or Last Segment descriptor.
fn segment_of(descriptor: &SglDescriptor) -> Result<Option<Next>, Refused> {
    let is_last = match descriptor.descriptor_type() {
        SglType::Segment => false,
        SglType::LastSegment => true,
        SglType::DataBlock | SglType::BitBucket => return Ok(None),
        // Keyed and transport descriptors are for fabrics.
        _ => return Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.into()),
    };
    if descriptor.sub_type() != SglSubType::Address {
        return Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.into());
    }
    let len = descriptor.length as usize;
    if len == 0 || !len.is_multiple_of(SGL_DESCRIPTOR_BYTES) {
        return Err(Status::INVALID_SGL_SEGMENT_DESCRIPTOR.into());
    }
    Ok(Some(Next { address: descriptor.address, descriptors: len / SGL_DESCRIPTOR_BYTES, is_last }))
}

/// A Data Block or a Bit Bucket.
fn data(
    descriptor: &SglDescriptor,
    rest: &mut usize,
    direction: Direction,
    map: &MemoryMap,
    visit: &mut impl Visit,
) -> Result<(), Refused> {
    let len = descriptor.length as usize;
    let is_bucket = descriptor.descriptor_type() == SglType::BitBucket;
    if descriptor.sub_type() != SglSubType::Address {
        return Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.into());
    }
    if is_bucket && direction == Direction::FromHost {
        // "If the SGL describes a source data buffer, the length of the bit bucket is treated as 0" (Base 2.1, 4.3.2).
        return Ok(());
    }
    *rest = rest.checked_sub(len).ok_or(Status::DATA_SGL_LENGTH_INVALID)?;
    match (len, is_bucket) {
        (0, _) => Ok(()),
        (_, true) => visit.bucket(len),
        (_, false) => visit.memory(map, descriptor.address, len),
    }
}
