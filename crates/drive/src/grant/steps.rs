//! The steps of a grant. Each is recorded before it is done, and bears to be done again.

use super::{Grant, GrantError, Step, What};
use crate::nvme::namespaces::{attach, attached_to, create, delete, detach, identify_allocated};
use crate::nvme::{Admin, AdminError, allocated_namespaces};
use spec::nvme::Status;
use spec::nvme::identify::IdentifyNamespace;
use std::fmt::Write as _;

/// What others must do before a grant goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It must be wiped; then the step is the next one ([`Grant::wiped`]).
    Wipe,
    /// Nothing: the ssd has it.
    Nothing,
    /// Nothing: the drive has it back, and the record can go.
    Forget,
}

impl Grant {
    /// A wipe of it ended well, with a certificate.
    pub fn wiped(&mut self) {
        self.step = match (self.step, self.what) {
            (Step::Clean, _) => Step::Given,
            (Step::Empty, What::Namespace) => Step::Detach,
            (step, _) => step,
        };
    }
}

/// Goes on as far as the drive alone can bring it. `save` keeps the record; what it returned of is there after a crash.
///
/// A whole drive that was wiped after [`Step::Empty`] has no step left: its caller forgets it.
///
/// # Errors
/// The drive refused, it is another than it was, or the record could not be kept. Try again from the record.
pub fn advance(
    grant: &mut Grant,
    admin: &mut (impl Admin + ?Sized),
    cntlid: u16,
    save: &mut dyn FnMut(&Grant) -> Result<(), GrantError>,
) -> Result<Need, GrantError> {
    loop {
        match grant.step {
            Step::Planned => {
                grant.others = allocated_namespaces(admin)?;
                grant.step = Step::Create;
            }
            Step::Create => {
                let nsid = make(grant, admin)?;
                let there = identify_allocated(admin, nsid)?;
                grant.nsid = Some(nsid);
                grant.size_bytes = there.nsze.saturating_mul(u64::from(grant.shape.block_bytes));
                grant.identity = name_of(&there);
                grant.step = Step::Attach;
            }
            Step::Attach => {
                let nsid = own(grant, admin)?;
                let result = attach(admin, nsid, cntlid);
                unless(result, &[Status::NAMESPACE_ALREADY_ATTACHED])?;
                grant.step = Step::Clean;
            }
            Step::Clean | Step::Empty => return Ok(Need::Wipe),
            Step::Given => return Ok(Need::Nothing),
            Step::Detach => {
                if exists(grant, admin)? {
                    let nsid = own(grant, admin)?;
                    unless(detach(admin, nsid, cntlid), &[Status::NAMESPACE_NOT_ATTACHED])?;
                }
                grant.step = Step::Delete;
            }
            Step::Delete => {
                if exists(grant, admin)? {
                    let nsid = own(grant, admin)?;
                    let elsewhere = attached_to(admin, nsid)?;
                    if !elsewhere.is_empty() {
                        return Err(GrantError::Changed(format!(
                            "{} is attached to controllers {elsewhere:?}",
                            grant.describe()
                        )));
                    }
                    unless(delete(admin, nsid), &[Status::INVALID_NAMESPACE_OR_FORMAT])?;
                }
                return Ok(Need::Forget);
            }
        }
        save(grant)?;
    }
}

/// Makes the namespace, or finds the one that was made before a crash.
fn make(grant: &Grant, admin: &mut (impl Admin + ?Sized)) -> Result<u32, GrantError> {
    let now = allocated_namespaces(admin)?;
    let new: Vec<u32> = now.into_iter().filter(|nsid| !grant.others.contains(nsid)).collect();
    let mut made = Vec::new();
    for nsid in new {
        if is_shaped(grant, &*identify_allocated(admin, nsid)?) && attached_to(admin, nsid)?.is_empty() {
            made.push(nsid);
        }
    }
    match made.as_slice() {
        [] => Ok(create(admin, &grant.shape)?),
        [nsid] => Ok(*nsid),
        many => Err(GrantError::Changed(format!(
            "namespaces {many:?} of drive {} may each be the one that was made for ssd \"{}\"; delete those that are nobody's \
             (nvme delete-ns) and try again",
            grant.serial, grant.ssd
        ))),
    }
}

/// The namespace, if it still is the one that was made.
fn own(grant: &Grant, admin: &mut (impl Admin + ?Sized)) -> Result<u32, GrantError> {
    let nsid = grant.nsid.unwrap_or(0);
    let there = identify_allocated(admin, nsid)?;
    if is_shaped(grant, &there) && grant.identity == name_of(&there) {
        return Ok(nsid);
    }
    Err(GrantError::Changed(format!(
        "{} is not the one that was made for ssd \"{}\": it has {} blocks, named {:?}",
        grant.describe(),
        grant.ssd,
        there.nsze,
        name_of(&there)
    )))
}

fn exists(grant: &Grant, admin: &mut (impl Admin + ?Sized)) -> Result<bool, GrantError> {
    let nsid = grant.nsid.unwrap_or(0);
    Ok(allocated_namespaces(admin)?.contains(&nsid))
}

fn is_shaped(grant: &Grant, there: &IdentifyNamespace) -> bool {
    let format = there.flbas.fidxl() | there.flbas.fidxu() << 4;
    // A drive may round the size up.
    there.nsze >= grant.shape.blocks && format == grant.shape.format
}

fn name_of(there: &IdentifyNamespace) -> Option<String> {
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut text, byte| {
            let _infallible = write!(text, "{byte:02x}");
            text
        })
    };
    let names = [&there.nguid[..], &there.eui64[..]];
    names.into_iter().find(|name| name.iter().any(|byte| *byte != 0)).map(hex)
}

/// A status that says that it is so already is as good as done.
fn unless(result: Result<(), AdminError>, done: &[Status]) -> Result<(), AdminError> {
    match result {
        Err(error) if error.status().is_some_and(|status| done.contains(&status)) => Ok(()),
        result => result,
    }
}
