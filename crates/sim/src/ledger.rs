//! What the auditor knows of every sector: which values a read may return now, and after a power cut.
//!
//! A sector is a regular register: a read that began at `s` may return version `x` unless a version `y` that is certain to have
//! been written ended before `s` and began after `x` had ended. A power cut may bring back anything that no durable
//! version replaced.

use std::collections::BTreeMap;

use crate::disk::SECTOR;

/// What a sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeros.
    Zero,
    /// The pattern of a write: its stamp, and the sector it was first written to.
    Stamp(u64, u64),
    /// Marked by Write Uncorrectable.
    Bad,
    /// Nobody knows: a format or sanitize was cut short.
    Anything,
}

impl Content {
    /// As a key; zeros for what is no stamp.
    #[must_use]
    pub fn key(self) -> (u64, u64) {
        match self {
            Self::Stamp(stamp, origin) => (stamp, origin),
            _ => (0, 0),
        }
    }

    /// The bytes of it.
    pub fn fill(self, bytes: &mut [u8]) {
        match self {
            Self::Stamp(stamp, origin) => {
                for (at, word) in bytes.chunks_exact_mut(8).enumerate() {
                    word.copy_from_slice(&word_of(stamp, origin, at).to_le_bytes());
                }
            }
            _ => bytes.fill(0),
        }
    }

    /// What these bytes are; `None` when they are no sector anybody wrote: torn, or another's.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        if *bytes == [0; SECTOR][..bytes.len().min(SECTOR)] {
            return Some(Self::Zero);
        }
        let word = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let (stamp, origin) = (word(0)?, word(8)?);
        let mut expected = [0; SECTOR];
        Self::Stamp(stamp, origin).fill(&mut expected);
        (expected[..] == *bytes).then_some(Self::Stamp(stamp, origin))
    }
}

fn word_of(stamp: u64, origin: u64, at: usize) -> u64 {
    match at {
        0 => stamp,
        1 => origin,
        at => (stamp ^ origin.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(at as u64),
    }
}

#[derive(Clone, Debug)]
struct Version {
    content: Content,
    /// The command that wrote it.
    key: u64,
    begun: u64,
    ended: Option<u64>,
    /// It was answered with success.
    certain: bool,
    /// No power cut undoes it.
    durable: bool,
    /// A power cut decided which of several it is, and nobody has looked yet.
    undecided: bool,
}

#[derive(Clone, Debug)]
struct Sector(Vec<Version>);

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    sectors: BTreeMap<(u32, u64), Sector>,
    /// Which sectors an outstanding command writes.
    open: BTreeMap<u64, Vec<(u32, u64)>>,
}

impl Default for Sector {
    fn default() -> Self {
        Self::of(Content::Zero, 0)
    }
}

impl Sector {
    fn of(content: Content, at: u64) -> Self {
        Self(vec![Version {
            content,
            key: 0,
            begun: at,
            ended: Some(at),
            certain: true,
            durable: true,
            undecided: false,
        }])
    }

    fn can_be_read(&self, x: &Version, since: u64) -> bool {
        let replaces = |y: &Version| {
            y.certain && y.ended.is_some_and(|end| end < since) && x.ended.is_some_and(|end| end < y.begun)
        };
        !self.0.iter().any(replaces)
    }

    fn survives(&self, x: &Version) -> bool {
        let replaces = |y: &Version| y.durable && y.certain && x.ended.is_some_and(|end| end < y.begun);
        !self.0.iter().any(replaces)
    }
}

impl Ledger {
    /// A namespace reads as `content` everywhere from now on, whatever happens.
    pub fn reset(&mut self, nsid: u32, sectors: u64, content: Content, at: u64) {
        self.sectors.retain(|(ns, _), _| *ns != nsid);
        for sector in 0..sectors {
            self.sectors.insert((nsid, sector), Sector::of(content, at));
        }
    }

    fn sector(&mut self, nsid: u32, sector: u64) -> &mut Sector {
        self.sectors.entry((nsid, sector)).or_default()
    }

    /// A command that will change sectors was given to the controller.
    pub fn begin(
        &mut self,
        key: u64,
        nsid: u32,
        sectors: impl Iterator<Item = u64>,
        at: u64,
        content: impl Fn(u64) -> Content,
    ) {
        for index in sectors {
            let version = Version {
                content: content(index),
                key,
                begun: at,
                ended: None,
                certain: false,
                durable: false,
                undecided: false,
            };
            self.sector(nsid, index).0.push(version);
            self.open.entry(key).or_default().push((nsid, index));
        }
    }

    /// It ended: done for sure, done durably, certainly without effect, or who knows.
    pub fn end(&mut self, key: u64, at: u64, end: End, oldest: u64) {
        for place in self.open.remove(&key).unwrap_or_default() {
            let Some(sector) = self.sectors.get_mut(&place) else { continue };
            if end == End::Nothing {
                sector.0.retain(|version| version.key != key);
                continue;
            }
            for version in sector.0.iter_mut().filter(|version| version.key == key && version.ended.is_none())
            {
                version.ended = Some(at);
                version.certain = matches!(end, End::Done | End::Durable);
                version.durable = end == End::Durable;
            }
            if sector.0.len() > 6 {
                prune(sector, oldest);
            }
        }
    }

    /// `to` begins with what `from` contained at some moment between `since` and `at`, durably but for what was under way.
    pub fn derive(&mut self, from: u32, to: u32, since: u64, at: u64) {
        let derived = |sector: &Sector| {
            let readable = sector.0.iter().filter(|x| sector.can_be_read(x, since));
            let mut versions: Vec<Version> = readable.cloned().collect();
            let alone = versions.len() == 1;
            for version in &mut versions {
                (version.begun, version.ended) = (since, Some(at));
                // What was under way may have landed and be lost again when the power fails, so a look decides nothing.
                (version.certain, version.durable, version.undecided) = (alone, alone, false);
            }
            Sector(versions)
        };
        let of: Vec<(u64, Sector)> = self
            .sectors
            .range((from, 0)..=(from, u64::MAX))
            .map(|((_, index), sector)| (*index, derived(sector)))
            .collect();
        self.sectors.extend(of.into_iter().map(|(index, sector)| ((to, index), sector)));
    }

    /// `to` is on the same blocks as `from`: whatever becomes of the one becomes of the other.
    pub fn share(&mut self, from: u32, to: u32) {
        let of: Vec<(u64, Sector)> = self
            .sectors
            .range((from, 0)..=(from, u64::MAX))
            .map(|((_, index), sector)| (*index, sector.clone()))
            .collect();
        self.sectors.extend(of.into_iter().map(|(index, sector)| ((to, index), sector)));
    }

    /// All that had ended before the flush began is durable.
    pub fn flushed(&mut self, nsid: Option<u32>, begun: u64) {
        for ((ns, _), sector) in &mut self.sectors {
            if nsid.is_none_or(|nsid| nsid == *ns) {
                for version in &mut sector.0 {
                    version.durable |= version.certain && version.ended.is_some_and(|end| end < begun);
                }
            }
        }
    }

    /// Power is gone: what was outstanding may have landed, what was not durable may be undone.
    pub fn power_loss(&mut self, at: u64) {
        self.open.clear();
        for sector in self.sectors.values_mut() {
            let survivors: Vec<Version> = sector.0.iter().filter(|x| sector.survives(x)).cloned().collect();
            let alone = survivors.len() == 1;
            sector.0 = survivors;
            for version in &mut sector.0 {
                (version.begun, version.ended) = (at, Some(at));
                (version.certain, version.durable, version.undecided) = (alone, true, !alone);
            }
        }
    }

    /// A read that began at `since` returned this. `false`: it may not.
    pub fn is_allowed(&self, nsid: u32, index: u64, content: Content, since: u64) -> bool {
        let Some(sector) = self.sectors.get(&(nsid, index)) else { return content == Content::Zero };
        sector
            .0
            .iter()
            .any(|x| (x.content == content || x.content == Content::Anything) && sector.can_be_read(x, since))
    }

    /// A read saw what a power cut had decided.
    pub fn decide(&mut self, nsid: u32, index: u64, content: Content) {
        let Some(sector) = self.sectors.get_mut(&(nsid, index)) else { return };
        if sector.0.iter().all(|version| version.undecided) {
            sector.0.retain(|version| version.content == content || version.content == Content::Anything);
            sector.0.truncate(1);
            for version in &mut sector.0 {
                (version.content, version.certain, version.undecided) = (content, true, false);
            }
        }
    }

    /// The one value a sector has for sure now, if nothing is under way there.
    pub fn certain(&self, nsid: u32, index: u64) -> Option<Content> {
        let Some(sector) = self.sectors.get(&(nsid, index)) else { return Some(Content::Zero) };
        let mut found = None;
        for x in sector.0.iter().filter(|x| sector.can_be_read(x, u64::MAX)) {
            if found.replace(x.content).is_some_and(|other| other != x.content) || x.ended.is_none() {
                return None;
            }
        }
        found
    }

    /// A write of this value ended with success, and is all there is.
    pub fn is_settled(&self, nsid: u32, index: u64, content: Content) -> bool {
        let Some(sector) = self.sectors.get(&(nsid, index)) else { return false };
        let mut of = sector.0.iter().filter(|x| x.content == content);
        of.next().is_some_and(|x| x.certain) && of.next().is_none()
    }

    /// Any value a sector may have now.
    pub fn possible(&self, nsid: u32, index: u64, since: u64) -> Vec<Content> {
        let Some(sector) = self.sectors.get(&(nsid, index)) else { return vec![Content::Zero] };
        sector.0.iter().filter(|x| sector.can_be_read(x, since)).map(|x| x.content).collect()
    }

    /// All that is known of a sector, for people.
    pub fn describe(&self, nsid: u32, index: u64) -> String {
        let Some(sector) = self.sectors.get(&(nsid, index)) else { return "never written".to_owned() };
        let lines = sector.0.iter().map(|v| {
            let flags = [(v.certain, 'c'), (v.durable, 'd'), (v.undecided, '?')];
            let flags: String = flags.iter().filter(|(on, _)| *on).map(|(_, c)| *c).collect();
            format!("\n    {:?} #{} {}..{:?} {flags}", v.content, v.key, v.begun, v.ended)
        });
        lines.collect()
    }
}

/// How a change ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Answered with success.
    Done,
    /// The same, and on the medium.
    Durable,
    /// Answered so that it cannot have happened.
    Nothing,
    /// Failed, aborted, or never answered.
    Unknown,
}

/// Drops what neither a read since `oldest` nor a power cut can bring back.
fn prune(sector: &mut Sector, oldest: u64) {
    let gone = |x: &Version| {
        sector.0.iter().any(|y| {
            y.certain
                && y.durable
                && y.ended.is_some_and(|end| end < oldest)
                && x.ended.is_some_and(|end| end < y.begun)
        })
    };
    let kept = sector.0.iter().filter(|x| !gone(x)).cloned().collect();
    sector.0 = kept;
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Content = Content::Stamp(1, 0);
    const B: Content = Content::Stamp(2, 0);

    fn write(ledger: &mut Ledger, key: u64, content: Content, begun: u64, ended: u64) {
        ledger.begin(key, 1, 0..1, begun, |_| content);
        ledger.end(key, ended, End::Done, 0);
    }

    #[test]
    fn an_answered_write_is_read_and_what_it_replaced_is_not() {
        let mut ledger = Ledger::default();
        write(&mut ledger, 1, A, 1, 2);
        assert!(ledger.is_allowed(1, 0, A, 3) && !ledger.is_allowed(1, 0, Content::Zero, 3));
        assert!(ledger.is_allowed(1, 0, Content::Zero, 2), "a read that began before the answer");
        write(&mut ledger, 2, B, 4, 5);
        assert!(!ledger.is_allowed(1, 0, A, 6));
    }

    #[test]
    fn of_two_writes_at_once_either_may_win() {
        let mut ledger = Ledger::default();
        ledger.begin(1, 1, 0..1, 1, |_| A);
        ledger.begin(2, 1, 0..1, 2, |_| B);
        ledger.end(1, 3, End::Done, 0);
        ledger.end(2, 4, End::Done, 0);
        assert!(ledger.is_allowed(1, 0, A, 9) && ledger.is_allowed(1, 0, B, 9));
        assert!(!ledger.is_allowed(1, 0, Content::Zero, 9));
    }

    #[test]
    fn a_power_cut_undoes_what_was_not_flushed_and_nothing_else() {
        let mut ledger = Ledger::default();
        write(&mut ledger, 1, A, 1, 2);
        ledger.flushed(None, 3);
        write(&mut ledger, 2, B, 4, 5);
        ledger.power_loss(6);
        assert!(ledger.is_allowed(1, 0, A, 7) && ledger.is_allowed(1, 0, B, 7));
        assert!(!ledger.is_allowed(1, 0, Content::Zero, 7));
        ledger.decide(1, 0, B);
        assert!(!ledger.is_allowed(1, 0, A, 8), "what was read once stays");
    }

    #[test]
    fn a_torn_sector_is_nobodys() {
        let mut bytes = [0; SECTOR];
        A.fill(&mut bytes);
        assert_eq!(Content::read(&bytes), Some(A));
        bytes[400] ^= 1;
        assert_eq!(Content::read(&bytes), None);
    }
}
