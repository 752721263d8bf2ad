//! What is written down of a wipe. Fields are added, never renamed; `docs/formats/wipe-record.md`.

use serde::{Deserialize, Serialize};

/// The version this release writes; it reads no newer one.
pub(super) const VERSION: u32 = 1;
/// Most bytes of a record that is read back.
pub(super) const RECORD_BYTES_MAX: u64 = 1 << 20;

/// A rung of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// The key of encrypted data is destroyed.
    DestroyKey,
    /// Format NVM with SES 2.
    FormatCrypto,
    /// Format NVM with SES 1.
    FormatErase,
    /// Sanitize: crypto erase.
    SanitizeCrypto,
    /// Sanitize: block erase.
    SanitizeBlock,
    /// Sanitize: overwrite.
    SanitizeOverwrite,
    /// Write Zeroes, or what the kernel makes of it, over the whole range.
    WriteZeroes,
    /// Deallocate the whole range.
    Deallocate,
    /// A pattern over the whole range, read back, then zeros.
    Overwrite,
}

impl Rung {
    /// It leaves zeros behind, and not just what nobody can read.
    #[must_use]
    pub fn blanks(self) -> bool {
        matches!(self, Rung::WriteZeroes | Rung::Deallocate | Rung::Overwrite)
    }

    /// It is a Sanitize.
    #[must_use]
    pub fn is_sanitize(self) -> bool {
        matches!(self, Rung::SanitizeCrypto | Rung::SanitizeBlock | Rung::SanitizeOverwrite)
    }

    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Rung::DestroyKey => "key destroyed",
            Rung::FormatCrypto => "format with cryptographic erase",
            Rung::FormatErase => "format with user data erase",
            Rung::SanitizeCrypto => "sanitize, crypto erase",
            Rung::SanitizeBlock => "sanitize, block erase",
            Rung::SanitizeOverwrite => "sanitize, overwrite",
            Rung::WriteZeroes => "write zeroes",
            Rung::Deallocate => "deallocate",
            Rung::Overwrite => "overwrite",
        }
    }
}

/// How much is wiped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// A part of a drive that others use too: no command of the drive is for it alone.
    Part,
    /// One NVMe namespace; others may be on the drive.
    Namespace,
    /// The whole drive, with all that is on it.
    Drive,
}

/// What is wiped, so that it is known again after a crash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Target {
    /// Its name when the wipe began. Names may change; what follows may not.
    pub name: String,
    /// Model, if it has one.
    pub model: Option<String>,
    /// What [`crate::discovery::Device::confirmation`] says.
    pub serial: String,
    /// The kernel's worldwide name.
    pub wwid: Option<String>,
    /// NVMe namespace, 0 if it is none.
    pub nsid: u32,
    /// Where the range begins.
    pub offset_bytes: u64,
    /// Its length.
    pub len_bytes: u64,
}

/// How it is done. On record, so that a successor goes on in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Bytes zeroed, written or read in one step. A multiple of 4096, at most 64 MiB.
    pub chunk_bytes: u64,
    /// Blocks of 4 KiB with a known pattern that an erase must make disappear.
    pub witnesses: u32,
    /// Looks at a sanitize that does not advance before it is given up.
    pub stalled_polls_max: u32,
}

impl Default for Options {
    fn default() -> Options {
        // A look every half second: ten hours without progress.
        Options { chunk_bytes: 32 << 20, witnesses: 64, stalled_polls_max: 72_000 }
    }
}

/// A rung that the drive does not have, or that would hurt others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Which.
    pub rung: Rung,
    /// Why.
    pub reason: String,
}

/// A rung that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Which.
    pub rung: Rung,
    /// It held.
    pub held: bool,
    /// What came of it.
    pub result: String,
    /// When it ended, seconds since 1970.
    pub unix_s: u64,
}

/// Where a wipe is. Each step may be done again from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum Step {
    /// Patterns are laid out for an erase to take away.
    Witness {
        /// Index of the rung.
        rung: usize,
    },
    /// The rung's one command.
    Act {
        /// Index of the rung.
        rung: usize,
    },
    /// A sanitize goes on.
    Poll {
        /// Index of the rung.
        rung: usize,
        /// Its progress when it last advanced, of 65536.
        progress: u16,
        /// Looks since.
        stalled: u32,
    },
    /// Are the patterns gone?
    CheckWitness {
        /// Index of the rung.
        rung: usize,
    },
    /// After an erase: does the range read as zeros by itself?
    IsBlank {
        /// Index of the rung.
        rung: usize,
        /// Read so far.
        done_bytes: u64,
    },
    /// Zeros are written, or blocks deallocated; the last pass of an overwrite too.
    Zero {
        /// Index of the rung.
        rung: usize,
        /// So far.
        done_bytes: u64,
    },
    /// An overwrite's pattern is written.
    Scribble {
        /// Index of the rung.
        rung: usize,
        /// So far.
        done_bytes: u64,
    },
    /// An overwrite's pattern is read back.
    ReadScribble {
        /// Index of the rung.
        rung: usize,
        /// So far.
        done_bytes: u64,
    },
    /// The range must read as zeros.
    ReadBack {
        /// Index of the rung.
        rung: usize,
        /// So far.
        done_bytes: u64,
    },
    /// Wiped, verified, and blank.
    Wiped,
    /// No rung held. Nobody gets it.
    Quarantined,
}

/// All that is known of a wipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Of the format.
    pub version: u32,
    /// A name for this wipe.
    pub id: String,
    /// Seeds the patterns.
    pub seed: u64,
    /// What.
    pub target: Target,
    /// How much of the drive that is.
    pub scope: Scope,
    /// The key to destroy, if there is one.
    pub key: Option<String>,
    /// How.
    pub options: Options,
    /// The rungs it has, in the order they are tried.
    pub rungs: Vec<Rung>,
    /// The rungs it has not.
    pub left_out: Vec<LeftOut>,
    /// What was tried.
    pub attempts: Vec<Attempt>,
    /// The rung that made the data unreadable, if one did.
    pub erased_by: Option<Rung>,
    /// The sanitize that goes on has no fresh witnesses: the one before it failed, and the drive takes no writes until one
    /// succeeds. It is done once more with witnesses.
    #[serde(default)]
    pub blind: bool,
    /// Where it is.
    pub at: Step,
    /// Seconds since 1970.
    pub started_unix_s: u64,
    /// Seconds since 1970, when it ended.
    pub ended_unix_s: Option<u64>,
}

/// A record that cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It is no record.
    #[error("the record of the wipe is damaged: {0}; wipe the drive anew, with --anew")]
    Damaged(String),
    /// It is a newer release's.
    #[error(
        "the record of the wipe has version {0}, and this release knows {VERSION}: go on with the release that began it"
    )]
    Newer(u32),
}

impl Record {
    /// A record from its text. Everything in it that numbers can get wrong is checked here.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn parse(text: &str) -> Result<Record, RecordError> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let damaged = |reason: &str| RecordError::Damaged(reason.to_owned());
        let head: Head = serde_json::from_str(text).map_err(|error| damaged(&error.to_string()))?;
        if head.version > VERSION {
            return Err(RecordError::Newer(head.version));
        }
        let record: Record = serde_json::from_str(text).map_err(|error| damaged(&error.to_string()))?;
        record.check().map_err(damaged)?;
        Ok(record)
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        let Options { chunk_bytes, witnesses, .. } = self.options;
        if chunk_bytes == 0 || !chunk_bytes.is_multiple_of(4096) || chunk_bytes > 64 << 20 {
            return Err("its chunks are not 4 KiB to 64 MiB");
        }
        if witnesses > 4096 || self.rungs.len() > 16 {
            return Err("it has more rungs or witnesses than there can be");
        }
        let end = self.target.offset_bytes.checked_add(self.target.len_bytes);
        if self.target.len_bytes == 0 || end.is_none() {
            return Err("its range is none");
        }
        let (rung, done) = match self.at {
            Step::Witness { rung }
            | Step::Act { rung }
            | Step::Poll { rung, .. }
            | Step::CheckWitness { rung } => (rung, 0),
            Step::IsBlank { rung, done_bytes }
            | Step::Zero { rung, done_bytes }
            | Step::Scribble { rung, done_bytes }
            | Step::ReadScribble { rung, done_bytes }
            | Step::ReadBack { rung, done_bytes } => (rung, done_bytes),
            Step::Wiped | Step::Quarantined => return Ok(()),
        };
        if rung >= self.rungs.len() || done > self.target.len_bytes {
            return Err("it stands outside its rungs or its range");
        }
        Ok(())
    }
}
