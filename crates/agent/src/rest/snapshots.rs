//! `/api/v1/snapshots`, and `/api/v1/certificates` of what was deleted from pools.

use super::Desk;
use super::query::{Asked, Body, Dry, Name, Newest};
use crate::desired::Ask;
use crate::refusal::Refusal;
use crate::store::{self, SnapshotRow};
use api::rest::{Certificate, List, Operation, Plan, Problem, Snapshot, SnapshotCreate};
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

/// Most certificates in one answer.
const LIST_MAX: u32 = 10_000;

fn shown(row: SnapshotRow) -> Snapshot {
    Snapshot {
        volume: row.volume(),
        name: row.name,
        uuid: row.uuid,
        ssd: row.spec.ssd,
        pool: row.spec.pool,
        size_bytes: row.spec.size_bytes,
        encrypted: row.spec.key.is_some(),
        created_ms: row.spec.created_ms,
        phase: row.phase,
        operation: row.operation,
        reason: row.reason,
    }
}

/// All snapshots.
#[utoipa::path(get, operation_id = "snapshot_list", tag = "snapshot", path = "/api/v1/snapshots", responses((status = 200, body = List<Snapshot>)))]
pub(super) async fn list(State(desk): State<Desk>) -> Result<Json<List<Snapshot>>, Refusal> {
    desk.beside(|desk| {
        desk.book.read(|sqlite| {
            let items = store::snapshots(sqlite)?.into_iter().map(shown).collect();
            Ok(Json(List { items, version: store::version(sqlite)? }))
        })
    })
    .await
}

/// One snapshot.
#[utoipa::path(get, operation_id = "snapshot_show", tag = "snapshot", path = "/api/v1/snapshots/{name}", params(("name" = String, Path)),
    responses((status = 200, body = Snapshot), (status = 404, body = Problem)))]
pub(super) async fn show(State(desk): State<Desk>, Name(name): Name) -> Result<Json<Snapshot>, Refusal> {
    desk.beside(move |desk| {
        let snapshot = desk.book.read(|sqlite| store::snapshot(sqlite, &name))?;
        snapshot.map(shown).map(Json).ok_or_else(|| Refusal::missing("snapshot", &name))
    })
    .await
}

/// Keeps what an ssd contains now. An ssd that begins with it is made with `from_snapshot`. Neither is done while the ssd is on its way to or from another host.
#[utoipa::path(post, operation_id = "snapshot_create", tag = "snapshot", path = "/api/v1/snapshots", params(Dry, ("Idempotency-Key" = Option<String>, Header, description = "The id of the operation")),
    request_body = SnapshotCreate,
    responses((status = 200, description = "dry_run", body = Plan), (status = 202, body = Operation), (status = 400, body = Problem),
        (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn create(
    State(desk): State<Desk>,
    Asked(Dry { dry_run }): Asked<Dry>,
    headers: HeaderMap,
    Body(body): Body<SnapshotCreate>,
) -> Result<Response, Refusal> {
    desk.submit(Ask::SnapshotCreate { body }, &headers, dry_run).await
}

/// Deletes a snapshot, and wipes what was its alone. One whose ssd is on its way to or from another host is refused.
#[utoipa::path(delete, operation_id = "snapshot_delete", tag = "snapshot", path = "/api/v1/snapshots/{name}", params(("name" = String, Path), Dry,
        ("Idempotency-Key" = Option<String>, Header, description = "The id of the operation")),
    responses((status = 200, description = "dry_run", body = Plan), (status = 202, body = Operation), (status = 404, body = Problem),
        (status = 409, body = Problem)))]
pub(super) async fn delete(
    State(desk): State<Desk>,
    Name(name): Name,
    Asked(Dry { dry_run }): Asked<Dry>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    desk.submit(Ask::SnapshotDelete { name }, &headers, dry_run).await
}

/// What was deleted from pools, how it was wiped, and with what result: the newest, newest first.
#[utoipa::path(get, operation_id = "certificate_list", tag = "certificate", path = "/api/v1/certificates", params(Newest), responses((status = 200, body = List<Certificate>)))]
pub(super) async fn certificates(
    State(desk): State<Desk>,
    Asked(Newest { limit }): Asked<Newest>,
) -> Result<Json<List<Certificate>>, Refusal> {
    desk.beside(move |desk| {
        desk.book.read(|sqlite| {
            let items = store::certificates(sqlite, limit.unwrap_or(100).min(LIST_MAX))?;
            Ok(Json(List { items, version: store::version(sqlite)? }))
        })
    })
    .await
}

/// One certificate, by the id of the operation that deleted.
#[utoipa::path(get, operation_id = "certificate_show", tag = "certificate", path = "/api/v1/certificates/{id}", params(("id" = String, Path)),
    responses((status = 200, body = Certificate), (status = 404, body = Problem)))]
pub(super) async fn certificate(
    State(desk): State<Desk>,
    Name(id): Name,
) -> Result<Json<Certificate>, Refusal> {
    desk.beside(move |desk| {
        let certificate = desk.book.read(|sqlite| store::certificate(sqlite, &id))?;
        certificate.map(Json).ok_or_else(|| Refusal::missing("certificate", &id))
    })
    .await
}
