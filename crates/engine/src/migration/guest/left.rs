//! A guest whose move an engine before this one did not live to end: what its hypervisor here says of it.
//!
//! A hypervisor that has completed its migration, and has not run its guest since, tells that all of the guest is at the other host. If one of the guest's
//! ssds is there too, the guest can only go on there, and the others follow; else it goes on here ([`super::call_back`]).

use super::{QMP_PATIENCE, ssd_of};
use crate::passage::{Passage, Standing};
use crate::run::House;
use api::config;
use hypervisor::{Error, Source, SourceNow};
use std::path::Path;
use transfer::commit::{Parties, Source as Machine, SourceEffect, SourceRecord, SourceStep};

/// The hypervisor at `path` if its guest has left it whole.
fn left(path: &Path) -> Result<Option<Source>, Error> {
    let mut qemu = Source::connect(path, QMP_PATIENCE)?;
    Ok(Some(qemu.now()?).filter(|now| *now == SourceNow::Completed).map(|_| qemu))
}

/// Where the ssds of a hypervisor's devices are, those of this host's configuration: whether each is granted to another host, or gone there.
fn gone(house: &House, qemu: &mut Source) -> Result<Vec<bool>, Error> {
    let is_gone = |config: config::Ssd| {
        let standing = house.pools().map(|pools| Passage::of(&config, pools).standing());
        matches!(standing, Ok(Standing::Away(away)) if matches!(away.word, "granted" | "gone"))
    };
    Ok(qemu.devices()?.iter().filter_map(|device| ssd_of(house, &device.server)).map(is_gone).collect())
}

/// The machine of a migration from here, by its journal: after a crash, or when that could not be written.
pub(in crate::migration) fn recover(
    house: &House,
    parties: &Parties,
    record: SourceRecord,
) -> (Machine, Vec<SourceEffect>) {
    let path = parties.hypervisor.as_deref().map(Path::new).filter(|_| record.step == SourceStep::Offered);
    if path.is_some_and(|path| has_left_in_part(house, path)) {
        tracing::warn!(
            peer = parties.peer,
            "a guest is at the other host with some of its ssds: another follows"
        );
        return Machine::recover_completed(record);
    }
    Machine::recover(record)
}

/// Whether the guest is at the other host, and some of its ssds, but not all. Of a hypervisor that does not answer nothing is known: no.
fn has_left_in_part(house: &House, path: &Path) -> bool {
    let gone = left(path).and_then(|qemu| qemu.map_or(Ok(Vec::new()), |mut qemu| gone(house, &mut qemu)));
    let gone = gone.inspect_err(|error| {
        tracing::info!(hypervisor = %path.display(), %error, "of a hypervisor whose guest was on its way nothing is known");
    });
    gone.is_ok_and(|gone| gone.contains(&true) && gone.contains(&false))
}

/// Ends the hypervisor at `path` if its guest has left it with all of its ssds: here it could only be run by mistake.
///
/// # Errors
/// QEMU's.
pub(in crate::migration) fn end_what_left(house: &House, path: &Path) -> Result<(), Error> {
    // One that does not answer has ended, or is not a mover's.
    let Ok(Some(mut qemu)) = left(path) else { return Ok(()) };
    let gone = gone(house, &mut qemu)?;
    if !gone.is_empty() && !gone.contains(&false) { qemu.quit() } else { Ok(()) }
}
