//! `/api/v1/pools`.

use super::Desk;
use super::query::{Asked, Body, Dry, Name};
use crate::desired::Ask;
use crate::refusal::Refusal;
use crate::store::{self, PoolRow, SsdRow};
use api::rest::{List, Operation, Pool, PoolCreate, Problem};
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

fn shown(row: PoolRow, ssds: &[SsdRow]) -> Pool {
    let inside = || ssds.iter().filter(|ssd| ssd.spec.pool.as_ref() == Some(&row.name));
    Pool {
        promised_bytes: inside().fold(0, |sum, ssd| sum.saturating_add(ssd.spec.size_bytes)),
        ssds: inside().count() as u64,
        name: row.name,
        path: row.spec.path,
        operation: row.operation,
        phase: row.phase,
    }
}

/// All pools.
#[utoipa::path(get, operation_id = "pool_list", tag = "pool", path = "/api/v1/pools", responses((status = 200, body = List<Pool>)))]
pub(super) async fn list(State(desk): State<Desk>) -> Result<Json<List<Pool>>, Refusal> {
    desk.beside(|desk| {
        desk.book.read(|sqlite| {
            let ssds = store::ssds(sqlite)?;
            let items = store::pools(sqlite)?.into_iter().map(|pool| shown(pool, &ssds)).collect();
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
        desk.book.read(|sqlite| {
            let pool = store::pool(sqlite, &name)?.ok_or_else(|| Refusal::missing("pool", &name))?;
            Ok(Json(shown(pool, &store::ssds(sqlite)?)))
        })
    })
    .await
}

/// Makes a pool of a drive.
#[utoipa::path(post, operation_id = "pool_create", tag = "pool", path = "/api/v1/pools", params(Dry, ("Idempotency-Key" = Option<String>, Header, description = "The id of the operation")),
    request_body = PoolCreate,
    responses((status = 202, body = Operation), (status = 400, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn create(
    State(desk): State<Desk>,
    Asked(Dry { dry_run }): Asked<Dry>,
    headers: HeaderMap,
    Body(body): Body<PoolCreate>,
) -> Result<Response, Refusal> {
    desk.submit(Ask::PoolCreate { body }, &headers, dry_run).await
}

/// Lets a pool go: its drive is served no more. Nothing on it is erased; a pool with ssds is refused.
#[utoipa::path(delete, operation_id = "pool_delete", tag = "pool", path = "/api/v1/pools/{name}", params(("name" = String, Path), Dry,
        ("Idempotency-Key" = Option<String>, Header, description = "The id of the operation")),
    responses((status = 202, body = Operation), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn delete(
    State(desk): State<Desk>,
    Name(name): Name,
    Asked(Dry { dry_run }): Asked<Dry>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    desk.submit(Ask::PoolDelete { name }, &headers, dry_run).await
}
