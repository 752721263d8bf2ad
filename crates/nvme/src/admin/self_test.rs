//! Device Self-test (Base 2.1, 5.1.5 and 8.1.7): reads spread over the tested namespaces, in the background.
//!
//! What it does not do: it tests neither the drive's own electronics nor every block.

use block::{Op, Outcome as Ended, Range, Request, Submitted, Token};
use memory::Segment;
use spec::nvme::admin::{DeviceSelfTestCdw10, SelfTestCode};
use spec::nvme::log::{DeviceSelfTestLog, SelfTestOutcome, SelfTestResult};
use spec::nvme::{Command, NSID_BROADCAST, Status};
use state::ssd::SelfTestV1;
use zerocopy::FromZeros;

use super::{Failure, Outcome, Step, invalid_field};
use crate::controller::{Controller, Host, PersistWish};

/// Bytes of one read.
const READ_BYTES: usize = 4096;
/// Reads of a short and of an extended test, in each namespace.
const SHORT_READS: u64 = 16;
const EXTENDED_READS: u64 = 4096;
/// Results kept.
const RESULTS_MAX: usize = 20;
/// Reads started in one turn when each ends at once.
const BURST_MAX: usize = 64;

/// A test under way.
#[derive(Debug)]
pub(crate) struct SelfTest {
    code: SelfTestCode,
    nsid: u32,
    /// Namespace, block and place on the backend of each read.
    reads: Vec<(u32, u64, u64)>,
    at: usize,
    in_flight: Option<Token>,
    wants_room: bool,
    buffer: Vec<u8>,
}

impl SelfTest {
    pub(crate) fn wants_room(&self) -> bool {
        self.wants_room
    }

    fn percent(&self) -> u8 {
        u8::try_from(self.at * 100 / self.reads.len().max(1)).unwrap_or(100).min(99)
    }
}

impl Controller {
    pub(super) fn device_self_test(&mut self, command: &Command, host: &mut impl Host) -> Outcome {
        let code = SelfTestCode(DeviceSelfTestCdw10::from_bits(command.cdw10).stc());
        let reads_each = match code {
            SelfTestCode::Short => SHORT_READS,
            SelfTestCode::Extended => EXTENDED_READS,
            SelfTestCode::Abort => {
                self.abort_self_test(SelfTestOutcome::AbortedByCommand.0, host);
                return Ok(Step::Done(0));
            }
            _ => return Err(invalid_field(10)),
        };
        let tested: Vec<u32> = match command.nsid {
            0 => Vec::new(),
            NSID_BROADCAST => self.table.iter().filter(|ns| ns.attached).map(|ns| ns.nsid).collect(),
            nsid => vec![self.table.attached(nsid).map_err(|status| Failure::Status(status, 4))?.nsid],
        };
        if self.self_test.is_some() {
            return Err(Status::SELF_TEST_IN_PROGRESS.into());
        }
        let mut reads = Vec::new();
        for namespace in tested.iter().filter_map(|nsid| self.table.get(*nsid)) {
            let pages = (namespace.blocks << namespace.format.shift()) / READ_BYTES as u64;
            let count = pages.min(reads_each);
            for index in 0..count {
                // Spread evenly, the last page included.
                let page = if count > 1 {
                    u128::from(pages - 1) * u128::from(index) / u128::from(count - 1)
                } else {
                    0
                };
                let offset = u64::try_from(page).unwrap_or(0) * READ_BYTES as u64;
                reads.push((
                    namespace.nsid,
                    offset >> namespace.format.shift(),
                    namespace.start_bytes + offset,
                ));
            }
        }
        let nsid = command.nsid;
        let buffer = vec![0; READ_BYTES];
        self.self_test =
            Some(SelfTest { code, nsid, reads, at: 0, in_flight: None, wants_room: false, buffer });
        self.pump_self_test(host);
        Ok(Step::Done(0))
    }

    /// Starts reads: as many as end at once, up to a burst.
    pub(crate) fn pump_self_test(&mut self, host: &mut impl Host) {
        for _ in 0..BURST_MAX {
            let token = self.next_token();
            let Some(test) = self.self_test.as_mut().filter(|test| test.in_flight.is_none()) else { return };
            test.wants_room = false;
            let Some((_, _, start_bytes)) = test.reads.get(test.at).copied() else {
                return self.end_self_test(SelfTestOutcome::Passed.0, None, host);
            };
            let data = [Segment::of(&mut test.buffer)];
            let range = Range { start_bytes, len_bytes: READ_BYTES as u64 };
            match host.submit(&Request { token, op: Op::Read, range, data: &data }) {
                Submitted::Queued => {
                    test.in_flight = Some(token);
                    return;
                }
                Submitted::Full => {
                    test.wants_room = true;
                    return;
                }
                Submitted::Ended(outcome) => self.self_test_read_ended(outcome, host),
            }
        }
        if let Some(test) = &mut self.self_test {
            test.wants_room = test.in_flight.is_none();
        }
    }

    pub(crate) fn self_test_ended(&mut self, token: Token, outcome: Ended, host: &mut impl Host) {
        // The buffer of an aborted test is still named by its read: it goes with the read's end.
        if let Some(at) = self.self_test_remains.iter().position(|(t, _)| *t == token) {
            self.self_test_remains.remove(at);
            return;
        }
        let Some(test) = self.self_test.as_mut().filter(|test| test.in_flight == Some(token)) else { return };
        test.in_flight = None;
        self.self_test_read_ended(outcome, host);
        self.pump_self_test(host);
    }

    fn self_test_read_ended(&mut self, outcome: Ended, host: &mut impl Host) {
        let Some(test) = &mut self.self_test else { return };
        let read = test.reads.get(test.at).copied();
        test.at += 1;
        if outcome != Ended::Done {
            self.media_error(host);
            self.end_self_test(SelfTestOutcome::FailedSegment.0, read, host);
        }
    }

    fn end_self_test(&mut self, result: u8, failed: Option<(u32, u64, u64)>, host: &mut impl Host) {
        let Some(test) = self.self_test.take() else { return };
        if let Some(token) = test.in_flight {
            self.self_test_remains.push((token, test.buffer));
        }
        let nsid = failed.map_or(test.nsid, |(nsid, ..)| nsid);
        let entry = SelfTestV1 {
            code: test.code.0,
            result,
            segment: u8::from(failed.is_some()),
            power_on_hours: self.totals_now().power_on_seconds / 3600,
            nsid,
            failing_lba: failed.map(|(_, lba, _)| lba),
        };
        self.self_tests.insert(0, entry);
        self.self_tests.truncate(RESULTS_MAX);
        self.persist(PersistWish::Nobody, host);
    }

    /// Ends a test under way, for this reason.
    pub(crate) fn abort_self_test(&mut self, result: u8, host: &mut impl Host) {
        if self.self_test.is_some() {
            self.end_self_test(result, None, host);
        }
    }

    /// A controller level reset ends a short test; an extended one goes on (Base 2.1, 8.1.7).
    pub(crate) fn abort_self_test_by_reset(&mut self, host: &mut impl Host) {
        if self.self_test.as_ref().is_some_and(|test| test.code == SelfTestCode::Short) {
            self.abort_self_test(SelfTestOutcome::AbortedByReset.0, host);
        }
    }

    pub(super) fn self_test_log(&self) -> DeviceSelfTestLog {
        let mut page = DeviceSelfTestLog::new_zeroed();
        if let Some(test) = &self.self_test {
            (page.current_operation, page.current_completion) = (test.code.0, test.percent());
        }
        for (at, place) in page.results.iter_mut().enumerate() {
            *place = self.self_tests.get(at).map_or_else(unused, result_of);
        }
        page
    }
}

fn unused() -> SelfTestResult {
    SelfTestResult { status: SelfTestOutcome::NotUsed.0, ..SelfTestResult::new_zeroed() }
}

fn result_of(entry: &SelfTestV1) -> SelfTestResult {
    SelfTestResult {
        status: entry.result & 0xf | entry.code << 4,
        segment: entry.segment,
        valid: 1 | u8::from(entry.failing_lba.is_some()) << 1,
        power_on_hours: entry.power_on_hours.into(),
        nsid: entry.nsid,
        failing_lba: entry.failing_lba.unwrap_or(0).into(),
        ..SelfTestResult::new_zeroed()
    }
}
