//! Get LBA Status (NVM 1.1, 4.2.1): blocks that cannot be read (actions 10h and 11h), and blocks that are allocated (action 02h).
//!
//! ```text
//!  action 02h --AllocationQuery--> Host::survey ... whoever knows the drive's map: Survey, and the list that it makes
//!             answers      <--AllocationList-- Controller::surveyed
//! ```
//! What is allocated is for the drive to say, and may take as long as its file system takes: nobody waits for it but the command. One look of a
//! controller is under way at a time, and finds no more runs than the command has room for (65,535). Who looks also puts them in order, cuts them to
//! blocks and makes the list: in the controller's turn it is only copied to the host. More commands wait in their slots, in order.
//!
//! Allocated is what has been written and not been given back since, in units of the drive's own. Blocks that Write Uncorrectable marked are,
//! too (NVM 1.1, 2.1.1), wherever they lie.

use std::collections::VecDeque;

use block::Now;
use spec::nvme::nvm::{
    GetLbaStatusCdw13, LBA_STATUS_ALLOCATED, LBA_STATUS_WRITTEN_UNCORRECTABLE, LbaStatusAction,
    LbaStatusCompletion, LbaStatusDescriptor, LbaStatusHeader,
};
use spec::nvme::{Command, Status};
use zerocopy::IntoBytes;

use super::{Failure, Outcome, Step, invalid_field, transfer};
use crate::controller::{Controller, Host, Survey, Unsurveyed};
use crate::limits::MDTS_BYTES;
use crate::namespace::{LbaFormat, Namespace};

const HEADER_BYTES: usize = size_of::<LbaStatusHeader>();
const DESCRIPTOR_BYTES: usize = size_of::<LbaStatusDescriptor>();
/// Blocks that a descriptor can name: NLB is 0's based.
const DESCRIPTOR_BLOCKS_MAX: u64 = 1 << 32;

/// Commands that wait for a look; more are to be tried again. A controller that is to stand still ends the look under way and no other: those that wait go
/// with it in their slots.
const WAITING_MAX: usize = 15;

/// A run of blocks: first, and one past the last.
type Run = (u64, u64);

/// What a Get LBA Status command asks for: blocks of a namespace, in a list of so many bytes.
#[derive(Clone, Copy, Debug)]
struct Asked {
    first: u64,
    end: u64,
    len_bytes: usize,
}

impl Asked {
    fn of(command: &Command, namespace: &Namespace) -> Result<Self, Failure> {
        let len_bytes = (u64::from(command.cdw12) + 1) * 4;
        let len_bytes = usize::try_from(len_bytes).ok().filter(|_| len_bytes <= u64::from(MDTS_BYTES));
        let len_bytes = len_bytes.ok_or_else(|| invalid_field(12))?;
        let first = command.slba();
        let end = match GetLbaStatusCdw13::from_bits(command.cdw13).rl() {
            0 => namespace.blocks,
            blocks => first.checked_add(blocks.into()).ok_or(Status::LBA_OUT_OF_RANGE)?,
        };
        if first >= namespace.blocks || end > namespace.blocks {
            return Err(Status::LBA_OUT_OF_RANGE.into());
        }
        Ok(Self { first, end, len_bytes })
    }

    /// Descriptors there is room for.
    fn room(&self) -> usize {
        self.len_bytes.saturating_sub(HEADER_BYTES) / DESCRIPTOR_BYTES
    }

    /// The list: as much of it as there is room for. `whole`: `runs` are all of the range.
    fn list(&self, runs: &[Run], whole: bool, stas: u8) -> Vec<u8> {
        let pieces = runs.iter().flat_map(|run| pieces(*run));
        let mut fitting: Vec<LbaStatusDescriptor> = pieces
            .map(|(dslba, nlb_z)| LbaStatusDescriptor { dslba, nlb_z, stas, ..Default::default() })
            .take(self.room().saturating_add(1))
            .collect();
        let is_cut = fitting.len() > self.room();
        fitting.truncate(self.room());
        let complete = whole && !is_cut;
        let cmpc = if complete { LbaStatusCompletion::Complete } else { LbaStatusCompletion::Incomplete };
        let nlsd = u32::try_from(fitting.len()).unwrap_or(0);
        let mut list = LbaStatusHeader { nlsd, cmpc: cmpc.0, ..Default::default() }.as_bytes().to_vec();
        list.extend_from_slice(fitting.as_bytes());
        // Past the end there are zeros; a list shorter than its header is cut.
        list.resize(self.len_bytes, 0);
        list
    }
}

/// A run as descriptors say it: first block, and how many, 0's based.
fn pieces((start, end): Run) -> impl Iterator<Item = (u64, u32)> {
    let count = end.saturating_sub(start).div_ceil(DESCRIPTOR_BLOCKS_MAX);
    (0..count).map(move |at| {
        let first = start + at * DESCRIPTOR_BLOCKS_MAX;
        let more = (end - first).min(DESCRIPTOR_BLOCKS_MAX) - 1;
        (first, u32::try_from(more).unwrap_or(u32::MAX))
    })
}

/// Ascending runs of both, without overlaps and without neighbours.
fn merged(one: impl IntoIterator<Item = Run>, other: impl IntoIterator<Item = Run>) -> Vec<Run> {
    let mut all: Vec<Run> = one.into_iter().chain(other).filter(|(start, end)| start < end).collect();
    all.sort_unstable();
    let mut runs: Vec<Run> = Vec::with_capacity(all.len());
    for (start, end) in all {
        match runs.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => runs.push((start, end)),
        }
    }
    runs
}

/// Where the blocks of a command lie on the drive, and how large they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    range: block::Range,
    namespace_start_bytes: u64,
    format: LbaFormat,
}

impl Place {
    /// Inside the namespace, so that nothing overflows.
    fn of(namespace: &Namespace, asked: &Asked) -> Self {
        let (format, namespace_start_bytes) = (namespace.format, namespace.start_bytes);
        let range = block::Range {
            start_bytes: namespace_start_bytes + (asked.first << format.shift()),
            len_bytes: (asked.end - asked.first) << format.shift(),
        };
        Self { range, namespace_start_bytes, format }
    }
}

/// What a drive's map is asked for a Get LBA Status command, and all that its answer takes: nothing of the controller.
#[derive(Clone, Debug)]
pub struct AllocationQuery {
    place: Place,
    asked: Asked,
    /// Blocks marked uncorrectable.
    marks: Vec<Run>,
}

/// The answer to an [`AllocationQuery`], as the host gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocationList(Vec<u8>);

impl AllocationQuery {
    fn of(namespace: &Namespace, asked: Asked) -> Self {
        let marks = marked(namespace, asked.first, asked.end, usize::MAX);
        Self { place: Place::of(namespace, &asked), asked, marks }
    }

    /// Where to look.
    #[must_use]
    pub fn range(&self) -> block::Range {
        self.place.range
    }

    /// After so many runs no more is looked for.
    #[must_use]
    pub fn runs_max(&self) -> usize {
        self.asked.room().saturating_add(1)
    }

    /// The list of what was found there. A block of which any byte is allocated, is. To be made where it keeps nobody waiting.
    #[must_use]
    pub fn list(&self, found: &Survey) -> AllocationList {
        let Self { place, asked, marks } = self;
        let block = |bytes: u64| bytes.saturating_sub(place.namespace_start_bytes) >> place.format.shift();
        let block_up = |bytes: u64| {
            let bytes = bytes.saturating_sub(place.namespace_start_bytes);
            bytes.div_ceil(u64::from(place.format.block_bytes()))
        };
        let cut = |at: u64, end: u64| at.clamp(asked.first, end);
        let end = cut(block_up(found.end_bytes), asked.end);
        let runs = found.runs.iter().map(|run| {
            let run_end = run.start_bytes.saturating_add(run.len_bytes);
            (cut(block(run.start_bytes), end), cut(block_up(run_end), end))
        });
        let marks = marks.iter().map(|(start, stop)| (cut(*start, end), cut(*stop, end)));
        AllocationList(asked.list(&merged(runs, marks), end == asked.end, LBA_STATUS_ALLOCATED))
    }
}

/// For whom a look at the drive's map is under way.
#[derive(Debug)]
struct Look {
    slot: u16,
    command: Command,
    /// What was asked about: where the namespace lay then.
    place: Place,
}

/// What is asked of the drive's map.
#[derive(Debug, Default)]
pub(crate) struct Surveys {
    /// The look under way, by its ticket. `None` in it: whoever asked went with a reset, and the look goes on all the same.
    under_way: Option<(u32, Option<Look>)>,
    queued: VecDeque<(u16, Command)>,
    next_ticket: u32,
}

impl Surveys {
    /// No look is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.under_way.is_none()
    }

    /// Another look is to begin.
    pub(crate) fn is_due(&self) -> bool {
        self.is_idle() && !self.queued.is_empty()
    }

    /// A controller level reset: what comes is for nobody. No other look begins before it has come, so that a host that resets its controller over
    /// and over has one at a time, too.
    pub(crate) fn reset(&mut self) {
        self.queued.clear();
        if let Some((_, look)) = &mut self.under_way {
            *look = None;
        }
    }

    fn begin(&mut self, look: Look) -> u32 {
        self.next_ticket = self.next_ticket.wrapping_add(1);
        self.under_way = Some((self.next_ticket, Some(look)));
        self.next_ticket
    }

    /// The look of that ticket has ended.
    fn end(&mut self, ticket: u32) -> Option<Look> {
        self.under_way.take_if(|(under_way, _)| *under_way == ticket)?.1
    }
}

impl Controller {
    pub(super) fn get_lba_status(&mut self, slot: u16, command: &Command, host: &mut impl Host) -> Outcome {
        let namespace = self.table.attached(command.nsid).map_err(|status| Failure::Status(status, 4))?;
        let is_uncorrectable = match LbaStatusAction(GetLbaStatusCdw13::from_bits(command.cdw13).atype()) {
            // The same here: nothing is found by scanning.
            LbaStatusAction::ScanAndReturn | LbaStatusAction::Tracked => true,
            LbaStatusAction::Allocated if self.profile.tells_allocated => false,
            _ => return Err(invalid_field(13)),
        };
        let asked = Asked::of(command, namespace)?;
        if is_uncorrectable {
            let runs_max = asked.room().saturating_add(1);
            let runs = marked(namespace, asked.first, asked.end, runs_max);
            let list = asked.list(&runs, runs.len() < runs_max, LBA_STATUS_WRITTEN_UNCORRECTABLE);
            transfer::to_host(&self.map, command, &list)?;
            return Ok(Step::Done(0));
        }
        if self.surveys.under_way.is_some() {
            if self.surveys.queued.len() >= WAITING_MAX {
                return Err(Status::COMMAND_INTERRUPTED.into());
            }
            self.surveys.queued.push_back((slot, *command));
            return Ok(Step::Later);
        }
        let query = AllocationQuery::of(namespace, asked);
        let ticket = self.surveys.begin(Look { slot, command: *command, place: query.place });
        host.survey(ticket, query);
        Ok(Step::Later)
    }

    /// The end of a [`Host::survey`].
    pub fn surveyed(
        &mut self,
        ticket: u32,
        found: Result<AllocationList, Unsurveyed>,
        now: Now,
        host: &mut impl Host,
    ) {
        self.now = now;
        if let Some(Look { slot, command, place }) = self.surveys.end(ticket) {
            match self.tell_allocated(&command, place, found) {
                // Its namespace is another by now: asked again, with all checks.
                None => self.execute(slot, command, host),
                Some(outcome) => self.conclude(slot, command, outcome),
            }
        }
        self.ring(host);
    }

    /// Begins the next look. In a turn of its own: between two of them the controller is quiet, however many its host asks for, and can be made to
    /// stand still.
    pub(crate) fn begin_surveys(&mut self, host: &mut impl Host) {
        while self.surveys.is_due() {
            let Some((slot, command)) = self.surveys.queued.pop_front() else { break };
            self.execute(slot, command, host);
        }
    }

    /// `None`: the namespace does not lie where was looked, or has other blocks.
    fn tell_allocated(
        &self,
        command: &Command,
        place: Place,
        found: Result<AllocationList, Unsurveyed>,
    ) -> Option<Outcome> {
        let namespace = self.table.attached(command.nsid).ok()?;
        let asked = Asked::of(command, namespace).ok()?;
        if Place::of(namespace, &asked) != place {
            return None;
        }
        let outcome = found.map_err(failure).and_then(|AllocationList(list)| {
            transfer::to_host(&self.map, command, &list)?;
            Ok(Step::Done(0))
        });
        Some(outcome)
    }
}

fn failure(why: Unsurveyed) -> Failure {
    match why {
        Unsurveyed::Busy => Status::COMMAND_INTERRUPTED.into(),
        Unsurveyed::Failed => Status::INTERNAL_ERROR.into(),
    }
}

fn marked(namespace: &Namespace, first: u64, end: u64, runs_max: usize) -> Vec<Run> {
    let runs = namespace.marks.runs_between(first, end, runs_max);
    runs.into_iter().map(|(start, blocks)| (start, start + blocks)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NVM 1.1, 4.2.1.2: NLB has 32 bits, and is 0's based.
    #[test]
    fn a_run_that_no_descriptor_can_name_is_said_in_several() {
        let said = |run| pieces(run).collect::<Vec<_>>();
        assert_eq!(said((5, 6)), [(5, 0)]);
        assert_eq!(said((7, 7 + (1 << 32))), [(7, u32::MAX)]);
        assert_eq!(said((7, 8 + (1 << 32))), [(7, u32::MAX), (7 + (1 << 32), 0)]);
        assert_eq!(said((0, 3 << 32)).len(), 3);
        let asked = Asked { first: 0, end: 3 << 32, len_bytes: HEADER_BYTES + 2 * DESCRIPTOR_BYTES };
        let list = asked.list(&[(0, 3 << 32)], true, LBA_STATUS_ALLOCATED);
        assert_eq!((list[0], list[4]), (2, LbaStatusCompletion::Incomplete.0), "the third did not fit");
    }
}
