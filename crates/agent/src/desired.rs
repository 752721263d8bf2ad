//! Wishes: each is checked and written down in one transaction, as an operation. What it is done to changes when the data plane has
//! accepted it (`work`).

pub(crate) mod incoming;
mod pool;

use crate::place::Place;
use crate::refusal::Refusal;
use crate::store::{self, PoolRow, PoolSpec, SnapshotRow, SnapshotSpec, SsdRow, SsdSpec};
use api::config::{PROFILE_DEFAULT, PROFILES, profiles};
use api::rest::{
    Interface, Limits, Operation, OperationState, Phase, PoolCreate, SIZE_BYTES_MAX, SIZE_UNIT_BYTES,
    SnapshotCreate, SsdChange, SsdCreate, is_name,
};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

/// Longest path of a unix socket.
const SOCKET_BYTES_MAX: usize = 107;
/// Most ssds, as the daemon's configuration has it.
const SSDS_MAX: usize = api::config::SSDS_MAX;

/// What is wanted. Written down as the operation's request: variants and fields are added, never renamed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "wish", rename_all = "kebab-case")]
pub(crate) enum Wish {
    SsdCreate {
        name: String,
        uuid: String,
        spec: SsdSpec,
    },
    SsdChange {
        name: String,
        spec: SsdSpec,
    },
    SsdDelete {
        name: String,
        force: bool,
    },
    PoolCreate {
        name: String,
        spec: PoolSpec,
        #[serde(default)]
        force_destroy_data: Option<String>,
    },
    PoolDelete {
        name: String,
    },
    SnapshotCreate {
        name: String,
        uuid: String,
        spec: SnapshotSpec,
    },
    SnapshotDelete {
        name: String,
    },
}

impl Wish {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::SsdCreate { .. } => "ssd-create",
            Self::SsdChange { .. } => "ssd-change",
            Self::SsdDelete { .. } => "ssd-delete",
            Self::PoolCreate { .. } => "pool-create",
            Self::PoolDelete { .. } => "pool-delete",
            Self::SnapshotCreate { .. } => "snapshot-create",
            Self::SnapshotDelete { .. } => "snapshot-delete",
        }
    }
}

/// What somebody asked for, as he asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub(crate) enum Ask {
    SsdCreate { body: Box<SsdCreate> },
    SsdChange { name: String, body: SsdChange },
    SsdDelete { name: String, force: bool },
    PoolCreate { body: PoolCreate },
    PoolDelete { name: String },
    SnapshotCreate { body: SnapshotCreate },
    SnapshotDelete { name: String },
}

impl Ask {
    fn target(&self) -> &str {
        match self {
            Self::SsdCreate { body } => &body.name,
            Self::PoolCreate { body } => &body.name,
            Self::SnapshotCreate { body } => &body.name,
            Self::SsdChange { name, .. }
            | Self::SsdDelete { name, .. }
            | Self::PoolDelete { name }
            | Self::SnapshotDelete { name } => name,
        }
    }
}

/// What an operation keeps: what was asked, to know it when it is asked again, and what that meant at the time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) ask: Ask,
    pub(crate) wish: Wish,
}

/// Who asks, when and on what condition.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// The operation's id.
    pub(crate) id: String,
    /// The generation that the ssd must have.
    pub(crate) if_match: Option<u64>,
    pub(crate) now_ms: u64,
    /// The identity of what is made.
    pub(crate) uuid: String,
}

/// Writes an operation down, or finds the one that was written down under this id.
pub(crate) fn submit(
    sqlite: &Connection,
    place: &Place,
    ask: &Ask,
    terms: &Terms,
) -> Result<Operation, Refusal> {
    if !is_name(&terms.id) {
        return Err(Refusal::bad_name("an operation's id", &terms.id));
    }
    if let Some(known) = store::operation(sqlite, &terms.id)? {
        let kept: Kept = kept(&known.request)?;
        return match kept.ask == *ask {
            true => Ok(known.shown),
            false => Err(Refusal::conflict(
                format!("operation {} was asked for something else", terms.id),
                "give each operation an id of its own",
            )),
        };
    }
    let wish = check(sqlite, place, ask, terms)?;
    let operation = Operation {
        id: terms.id.clone(),
        kind: wish.kind().to_owned(),
        target: ask.target().to_owned(),
        state: OperationState::Running,
        step: "begin".to_owned(),
        message: None,
        created_ms: terms.now_ms,
        finished_ms: None,
    };
    hold(sqlite, &wish, &terms.id)?;
    let kept = Kept { ask: ask.clone(), wish };
    store::add_operation(sqlite, &operation, &serde_json::to_string(&kept).map_err(Refusal::bug)?)?;
    Ok(operation)
}

/// What would be done, without doing it.
pub(crate) fn check(sqlite: &Connection, place: &Place, ask: &Ask, terms: &Terms) -> Result<Wish, Refusal> {
    match ask {
        Ask::SsdCreate { body } => create_ssd(sqlite, place, body, terms),
        Ask::SsdChange { name, body } => change_ssd(sqlite, name, body, terms),
        Ask::SsdDelete { name, force } => {
            free_ssd(sqlite, name, terms)?;
            if !force && let Some(promise) = store::attachment(sqlite, name)? {
                let text = format!("ssd \"{name}\" is attached to guest \"{}\"", promise.guest);
                return Err(Refusal::conflict(text, "delete the attachment first, or force it"));
            }
            Ok(Wish::SsdDelete { name: name.clone(), force: *force })
        }
        Ask::PoolCreate { body } => pool::create(sqlite, body, terms),
        Ask::PoolDelete { name } => pool::delete(sqlite, name),
        Ask::SnapshotCreate { body } => pool::create_snapshot(sqlite, body, terms),
        Ask::SnapshotDelete { name } => pool::delete_snapshot(sqlite, name),
    }
}

pub(crate) fn kept<T: serde::de::DeserializeOwned>(request: &str) -> Result<T, Refusal> {
    serde_json::from_str(request).map_err(Refusal::bug)
}

fn create_ssd(sqlite: &Connection, place: &Place, body: &SsdCreate, terms: &Terms) -> Result<Wish, Refusal> {
    if !is_name(&body.name) {
        return Err(Refusal::bad_name("an ssd's name", &body.name));
    }
    if let Some(known) = store::ssd(sqlite, &body.name)? {
        let text = format!("there is an ssd \"{}\" ({})", body.name, known.phase.word());
        let next_step = match &body.incoming {
            Some(identity) if known.uuid.eq_ignore_ascii_case(&identity.uuid) => {
                incoming::way_back(known.phase)
            }
            _ => "take another name, or delete that one first",
        };
        return Err(Refusal::conflict(text, next_step));
    }
    if store::ssds(sqlite)?.len() >= SSDS_MAX {
        let text = format!("there are {SSDS_MAX} ssds, and a daemon serves no more");
        return Err(Refusal::conflict(text, "delete some"));
    }
    let uuid = match &body.incoming {
        None => terms.uuid.clone(),
        Some(identity) => incoming::identity(sqlite, body, identity)?,
    };
    let (pool, source) = pool::home(sqlite, body)?;
    let flavor = match &body.flavor {
        None => None,
        Some(name) => Some(store::flavor(sqlite, name)?.ok_or_else(|| Refusal::missing("flavor", name))?),
    };
    let least_bytes = source.as_ref().map(|source| source.size_bytes);
    let of_flavor = || flavor.as_ref().map(|flavor| flavor.size_bytes);
    let size_bytes = body.size_bytes.or_else(of_flavor).or(least_bytes);
    let Some(size_bytes) = size_bytes else {
        return Err(Refusal::bad(
            "an ssd needs a size".to_owned(),
            "give it a size (--size) or a flavor (--flavor)",
        ));
    };
    check_size(size_bytes)?;
    if let Some(least_bytes) = least_bytes.filter(|least| size_bytes < *least) {
        let text = format!("what it is to begin with has {least_bytes} bytes");
        return Err(Refusal::conflict(text, "give it that size, or more"));
    }
    let key = pool::key(body, source.as_ref(), terms)?;
    let limits = body.limits.clone().or_else(|| flavor.map(|flavor| flavor.limits)).unwrap_or_default();
    check_limits(&limits)?;
    check_socket(place, body)?;
    let identity = body.incoming.clone().unwrap_or_default();
    let spec = SsdSpec {
        size_bytes,
        interface: body.interface,
        profile: profile(body)?,
        thin: body.thin.unwrap_or(pool.is_none()),
        // An NVMe ssd's is beside its state, one of a pool has it there.
        journal: pool.is_none() && body.interface == Interface::VirtioBlk,
        pool,
        flavor: body.flavor.clone(),
        limits,
        source: source.map(|source| source.volume),
        incoming: body.incoming.is_some(),
        serial: identity.serial,
        nqn: identity.nqn,
        hypervisor: body.hypervisor.clone(),
        superseded: false,
        key,
    };
    incoming::check(&uuid, &spec)?;
    Ok(Wish::SsdCreate { name: body.name.clone(), uuid, spec })
}

fn check_socket(place: &Place, body: &SsdCreate) -> Result<(), Refusal> {
    let socket = place.socket(&body.name, body.interface);
    if socket.as_os_str().len() > SOCKET_BYTES_MAX {
        let text = format!(
            "the socket {} would have a path of more than {SOCKET_BYTES_MAX} bytes",
            socket.display()
        );
        return Err(Refusal::bad(text, "take a shorter name, or run the agent with a shorter --sockets"));
    }
    Ok(())
}

/// Written down with the ssd, so that no release that serves it later has to guess.
fn profile(body: &SsdCreate) -> Result<Option<String>, Refusal> {
    match (&body.profile, body.interface) {
        (None, Interface::VirtioBlk) => Ok(None),
        (Some(_), Interface::VirtioBlk) => Err(Refusal::bad(
            "a virtio-blk disk has no profile".to_owned(),
            "leave the profile out, or make an NVMe ssd",
        )),
        (None, Interface::Nvme) => Ok(Some(PROFILE_DEFAULT.to_owned())),
        (Some(name), Interface::Nvme) if PROFILES.contains(&name.as_str()) => Ok(Some(name.clone())),
        (Some(name), Interface::Nvme) => Err(Refusal::bad(
            format!("this release knows no profile \"{name}\", but {}", profiles()),
            "take one of those, or leave it out",
        )),
    }
}

fn change_ssd(sqlite: &Connection, name: &str, body: &SsdChange, terms: &Terms) -> Result<Wish, Refusal> {
    let ssd = free_ssd(sqlite, name, terms)?;
    let is_of_its_guest_only = body.size_bytes.is_none() && body.limits.is_none();
    if ssd.phase != Phase::Ready && !(ssd.is_elsewhere() && is_of_its_guest_only) {
        let text = format!("ssd \"{name}\" is {}", ssd.phase.word());
        let next_step = match ssd.is_elsewhere() {
            true => "change it where it is; here only the `hypervisor` that its guest comes to can be said",
            false => "only an ssd that is ready can be changed; delete this one",
        };
        return Err(Refusal::conflict(text, next_step));
    }
    let mut spec = ssd.spec;
    if let Some(path) = &body.hypervisor {
        spec.hypervisor = Some(path.clone()).filter(|path| !path.is_empty());
        spec.hypervisor.as_deref().map(incoming::check_hypervisor).transpose()?;
    }
    if let Some(size_bytes) = body.size_bytes {
        check_size(size_bytes)?;
        if size_bytes < spec.size_bytes {
            let text = format!("ssd \"{name}\" has {} bytes, and an ssd does not shrink", spec.size_bytes);
            return Err(Refusal::conflict(text, "make a smaller one and copy the data in the guest"));
        }
        spec.size_bytes = size_bytes;
    }
    if let Some(limits) = &body.limits {
        check_limits(limits)?;
        spec.limits = limits.clone();
    }
    Ok(Wish::SsdChange { name: name.to_owned(), spec })
}

/// An ssd on which no operation works, at the generation that was asked for.
fn free_ssd(sqlite: &Connection, name: &str, terms: &Terms) -> Result<SsdRow, Refusal> {
    let ssd = store::ssd(sqlite, name)?.ok_or_else(|| Refusal::missing("ssd", name))?;
    if let Some(wanted) = terms.if_match.filter(|wanted| *wanted != ssd.generation) {
        let text =
            format!("ssd \"{name}\" is at generation {}, not {wanted}: somebody changed it", ssd.generation);
        return Err(Refusal::new(412, "precondition", text, "look at it again, and decide again"));
    }
    match &ssd.operation {
        None => Ok(ssd),
        Some(operation) => {
            let text = format!("operation {operation} works on ssd \"{name}\"");
            Err(Refusal::conflict(text, "wait for it: godwit operation show ID --wait"))
        }
    }
}

pub(crate) fn check_size(size_bytes: u64) -> Result<(), Refusal> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(SIZE_UNIT_BYTES) || size_bytes > SIZE_BYTES_MAX {
        let text = format!("{size_bytes} bytes is no size of an ssd");
        return Err(Refusal::bad(text, "a size is a multiple of 1MiB, from 1MiB to 1024TiB"));
    }
    Ok(())
}

/// Numbers that the daemon's configuration can hold.
pub(crate) fn check_limits(limits: &Limits) -> Result<(), Refusal> {
    crate::render::check_limits(limits).map_err(|why| {
        Refusal::bad(
            format!("these limits cannot be: {why}"),
            "see [ssd.limits] in docs/guide/configuration.md",
        )
    })
}

/// Marks what an operation works on, so that no other one does.
fn hold(sqlite: &Connection, wish: &Wish, id: &str) -> Result<(), Refusal> {
    match wish {
        Wish::SsdCreate { name, uuid, spec } => {
            let ssd = SsdRow {
                name: name.clone(),
                uuid: uuid.clone(),
                generation: 1,
                phase: Phase::Creating,
                operation: Some(id.to_owned()),
                reason: None,
                spec: spec.clone(),
            };
            store::put_ssd(sqlite, &ssd)?;
        }
        Wish::SsdChange { name, .. } | Wish::SsdDelete { name, .. } => {
            let mut ssd = store::ssd(sqlite, name)?.ok_or_else(|| Refusal::missing("ssd", name))?;
            ssd.operation = Some(id.to_owned());
            store::put_ssd(sqlite, &ssd)?;
        }
        Wish::PoolCreate { name, spec, .. } => {
            let (name, spec) = (name.clone(), spec.clone());
            let pool = PoolRow { name, phase: Phase::Creating, operation: Some(id.to_owned()), spec };
            store::put_pool(sqlite, &pool)?;
        }
        Wish::PoolDelete { name } => {
            let mut pool = store::pool(sqlite, name)?.ok_or_else(|| Refusal::missing("pool", name))?;
            pool.operation = Some(id.to_owned());
            store::put_pool(sqlite, &pool)?;
        }
        Wish::SnapshotCreate { name, uuid, spec } => {
            let snapshot = SnapshotRow {
                name: name.clone(),
                uuid: uuid.clone(),
                phase: Phase::Creating,
                operation: Some(id.to_owned()),
                reason: None,
                spec: spec.clone(),
            };
            store::put_snapshot(sqlite, &snapshot)?;
            // It is neither deleted nor resized meanwhile.
            let ssd = store::ssd(sqlite, &spec.ssd)?;
            let mut ssd = ssd.ok_or_else(|| Refusal::missing("ssd", &spec.ssd))?;
            ssd.operation = Some(id.to_owned());
            store::put_ssd(sqlite, &ssd)?;
        }
        Wish::SnapshotDelete { name } => {
            let snapshot = store::snapshot(sqlite, name)?;
            let mut snapshot = snapshot.ok_or_else(|| Refusal::missing("snapshot", name))?;
            snapshot.operation = Some(id.to_owned());
            store::put_snapshot(sqlite, &snapshot)?;
        }
    }
    Ok(())
}
