//! The REST interface. Every number and name of a client is checked here or in `desired`; a body has a largest size, a connection a
//! time (`serve`).

mod attachments;
mod drives;
mod flavors;
mod guard;
mod host;
mod migrations;
mod operations;
mod pools;
mod query;
mod snapshots;
mod ssds;
mod stats;

use crate::book::Book;
use crate::desired::{self, Ask, Terms};
use crate::place::Place;
use crate::plane::{How, Plane};
use crate::refusal::Refusal;
use crate::store::{self, StoreError};
use crate::work::{self, Base, Trouble};
use api::control::{PoolStatus, Status};
use api::rest::{OPERATION_HEADER, Operation, Plan, Problem, ROOT, is_name};
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, middleware};
use drives::SeenDrives;
use migrations::SeenMigrations;
use rusqlite::Connection;
use stats::SeenStats;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The largest body of a request.
const BODY_BYTES_MAX: usize = 64 << 10;
/// How old an answer of the daemon may be that is given to another one who asks.
const STATUS_AGE_MAX: Duration = Duration::from_millis(250);

/// What the daemon answered last, and when.
type Seen = (Instant, Result<Status, String>);
/// What it answered about pools, and the version of what was wanted then.
type SeenPools = (Instant, u64, Result<Vec<PoolStatus>, String>);

/// What all handlers share.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) book: Book,
    pub(crate) plane: Arc<dyn Plane>,
    pub(crate) place: Place,
    pub(crate) base: Base,
    pub(crate) now_ms: fn() -> u64,
    pub(crate) uuid: fn() -> String,
    pub(crate) trouble: Trouble,
    /// A clock that only goes forward.
    pub(crate) clock_ms: fn() -> u64,
    pub(crate) seen: Arc<Mutex<Option<Seen>>>,
    pub(crate) seen_stats: Arc<Mutex<Option<SeenStats>>>,
    pub(crate) seen_pools: Arc<Mutex<Option<SeenPools>>>,
    pub(crate) seen_drives: Arc<Mutex<Option<SeenDrives>>>,
    pub(crate) seen_migrations: Arc<Mutex<SeenMigrations>>,
    /// Of who begins and steers migrations.
    pub(crate) tells: Arc<Semaphore>,
}

impl Desk {
    /// How the daemon is, not older than a moment. One asks at a time; the others get the same answer.
    pub(crate) fn status(&self) -> Result<Status, String> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, status)) = &*seen
            && at.elapsed() < STATUS_AGE_MAX
        {
            return status.clone();
        }
        let status = self.plane.status().map_err(|e| e.to_string());
        *seen = Some((Instant::now(), status.clone()));
        status
    }

    /// How the pools are, likewise; what an operation that has ended did to them is in it.
    pub(crate) fn pools(&self) -> Result<Vec<PoolStatus>, String> {
        let mut seen = self.seen_pools.lock().unwrap_or_else(PoisonError::into_inner);
        let version = *self.book.news().borrow();
        if let Some((at, then, pools)) = &*seen
            && *then == version
            && at.elapsed() < STATUS_AGE_MAX
        {
            return pools.clone();
        }
        let pools = self.plane.pools().map_err(|e| e.to_string());
        *seen = Some((Instant::now(), version, pools.clone()));
        pools
    }

    /// Does what waits (for the disk, for the daemon) beside the connections.
    pub(crate) async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let desk = self.clone();
        tokio::task::spawn_blocking(move || work(&desk)).await.map_err(Refusal::bug)?
    }

    /// Writes a wish down as an operation, or says what it would do.
    pub(crate) async fn submit(
        &self,
        ask: Ask,
        headers: &HeaderMap,
        dry_run: bool,
    ) -> Result<Response, Refusal> {
        let terms = self.terms(headers)?;
        self.beside(move |desk| {
            desk.refuse_on_the_way(&ask, &terms.id)?;
            desk.submit_here(&ask, &terms, dry_run)
        })
        .await
    }

    fn submit_here(&self, ask: &Ask, terms: &Terms, dry_run: bool) -> Result<Response, Refusal> {
        if dry_run {
            return self.plan(ask, terms).map(|plan| Json(plan).into_response());
        }
        let operation = self.book.write(|sqlite| desired::submit(sqlite, &self.place, ask, terms))?;
        self.book.wake();
        Ok(accepted(operation))
    }

    /// Snapshots of an ssd that is on its way are its own affair until that is over. Whether it is, the pool says; while nobody hears it, an operation waits
    /// for it as for all else.
    fn refuse_on_the_way(&self, ask: &Ask, id: &str) -> Result<(), Refusal> {
        let known = |sqlite: &Connection| match store::operation(sqlite, id)? {
            // Asked for once more, it is what it was.
            Some(_) => Ok(None),
            None => along(sqlite, ask),
        };
        let Some((ssd, pool, volume)) = self.book.read(known)? else { return Ok(()) };
        let pools = self.pools().unwrap_or_default();
        let Some(pool) = pools.iter().find(|one| one.name == pool) else { return Ok(()) };
        let word = match ask {
            Ask::SnapshotCreate { .. } => work::along::on_its_way(&pool.volumes, &volume),
            _ => work::along::goes_along(&pool.volumes, &volume),
        };
        word.map_or(Ok(()), |word| {
            Err(Refusal::conflict(work::along::moving(&ssd, word), work::along::UNTIL_MOVED))
        })
    }

    fn plan(&self, ask: &Ask, terms: &Terms) -> Result<Plan, Refusal> {
        let wish = self.book.read(|sqlite| desired::check(sqlite, &self.place, ask, terms))?;
        let text = work::configuration(&self.book, &self.base, &self.place, Some(&wish))?;
        let text = text.map_err(|why| {
            Refusal::new(500, "configuration", why, "make the daemon's configuration readable for the agent")
        })?;
        let how = How { dry_run: true, force: matches!(ask, Ask::SsdDelete { force: true, .. }) };
        match self.plane.apply(&text, how) {
            Ok(plan) => Ok(Plan { plan }),
            Err(error) => Err(Refusal::new(409, "daemon", error.to_string(), "nothing was changed")),
        }
    }

    fn terms(&self, headers: &HeaderMap) -> Result<Terms, Refusal> {
        let id = match text(headers, OPERATION_HEADER)? {
            Some(id) if !is_name(id) => return Err(Refusal::bad_name("an operation's id", id)),
            Some(id) => id.to_owned(),
            None => (self.uuid)(),
        };
        let if_match = match text(headers, header::IF_MATCH.as_str())? {
            None | Some("*") => None,
            Some(tag) => Some(tag.trim_matches('"').parse().map_err(|_| {
                let text = format!("If-Match: {tag:.40} is no generation");
                Refusal::bad(text, "send the ETag that the ssd was shown with, such as \"3\"")
            })?),
        };
        Ok(Terms { id, if_match, now_ms: (self.now_ms)(), uuid: (self.uuid)() })
    }
}

/// The ssd that somebody asks for a snapshot of, or for one of whose snapshots: its name, the pool, and the volume that is asked for.
fn along(sqlite: &Connection, ask: &Ask) -> Result<Option<(String, String, String)>, StoreError> {
    let name = match ask {
        Ask::SnapshotCreate { body } => {
            let ssd = store::ssd(sqlite, &body.ssd)?;
            return Ok(ssd.and_then(|ssd| {
                let volume = ssd.volume();
                Some((ssd.name, ssd.spec.pool?, volume))
            }));
        }
        Ask::SnapshotDelete { name } => Some(name),
        Ask::SsdCreate { body } => body.from_snapshot.as_ref(),
        _ => None,
    };
    let Some(name) = name else { return Ok(None) };
    let snapshot = store::snapshot(sqlite, name)?;
    Ok(snapshot.map(|one| {
        let volume = one.volume();
        (one.spec.ssd, one.spec.pool, volume)
    }))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Refusal> {
    let value = headers.get(name).map(|value| value.to_str());
    value.transpose().map_err(|_| Refusal::bad(format!("the header {name} is no text"), "send ASCII"))
}

fn accepted(operation: Operation) -> Response {
    let place = format!("{ROOT}/operations/{}", operation.id);
    (StatusCode::ACCEPTED, [(header::LOCATION, place)], Json(operation)).into_response()
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Godwit agent",
        version = "1",
        description = "One host's drives, pools, ssds, snapshots, attachments, flavors, migrations and operations. Changes are operations: the answer is 202 with an operation, \
            which is done exactly once, also when the agent is killed at it. A header `Idempotency-Key` gives it an id: the same \
            request with the same id again is the same operation. `dry_run=true` says what would be done.",
        license(name = "Apache-2.0 OR MIT")
    ),
    components(schemas(Problem))
)]
struct Document;

fn routes() -> OpenApiRouter<Desk> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(ssds::list, ssds::create))
        .routes(routes!(ssds::show, ssds::change, ssds::delete))
        .routes(routes!(flavors::list, flavors::create))
        .routes(routes!(flavors::show, flavors::delete))
        .routes(routes!(pools::list, pools::create))
        .routes(routes!(pools::show, pools::delete))
        .routes(routes!(pools::check))
        .routes(routes!(snapshots::list, snapshots::create))
        .routes(routes!(snapshots::show, snapshots::delete))
        .routes(routes!(snapshots::certificates))
        .routes(routes!(snapshots::certificate))
        .routes(routes!(attachments::list, attachments::create))
        .routes(routes!(attachments::show, attachments::delete))
        .routes(routes!(drives::list))
        .routes(routes!(drives::show))
        .routes(routes!(migrations::list, migrations::create))
        .routes(routes!(migrations::cancel))
        .routes(routes!(migrations::pause))
        .routes(routes!(migrations::resume))
        .routes(routes!(migrations::timeline))
        .routes(routes!(operations::list))
        .routes(routes!(operations::show))
        .routes(routes!(host::host))
        .routes(routes!(host::watch))
        .routes(routes!(stats::stats))
        .routes(routes!(stats::metrics))
        .routes(routes!(host::openapi))
}

/// The OpenAPI document, as it is in the tree (`docs/formats/openapi.json`).
#[must_use]
pub fn document() -> String {
    let (_, document) = routes().split_for_parts();
    document.to_pretty_json().map(|text| text + "\n").unwrap_or_default()
}

pub(crate) fn router(desk: Desk) -> Router {
    let (router, _) = routes().split_for_parts();
    router
        .merge(crate::page::routes())
        .fallback(nothing_here)
        .method_not_allowed_fallback(not_so)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn(guard::check))
        .with_state(desk)
}

async fn nothing_here() -> Refusal {
    Refusal::new(
        404,
        "not-found",
        "there is nothing at this path".to_owned(),
        "GET /api/v1/openapi.json lists what there is",
    )
}

async fn not_so() -> Refusal {
    Refusal::new(
        405,
        "method",
        "this path does not take this method".to_owned(),
        "GET /api/v1/openapi.json lists what there is",
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_document_in_the_tree_is_what_this_agent_does() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/formats/openapi.json");
        let now = super::document();
        if std::env::var_os("GODWIT_WRITE_OPENAPI").is_some() {
            std::fs::write(&path, &now).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap();
        let ids: Vec<&str> = now.lines().filter(|line| line.contains("\"operationId\"")).collect();
        let distinct: std::collections::BTreeSet<&&str> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "{ids:?}");
        assert!(
            kept == now,
            "docs/formats/openapi.json is not what the agent does; GODWIT_WRITE_OPENAPI=1 cargo test -p agent writes it anew"
        );
    }
}
