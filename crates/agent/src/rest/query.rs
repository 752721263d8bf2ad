//! What stands behind `?`, in paths and in bodies, read strictly.

use crate::refusal::Refusal;
use api::rest::is_name;
use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A body.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        match Json::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(error) => Err(of_body(&error)),
        }
    }
}

fn of_body(error: &JsonRejection) -> Refusal {
    let next_step = "GET /api/v1/openapi.json says what a body looks like";
    Refusal::new(error.status().as_u16(), "body", error.body_text(), next_step)
}

/// The name in a path.
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path(name) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|e: PathRejection| Refusal::bad(e.body_text(), "a name is one part of the path"))?;
        match is_name(&name) {
            true => Ok(Self(name)),
            false => Err(Refusal::bad_name("a name", &name)),
        }
    }
}

/// What stands behind `?`.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Query(asked) = Query::from_request_parts(parts, state).await.map_err(|e: QueryRejection| {
            Refusal::bad(e.body_text(), "GET /api/v1/openapi.json says what can be asked")
        })?;
        Ok(Self(asked))
    }
}

#[derive(Deserialize, Default, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Dry {
    /// Say what would be done, and do nothing.
    #[serde(default)]
    pub(super) dry_run: bool,
}

#[derive(Deserialize, Default, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Deletion {
    /// Say what would be done, and do nothing.
    #[serde(default)]
    pub(super) dry_run: bool,
    /// Delete it also while a client is connected: that guest loses its device.
    #[serde(default)]
    pub(super) force: bool,
}

#[derive(Deserialize, Default, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wait {
    /// Answer when it has ended, or after so many seconds (at most 30).
    #[serde(default)]
    pub(super) wait_s: u32,
}

#[derive(Deserialize, Default, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct After {
    /// The version that is known.
    #[serde(default)]
    pub(super) after: u64,
    /// Answer when something has changed, or after so many seconds (at most 30).
    #[serde(default)]
    pub(super) wait_s: u32,
}

#[derive(Deserialize, Default, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Newest {
    /// At most so many, the newest; 100 without it, 10000 at most.
    pub(super) limit: Option<u32>,
}

#[derive(Deserialize, Default, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Since {
    /// The `clock_ms` of the answer before.
    pub(super) after_ms: Option<u64>,
    /// Answer when so many ms have passed since then: 100 to 30000; 1000 without it.
    pub(super) every_ms: Option<u64>,
    /// Only this ssd.
    pub(super) ssd: Option<String>,
}
