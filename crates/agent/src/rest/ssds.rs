//! `/api/v1/ssds`.

use super::Desk;
use super::query::{Asked, Body, Deletion, Dry, Name};
use crate::desired::Ask;
use crate::refusal::Refusal;
use crate::store::{self, SsdRow};
use api::control::Status;
use api::rest::{List, Operation, Plan, Problem, Serving, Ssd, SsdChange, SsdCreate};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};

fn shown(desk: &Desk, row: SsdRow, status: &Result<Status, String>) -> Ssd {
    let serving = match status {
        Err(why) => Serving { state: "unknown".to_owned(), reason: Some(why.clone()), ..Serving::default() },
        Ok(status) => match status.ssds.iter().find(|ssd| ssd.name == row.name) {
            None => Serving { state: "absent".to_owned(), ..Serving::default() },
            Some(ssd) => Serving {
                state: ssd.state.clone(),
                reason: ssd.reason.clone(),
                client: ssd.client,
                unanswered: ssd.unanswered,
            },
        },
    };
    let (profile, serial) = (row.spec.profile(), row.serial());
    let socket = desk.place.socket(&row.name, row.spec.interface).display().to_string();
    Ssd {
        name: row.name,
        uuid: row.uuid,
        serial,
        nqn: row.spec.nqn,
        generation: row.generation,
        phase: row.phase,
        operation: row.operation,
        size_bytes: row.spec.size_bytes,
        interface: row.spec.interface,
        profile,
        pool: row.spec.pool,
        thin: row.spec.thin,
        flavor: row.spec.flavor,
        encrypted: row.spec.key.is_some(),
        limits: row.spec.limits,
        socket,
        hypervisor: row.spec.hypervisor,
        reason: row.reason,
        serving,
    }
}

/// All ssds.
#[utoipa::path(get, operation_id = "ssd_list", tag = "ssd", path = "/api/v1/ssds", responses((status = 200, body = List<Ssd>)))]
pub(super) async fn list(State(desk): State<Desk>) -> Result<Json<List<Ssd>>, Refusal> {
    desk.beside(|desk| {
        let (rows, version) =
            desk.book.read(|sqlite| Ok::<_, Refusal>((store::ssds(sqlite)?, store::version(sqlite)?)))?;
        let status = desk.status();
        let items = rows.into_iter().map(|row| shown(desk, row, &status)).collect();
        Ok(Json(List { items, version }))
    })
    .await
}

/// One ssd. Its `ETag` is its generation.
#[utoipa::path(get, operation_id = "ssd_show", tag = "ssd", path = "/api/v1/ssds/{name}", params(("name" = String, Path)),
    responses((status = 200, body = Ssd), (status = 404, body = Problem)))]
pub(super) async fn show(State(desk): State<Desk>, Name(name): Name) -> Result<Response, Refusal> {
    desk.beside(move |desk| {
        let row = desk.book.read(|sqlite| store::ssd(sqlite, &name))?;
        let row = row.ok_or_else(|| Refusal::missing("ssd", &name))?;
        let tag = format!("\"{}\"", row.generation);
        let status = desk.status();
        Ok(([(header::ETAG, tag)], Json(shown(desk, row, &status))).into_response())
    })
    .await
}

/// Makes an ssd; with `incoming`, a place for one that comes from another host.
#[utoipa::path(post, operation_id = "ssd_create", tag = "ssd", path = "/api/v1/ssds", params(Dry, ("Idempotency-Key" = Option<String>, Header, description = "The id of the operation")),
    request_body = SsdCreate,
    responses((status = 200, description = "dry_run", body = Plan), (status = 202, body = Operation),
        (status = 400, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn create(
    State(desk): State<Desk>,
    Asked(Dry { dry_run }): Asked<Dry>,
    headers: HeaderMap,
    Body(body): Body<SsdCreate>,
) -> Result<Response, Refusal> {
    desk.submit(Ask::SsdCreate { body: Box::new(body) }, &headers, dry_run).await
}

/// Changes an ssd: its size (which only grows), its limits, and which QEMU here its guest comes to with it; of one that is at another host, only that. Guests are not disturbed.
#[utoipa::path(patch, operation_id = "ssd_change", tag = "ssd", path = "/api/v1/ssds/{name}", params(("name" = String, Path), Dry,
        ("Idempotency-Key" = Option<String>, Header, description = "The id of the operation"),
        ("If-Match" = Option<String>, Header, description = "The generation that it must have")),
    request_body = SsdChange,
    responses((status = 200, description = "dry_run", body = Plan), (status = 202, body = Operation),
        (status = 404, body = Problem), (status = 409, body = Problem), (status = 412, body = Problem)))]
pub(super) async fn change(
    State(desk): State<Desk>,
    Name(name): Name,
    Asked(Dry { dry_run }): Asked<Dry>,
    headers: HeaderMap,
    Body(body): Body<SsdChange>,
) -> Result<Response, Refusal> {
    desk.submit(Ask::SsdChange { name, body }, &headers, dry_run).await
}

/// Deletes an ssd and its data; of one that is at another host, what is left here. One that is on its way is refused, and so is one that has come meanwhile.
#[utoipa::path(delete, operation_id = "ssd_delete", tag = "ssd", path = "/api/v1/ssds/{name}", params(("name" = String, Path), Deletion,
        ("Idempotency-Key" = Option<String>, Header, description = "The id of the operation"),
        ("If-Match" = Option<String>, Header, description = "The generation that it must have")),
    responses((status = 200, description = "dry_run", body = Plan), (status = 202, body = Operation),
        (status = 404, body = Problem), (status = 409, body = Problem), (status = 412, body = Problem)))]
pub(super) async fn delete(
    State(desk): State<Desk>,
    Name(name): Name,
    Asked(Deletion { dry_run, force }): Asked<Deletion>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    desk.submit(Ask::SsdDelete { name, force }, &headers, dry_run).await
}
