//! What is wanted of an ssd that comes from another host.

use crate::refusal::Refusal;
use crate::render;
use crate::store::{self, SsdSpec};
use api::identity::uuid_of_text;
use api::rest::{Incoming, Phase, SsdCreate};
use rusqlite::Connection;
use std::path::Path;

/// Longest path of a QMP socket.
const SOCKET_BYTES_MAX: usize = 107;

/// The identity that it has at the other host, and keeps.
pub(super) fn identity(
    sqlite: &Connection,
    body: &SsdCreate,
    incoming: &Incoming,
) -> Result<String, Refusal> {
    if body.from_snapshot.is_some() || body.from_ssd.is_some() {
        let text = "an ssd that comes from another host begins with what it has there".to_owned();
        return Err(Refusal::bad(text, "leave from_snapshot and from_ssd out"));
    }
    let uuid = incoming.uuid.to_lowercase();
    if uuid_of_text(&uuid).is_none_or(|uuid| uuid == [0; 16]) {
        let shown: String = uuid.chars().take(80).collect();
        return Err(Refusal::bad(
            format!("{shown:?} is no identity of an ssd"),
            "`godwit ssd export` at the other host prints it",
        ));
    }
    if let Some(same) = store::ssds(sqlite)?.into_iter().find(|ssd| ssd.uuid == uuid) {
        let text = format!("ssd \"{}\" has this identity here ({})", same.name, same.phase.word());
        return Err(Refusal::conflict(text, way_back(same.phase)));
    }
    Ok(uuid)
}

/// What to do when an ssd that is to come is known here.
pub(super) fn way_back(phase: Phase) -> &'static str {
    match phase {
        Phase::Gone => {
            "it can come back as it is: migrate it. If it has changed there (its size), delete what is left of it here first"
        }
        Phase::Incoming => "it is expected already: migrate it",
        _ => "no two ssds of one identity are on one host",
    }
}

/// What the daemon's configuration has against its identity, and against its guest's hypervisor.
pub(super) fn check(uuid: &str, spec: &SsdSpec) -> Result<(), Refusal> {
    if let Some(path) = &spec.hypervisor {
        check_hypervisor(path)?;
    }
    if !spec.incoming {
        return Ok(());
    }
    render::check(uuid, spec).map_err(|why| {
        let text = format!("the daemon cannot have it: {why}");
        Refusal::bad(text, "take it as `godwit ssd export` prints it at the other host")
    })
}

/// A path of a QMP socket.
///
/// # Errors
/// It can be none.
pub(crate) fn check_hypervisor(path: &str) -> Result<(), Refusal> {
    let fits = path.len() <= SOCKET_BYTES_MAX && Path::new(path).is_absolute();
    if !fits || path.chars().any(char::is_control) {
        let shown: String = path.chars().take(80).collect();
        return Err(Refusal::bad(
            format!("{shown:?} is no path of a QMP socket"),
            "write it from / on, with at most 107 bytes: the socket that QEMU's -qmp unix:PATH names",
        ));
    }
    Ok(())
}
