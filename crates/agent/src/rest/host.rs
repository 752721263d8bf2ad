//! The host as a whole, what changes in it, and this interface's own description.

use super::query::{After, Asked};
use super::{Desk, document};
use crate::refusal::Refusal;
use crate::store;
use api::rest::{Host, Watch};
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use std::sync::PoisonError;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Longest wait in one request, seconds.
const WAIT_S_MAX: u32 = 30;
/// Most changes in one answer.
const CHANGES_MAX: u32 = 1000;

pub(super) fn patience(wait_s: u32) -> Duration {
    Duration::from_secs(u64::from(wait_s.min(WAIT_S_MAX)))
}

/// How the host is.
#[utoipa::path(get, operation_id = "host", tag = "host", path = "/api/v1/host", responses((status = 200, body = Host)))]
pub(super) async fn host(State(desk): State<Desk>) -> Result<Json<Host>, Refusal> {
    desk.beside(|desk| {
        let version = desk.book.read(store::version)?;
        let trouble = desk.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let status = desk.status();
        let engine = status.as_ref().map(|status| status.engine.clone()).unwrap_or_default();
        Ok(Json(Host {
            release: env!("CARGO_PKG_VERSION").to_owned(),
            version,
            daemon: status.is_ok(),
            reason: status.err().or(trouble),
            engine: engine.state,
            engine_generation: engine.generation,
            engine_crashes: engine.crashes,
        }))
    })
    .await
}

/// What has changed after a version; with `wait_s`, when something has.
#[utoipa::path(get, operation_id = "watch", tag = "host", path = "/api/v1/watch", params(After), responses((status = 200, body = Watch)))]
pub(super) async fn watch(
    State(desk): State<Desk>,
    Asked(After { after, wait_s }): Asked<After>,
) -> Result<Json<Watch>, Refusal> {
    let by = Instant::now() + patience(wait_s);
    let mut news = desk.book.news();
    loop {
        news.borrow_and_update();
        let found = desk.beside(move |desk| {
            desk.book
                .read(|sqlite| Ok((store::changes(sqlite, after, CHANGES_MAX)?, store::version(sqlite)?)))
        });
        let ((changes, lost), newest) = found.await?;
        if !changes.is_empty() || lost || !matches!(timeout_at(by, news.changed()).await, Ok(Ok(()))) {
            // What did not fit into this answer is asked for from its last change on.
            let version = if lost { newest } else { changes.last().map_or(after, |change| change.version) };
            return Ok(Json(Watch { changes, version, lost }));
        }
    }
}

/// This document.
#[utoipa::path(get, operation_id = "openapi", tag = "host", path = "/api/v1/openapi.json", responses((status = 200, description = "OpenAPI 3.1")))]
pub(super) async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], document())
}
