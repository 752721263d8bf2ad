//! What is on a drive: the signatures of partition tables, file systems, volume managers, RAID and encryption, read from the
//! drive itself.
//!
//! Everything here is somebody else's bytes. Each parser reads through [`View`], which answers `None` outside the windows it
//! holds; numbers from the drive bound nothing but what is shown. A signature counts even when what follows it makes no sense:
//! a damaged table still is somebody's.
//!
//! Not done: the contents of partitions (their own devices show them), signatures of old vendors' RAID firmware besides Intel's and DDF,
//! and checking any checksum. Data with no known signature is told as such, and counts as somebody's.

mod bytes;
mod filesystem;
mod magic;
mod stack;
mod table;

use crate::source::Source;
use bytes::View;
use serde::Serialize;
use std::io;

/// Most findings that are kept for a drive.
const FINDINGS_MAX: usize = 64;
/// Samples of a drive's middle, to see whether it is blank.
const SAMPLES: u64 = 64;
const SAMPLE_BYTES: usize = 4096;

/// What a signature is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// GPT, MBR and their like.
    PartitionTable,
    /// A file system.
    Filesystem,
    /// Swap space.
    Swap,
    /// A member of LVM, ZFS, Stratis or a cache.
    Volume,
    /// A member of a RAID or of replication.
    Raid,
    /// Encrypted data, or its integrity metadata.
    Encryption,
    /// A database's or a storage system's own use of the whole drive.
    Storage,
    /// A Godwit pool.
    GodwitPool,
    /// What an interrupted making of a Godwit pool left.
    HalfMadePool,
    /// Something that is not zero and bears no known signature.
    Unknown,
}

/// A signature that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Of what.
    pub kind: Kind,
    /// Its usual name: `ext4`, `gpt`, `LVM2`.
    pub name: String,
    /// Where its magic stands.
    pub offset_bytes: u64,
    /// Its label, cleaned of what does not print.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its UUID as its own tools print it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// What else a person wants to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Finding {
    fn new(kind: Kind, name: &str, offset_bytes: u64) -> Finding {
        Finding { kind, name: name.to_owned(), offset_bytes, label: None, uuid: None, detail: None }
    }

    fn label(mut self, label: Option<String>) -> Finding {
        self.label = label;
        self
    }

    fn uuid(mut self, uuid: Option<String>) -> Finding {
        self.uuid = uuid;
        self
    }

    fn detail(mut self, detail: impl Into<String>) -> Finding {
        self.detail = Some(detail.into());
        self
    }
}

/// All that was found on a drive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// The signatures, in the order of their offsets.
    pub findings: Vec<Finding>,
    /// Places that could not be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
}

impl Contents {
    /// Nothing was found, and everything that was looked at could be read.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.findings.is_empty() && self.unreadable.is_empty()
    }

    /// In a few words: `gpt (3 partitions), ext4 "root"`.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut words: Vec<String> = Vec::new();
        for finding in &self.findings {
            let mut word = finding.name.clone();
            if let Some(label) = &finding.label {
                word.push_str(&format!(" {label:?}"));
            }
            if let Some(detail) = finding.detail.as_ref().filter(|_| finding.kind == Kind::PartitionTable) {
                word.push_str(&format!(" ({detail})"));
            }
            if !words.contains(&word) {
                words.push(word);
            }
        }
        if !self.unreadable.is_empty() {
            words.push("unreadable".to_owned());
        }
        if words.is_empty() { "blank".to_owned() } else { words.join(", ") }
    }
}

/// Looks at a drive. Never fails: what cannot be read is part of the answer.
#[must_use]
pub fn look(source: &(impl Source + ?Sized)) -> Contents {
    let mut contents = Contents::default();
    let view = View::read(source, &mut contents.unreadable);
    magic::find(&view, &mut contents.findings);
    filesystem::find(&view, &mut contents.findings);
    stack::find(&view, &mut contents.findings);
    table::find(&view, &mut contents.findings);
    contents.findings.sort_by_key(|finding| finding.offset_bytes);
    contents.findings.truncate(FINDINGS_MAX);
    if contents.findings.is_empty() {
        match first_data(source, &view) {
            Ok(Some(offset)) => {
                let finding = Finding::new(Kind::Unknown, "unknown data", offset);
                contents.findings.push(finding.detail("not zero, and no signature that Godwit knows"));
            }
            Ok(None) => {}
            Err((offset, error)) => contents.unreadable.push(unreadable(offset, &error)),
        }
    }
    contents
}

fn unreadable(offset: u64, error: &io::Error) -> String {
    format!("at byte {offset}: {error}")
}

/// The first byte that is not zero, in the windows and in samples of the rest.
fn first_data(source: &(impl Source + ?Sized), view: &View) -> Result<Option<u64>, (u64, io::Error)> {
    if let Some(offset) = view.first_data() {
        return Ok(Some(offset));
    }
    let len = source.len_bytes();
    let step = (len / SAMPLES) & !4095;
    if step == 0 {
        return Ok(None);
    }
    let mut sample = [0; SAMPLE_BYTES];
    for offset in (0..SAMPLES).map(|index| index * step).filter(|offset| offset + 4096 <= len) {
        source.read_at(offset, &mut sample).map_err(|error| (offset, error))?;
        if let Some(at) = sample.iter().position(|&byte| byte != 0) {
            return Ok(Some(offset.saturating_add(u64::try_from(at).unwrap_or(0))));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
