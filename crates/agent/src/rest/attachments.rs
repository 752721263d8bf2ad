//! `/api/v1/attachments`: which ssd is promised to which guest. A promise is a note: it changes at once, and disturbs nobody.

use super::Desk;
use super::query::{Body, Name};
use crate::refusal::Refusal;
use crate::store::{self, AttachmentRow};
use api::control::Status;
use api::rest::{Attachment, AttachmentCreate, List, Phase, Problem, is_name};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use rusqlite::Connection;

fn shown(
    desk: &Desk,
    sqlite: &Connection,
    row: AttachmentRow,
    status: &Result<Status, String>,
) -> Result<Attachment, Refusal> {
    let ssd = store::ssd(sqlite, &row.ssd)?;
    let interface = ssd.map(|ssd| ssd.spec.interface).unwrap_or_default();
    let served = status.as_ref().ok().and_then(|status| status.ssds.iter().find(|ssd| ssd.name == row.ssd));
    Ok(Attachment {
        socket: desk.place.socket(&row.ssd, interface).display().to_string(),
        connected: served.is_some_and(|ssd| ssd.client),
        interface,
        ssd: row.ssd,
        guest: row.guest,
        created_ms: row.created_ms,
    })
}

/// All attachments.
#[utoipa::path(get, operation_id = "attachment_list", tag = "attachment", path = "/api/v1/attachments", responses((status = 200, body = List<Attachment>)))]
pub(super) async fn list(State(desk): State<Desk>) -> Result<Json<List<Attachment>>, Refusal> {
    desk.beside(|desk| {
        let status = desk.status();
        desk.book.read(|sqlite| {
            let rows = store::attachments(sqlite)?.into_iter();
            let items = rows.map(|row| shown(desk, sqlite, row, &status)).collect::<Result<_, _>>()?;
            Ok(Json(List { items, version: store::version(sqlite)? }))
        })
    })
    .await
}

/// The attachment of one ssd.
#[utoipa::path(get, operation_id = "attachment_show", tag = "attachment", path = "/api/v1/attachments/{ssd}", params(("ssd" = String, Path)),
    responses((status = 200, body = Attachment), (status = 404, body = Problem)))]
pub(super) async fn show(State(desk): State<Desk>, Name(ssd): Name) -> Result<Json<Attachment>, Refusal> {
    desk.beside(move |desk| {
        let status = desk.status();
        desk.book.read(|sqlite| {
            let row = store::attachment(sqlite, &ssd)?.ok_or_else(|| Refusal::missing("attachment", &ssd))?;
            Ok(Json(shown(desk, sqlite, row, &status)?))
        })
    })
    .await
}

/// Promises an ssd to a guest. The same again is no error; for another guest it is refused.
#[utoipa::path(post, operation_id = "attachment_create", tag = "attachment", path = "/api/v1/attachments", request_body = AttachmentCreate,
    responses((status = 201, body = Attachment), (status = 400, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn create(
    State(desk): State<Desk>,
    Body(body): Body<AttachmentCreate>,
) -> Result<(StatusCode, Json<Attachment>), Refusal> {
    if !is_name(&body.guest) {
        return Err(Refusal::bad_name("a guest's name", &body.guest));
    }
    desk.beside(move |desk| {
        let status = desk.status();
        desk.book.write(|sqlite| {
            let row = promise(sqlite, body, (desk.now_ms)())?;
            Ok((StatusCode::CREATED, Json(shown(desk, sqlite, row, &status)?)))
        })
    })
    .await
}

fn promise(sqlite: &Connection, body: AttachmentCreate, now_ms: u64) -> Result<AttachmentRow, Refusal> {
    let ssd = store::ssd(sqlite, &body.ssd)?.ok_or_else(|| Refusal::missing("ssd", &body.ssd))?;
    if let Some(known) = store::attachment(sqlite, &ssd.name)? {
        if known.guest == body.guest {
            return Ok(known);
        }
        let text = format!("ssd \"{}\" is attached to guest \"{}\"", ssd.name, known.guest);
        return Err(Refusal::conflict(text, "an ssd is one guest's: delete that attachment first"));
    }
    // An operation that was accepted may be its deletion.
    if ssd.phase != Phase::Ready || ssd.operation.is_some() {
        let word = if ssd.operation.is_some() { "being changed" } else { ssd.phase.word() };
        let text = format!("ssd \"{}\" is {word}", ssd.name);
        return Err(Refusal::conflict(text, "only an ssd that is ready can be attached"));
    }
    let row = AttachmentRow { ssd: ssd.name, guest: body.guest, created_ms: now_ms };
    store::put_attachment(sqlite, &row)?;
    Ok(row)
}

/// Takes the promise back. A guest that is connected stays so.
#[utoipa::path(delete, operation_id = "attachment_delete", tag = "attachment", path = "/api/v1/attachments/{ssd}", params(("ssd" = String, Path)),
    responses((status = 204), (status = 404, body = Problem)))]
pub(super) async fn delete(State(desk): State<Desk>, Name(ssd): Name) -> Result<StatusCode, Refusal> {
    desk.beside(move |desk| {
        desk.book.write(|sqlite| {
            store::attachment(sqlite, &ssd)?.ok_or_else(|| Refusal::missing("attachment", &ssd))?;
            store::remove_attachment(sqlite, &ssd)?;
            Ok(StatusCode::NO_CONTENT)
        })
    })
    .await
}
