//! The hands of a wipe: what its effects mean on a real drive.

use super::machine::{Effect, Outcome, Wipe};
use super::pattern::WITNESS_BYTES;
use super::plan::format_obstacle;
use super::record::{Rung, Target};
use super::{Certificate, Journal, Medium, Zeroing};
use crate::nvme::capability::Capabilities;
use crate::nvme::{
    Admin, AdminError, Data, QUERY_TIMEOUT_MS, Request, active_namespaces, allocated_namespaces,
    identify_namespace, sanitize_status,
};
use spec::nvme::admin::{FormatCdw10, SanitizeAction, SanitizeCdw10, SecureErase};
use spec::nvme::log::SanitizeOutcome;
use spec::nvme::{AdminOpcode, NSID_BROADCAST, Status};
use std::io;

/// A format of a large and slow drive.
const FORMAT_TIMEOUT_MS: u32 = 4 * 3_600_000;

/// Where keys are.
pub trait Keys {
    /// Destroys a key; one that is not there is destroyed.
    ///
    /// # Errors
    /// It may still be there.
    fn destroy(&mut self, id: &str) -> io::Result<()>;
    /// Is it still there?
    ///
    /// # Errors
    /// Nobody knows.
    fn exists(&self, id: &str) -> io::Result<bool>;
}

/// No keys at all.
#[derive(Debug)]
pub struct NoKeys;

impl Keys for NoKeys {
    fn destroy(&mut self, _: &str) -> io::Result<()> {
        Err(io::Error::other("there is no store of keys here"))
    }

    fn exists(&self, _: &str) -> io::Result<bool> {
        Err(io::Error::other("there is no store of keys here"))
    }
}

/// What a wipe works with.
pub struct Hands<'a> {
    /// The drive's admin queue, if it is NVMe.
    pub admin: Option<&'a mut dyn Admin>,
    /// The range that is wiped. Its reads come from the drive, past every cache of the host.
    pub medium: &'a dyn Medium,
    /// Where keys are.
    pub keys: &'a mut dyn Keys,
    /// What the drive says of itself now: it must be the one on record.
    pub found: Target,
}

/// Why a wipe stopped in the middle. It can be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The record is another drive's.
    #[error("the record is of {recorded:?}, and this is {found:?}: nothing was done to it")]
    OtherDrive {
        /// As recorded.
        recorded: Box<Target>,
        /// As found.
        found: Box<Target>,
    },
    /// Without a record there is no next step.
    #[error(
        "the record of the wipe cannot be kept: {0}; nothing more was done; free some space and run it again"
    )]
    Journal(io::Error),
}

/// Runs a wipe to its end. The record is kept before every effect. `wait` is called between two looks at a sanitize, and with the
/// record after every step, so that a person may see how far it is.
///
/// # Errors
/// [`RunError`]; run it again to go on.
pub fn run(
    wipe: &mut Wipe,
    hands: &mut Hands<'_>,
    journal: &mut dyn Journal,
    now_unix_s: &mut dyn FnMut() -> u64,
    wait: &mut dyn FnMut(&Wipe, bool),
) -> Result<Certificate, RunError> {
    same_drive(&wipe.record().target, &hands.found)?;
    loop {
        journal.save(wipe.record()).map_err(RunError::Journal)?;
        if let Some(certificate) = wipe.certificate() {
            return Ok(certificate);
        }
        let effect = wipe.next();
        let outcome = perform(wipe, &effect, hands);
        wait(wipe, matches!(outcome, Outcome::Going(_)));
        wipe.apply(outcome, now_unix_s());
    }
}

fn same_drive(recorded: &Target, found: &Target) -> Result<(), RunError> {
    let same = recorded.serial == found.serial
        && recorded.wwid == found.wwid
        && recorded.nsid == found.nsid
        && recorded.offset_bytes == found.offset_bytes
        && recorded.len_bytes == found.len_bytes;
    if same {
        return Ok(());
    }
    Err(RunError::OtherDrive { recorded: Box::new(recorded.clone()), found: Box::new(found.clone()) })
}

/// Has one effect. Doing it twice is as good as once.
pub fn perform(wipe: &Wipe, effect: &Effect, hands: &mut Hands<'_>) -> Outcome {
    let medium = hands.medium;
    let done = |result: io::Result<()>| match result {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Failed(error.to_string()),
    };
    match effect {
        Effect::Nothing => Outcome::Done,
        Effect::DestroyKey(id) => destroy_key(hands.keys, id),
        Effect::WriteWitnesses => write_witnesses(wipe, medium).unwrap_or_else(failed),
        Effect::CheckWitnesses => check_witnesses(wipe, medium).unwrap_or_else(failed),
        Effect::Format(rung) => with_admin(hands, |admin| format(admin, wipe, *rung)),
        Effect::Sanitize(rung) => with_admin(hands, |admin| sanitize(admin, *rung)),
        Effect::Poll(rung) => with_admin(hands, |admin| poll(admin, *rung)),
        Effect::Zero { offset, len, how, flush } => {
            let result = match how {
                Zeroing::Write => write(medium, *offset, *len, &|_, bytes| bytes.fill(0)),
                how => medium.zero(*offset, *len, *how),
            };
            done(result.and_then(|()| if *flush { medium.flush() } else { Ok(()) }))
        }
        Effect::Scribble { offset, len, flush } => {
            let result = write(medium, *offset, *len, &|at, bytes| wipe.fill(at, bytes));
            done(result.and_then(|()| if *flush { medium.flush() } else { Ok(()) }))
        }
        Effect::ReadScribble { offset, len } => {
            compare(medium, *offset, *len, &|at, bytes| wipe.fill(at, bytes)).unwrap_or_else(failed)
        }
        Effect::ReadZeros { offset, len } => {
            compare(medium, *offset, *len, &|_, bytes| bytes.fill(0)).unwrap_or_else(failed)
        }
    }
}

fn failed(error: io::Error) -> Outcome {
    Outcome::Failed(error.to_string())
}

fn with_admin(
    hands: &mut Hands<'_>,
    act: impl FnOnce(&mut dyn Admin) -> Result<Outcome, AdminError>,
) -> Outcome {
    match hands.admin.as_mut() {
        Some(admin) => act(&mut **admin).unwrap_or_else(|error| Outcome::Failed(error.to_string())),
        None => Outcome::Failed("the drive takes no NVMe commands here".to_owned()),
    }
}

fn destroy_key(keys: &mut dyn Keys, id: &str) -> Outcome {
    match keys.destroy(id).and_then(|()| keys.exists(id)) {
        Ok(false) => Outcome::Done,
        Ok(true) => Outcome::Failed("the key is still there".to_owned()),
        Err(error) => failed(error),
    }
}

/// Bytes moved at once.
const PIECE_BYTES: usize = 1 << 20;

type Filler<'a> = &'a dyn Fn(u64, &mut [u8]);

fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize)> {
    let end = offset.saturating_add(len);
    let piece = PIECE_BYTES as u64;
    (0..len.div_ceil(piece)).map(move |index| {
        let at = offset + index * piece;
        (at, usize::try_from((end - at).min(piece)).unwrap_or(0))
    })
}

fn write(medium: &dyn Medium, offset: u64, len: u64, fill: Filler<'_>) -> io::Result<()> {
    let mut bytes = vec![0; PIECE_BYTES];
    for (at, len) in pieces(offset, len) {
        let bytes = bytes.get_mut(..len).unwrap_or_default();
        fill(at, bytes);
        medium.write_at(at, bytes)?;
    }
    Ok(())
}

/// Reads a range, and finds the first byte that is not as it should be.
fn compare(medium: &dyn Medium, offset: u64, len: u64, fill: Filler<'_>) -> io::Result<Outcome> {
    let (mut bytes, mut expected) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    for (at, len) in pieces(offset, len) {
        let (bytes, expected) =
            (bytes.get_mut(..len).unwrap_or_default(), expected.get_mut(..len).unwrap_or_default());
        // What a read that does nothing would leave is not what is hoped for.
        bytes.fill(0xa5);
        medium.read_at(at, bytes)?;
        fill(at, expected);
        if bytes != expected {
            let place = bytes.iter().zip(expected.iter()).position(|(is, should)| is != should).unwrap_or(0);
            return Ok(Outcome::Differs(at.saturating_add(u64::try_from(place).unwrap_or(0))));
        }
    }
    Ok(Outcome::Done)
}

fn write_witnesses(wipe: &Wipe, medium: &dyn Medium) -> io::Result<Outcome> {
    let mut block = vec![0; WITNESS_BYTES];
    for at in wipe.witnesses() {
        wipe.fill(at, &mut block);
        medium.write_at(at, &block)?;
    }
    medium.flush()?;
    for at in wipe.witnesses() {
        let outcome = compare(medium, at, WITNESS_BYTES as u64, &|at, bytes| wipe.fill(at, bytes))?;
        if outcome != Outcome::Done {
            return Ok(outcome);
        }
    }
    Ok(Outcome::Done)
}

/// A witness is gone if not even one of its sectors is left. One that cannot be read proves nothing.
fn check_witnesses(wipe: &Wipe, medium: &dyn Medium) -> io::Result<Outcome> {
    let (mut block, mut witness) = (vec![0; WITNESS_BYTES], vec![0; WITNESS_BYTES]);
    for at in wipe.witnesses() {
        medium.read_at(at, &mut block)?;
        wipe.fill(at, &mut witness);
        let left = block.chunks(512).zip(witness.chunks(512)).position(|(is, was)| is == was);
        if let Some(sector) = left {
            return Ok(Outcome::Differs(at.saturating_add(u64::try_from(sector * 512).unwrap_or(0))));
        }
    }
    Ok(Outcome::Done)
}

/// The scope is asked for again, just before: a namespace may have been made since the plan.
fn format(admin: &mut dyn Admin, wipe: &Wipe, rung: Rung) -> Result<Outcome, AdminError> {
    let (nsid, scope) = (wipe.record().target.nsid, wipe.record().scope);
    if nsid == 0 || nsid == NSID_BROADCAST {
        return Ok(Outcome::Failed("the record names no namespace to format".to_owned()));
    }
    let capabilities = Capabilities::read(admin)?;
    let active = active_namespaces(admin)?.len();
    let namespaces = allocated_namespaces(admin).map_or(active, |list| list.len().max(active));
    if let Some(obstacle) = format_obstacle(rung, scope, &capabilities, namespaces) {
        return Ok(Outcome::Failed(obstacle.to_owned()));
    }
    let namespace = identify_namespace(admin, nsid)?;
    let erase = if rung == Rung::FormatCrypto { SecureErase::Cryptographic } else { SecureErase::UserData };
    // As it is formatted now.
    let cdw10 = FormatCdw10::new()
        .with_lbafl(namespace.flbas.fidxl())
        .with_lbafu(namespace.flbas.fidxu())
        .with_mset(namespace.flbas.msetsp())
        .with_pi(namespace.dps & 0x7)
        .with_pil(namespace.dps & 0x8 != 0)
        .with_ses(erase.0);
    let request = Request {
        timeout_ms: FORMAT_TIMEOUT_MS,
        ..Request::new(AdminOpcode::FormatNvm, nsid, cdw10.into_bits(), 0)
    };
    admin.submit(&request, Data::None)?;
    Ok(Outcome::Done)
}

fn action(rung: Rung) -> SanitizeAction {
    match rung {
        Rung::SanitizeCrypto => SanitizeAction::CryptoErase,
        Rung::SanitizeBlock => SanitizeAction::BlockErase,
        _ => SanitizeAction::Overwrite,
    }
}

/// Restricted (AUSE 0): if it fails, the drive gives nothing out until a sanitize succeeds.
fn sanitize(admin: &mut dyn Admin, rung: Rung) -> Result<Outcome, AdminError> {
    if let Outcome::Going(progress) = poll(admin, rung)? {
        return Ok(Outcome::Going(progress));
    }
    // One pass of zeros, if it is an overwrite.
    let cdw10 = SanitizeCdw10::new().with_sanact(action(rung).0).with_owpass(1);
    let request = Request {
        timeout_ms: QUERY_TIMEOUT_MS,
        ..Request::new(AdminOpcode::Sanitize, 0, cdw10.into_bits(), 0)
    };
    match admin.submit(&request, Data::None) {
        Ok(_) => Ok(Outcome::Going(0)),
        Err(error) if error.status() == Some(Status::SANITIZE_IN_PROGRESS) => Ok(Outcome::Going(0)),
        Err(error) => Err(error),
    }
}

fn poll(admin: &mut dyn Admin, rung: Rung) -> Result<Outcome, AdminError> {
    let log = sanitize_status(admin)?;
    let ours = SanitizeCdw10::from_bits(log.scdw10).sanact() == action(rung).0;
    Ok(match SanitizeOutcome(log.sstat.sos()) {
        SanitizeOutcome::InProgress => Outcome::Going(log.sprog),
        _ if !ours => Outcome::Failed("the drive's last sanitize is another one".to_owned()),
        SanitizeOutcome::Completed | SanitizeOutcome::CompletedUnexpectedDeallocation => Outcome::Done,
        SanitizeOutcome::Failed => Outcome::Failed("the drive reports that the sanitize failed".to_owned()),
        _ => Outcome::Failed("the drive does not remember the sanitize".to_owned()),
    })
}
