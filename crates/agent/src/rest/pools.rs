//! `/api/v1/pools`.

use super::query::{Asked, Body, Dry, Name};
use super::{Desk, drives};
use crate::desired::Ask;
use crate::plane::PlaneError;
use crate::refusal::Refusal;
use crate::store::{self, PoolRow, SnapshotRow, SsdRow};
use api::control::{PoolRequest, PoolStatus};
use api::rest::{List, Operation, Phase, Plan, Pool, PoolCheck, PoolCreate, PoolServing, Problem};
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

fn shown(
    row: PoolRow,
    ssds: &[SsdRow],
    snapshots: &[SnapshotRow],
    live: &Result<Vec<PoolStatus>, String>,
) -> Pool {
    let inside = || ssds.iter().filter(|ssd| ssd.spec.pool.as_ref() == Some(&row.name));
    Pool {
        // What has gone has its space there, where it is.
        promised_bytes: inside()
            .filter(|ssd| ssd.phase != Phase::Gone)
            .fold(0, |sum, ssd| sum.saturating_add(ssd.spec.size_bytes)),
        ssds: inside().count() as u64,
        snapshots: snapshots.iter().filter(|one| one.spec.pool == row.name).count() as u64,
        serving: serving(&row.name, live),
        name: row.name,
        path: row.spec.path,
        operation: row.operation,
        phase: row.phase,
    }
}

fn serving(name: &str, live: &Result<Vec<PoolStatus>, String>) -> PoolServing {
    let Ok(live) = live else {
        return PoolServing { state: "unknown".to_owned(), ..PoolServing::default() };
    };
    let Some(pool) = live.iter().find(|pool| pool.name == name) else {
        return PoolServing { state: "absent".to_owned(), ..PoolServing::default() };
    };
    let bytes = |extents: u64| extents.saturating_mul(pool.extent_bytes);
    PoolServing {
        state: pool.state.clone(),
        uuid: pool.uuid.clone(),
        extent_bytes: pool.extent_bytes,
        size_bytes: bytes(pool.extents),
        free_bytes: bytes(pool.free),
        used_bytes: bytes(pool.used),
        wiping_bytes: bytes(pool.wiping),
        quarantined_bytes: bytes(pool.quarantined),
        waiting: pool.waiting,
    }
}

/// All pools.
#[utoipa::path(get, operation_id = "pool_list", tag = "pool", path = "/api/v1/pools", responses((status = 200, body = List<Pool>)))]
pub(super) async fn list(State(desk): State<Desk>) -> Result<Json<List<Pool>>, Refusal> {
    desk.beside(|desk| {
        let live = desk.pools();
        desk.book.read(|sqlite| {
            let (ssds, snapshots) = (store::ssds(sqlite)?, store::snapshots(sqlite)?);
            let shown = |pool| shown(pool, &ssds, &snapshots, &live);
            let items = store::pools(sqlite)?.into_iter().map(shown).collect();
            Ok(Json(List { items, version: store::version(sqlite)? }))
        })
    })
    .await
}

/// One pool.
#[utoipa::path(get, operation_id = "pool_show", tag = "pool", path = "/api/v1/pools/{name}", params(("name" = String, Path)),
    responses((status = 200, body = Pool), (status = 404, body = Problem)))]
pub(super) async fn show(State(desk): State<Desk>, Name(name): Name) -> Result<Json<Pool>, Refusal> {
    desk.beside(move |desk| {
        let live = desk.pools();
        desk.book.read(|sqlite| {
            let pool = store::pool(sqlite, &name)?.ok_or_else(|| Refusal::missing("pool", &name))?;
            Ok(Json(shown(pool, &store::ssds(sqlite)?, &store::snapshots(sqlite)?, &live)))
        })
    })
    .await
}

/// Makes a pool of a drive, or serves one that is there (`import`).
#[utoipa::path(post, operation_id = "pool_create", tag = "pool", path = "/api/v1/pools", params(Dry, ("Idempotency-Key" = Option<String>, Header, description = "The id of the operation")),
    request_body = PoolCreate,
    responses((status = 200, description = "dry_run", body = Plan), (status = 202, body = Operation), (status = 400, body = Problem),
        (status = 409, description = "Also: the drive is taken, and its serial number was not given", body = Problem)))]
pub(super) async fn create(
    State(desk): State<Desk>,
    Asked(Dry { dry_run }): Asked<Dry>,
    headers: HeaderMap,
    Body(body): Body<PoolCreate>,
) -> Result<Response, Refusal> {
    let (terms, wanted) = (desk.terms(&headers)?, body.clone());
    desk.beside(move |desk| {
        let known = || desk.book.read(|sqlite| store::operation(sqlite, &terms.id));
        match drives::check_clear(&wanted) {
            // The operation itself may have made it a pool since.
            Err(refusal) if known()?.is_none() => Err(refusal),
            _ => Ok(()),
        }
    })
    .await?;
    desk.submit(Ask::PoolCreate { body }, &headers, dry_run).await
}

/// Lets a pool go: its drive is served no more, and any host may import it. Nothing on it is erased; a pool with ssds is refused.
#[utoipa::path(delete, operation_id = "pool_delete", tag = "pool", path = "/api/v1/pools/{name}", params(("name" = String, Path), Dry,
        ("Idempotency-Key" = Option<String>, Header, description = "The id of the operation")),
    responses((status = 200, description = "dry_run", body = Plan), (status = 202, body = Operation), (status = 404, body = Problem),
        (status = 409, body = Problem)))]
pub(super) async fn delete(
    State(desk): State<Desk>,
    Name(name): Name,
    Asked(Dry { dry_run }): Asked<Dry>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    desk.submit(Ask::PoolDelete { name }, &headers, dry_run).await
}

/// Looks for inconsistencies of a pool while it is served. Changes nothing.
#[utoipa::path(get, operation_id = "pool_check", tag = "pool", path = "/api/v1/pools/{name}/check", params(("name" = String, Path)),
    responses((status = 200, body = PoolCheck), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn check(State(desk): State<Desk>, Name(name): Name) -> Result<Json<PoolCheck>, Refusal> {
    desk.beside(move |desk| {
        desk.book
            .read(|sqlite| store::pool(sqlite, &name))?
            .ok_or_else(|| Refusal::missing("pool", &name))?;
        match desk.plane.pool(PoolRequest::Check { pool: name, repair: false }) {
            Ok(text) => Ok(Json(PoolCheck { sound: true, text })),
            Err(PlaneError::Refused(text)) if text.contains("is not sound") => {
                Ok(Json(PoolCheck { sound: false, text }))
            }
            Err(error) => {
                Err(Refusal::new(503, "daemon", error.to_string(), "godwit status shows how the daemon is"))
            }
        }
    })
    .await
}
