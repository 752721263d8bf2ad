//! Why a request is not done, as it is told.

use crate::store::StoreError;
use api::rest::Problem;
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

/// Longest part of a client's own text in an answer.
const ECHO_CHARS_MAX: usize = 80;

/// A request that was not done.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: u16,
    problem: Problem,
}

impl Refusal {
    pub(crate) fn new(status: u16, code: &str, message: String, next_step: &str) -> Self {
        let problem = Problem { code: code.to_owned(), message, next_step: next_step.to_owned() };
        Self { status, problem }
    }

    pub(crate) fn bad(message: String, next_step: &str) -> Self {
        Self::new(400, "bad-request", message, next_step)
    }

    pub(crate) fn bad_name(what: &str, name: &str) -> Self {
        let shown: String = name.chars().take(ECHO_CHARS_MAX).collect();
        Self::bad(
            format!("{shown:?} cannot be {what}"),
            "use 1 to 64 letters, digits, '-', '_' or '.', and not '.' first",
        )
    }

    pub(crate) fn missing(kind: &str, name: &str) -> Self {
        let shown: String = name.chars().take(ECHO_CHARS_MAX).collect();
        Self::new(
            404,
            "not-found",
            format!("there is no {kind} {shown:?}"),
            &format!("godwit {kind} list shows what there is"),
        )
    }

    pub(crate) fn conflict(message: String, next_step: &str) -> Self {
        Self::new(409, "conflict", message, next_step)
    }

    pub(crate) fn bug(error: impl std::fmt::Display) -> Self {
        Self::new(
            500,
            "internal",
            format!("the agent failed: {error}"),
            "see the agent's log; if this comes again it is a bug",
        )
    }

    #[cfg(test)]
    pub(crate) fn code(&self) -> &str {
        &self.problem.code
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the state file");
        Self::new(
            500,
            "state",
            format!("the state file: {error}"),
            "is its disk full or broken? the agent's log says more",
        )
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.problem)).into_response()
    }
}
