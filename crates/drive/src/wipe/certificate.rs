//! What a wipe came to, for the operator's files.

use super::record::{Attempt, LeftOut, Record, Rung, Scope, Step, Target};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The end of a wipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing of what was there can be read, and all of it reads as zeros.
    Wiped,
    /// No rung held, or what was erased cannot be made blank. It must not be given to anybody.
    Quarantined,
}

/// What, how, when, and with what result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The wipe's name.
    pub id: String,
    /// What was wiped.
    pub target: Target,
    /// How much of the drive that is.
    pub scope: Scope,
    /// The end.
    pub verdict: Verdict,
    /// The rung that made the data unreadable.
    pub erased_by: Option<Rung>,
    /// Every rung that was tried.
    pub attempts: Vec<Attempt>,
    /// Every rung that was not, and why.
    pub left_out: Vec<LeftOut>,
    /// Bytes that were read at the end, and are zero.
    pub verified_bytes: u64,
    /// Seconds since 1970.
    pub started_unix_s: u64,
    /// Seconds since 1970.
    pub ended_unix_s: u64,
}

impl Certificate {
    pub(super) fn of(record: &Record) -> Certificate {
        let wiped = record.at == Step::Wiped;
        Certificate {
            id: record.id.clone(),
            target: record.target.clone(),
            scope: record.scope,
            verdict: if wiped { Verdict::Wiped } else { Verdict::Quarantined },
            erased_by: record.erased_by,
            attempts: record.attempts.clone(),
            left_out: record.left_out.clone(),
            verified_bytes: if wiped { record.target.len_bytes } else { 0 },
            started_unix_s: record.started_unix_s,
            ended_unix_s: record.ended_unix_s.unwrap_or(record.started_unix_s),
        }
    }
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Target { name, model, serial, nsid, len_bytes, .. } = &self.target;
        let verdict = match self.verdict {
            Verdict::Wiped => "wiped",
            Verdict::Quarantined => "QUARANTINED: do not give it to anybody",
        };
        writeln!(f, "{name}: {verdict}")?;
        writeln!(f, "  drive     {} serial {serial}", model.as_deref().unwrap_or("unknown model"))?;
        let scope = match self.scope {
            Scope::Part => "a part of it".to_owned(),
            Scope::Namespace => format!("namespace {nsid}"),
            Scope::Drive => "the whole drive".to_owned(),
        };
        writeln!(f, "  scope     {scope}, {len_bytes} bytes")?;
        for Attempt { rung, held, result, .. } in &self.attempts {
            writeln!(f, "  {}    {}: {result}", if *held { "held  " } else { "failed" }, rung.name())?;
        }
        for LeftOut { rung, reason } in &self.left_out {
            writeln!(f, "  left out  {}: {reason}", rung.name())?;
        }
        writeln!(f, "  verified  {} bytes read back as zeros", self.verified_bytes)?;
        write!(
            f,
            "  when      {} to {} (seconds since 1970), wipe {}",
            self.started_unix_s, self.ended_unix_s, self.id
        )
    }
}
