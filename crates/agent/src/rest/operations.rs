//! `/api/v1/operations`.

use super::query::{Asked, Name, Newest, Wait};
use super::{Desk, host};
use crate::refusal::Refusal;
use crate::store;
use api::rest::{List, Operation, OperationState, Problem};
use axum::Json;
use axum::extract::State;
use tokio::time::{Instant, timeout_at};

/// Most operations in one answer.
const LIST_MAX: u32 = 10_000;

/// The newest operations, newest first.
#[utoipa::path(get, operation_id = "operation_list", tag = "operation", path = "/api/v1/operations", params(Newest), responses((status = 200, body = List<Operation>)))]
pub(super) async fn list(
    State(desk): State<Desk>,
    Asked(Newest { limit }): Asked<Newest>,
) -> Result<Json<List<Operation>>, Refusal> {
    desk.beside(move |desk| {
        desk.book.read(|sqlite| {
            let rows = store::operations(sqlite, limit.unwrap_or(100).min(LIST_MAX))?;
            let items = rows.into_iter().map(|row| row.shown).collect();
            Ok(Json(List { items, version: store::version(sqlite)? }))
        })
    })
    .await
}

/// One operation; with `wait_s`, when it has ended.
#[utoipa::path(get, operation_id = "operation_show", tag = "operation", path = "/api/v1/operations/{id}", params(("id" = String, Path), Wait),
    responses((status = 200, body = Operation), (status = 404, body = Problem)))]
pub(super) async fn show(
    State(desk): State<Desk>,
    Name(id): Name,
    Asked(Wait { wait_s }): Asked<Wait>,
) -> Result<Json<Operation>, Refusal> {
    let by = Instant::now() + host::patience(wait_s);
    let mut news = desk.book.news();
    loop {
        news.borrow_and_update();
        let known = id.clone();
        let row =
            desk.beside(move |desk| Ok(desk.book.read(|sqlite| store::operation(sqlite, &known))?)).await?;
        let operation = row.ok_or_else(|| Refusal::missing("operation", &id))?.shown;
        if operation.state != OperationState::Running
            || !matches!(timeout_at(by, news.changed()).await, Ok(Ok(())))
        {
            return Ok(Json(operation));
        }
    }
}
