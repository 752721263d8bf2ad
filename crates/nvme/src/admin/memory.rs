//! Track Send Track Memory Changes and Track Receive (Base 2.1, 5.1.27.1.2 and 5.1.26) of a migration management controller: which memory of its own
//! host a controller has written. See [`crate::management`].

use spec::nvme::tracking::{
    MemoryRangeDescriptor, TrackMemoryCdw10, TrackMemoryHeader, TrackReceiveCdw10, TrackReceiveSelect,
    TrackedMemoryAttributes, TrackedMemoryDescriptor, TrackedMemoryHeader,
};
use spec::nvme::{Command, Status};
use zerocopy::{FromBytes, IntoBytes};

use super::migration::{cntlid_of, failure};
use super::{Failure, Outcome, Step, identify, invalid_field, transfer};
use crate::controller::{Controller, Host};
use crate::limits::{MDTS_BYTES, MEMORY_GRANULARITY_MAX, MEMORY_RANGES_MAX, PAGE_BYTES};
use crate::management::{Memory, Order, Report, Trouble, What};
use crate::queue::Answer;

const HEADER_BYTES: usize = size_of::<TrackedMemoryHeader>();
const DESCRIPTOR_BYTES: usize = size_of::<TrackedMemoryDescriptor>();

/// In the data.
fn wrong() -> Failure {
    Status::INVALID_FIELD.into()
}

/// The ranges of a Track Memory Changes data structure whose header was read, of one granularity.
fn ranges(granularity: u8, descriptors: &[u8]) -> Result<Vec<(u64, u64)>, Failure> {
    let grain = (PAGE_BYTES as u64) << granularity;
    let range = |bytes: &[u8]| {
        let range = MemoryRangeDescriptor::read_from_bytes(bytes).ok()?;
        let (saddr, len) = (range.saddr.get(), u64::from(range.len.get()).checked_mul(grain)?);
        // The last byte has an address.
        let inside = len.checked_sub(1).and_then(|more| saddr.checked_add(more)).is_some();
        (inside && saddr.is_multiple_of(grain)).then_some((saddr, len))
    };
    descriptors
        .chunks(size_of::<MemoryRangeDescriptor>())
        .map(|bytes| range(bytes).ok_or_else(wrong))
        .collect()
}

/// Bytes that a Track Receive command asks for: there is room for a descriptor, since a report of none would say that there is nothing.
fn len_of(command: &Command) -> Result<usize, Failure> {
    let len = (u64::from(command.cdw12) + 1) * 4;
    let len = usize::try_from(len).ok().filter(|_| len <= u64::from(MDTS_BYTES));
    len.filter(|len| *len >= HEADER_BYTES + DESCRIPTOR_BYTES).ok_or_else(|| invalid_field(12))
}

/// The controller that is tracked, and is another.
fn tracked(command: &Command) -> Result<u16, Failure> {
    match cntlid_of(command) {
        identify::CNTLID => Err(failure(Trouble::NoController)),
        cntlid => Ok(cntlid),
    }
}

impl Controller {
    pub(super) fn track_memory(&mut self, slot: u16, command: &Command, host: &mut impl Host) -> Outcome {
        let cntlid = tracked(command)?;
        if !TrackMemoryCdw10::from_bits(command.cdw10).tact() {
            return self.order_about(slot, command, cntlid, What::Answer, Order::EndMemory, host);
        }
        let memory = self.memory_to_track(command)?;
        self.order_about(slot, command, cntlid, What::TrackMemory, Order::TrackMemory(memory), host)
    }

    /// What the host wants tracked: the header first, which says how much there is.
    fn memory_to_track(&self, command: &Command) -> Result<Memory, Failure> {
        let header = transfer::from_host(&self.map, command, size_of::<TrackMemoryHeader>())?;
        let header = TrackMemoryHeader::read_from_bytes(&header).map_err(|_| wrong())?;
        let (granularity, count) = (header.rmrtg, header.rnmrtd.get());
        if header.ver != 0
            || granularity > MEMORY_GRANULARITY_MAX
            || !(1..=u32::from(MEMORY_RANGES_MAX)).contains(&count)
        {
            return Err(wrong());
        }
        let count = usize::try_from(count).map_err(|_| wrong())?;
        let len = size_of::<TrackMemoryHeader>() + count * size_of::<MemoryRangeDescriptor>();
        let data = transfer::from_host(&self.map, command, len)?;
        let descriptors = data.get(size_of::<TrackMemoryHeader>()..).unwrap_or(&[]);
        Ok(Memory { granularity, ranges: ranges(granularity, descriptors)? })
    }

    /// It is, or why not.
    pub(super) fn memory_is_tracked(
        &mut self,
        slot: u16,
        command: &Command,
        report: &Report,
        replayed: bool,
    ) -> Outcome {
        match *report {
            Report::Done => {}
            // By a predecessor, which did not live to say so.
            Report::Failed(Trouble::Tracked { same: true }) if replayed => {}
            Report::Failed(Trouble::NoRoom { ranges }) => {
                // The finest granularity is always to be had.
                let answer = Answer { dw0: 0, dw1: ranges, status: Status::NOT_ENOUGH_RESOURCES };
                self.fail(slot, command, answer, 0xffff);
                return Ok(Step::Later);
            }
            Report::Failed(trouble) => return Err(failure(trouble)),
            _ => return Err(Status::INTERNAL_ERROR.into()),
        }
        self.management.heard.remove(&cntlid_of(command));
        Ok(Step::Done(0))
    }

    pub(super) fn track_receive(&mut self, slot: u16, command: &Command, host: &mut impl Host) -> Outcome {
        let select = TrackReceiveSelect(TrackReceiveCdw10::from_bits(command.cdw10).sel());
        if select != TrackReceiveSelect::TrackedMemoryChanges {
            return Err(invalid_field(10));
        }
        let cntlid = tracked(command)?;
        let room = (len_of(command)? - HEADER_BYTES) / DESCRIPTOR_BYTES;
        let most = u32::try_from(room).unwrap_or(u32::MAX);
        let heard = self.management.heard.contains(&cntlid);
        let order = Order::HarvestMemory { most, heard };
        self.order_about(slot, command, cntlid, What::HarvestMemory, order, host)
    }

    /// What does not arrive is said again.
    pub(super) fn send_memory(
        &mut self,
        command: &Command,
        granularity: u8,
        runs: &[(u64, u32)],
        attrb: TrackedMemoryAttributes,
    ) -> Outcome {
        let cntlid = cntlid_of(command);
        self.management.heard.remove(&cntlid);
        let ntmcd = u32::try_from(runs.len()).map_err(|_| Status::INTERNAL_ERROR)?;
        let rpmpg = u16::from(granularity);
        let header = TrackedMemoryHeader { ver: 0, attrb, cntlid, ntmcd, rpmpg, reserved10: [0; 6] };
        let mut data = header.as_bytes().to_vec();
        for &(saddr, len) in runs {
            data.extend_from_slice(TrackedMemoryDescriptor { saddr, len, reserved12: [0; 4] }.as_bytes());
        }
        // There is room for them; past the end there are zeros.
        data.resize(len_of(command)?, 0);
        transfer::to_host(&self.map, command, &data)?;
        self.management.heard.insert(cntlid);
        Ok(Step::Done(0))
    }
}
