//! Namespaces made, attached, detached and deleted: Namespace Management and Attachment (Base 2.1, 5.1.20 and 5.1.21).
//!
//! Each call is one command. What makes a sequence of them safe over crashes is [`crate::grant`].

use super::capability::{Capabilities, Carving, NotCarvable};
use super::{Admin, AdminError, Data, QUERY_TIMEOUT_MS, Request, ask, identify, identify_controller};
use serde::{Deserialize, Serialize};
use spec::nvme::admin::{
    IdentifyCdw10, NamespaceAttachmentSelect, NamespaceManagementCreate, NamespaceManagementSelect,
    NamespaceSelectCdw10,
};
use spec::nvme::identify::{Cns, ControllerList, IDENTIFY_BYTES, IdentifyNamespace};
use spec::nvme::{AdminOpcode, NSID_BROADCAST, Status};
use zerocopy::{FromZeros, IntoBytes};

/// Patience with a drive that makes or deletes a namespace: some write to all of it.
const MANAGE_TIMEOUT_MS: u32 = 10 * QUERY_TIMEOUT_MS;
/// Most LBA formats of a namespace (NVM 1.1, 4.1.5.1).
const FORMATS_MAX: usize = 64;
/// Most granularity descriptors of a drive (NVM 1.1, 4.1.5.7).
const GRANULARITIES_MAX: usize = 16;
/// A drive that asks for coarser namespaces is not believed.
const GRANULARITY_BYTES_MAX: u64 = 1 << 40;

/// What a new namespace is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Size and capacity, in logical blocks: all of it is allocated.
    pub blocks: u64,
    /// Bytes of a logical block.
    pub block_bytes: u32,
    /// Which LBA format that is.
    pub format: u8,
}

impl Shape {
    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(u64::from(self.block_bytes))
    }
}

/// Why there is no shape for what is wanted.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    /// The drive cannot be carved so.
    #[error(transparent)]
    NotCarvable(#[from] NotCarvable),
    /// It has no such block size.
    #[error("the drive has no format with blocks of {wanted} bytes and no metadata; it has: {there}")]
    NoFormat {
        /// What was asked for.
        wanted: u32,
        /// What there is.
        there: String,
    },
    /// No size.
    #[error("a namespace of {0} bytes cannot be")]
    Size(u64),
    /// The drive did not answer.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

impl Shape {
    /// The shape of a namespace of at least `size_bytes`, if the drive can be carved, has that format, and has room for it.
    ///
    /// # Errors
    /// [`ShapeError`] with the reason.
    pub fn fit(
        admin: &mut (impl Admin + ?Sized),
        size_bytes: u64,
        block_bytes: u32,
    ) -> Result<Shape, ShapeError> {
        let carving = Carving::read(admin)??;
        let format = format(&*capabilities_of_all(admin)?, block_bytes)?;
        let unit = granularity(admin, format)?.filter(|bytes| bytes.is_multiple_of(u64::from(block_bytes)));
        let unit = unit.unwrap_or(u64::from(block_bytes));
        let bytes = size_bytes.checked_next_multiple_of(unit).filter(|bytes| *bytes > 0);
        let bytes = bytes.ok_or(ShapeError::Size(size_bytes))?;
        carving.fits(1, bytes)?;
        Ok(Shape { blocks: bytes / u64::from(block_bytes), block_bytes, format })
    }
}

/// What all namespaces of the drive can be; a drive that does not say so for all is asked about its first.
fn capabilities_of_all(admin: &mut (impl Admin + ?Sized)) -> Result<Box<IdentifyNamespace>, AdminError> {
    identify(admin, Cns::Namespace, NSID_BROADCAST).or_else(|error| match error.status() {
        Some(Status::INVALID_NAMESPACE_OR_FORMAT | Status::INVALID_FIELD) => {
            identify(admin, Cns::AllocatedNamespace, 1)
        }
        _ => Err(error),
    })
}

/// The fastest format of this block size that has no metadata.
fn format(all: &IdentifyNamespace, block_bytes: u32) -> Result<u8, ShapeError> {
    let count = usize::from(all.nlbaf_z).saturating_add(1).min(FORMATS_MAX);
    let there = || (0_u8..).zip(all.lbaf.iter().take(count)).filter(|(_, format)| format.lbads >= 9);
    let bytes = |lbads: u8| 1_u32.checked_shl(u32::from(lbads)).unwrap_or(0);
    let fitting = there().filter(|(_, format)| format.ms == 0 && bytes(format.lbads) == block_bytes);
    let best = fitting.min_by_key(|(_, format)| format.rp & 3).map(|(index, _)| index);
    best.ok_or_else(|| {
        let words: Vec<String> =
            there().map(|(_, format)| format!("{}+{}", bytes(format.lbads), format.ms)).collect();
        ShapeError::NoFormat { wanted: block_bytes, there: words.join(", ") }
    })
}

/// The size that namespaces of a format should be a multiple of, so that nothing is lost; if the drive says so.
fn granularity(admin: &mut (impl Admin + ?Sized), format: u8) -> Result<Option<u64>, AdminError> {
    if !identify_controller(admin)?.ctratt.ng() {
        return Ok(None);
    }
    let cdw10 = IdentifyCdw10::new().with_cns(Cns::NamespaceGranularityList.0).into_bits();
    let list: Box<[u8; IDENTIFY_BYTES]> = ask(admin, &Request::new(AdminOpcode::Identify, 0, cdw10, 0))?;
    // Attributes (4), number of descriptors (1, 0's based), 27 reserved; then size and capacity (8 each) for each.
    let for_each_format = list[0] & 1 == 1;
    let count = usize::from(list[4]).saturating_add(1).min(GRANULARITIES_MAX);
    let index = if for_each_format { usize::from(format) } else { 0 };
    if index >= count {
        return Ok(None);
    }
    let word = |at: usize| list.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let bytes = word(32 + index * 16).zip(word(40 + index * 16)).map(|(size, capacity)| size.max(capacity));
    Ok(bytes.filter(|bytes| (1..=GRANULARITY_BYTES_MAX).contains(bytes)))
}

/// Makes a namespace that is attached to no controller. Returns its identifier.
///
/// # Errors
/// [`AdminError`].
pub fn create(admin: &mut (impl Admin + ?Sized), shape: &Shape) -> Result<u32, AdminError> {
    let mut fields = NamespaceManagementCreate::new_zeroed();
    (fields.nsze, fields.ncap) = (shape.blocks, shape.blocks);
    // The index has its upper two bits apart (FLBAS 6:5).
    fields.flbas = (shape.format & 0xf) | (shape.format >> 4 & 3) << 5;
    let request = select(AdminOpcode::NamespaceManagement, NamespaceManagementSelect::Create.0, 0);
    admin.submit(&request, Data::Out(fields.as_bytes()))
}

/// Deletes a namespace, with its data.
///
/// # Errors
/// [`AdminError`].
pub fn delete(admin: &mut (impl Admin + ?Sized), nsid: u32) -> Result<(), AdminError> {
    if nsid == 0 || nsid == NSID_BROADCAST {
        // All of them, to the drive.
        return Err(refused_here(AdminOpcode::NamespaceManagement));
    }
    let request = select(AdminOpcode::NamespaceManagement, NamespaceManagementSelect::Delete.0, nsid);
    admin.submit(&request, Data::None).map(drop)
}

/// Attaches a namespace to a controller.
///
/// # Errors
/// [`AdminError`].
pub fn attach(admin: &mut (impl Admin + ?Sized), nsid: u32, cntlid: u16) -> Result<(), AdminError> {
    attachment(admin, NamespaceAttachmentSelect::Attach, nsid, cntlid)
}

/// Detaches a namespace from a controller.
///
/// # Errors
/// [`AdminError`].
pub fn detach(admin: &mut (impl Admin + ?Sized), nsid: u32, cntlid: u16) -> Result<(), AdminError> {
    attachment(admin, NamespaceAttachmentSelect::Detach, nsid, cntlid)
}

fn attachment(
    admin: &mut (impl Admin + ?Sized),
    what: NamespaceAttachmentSelect,
    nsid: u32,
    cntlid: u16,
) -> Result<(), AdminError> {
    let mut list = ControllerList::new_zeroed();
    list.count = 1;
    list.cntlids[0] = cntlid;
    let request = select(AdminOpcode::NamespaceAttachment, what.0, nsid);
    admin.submit(&request, Data::Out(list.as_bytes())).map(drop)
}

fn select(opcode: AdminOpcode, sel: u8, nsid: u32) -> Request {
    let cdw10 = NamespaceSelectCdw10::new().with_sel(sel).into_bits();
    Request { timeout_ms: MANAGE_TIMEOUT_MS, ..Request::new(opcode, nsid, cdw10, 0) }
}

fn refused_here(opcode: AdminOpcode) -> AdminError {
    AdminError::Transport { opcode, error: std::io::ErrorKind::InvalidInput.into() }
}

/// Identify Namespace, of one that exists, attached or not.
///
/// # Errors
/// [`AdminError`].
pub fn identify_allocated(
    admin: &mut (impl Admin + ?Sized),
    nsid: u32,
) -> Result<Box<IdentifyNamespace>, AdminError> {
    identify(admin, Cns::AllocatedNamespace, nsid)
}

/// The controllers that a namespace is attached to.
///
/// # Errors
/// [`AdminError`].
pub fn attached_to(admin: &mut (impl Admin + ?Sized), nsid: u32) -> Result<Vec<u16>, AdminError> {
    let list: Box<ControllerList> = identify(admin, Cns::NamespaceAttachedControllerList, nsid)?;
    Ok(list.cntlids.iter().copied().take(usize::from(list.count)).collect())
}

/// The controller that answers.
///
/// # Errors
/// [`AdminError`].
pub fn own_cntlid(admin: &mut (impl Admin + ?Sized)) -> Result<u16, AdminError> {
    Capabilities::read(admin).map(|capabilities| capabilities.cntlid)
}
