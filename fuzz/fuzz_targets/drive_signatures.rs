//! Any bytes anywhere on a drive: looked at without a panic, in bounds, and never called blank when they are not zero where Godwit looks.
//! And any text as the record of a wipe: refused, or gone on with to an end whatever comes of each step.
#![no_main]

use std::io;

use arbitrary::Arbitrary;
use drive::content::look;
use drive::source::Source;
use drive::wipe::{Outcome, Record, Wipe};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Input {
    Drive { kib: u16, odd_bytes: u16, runs: Vec<Run>, broken_kib: Option<u16> },
    Record { text: String, outcomes: Vec<Came> },
}

#[derive(Arbitrary, Debug)]
struct Run {
    place: u8,
    from_end: bool,
    delta: u16,
    bytes: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
enum Came {
    Done,
    Going(u16),
    Differs(u64),
    Failed,
}

/// Where formats keep their magics.
const PLACES: [u64; 16] = [
    0,
    446,
    510,
    512,
    1024,
    4096,
    4120,
    8192,
    16384,
    32768,
    65536,
    65600,
    131_072,
    1 << 20,
    4 << 20,
    196_608,
];

struct Drive {
    len: u64,
    runs: Vec<(u64, Vec<u8>)>,
    broken: Option<u64>,
}

impl Source for Drive {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(into.len() as u64).filter(|&end| end <= self.len);
        let end = end.expect("a read outside the drive");
        if self.broken.is_some_and(|at| (offset..end).contains(&at)) {
            return Err(io::ErrorKind::Other.into());
        }
        into.fill(0);
        for (at, bytes) in &self.runs {
            for (place, byte) in (*at..).zip(bytes).filter(|(place, _)| (offset..end).contains(place)) {
                into[(place - offset) as usize] = *byte;
            }
        }
        Ok(())
    }
}

fuzz_target!(|input: Input| match input {
    Input::Drive { kib, odd_bytes, runs, broken_kib } => {
        let len = u64::from(kib) * 1024 + u64::from(odd_bytes);
        let place = |run: &Run| {
            let place = PLACES[usize::from(run.place) % PLACES.len()];
            let at = if run.from_end { len.saturating_sub(place) } else { place };
            at + u64::from(run.delta)
        };
        let runs: Vec<(u64, Vec<u8>)> = runs.into_iter().map(|run| (place(&run), run.bytes)).collect();
        let drive = Drive { len, runs, broken: broken_kib.map(|kib| u64::from(kib) * 1024) };
        let contents = look(&drive);
        assert!(contents.findings.len() <= 64);
        for found in &contents.findings {
            assert!(found.offset_bytes < len.max(1), "{found:?}");
            for text in [&found.label, &found.uuid, &found.detail].into_iter().flatten() {
                assert!(!text.chars().any(char::is_control) && text.len() <= 1024);
            }
        }
        let mut start = vec![0; usize::try_from(len.min(4 << 20)).unwrap_or(0)];
        if drive.read_at(0, &mut start).is_ok() && start.iter().any(|&byte| byte != 0) {
            assert!(!contents.is_blank());
        }
    }
    Input::Record { text, outcomes } => {
        let Ok(record) = Record::parse(&text) else { return };
        let Ok(mut wipe) = Wipe::resume(record) else { return };
        for came in outcomes {
            let _effect = wipe.next();
            wipe.apply(
                match came {
                    Came::Done => Outcome::Done,
                    Came::Going(progress) => Outcome::Going(progress),
                    Came::Differs(at) => Outcome::Differs(at),
                    Came::Failed => Outcome::Failed(String::new()),
                },
                0,
            );
            let text = serde_json::to_string(wipe.record()).expect("a record is written");
            assert_eq!(&Record::parse(&text).expect("what is written is read"), wipe.record());
        }
        let rungs = wipe.record().rungs.len();
        for _ in 0..=2 * rungs {
            wipe.apply(Outcome::Failed(String::new()), 0);
        }
        assert!(wipe.has_ended() && wipe.certificate().is_some());
    }
});
