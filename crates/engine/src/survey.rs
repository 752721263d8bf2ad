//! Looks at drives' maps, for controllers that are asked what is allocated (NVMe Get LBA Status): each on a thread of its own, since it takes as
//! long as a file system takes.
//!
//! ```text
//!  home of the controller --Ask--> record keeper --a thread--> Drive::allocated_in
//!                         <---------Message::Surveyed----------
//! ```
//! An ssd has one look at a time, over resets and clients, so there are no more of these threads than ssds. The record keeper starts them: a reactor's own
//! threads would share its processor.

use crate::message::{Address, Life, Message};
use crate::ssd::Ssd;
use block::Range;
use nvme::host::{AllocationQuery, Survey, Unsurveyed};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A look, and who waits for what it finds.
pub(crate) struct Ask {
    pub(crate) ticket: u32,
    pub(crate) query: AllocationQuery,
    pub(crate) ssd: Arc<Ssd>,
    pub(crate) life: Life,
    pub(crate) home: Address,
}

/// Nobody else looks at the ssd's map while this is there.
struct Turn(Arc<Ssd>);

impl Turn {
    fn of(ssd: &Arc<Ssd>) -> Option<Self> {
        let is_free = !ssd.is_surveyed.swap(true, Ordering::Acquire);
        is_free.then(|| Self(Arc::clone(ssd)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.is_surveyed.store(false, Ordering::Release);
    }
}

/// Has it looked, and does not wait for it.
pub(crate) fn begin(ask: Ask) {
    let (life, home, ticket) = (ask.life, Arc::clone(&ask.home), ask.ticket);
    let Some(turn) = Turn::of(&ask.ssd) else {
        // Somebody looks for a client that has left.
        home.send(Message::Surveyed(life, ticket, Err(Unsurveyed::Busy)));
        return;
    };
    let work = move || {
        let Ask { ticket, query, ssd, life, home } = ask;
        let found = look(&ssd, query.range(), query.runs_max());
        // Whoever waits may give the ssd up: nothing of it is held any more then.
        drop((turn, ssd));
        // Tens of thousands of runs, perhaps: not in the reactor's turn.
        let found = found.map(|found| query.list(&found));
        home.send(Message::Surveyed(life, ticket, found));
    };
    if let Err(error) = std::thread::Builder::new().name("survey".to_owned()).spawn(work) {
        tracing::error!(%error, "no thread for a look at a drive's map");
        home.send(Message::Surveyed(life, ticket, Err(Unsurveyed::Busy)));
    }
}

fn look(ssd: &Ssd, range: Range, runs_max: usize) -> Result<Survey, Unsurveyed> {
    let found = take(ssd, range, runs_max);
    match found {
        Ok(found) => {
            ssd.map_failed.ends();
            Ok(found)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Unsurveyed::Busy),
        Err(error) => {
            // As often as its guest likes to ask.
            if ssd.map_failed.begins() {
                tracing::error!(ssd = ssd.name, %error, "its drive cannot say what is allocated");
            }
            Err(Unsurveyed::Failed)
        }
    }
}

fn take(ssd: &Ssd, range: Range, runs_max: usize) -> io::Result<Survey> {
    let end_bytes = range.start_bytes.saturating_add(range.len_bytes);
    let mut found = Survey { runs: Vec::new(), end_bytes };
    ssd.drive.allocated_in(range.start_bytes..end_bytes, &mut |start, end| {
        found.runs.push(Range { start_bytes: start, len_bytes: end - start });
        if found.runs.len() < runs_max {
            return ControlFlow::Continue(());
        }
        found.end_bytes = end;
        ControlFlow::Break(())
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use backend::{Config, uring};
    use proptest::prelude::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    const UNIT: u64 = 64 << 10;
    const UNITS: u64 = 64;

    /// An ssd on a file of which these units have been written.
    fn ssd(folder: &tempfile::TempDir, written: &[bool]) -> Arc<Ssd> {
        let path = folder.path().join("disk");
        let file = File::create(&path).unwrap();
        file.set_len(UNIT * UNITS).unwrap();
        for (at, _) in (0..).zip(written).filter(|(_, written)| **written) {
            file.write_all_at(&vec![1; 1 << 16], at * UNIT).unwrap();
        }
        crate::seat::tests::ssd(&Config::Uring(uring::Config::new(&path)))
    }

    fn range(start_bytes: u64, end_bytes: u64) -> Range {
        Range { start_bytes, len_bytes: end_bytes - start_bytes }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Looks that each end after some runs add up to the whole, whatever was written.
        #[test]
        fn looks_that_go_on_where_the_last_one_ended_find_what_was_written(
            written in proptest::collection::vec(any::<bool>(), 64),
            (first, last) in (0..UNITS * UNIT, 0..UNITS * UNIT),
            runs_max in 1..9_usize,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let ssd = ssd(&folder, &written);
            let (first, end) = (first.min(last), first.max(last) + 1);
            let (mut at, mut found) = (first, vec![false; written.len()]);
            while at < end {
                let survey = look(&ssd, range(at, end), runs_max).unwrap();
                prop_assert!(survey.runs.len() <= runs_max && (at + 1..=end).contains(&survey.end_bytes));
                prop_assert!(survey.end_bytes == end || survey.runs.len() == runs_max);
                let mut before = at;
                for run in &survey.runs {
                    let run_end = run.end_bytes().unwrap();
                    prop_assert!(before <= run.start_bytes && run.len_bytes > 0 && run_end <= survey.end_bytes);
                    before = run_end;
                    let touched = run.start_bytes / UNIT..run_end.div_ceil(UNIT);
                    (0..).zip(&mut found).filter(|(unit, _)| touched.contains(unit)).for_each(|(_, found)| *found = true);
                }
                at = survey.end_bytes;
            }
            for (unit, (was, is)) in (0..).zip(written.iter().zip(&found)) {
                let asked = unit * UNIT < end && first < (unit + 1) * UNIT;
                prop_assert_eq!(*was && asked, *is, "unit {}", unit);
            }
        }
    }

    #[test]
    fn a_drive_that_has_no_holes_is_all_allocated_and_memory_is_where_it_was_written() {
        let all = range(4096, 1 << 20);
        let null = crate::seat::tests::ssd(&Config::Null { size_bytes: 1 << 20 });
        let whole = Survey { runs: vec![all], end_bytes: 1 << 20 };
        assert_eq!(look(&null, all, 5), Ok(whole.clone()));
        assert_eq!(look(&null, all, 1), Ok(whole));
        let ram = crate::seat::tests::ssd(&Config::Ram { size_bytes: 1 << 20 });
        assert_eq!(look(&ram, all, 5), Ok(Survey { runs: Vec::new(), end_bytes: 1 << 20 }));
        File::from(ram.drive.descriptor().unwrap().unwrap()).write_all_at(&[1], 8192).unwrap();
        assert_eq!(look(&ram, all, 5).unwrap().runs, [range(8192, 12288)]);
    }
}
