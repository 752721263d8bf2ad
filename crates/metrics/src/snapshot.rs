//! A page as it was at one moment, in memory of the reader's own.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::bucket::{BUCKETS, floor_ns};
use crate::page::{
    CLASS_BYTES, DEVICE_AT, DEVICE_BYTES, Facts, HEAD_BYTES, LANE_BYTES, LANES, MAGIC, NAMESPACES_AT, Op,
    Part, SERIAL_AT, SERIAL_BYTES, TIMES_AT, USED_AT,
};

/// Why a file is no page of an ssd.
#[derive(Debug)]
pub enum PageError {
    /// It cannot be read.
    Io(io::Error),
    /// It is something else, or of another release.
    Foreign,
}

impl core::fmt::Display for PageError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Io(error) => write!(f, "the page of metrics cannot be read: {error}"),
            Self::Foreign => f.write_str(
                "this is no page of metrics that this release reads: is `godwit` of the engine's release?",
            ),
        }
    }
}

impl std::error::Error for PageError {}

impl From<io::Error> for PageError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// How many took how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: Vec<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS] }
    }
}

impl Histogram {
    /// By bucket.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Counts one.
    pub fn record(&mut self, ns: u64) {
        self.add(crate::bucket_of(ns), 1);
    }

    fn add(&mut self, bucket: usize, count: u64) {
        if let Some(counted) = self.counts.get_mut(bucket) {
            *counted = counted.wrapping_add(count);
        }
    }

    /// How many.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.wrapping_add(*count))
    }

    /// How long in all, as if each had taken the middle of its bucket. It grows as the counts do.
    #[must_use]
    pub fn sum_ns(&self) -> u64 {
        let of = |(bucket, count): (usize, &u64)| count.wrapping_mul(middle_ns(bucket));
        self.counts.iter().enumerate().map(of).fold(0, u64::wrapping_add)
    }

    /// The time within which this share of all was done (0.99: 99 of a hundred). `None`: nothing was.
    #[must_use]
    pub fn quantile_ns(&self, share: f64) -> Option<u64> {
        let total = self.total();
        let mut before = 0.0;
        for (bucket, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            before += *count as f64;
            if before >= share * total as f64 {
                return Some(middle_ns(bucket));
            }
        }
        None
    }

    /// Both.
    pub fn merge(&mut self, other: &Self) {
        other.counts.iter().enumerate().for_each(|(bucket, count)| self.add(bucket, *count));
    }

    /// What came after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let counts = self.counts.iter().zip(&earlier.counts);
        Self { counts: counts.map(|(now, then)| now.saturating_sub(*then)).collect() }
    }
}

/// The shortest times are so short that nothing was measured: they count as none.
fn middle_ns(bucket: usize) -> u64 {
    if bucket == 0 { 0 } else { floor_ns(bucket).midpoint(floor_ns(bucket + 1)) }
}

/// I/Os of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Data.
    pub bytes: u64,
    /// Failed by the drive.
    pub errors: u64,
    times: [Histogram; 3],
}

impl Counts {
    /// I/Os that have ended.
    #[must_use]
    pub fn ios(&self) -> u64 {
        self.times[Part::Drive as usize].total()
    }

    /// Of all I/Os, how long they were in one part. Those never held back were so for no time.
    #[must_use]
    pub fn time(&self, part: Part) -> Histogram {
        let mut times = self.times[part as usize].clone();
        if part == Part::Throttle {
            times.add(0, self.ios().saturating_sub(times.total()));
        }
        times
    }

    /// Both.
    pub fn merge(&mut self, other: &Self) {
        self.bytes = self.bytes.wrapping_add(other.bytes);
        self.errors = self.errors.wrapping_add(other.errors);
        self.times.iter_mut().zip(&other.times).for_each(|(own, others)| own.merge(others));
    }

    /// What came after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let time = |part: usize| self.times[part].since(&earlier.times[part]);
        Self {
            bytes: self.bytes.saturating_sub(earlier.bytes),
            errors: self.errors.saturating_sub(earlier.errors),
            times: [time(0), time(1), time(2)],
        }
    }
}

/// All of an ssd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Whose page it is.
    pub facts: Facts,
    counts: [Counts; 3],
}

impl Snapshot {
    /// Reads a page.
    ///
    /// # Errors
    /// [`PageError`]: it is none, or cannot be read.
    pub fn read(page: &File) -> Result<Self, PageError> {
        let mut head = vec![0; HEAD_BYTES];
        page.read_exact_at(&mut head, 0)?;
        if word(&head, 0) != MAGIC || word(&head, 8) != LANES as u64 {
            return Err(PageError::Foreign);
        }
        let facts = Facts {
            serial: text(&head, SERIAL_AT, SERIAL_BYTES),
            device: text(&head, DEVICE_AT, DEVICE_BYTES),
            namespaces: word(&head, NAMESPACES_AT) != 0,
        };
        let mut counts: [Counts; 3] = Default::default();
        let mut lane = vec![0; LANE_BYTES];
        for at in (0..LANES).filter(|at| word(&head, USED_AT + 8 * at) != 0) {
            page.read_exact_at(&mut lane, (HEAD_BYTES + at * LANE_BYTES) as u64)?;
            counts
                .iter_mut()
                .zip(lane.chunks_exact(CLASS_BYTES))
                .for_each(|(counts, class)| take(counts, class));
        }
        Ok(Self { facts, counts })
    }

    /// I/Os of one kind.
    #[must_use]
    pub fn of(&self, op: Op) -> &Counts {
        &self.counts[op as usize]
    }

    /// Counts one I/O and how long it was in each part: for those who show or test.
    pub fn record(&mut self, op: Op, bytes: u64, times_ns: [u64; 3]) {
        let counts = &mut self.counts[op as usize];
        counts.bytes = counts.bytes.wrapping_add(bytes);
        counts.times.iter_mut().zip(times_ns).for_each(|(times, ns)| times.record(ns));
    }

    /// Both.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(own, others)| own.merge(others));
    }

    /// I/Os of all kinds.
    #[must_use]
    pub fn all(&self) -> Counts {
        let mut all = Counts::default();
        self.counts.iter().for_each(|counts| all.merge(counts));
        all
    }

    /// What came after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let counts = |op: usize| self.counts[op].since(&earlier.counts[op]);
        Self { facts: self.facts.clone(), counts: [counts(0), counts(1), counts(2)] }
    }
}

/// Adds what a lane says of one kind.
fn take(counts: &mut Counts, class: &[u8]) {
    counts.bytes = counts.bytes.wrapping_add(word(class, 0));
    counts.errors = counts.errors.wrapping_add(word(class, 8));
    for (part, times) in counts.times.iter_mut().enumerate() {
        for bucket in 0..BUCKETS {
            times.add(bucket, word(class, TIMES_AT + 8 * (part * BUCKETS + bucket)));
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let eight = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
    eight.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

fn text(bytes: &[u8], at: usize, len: usize) -> String {
    let field = bytes.get(at..at + len).unwrap_or(&[]);
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(field.get(..end).unwrap_or(&[])).into_owned()
}
