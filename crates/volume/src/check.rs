//! What is wrong with a pool at rest, in words, and what of it can be put right without a guess.

use std::fmt;

use state::pool::HeaderV1;

use crate::geometry::{Geometry, HEADERS_AT};
use crate::header::{self, Copy};
use crate::journal::{self, Span};
use crate::ledger::Ledger;
use crate::load::{Judge, load, rebuild, stamp_of};
use crate::pool::{self, OpenOptions, PoolInfo};
use crate::{Disk, PoolError, map_area};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know; nothing is wrong.
    Note,
    /// Wrong, and what is right is known for sure.
    Repairable,
    /// Wrong, and only a guess could mend it: the pool is not opened.
    Damage,
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// What, where, and what to do.
    pub text: String,
    /// It was put right.
    pub repaired: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.severity, self.repaired) {
            (_, true) => "repaired",
            (Severity::Note, _) => "note",
            (Severity::Repairable, _) => "repairable",
            (Severity::Damage, _) => "damage",
        };
        write!(f, "{what}: {}", self.text)
    }
}

/// All that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What the pool is, as far as it can be read.
    pub info: Option<PoolInfo>,
    /// In the order of the layout.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Nothing is wrong, or not any more.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity == Severity::Note || finding.repaired)
    }

    fn add(&mut self, severity: Severity, text: String) {
        self.findings.push(Finding { severity, text, repaired: false });
    }

    fn damaged(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Damage)
    }
}

/// What has to be written to put a pool right.
struct Cure {
    header: HeaderV1,
    geometry: Geometry,
    /// The map that the header names, when its area is damaged.
    map: Option<Ledger>,
}

/// Reads the whole layout and tells everything that is wrong. With `repair`, puts right what is safe: a header from the
/// other, a map from the one before it and its journal (proved by its checksum). Nothing is repaired while anything
/// else is damaged.
///
/// The pool must not be open: a repair takes it (its epoch rises), and a look at a pool that changes may see it torn.
///
/// # Errors
/// There is no pool, it is of a newer version, the drive fails, or it is another host's and was to be repaired.
pub fn check(disk: &dyn Disk, repair: Option<&OpenOptions>) -> Result<Report, PoolError> {
    let mut report = Report::default();
    let cure = examine(disk, &mut report)?;
    if let (Some(options), Some(cure)) = (repair, cure)
        && !report.damaged()
        && !report.is_sound()
    {
        cure.apply(disk, options)?;
        for finding in &mut report.findings {
            finding.repaired = finding.severity == Severity::Repairable;
        }
    }
    Ok(report)
}

fn examine(disk: &dyn Disk, report: &mut Report) -> Result<Option<Cure>, PoolError> {
    let copies = header::read(disk);
    let header = match header::newest(&copies) {
        Ok(header) => header,
        Err(PoolError::Damaged(why)) => {
            report.add(Severity::Damage, why);
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    headers(&copies, &header, report);
    let len_bytes =
        disk.len_bytes().map_err(|source| PoolError::Drive { doing: "asking for its size", source })?;
    let geometry = match pool::accept(&header, len_bytes) {
        Ok(geometry) => geometry,
        Err(why) => {
            report.add(Severity::Damage, why);
            return Ok(None);
        }
    };
    let mut judge = Judge::Collect(Vec::new());
    let (ledger, map) = match load(disk, &geometry, &header, &mut judge) {
        Ok(loaded) => (Some(loaded.ledger), None),
        Err(PoolError::Damaged(why)) => match from_before(disk, &geometry, &header) {
            Ok((map, now)) => {
                report.add(
                    Severity::Repairable,
                    format!("{why}; the map before it and its journal lead to the same map"),
                );
                judge = Judge::Collect(Vec::new());
                (Some(now), Some(map))
            }
            Err(PoolError::Damaged(why_not)) => {
                report.add(Severity::Damage, why);
                report.add(Severity::Note, why_not);
                (None, None)
            }
            Err(error) => return Err(error),
        },
        Err(error) => return Err(error),
    };
    if let Judge::Collect(found) = judge {
        for problem in found {
            report.add(Severity::Damage, problem);
        }
    }
    if let Some(ledger) = &ledger {
        let info = pool::info_of(&header, ledger);
        if info.quarantined > 0 {
            report.add(
                Severity::Note,
                format!(
                    "{} extents could not be wiped and are quarantined: retry, or replace the drive",
                    info.quarantined
                ),
            );
        }
        if info.wiping > 0 {
            report.add(Severity::Note, format!("{} extents wait to be wiped", info.wiping));
        }
        report.info = Some(info);
        passages(ledger, report);
    }
    Ok(ledger.is_some().then_some(Cure { header, geometry, map }))
}

/// Volumes whose owner is not here, or of which nobody can say.
fn passages(ledger: &Ledger, report: &mut Report) {
    for volume in ledger.volumes.values() {
        let saved = &volume.saved;
        match pool::record_of(saved) {
            Ok(None) => {}
            Ok(Some(record)) => match record.owned_here() {
                Some(epoch) if epoch > saved.epoch => report.add(
                    Severity::Note,
                    format!(
                        "{:?} is owned by epoch {epoch}, and has {}: nobody opens it",
                        saved.name, saved.epoch
                    ),
                ),
                Some(_) => {}
                None => report.add(
                    Severity::Note,
                    format!(
                        "{:?} is {} (the other host: {:?}): nobody opens it here",
                        saved.name,
                        record.step(),
                        record.peer
                    ),
                ),
            },
            Err(error) => report.add(Severity::Note, format!("{:?} is not opened: {error}", saved.name)),
        }
    }
}

/// What is wrong with one header while the other holds.
fn headers(copies: &[Copy; 2], newest: &HeaderV1, report: &mut Report) {
    for (copy, at) in copies.iter().zip(HEADERS_AT) {
        let (what, why) = match copy {
            Copy::Whole(header) if **header == *newest => continue,
            Copy::Whole(header) => {
                ("older than", format!("generation {} of {}", header.generation, newest.generation))
            }
            Copy::Absent => ("missing beside", "something else is there".to_owned()),
            Copy::Newer(found) => ("newer than", format!("version {found}")),
            Copy::Bad(why) => ("damaged beside", why.clone()),
        };
        report.add(Severity::Repairable, format!("the header at byte {at} is {what} the other: {why}"));
    }
}

/// The map that the header names, and what its journal makes of it, without the area it was written to.
fn from_before(
    disk: &dyn Disk,
    geometry: &Geometry,
    header: &HeaderV1,
) -> Result<(Ledger, Ledger), PoolError> {
    let map = rebuild(disk, geometry, header)?;
    let mut now = map.clone();
    journal::replay(disk, &Span::of(geometry, header), &mut now)?;
    Ok((map, now))
}

impl Cure {
    fn apply(self, disk: &dyn Disk, options: &OpenOptions) -> Result<(), PoolError> {
        pool::may_have(&self.header, options)?;
        if let Some(ledger) = &self.map {
            // The same bytes at the same place: a crash on the way leaves it as damaged as it was.
            let slot = self.header.slot;
            map_area::write(disk, &self.geometry, slot, ledger, stamp_of(&self.header))?;
            disk.flush().map_err(|source| PoolError::Drive { doing: "making its map durable", source })?;
        }
        pool::claim(disk, &self.header, options).map(|_| ())
    }
}
