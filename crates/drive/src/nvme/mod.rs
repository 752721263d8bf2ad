//! NVMe admin commands to a host's drive, whoever carries them: the kernel's ioctl, or a model in a test.

pub mod capability;
pub mod health;
pub mod ioctl;
pub mod model;
pub mod namespaces;

use spec::nvme::admin::{GetLogPageCdw10, GetLogPageCdw11, IdentifyCdw10};
use spec::nvme::identify::{Cns, IdentifyController, IdentifyNamespace, NamespaceList};
use spec::nvme::log::{Lid, SanitizeStatusLog};
use spec::nvme::{AdminOpcode, NSID_BROADCAST, Status};
use std::io;
use zerocopy::{FromBytes, IntoBytes};

/// Patience with commands that only ask.
pub const QUERY_TIMEOUT_MS: u32 = 60_000;

/// An admin command. Its opcode and namespace are for [`Admin::submit`] alone to interpret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Opcode.
    pub opcode: AdminOpcode,
    /// Namespace; 0 = none, FFFFFFFFh = all.
    pub nsid: u32,
    /// Command dwords 10 to 15.
    pub cdw10_15: [u32; 6],
    /// How long the drive may take.
    pub timeout_ms: u32,
}

impl Request {
    /// A command with these two dwords and the rest zero.
    #[must_use]
    pub fn new(opcode: AdminOpcode, nsid: u32, cdw10: u32, cdw11: u32) -> Request {
        Request { opcode, nsid, cdw10_15: [cdw10, cdw11, 0, 0, 0, 0], timeout_ms: QUERY_TIMEOUT_MS }
    }
}

/// Data of a command.
#[derive(Debug)]
pub enum Data<'a> {
    /// None.
    None,
    /// From the drive.
    In(&'a mut [u8]),
    /// To the drive.
    Out(&'a [u8]),
}

/// Why an admin command has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The drive refused or failed it.
    #[error("the drive answered status {:#05x} to {opcode:?}{}", status.code(), meaning(*status))]
    Status {
        /// What was asked.
        opcode: AdminOpcode,
        /// What it answered.
        status: Status,
    },
    /// It did not get to the drive, or nothing came back.
    #[error("{opcode:?} did not get through: {error}")]
    Transport {
        /// What was asked.
        opcode: AdminOpcode,
        /// What the kernel said.
        error: io::Error,
    },
}

impl AdminError {
    /// The drive's own answer, if it gave one.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        match self {
            AdminError::Status { status, .. } => Some(status.bare()),
            AdminError::Transport { .. } => None,
        }
    }
}

fn meaning(status: Status) -> &'static str {
    match status.bare() {
        Status::INVALID_OPCODE => " (it does not know the command)",
        Status::INVALID_FIELD => " (it does not take these fields)",
        Status::SANITIZE_FAILED => " (its last sanitize failed: it does nothing else until one succeeds)",
        Status::SANITIZE_IN_PROGRESS => " (a sanitize is going on)",
        Status::FORMAT_IN_PROGRESS => " (a format is going on)",
        Status::INVALID_NAMESPACE_OR_FORMAT => " (no such namespace, or not active)",
        Status::NAMESPACE_IS_WRITE_PROTECTED => " (the namespace is write protected)",
        Status::INTERNAL_ERROR => " (internal error)",
        Status::COMMAND_PROHIBITED_BY_LOCKDOWN => " (locked down)",
        Status::NAMESPACE_INSUFFICIENT_CAPACITY => " (not enough free capacity)",
        Status::NAMESPACE_IDENTIFIER_UNAVAILABLE => " (it has no namespace identifier left)",
        Status::NAMESPACE_ALREADY_ATTACHED => " (the namespace is attached already)",
        Status::NAMESPACE_NOT_ATTACHED => " (the namespace is not attached)",
        Status::NAMESPACE_IS_PRIVATE => " (another controller has the namespace)",
        Status::NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED => " (the controller has all the namespaces that it can)",
        Status::THIN_PROVISIONING_NOT_SUPPORTED => " (it gives no namespace less capacity than size)",
        Status::CONTROLLER_LIST_INVALID => " (no such controller)",
        Status::INVALID_FORMAT => " (no such block format)",
        _ => "",
    }
}

/// A way to a drive's admin queue.
pub trait Admin {
    /// Carries a command to the drive and waits for its answer; returns completion dword 0.
    ///
    /// # Errors
    /// [`AdminError`].
    fn submit(&mut self, request: &Request, data: Data<'_>) -> Result<u32, AdminError>;
}

/// Asks for a structure. What comes back is any bytes: each field is checked where it is used.
fn ask<T: FromBytes + IntoBytes>(
    admin: &mut (impl Admin + ?Sized),
    request: &Request,
) -> Result<Box<T>, AdminError> {
    let mut answer = Box::new(T::new_zeroed());
    admin.submit(request, Data::In(answer.as_mut().as_mut_bytes()))?;
    Ok(answer)
}

fn identify<T: FromBytes + IntoBytes>(
    admin: &mut (impl Admin + ?Sized),
    cns: Cns,
    nsid: u32,
) -> Result<Box<T>, AdminError> {
    let cdw10 = IdentifyCdw10::new().with_cns(cns.0).into_bits();
    ask(admin, &Request::new(AdminOpcode::Identify, nsid, cdw10, 0))
}

/// Identify Controller.
///
/// # Errors
/// [`AdminError`].
pub fn identify_controller(admin: &mut (impl Admin + ?Sized)) -> Result<Box<IdentifyController>, AdminError> {
    identify(admin, Cns::Controller, 0)
}

/// Identify Namespace, of an attached one.
///
/// # Errors
/// [`AdminError`].
pub fn identify_namespace(
    admin: &mut (impl Admin + ?Sized),
    nsid: u32,
) -> Result<Box<IdentifyNamespace>, AdminError> {
    identify(admin, Cns::Namespace, nsid)
}

/// The namespaces that exist, attached or not; at most 1024.
///
/// # Errors
/// [`AdminError`]: drives without namespace management do not know the question.
pub fn allocated_namespaces(admin: &mut (impl Admin + ?Sized)) -> Result<Vec<u32>, AdminError> {
    namespaces(admin, Cns::AllocatedNamespaceList)
}

/// The namespaces that are attached to this controller; at most 1024.
///
/// # Errors
/// [`AdminError`].
pub fn active_namespaces(admin: &mut (impl Admin + ?Sized)) -> Result<Vec<u32>, AdminError> {
    namespaces(admin, Cns::ActiveNamespaceList)
}

fn namespaces(admin: &mut (impl Admin + ?Sized), cns: Cns) -> Result<Vec<u32>, AdminError> {
    let list: Box<NamespaceList> = identify(admin, cns, 0)?;
    Ok(list.nsids.iter().copied().take_while(|&nsid| nsid != 0).collect())
}

fn log_page<T: FromBytes + IntoBytes>(
    admin: &mut (impl Admin + ?Sized),
    lid: Lid,
) -> Result<Box<T>, AdminError> {
    let dwords_z = u32::try_from(size_of::<T>() / 4).unwrap_or(1).saturating_sub(1);
    let [low, high] = [dwords_z & 0xffff, dwords_z >> 16].map(|half| u16::try_from(half).unwrap_or(0));
    let cdw10 = GetLogPageCdw10::new().with_lid(lid.0).with_numdl_z(low).into_bits();
    let cdw11 = GetLogPageCdw11::new().with_numdu_z(high).into_bits();
    ask(admin, &Request::new(AdminOpcode::GetLogPage, NSID_BROADCAST, cdw10, cdw11))
}

/// Log page 81h: what the last sanitize came to, or how far it is.
///
/// # Errors
/// [`AdminError`].
pub fn sanitize_status(admin: &mut (impl Admin + ?Sized)) -> Result<Box<SanitizeStatusLog>, AdminError> {
    log_page(admin, Lid::SanitizeStatus)
}
