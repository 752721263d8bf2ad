//! What a drive can do, as it says; and whether it can really be carved into namespaces.

use super::{Admin, AdminError, active_namespaces, allocated_namespaces, identify_controller};
use crate::text::clean;
use serde::Serialize;
use spec::nvme::identify::IdentifyController;

/// What a drive's Identify Controller says, checked and in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// Controller identifier.
    pub cntlid: u16,
    /// Most namespaces it can have (NN; MNAN if it gives one).
    pub namespaces_max: u32,
    /// The Namespace Management bit of OACS.
    pub namespace_management: bool,
    /// The Format NVM bit of OACS.
    pub format: bool,
    /// FNA bit 0: a format applies to all namespaces.
    pub format_is_for_all: bool,
    /// FNA bit 1: a secure erase applies to all namespaces.
    pub erase_is_for_all: bool,
    /// FNA bit 2: a format can erase cryptographically.
    pub crypto_format: bool,
    /// Sanitize: crypto erase.
    pub sanitize_crypto: bool,
    /// Sanitize: block erase.
    pub sanitize_block: bool,
    /// Sanitize: overwrite.
    pub sanitize_overwrite: bool,
    /// Write Zeroes.
    pub write_zeroes: bool,
    /// Capacity in all (TNVMCAP); 0 = not reported.
    pub total_bytes: u64,
    /// Capacity of no namespace (UNVMCAP).
    pub unallocated_bytes: u64,
}

impl Capabilities {
    /// Asks the drive.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn read(admin: &mut (impl Admin + ?Sized)) -> Result<Capabilities, AdminError> {
        Ok(Capabilities::from_identify(&*identify_controller(admin)?))
    }

    /// In words.
    #[must_use]
    pub fn from_identify(identify: &IdentifyController) -> Capabilities {
        let text = |bytes: &[u8]| {
            let raw = String::from_utf8_lossy(bytes);
            clean(raw.trim_end_matches(['\0', ' '])).unwrap_or_default()
        };
        let bytes = |number: zerocopy::little_endian::U128| u64::try_from(number.get()).unwrap_or(u64::MAX);
        let (nn, mnan) = (identify.nn, identify.mnan);
        Capabilities {
            serial: text(&identify.sn),
            model: text(&identify.mn),
            firmware: text(&identify.fr),
            cntlid: identify.cntlid,
            namespaces_max: if mnan == 0 { nn } else { mnan.min(nn) },
            namespace_management: identify.oacs.nms(),
            format: identify.oacs.fnvms(),
            format_is_for_all: identify.fna.fns(),
            erase_is_for_all: identify.fna.sens(),
            crypto_format: identify.fna.cryes(),
            sanitize_crypto: identify.sanicap.ces(),
            sanitize_block: identify.sanicap.bes(),
            sanitize_overwrite: identify.sanicap.ows(),
            write_zeroes: identify.oncs.nvmwzsv(),
            total_bytes: bytes(identify.tnvmcap),
            unallocated_bytes: bytes(identify.unvmcap),
        }
    }

    /// True only if a format of one namespace, with its erase, leaves the others alone.
    #[must_use]
    pub fn format_has_one_namespace_in_scope(&self) -> bool {
        self.format && !self.format_is_for_all && !self.erase_is_for_all
    }
}

/// What can be carved from a drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Carving {
    /// Namespaces that exist.
    pub namespaces: u32,
    /// Namespaces that can be added.
    pub namespaces_left: u32,
    /// Capacity that can be given to new ones.
    pub unallocated_bytes: u64,
    /// Each can be wiped by itself with a format.
    pub wiped_one_by_one: bool,
}

/// Why a drive cannot be carved into namespaces.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCarvable {
    /// OACS lacks the bit.
    #[error("the drive has no namespace management (OACS bit 3 is clear); carve it by extents")]
    NoManagement,
    /// The bit is set, and yet there is room for one only.
    #[error(
        "the drive says it has namespace management, but has room for {namespaces_max} namespace (NN); carve it by extents"
    )]
    OneNamespace {
        /// NN.
        namespaces_max: u32,
    },
    /// It does not say how large it is.
    #[error("the drive does not report its capacity (TNVMCAP is 0); carve it by extents")]
    NoCapacity,
    /// It contradicts itself.
    #[error(
        "the drive reports {unallocated_bytes} unallocated bytes of {total_bytes} in all; carve it by extents"
    )]
    Contradiction {
        /// UNVMCAP.
        unallocated_bytes: u64,
        /// TNVMCAP.
        total_bytes: u64,
    },
    /// It does not answer what it must be able to.
    #[error(
        "the drive does not list its allocated namespaces ({0}), as namespace management needs; carve it by extents"
    )]
    NoList(String),
    /// What is asked for does not fit.
    #[error(
        "{wanted} namespaces of {each_bytes} bytes do not fit: {left} can be added, in {unallocated_bytes} unallocated bytes"
    )]
    DoesNotFit {
        /// Namespaces asked for.
        wanted: u32,
        /// Size of each.
        each_bytes: u64,
        /// Namespaces that can be added.
        left: u32,
        /// UNVMCAP.
        unallocated_bytes: u64,
    },
}

impl Carving {
    /// Asks a drive, and believes its numbers rather than its bits.
    ///
    /// # Errors
    /// [`NotCarvable`], or nothing could be asked.
    pub fn read(admin: &mut (impl Admin + ?Sized)) -> Result<Result<Carving, NotCarvable>, AdminError> {
        let capabilities = Capabilities::read(admin)?;
        if !capabilities.namespace_management {
            return Ok(Err(NotCarvable::NoManagement));
        }
        let allocated = allocated_namespaces(admin);
        let active = active_namespaces(admin)?.len();
        Ok(Carving::of(&capabilities, allocated.map(|list| list.len().max(active))))
    }

    /// Judges what a drive said.
    ///
    /// # Errors
    /// [`NotCarvable`].
    pub fn of(
        capabilities: &Capabilities,
        allocated: Result<usize, AdminError>,
    ) -> Result<Carving, NotCarvable> {
        let Capabilities { namespaces_max, total_bytes, unallocated_bytes, .. } = *capabilities;
        if !capabilities.namespace_management {
            return Err(NotCarvable::NoManagement);
        }
        if namespaces_max <= 1 {
            return Err(NotCarvable::OneNamespace { namespaces_max });
        }
        if total_bytes == 0 {
            return Err(NotCarvable::NoCapacity);
        }
        if unallocated_bytes > total_bytes {
            return Err(NotCarvable::Contradiction { unallocated_bytes, total_bytes });
        }
        let allocated = allocated.map_err(|error| NotCarvable::NoList(error.to_string()))?;
        let namespaces = u32::try_from(allocated).unwrap_or(u32::MAX);
        Ok(Carving {
            namespaces,
            namespaces_left: namespaces_max.saturating_sub(namespaces),
            unallocated_bytes,
            wiped_one_by_one: capabilities.format_has_one_namespace_in_scope(),
        })
    }

    /// Can so many more be made, of this size each?
    ///
    /// # Errors
    /// [`NotCarvable::DoesNotFit`].
    pub fn fits(&self, wanted: u32, each_bytes: u64) -> Result<(), NotCarvable> {
        let bytes = each_bytes.checked_mul(u64::from(wanted));
        if wanted <= self.namespaces_left && bytes.is_some_and(|bytes| bytes <= self.unallocated_bytes) {
            return Ok(());
        }
        Err(NotCarvable::DoesNotFit {
            wanted,
            each_bytes,
            left: self.namespaces_left,
            unallocated_bytes: self.unallocated_bytes,
        })
    }
}
