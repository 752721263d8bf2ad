//! Sends an ssd's snapshots before the ssd itself, oldest first: each as if it were the ssd, and of each only what it has elsewhere than the one before.
//!
//! ```text
//!  source:       turn to one --> empty: what differs --> a pass of what differs --> snapshot: NAME --> marked as gone --> the next ... the ssd
//!  destination:                  its extents go back     into the ssd that comes    taken of that
//! ```
//! So what snapshots share here they share there, and all goes through the doors that decipher and encipher (`docs/decisions/0039-what-goes-along.md`).

use super::blocks::Blocks;
use super::case::Case;
use super::line::{Heard, Line};
use super::word::FromSource;
use anyhow::{Context, bail, ensure};
use std::ops::Range;
use std::time::Duration;
use transfer::copy::{Error, Precopy};
use transfer::tls::Outgoing;

/// From a network that is gone to the next look at it.
const NETWORK: Duration = Duration::from_secs(2);
/// Ranges in one word, at most.
const RANGES_MAX: usize = 500;
/// Bytes that one word empties, at most.
const EMPTIED_BYTES_MAX: u64 = 1 << 30;

/// See the module.
pub(super) struct Past {
    /// Oldest first.
    pub(super) snapshots: Vec<String>,
    /// Of its own: the migration's goes on meanwhile.
    pub(super) line: Line,
}

impl Past {
    /// Sends all of them. What is read by the copy from then on is the ssd.
    pub(super) fn send(
        mut self,
        case: &Case,
        blocks: &Blocks,
        precopy: &mut Precopy<'_, Outgoing>,
    ) -> anyhow::Result<()> {
        let mut before: Option<&str> = None;
        let line = &mut self.line;
        for name in &self.snapshots {
            let differs = blocks.turn_to(before, Some(name))?;
            // Where the first arrives nothing is.
            if before.is_some() {
                empty(line, case, &differs)?;
            }
            pass(case, precopy)?;
            say(line, case, &FromSource::Snapshot { name: name.clone() })
                .with_context(|| format!("its snapshot \"{name}\""))?;
            blocks.went(name, line.migration())?;
            before = Some(name);
        }
        let differs = blocks.turn_to(before, None)?;
        empty(line, case, &differs)
    }
}

/// Sends what the copy reads now, once. All of it is durable there when this returns.
fn pass(case: &Case, precopy: &mut Precopy<'_, Outgoing>) -> anyhow::Result<()> {
    loop {
        match precopy.round() {
            Ok(_) => return Ok(()),
            Err(error @ Error::Lost { .. }) => {
                case.remark(error.to_string());
                std::thread::sleep(NETWORK);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// What is about to be written anew needs no copy of what was there.
fn empty(line: &mut Line, case: &Case, differs: &[Range<u64>]) -> anyhow::Result<()> {
    parts(differs).into_iter().try_for_each(|bytes| say(line, case, &FromSource::Empty { bytes }))
}

/// As they are said: each word is answered while a host that says nothing is still waited for, also by a drive that has to write zeros.
fn parts(differs: &[Range<u64>]) -> Vec<Vec<(u64, u64)>> {
    let mut words: Vec<Vec<(u64, u64)>> = Vec::new();
    let mut room_bytes = 0;
    for bytes in differs {
        let mut at = bytes.start;
        while at < bytes.end {
            if room_bytes == 0 || words.last().is_none_or(|word| word.len() >= RANGES_MAX) {
                words.push(Vec::new());
                room_bytes = EMPTIED_BYTES_MAX;
            }
            let end = bytes.end.min(at + room_bytes);
            words.last_mut().into_iter().for_each(|word| word.push((at, end)));
            room_bytes -= end - at;
            at = end;
        }
    }
    words
}

/// As they are heard.
///
/// # Errors
/// It is more than one word may say, or a part is none.
pub(super) fn check_parts(parts: &[(u64, u64)]) -> anyhow::Result<()> {
    let bytes = parts.iter().try_fold(0_u64, |sum, &(start, end)| {
        let len_bytes = end.checked_sub(start).filter(|len_bytes| *len_bytes > 0)?;
        sum.checked_add(len_bytes)
    });
    ensure!(
        parts.len() <= RANGES_MAX && bytes.is_some_and(|bytes| bytes <= EMPTIED_BYTES_MAX),
        "one word empties {RANGES_MAX} parts at most, of {EMPTIED_BYTES_MAX} bytes in all"
    );
    Ok(())
}

/// Until it was heard: each word is the same said twice.
fn say(line: &mut Line, case: &Case, word: &FromSource) -> anyhow::Result<()> {
    loop {
        match line.ask(word) {
            Ok(Heard::Noted) => return Ok(()),
            Ok(Heard::No(why)) => bail!("{why}"),
            Ok(Heard::Step(_)) => bail!("the other host answers with a step of the migration"),
            Err(error) => {
                case.remark(format!("{} does not answer: {error}", case.peer));
                if case.control.is_cancelled() {
                    bail!("the migration was cancelled");
                }
                std::thread::sleep(NETWORK);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_emptied_is_said_in_order_and_in_words_that_are_soon_done() {
        let many = (0..1200).map(|at| at * 8192..at * 8192 + 4096);
        let large = std::iter::once((20 << 30)..(23 << 30) + 4096);
        let differs: Vec<_> = many.chain(large).collect();
        let words = parts(&differs);
        assert!(words.iter().all(|word| word.len() <= RANGES_MAX && !word.is_empty()));
        let bytes = |word: &Vec<(u64, u64)>| word.iter().map(|(start, end)| end - start).sum::<u64>();
        assert!(words.iter().all(|word| bytes(word) <= EMPTIED_BYTES_MAX));
        assert!(words.iter().all(|word| check_parts(word).is_ok()));
        for wrong in [
            vec![(0, 1); RANGES_MAX + 1],
            vec![(0, EMPTIED_BYTES_MAX), (0, 1)],
            vec![(4096, 4096)],
            vec![(1, 0)],
            vec![(0, u64::MAX); 2],
        ] {
            assert!(check_parts(&wrong).is_err(), "{wrong:?}");
        }
        // Joined again they are what was to be said.
        let mut said: Vec<Range<u64>> = Vec::new();
        for (start, end) in words.into_iter().flatten() {
            match said.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => said.push(start..end),
            }
        }
        assert_eq!(said, differs);
    }
}
