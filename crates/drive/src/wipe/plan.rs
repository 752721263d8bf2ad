//! Which rungs a drive has, and why it lacks the others.

use super::record::{LeftOut, Rung, Scope};
use crate::nvme::capability::Capabilities;

/// The rungs to try, in order, and those left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// To try.
    pub rungs: Vec<Rung>,
    /// Left out, and why.
    pub left_out: Vec<LeftOut>,
}

/// Plans a wipe. `capabilities` is `None` for drives that are not NVMe; `namespaces` counts those that exist on the drive.
#[must_use]
pub fn plan(scope: Scope, has_key: bool, capabilities: Option<&Capabilities>, namespaces: usize) -> Plan {
    let ladder: &[Rung] = match scope {
        Scope::Part | Scope::Namespace => &[
            Rung::DestroyKey,
            Rung::FormatCrypto,
            Rung::FormatErase,
            Rung::WriteZeroes,
            Rung::Deallocate,
            Rung::Overwrite,
        ],
        Scope::Drive => &[
            Rung::DestroyKey,
            Rung::SanitizeCrypto,
            Rung::SanitizeBlock,
            Rung::SanitizeOverwrite,
            Rung::FormatCrypto,
            Rung::FormatErase,
            Rung::WriteZeroes,
            Rung::Deallocate,
            Rung::Overwrite,
        ],
    };
    let mut plan = Plan { rungs: Vec::new(), left_out: Vec::new() };
    for &rung in ladder {
        match obstacle(rung, scope, has_key, capabilities, namespaces) {
            None => plan.rungs.push(rung),
            Some(reason) => plan.left_out.push(LeftOut { rung, reason: reason.to_owned() }),
        }
    }
    plan
}

fn obstacle(
    rung: Rung,
    scope: Scope,
    has_key: bool,
    capabilities: Option<&Capabilities>,
    namespaces: usize,
) -> Option<&'static str> {
    let needs = |has: bool, reason: &'static str| (!has).then_some(reason);
    let nvme = |judge: &dyn Fn(&Capabilities) -> Option<&'static str>| {
        capabilities.map_or(Some("it is not an NVMe drive, or cannot be asked"), judge)
    };
    match rung {
        Rung::DestroyKey => needs(has_key, "it has no key"),
        Rung::SanitizeCrypto => {
            nvme(&|drive| needs(drive.sanitize_crypto, "the drive does not have it (SANICAP)"))
        }
        Rung::SanitizeBlock => {
            nvme(&|drive| needs(drive.sanitize_block, "the drive does not have it (SANICAP)"))
        }
        Rung::SanitizeOverwrite => {
            nvme(&|drive| needs(drive.sanitize_overwrite, "the drive does not have it (SANICAP)"))
        }
        Rung::FormatCrypto | Rung::FormatErase => {
            nvme(&|drive| format_obstacle(rung, scope, drive, namespaces))
        }
        // These reach one namespace, and a drive may have more.
        Rung::WriteZeroes | Rung::Deallocate | Rung::Overwrite => needs(
            scope != Scope::Drive || namespaces <= 1,
            "the drive has more namespaces than the one it would reach",
        ),
    }
}

/// A format may reach only what is being wiped. FNA is believed when it says that it reaches more; whether the namespace is the
/// only one decides nothing in [`Scope::Namespace`], since another may be made at any time.
pub(super) fn format_obstacle(
    rung: Rung,
    scope: Scope,
    drive: &Capabilities,
    namespaces: usize,
) -> Option<&'static str> {
    if !drive.format {
        return Some("the drive does not have it (OACS)");
    }
    if rung == Rung::FormatCrypto && !drive.crypto_format {
        return Some("the drive does not have it (FNA bit 2)");
    }
    match scope {
        Scope::Part => Some("it would erase the rest of the drive"),
        Scope::Namespace if !drive.format_has_one_namespace_in_scope() => {
            Some("it would erase every namespace of the drive (FNA bits 0 and 1)")
        }
        Scope::Drive if namespaces != 1 => Some("the drive has more namespaces than the one it would reach"),
        Scope::Namespace | Scope::Drive => None,
    }
}
