//! `/api/v1/flavors`. A flavor is a note: it changes at once, and ssds made by it stay as they are.

use super::Desk;
use super::query::{Body, Name};
use crate::desired::{check_limits, check_size};
use crate::refusal::Refusal;
use crate::store;
use api::rest::{Flavor, List, Problem, is_name};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

/// Most flavors.
const FLAVORS_MAX: usize = 1000;

/// All flavors.
#[utoipa::path(get, operation_id = "flavor_list", tag = "flavor", path = "/api/v1/flavors", responses((status = 200, body = List<Flavor>)))]
pub(super) async fn list(State(desk): State<Desk>) -> Result<Json<List<Flavor>>, Refusal> {
    desk.beside(|desk| {
        let (items, version) =
            desk.book.read(|sqlite| Ok::<_, Refusal>((store::flavors(sqlite)?, store::version(sqlite)?)))?;
        Ok(Json(List { items, version }))
    })
    .await
}

/// One flavor.
#[utoipa::path(get, operation_id = "flavor_show", tag = "flavor", path = "/api/v1/flavors/{name}", params(("name" = String, Path)),
    responses((status = 200, body = Flavor), (status = 404, body = Problem)))]
pub(super) async fn show(State(desk): State<Desk>, Name(name): Name) -> Result<Json<Flavor>, Refusal> {
    desk.beside(move |desk| {
        let flavor = desk.book.read(|sqlite| store::flavor(sqlite, &name))?;
        flavor.map(Json).ok_or_else(|| Refusal::missing("flavor", &name))
    })
    .await
}

/// Makes a flavor. The same one again is no error.
#[utoipa::path(post, operation_id = "flavor_create", tag = "flavor", path = "/api/v1/flavors", request_body = Flavor,
    responses((status = 201, body = Flavor), (status = 400, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn create(
    State(desk): State<Desk>,
    Body(flavor): Body<Flavor>,
) -> Result<(StatusCode, Json<Flavor>), Refusal> {
    if !is_name(&flavor.name) {
        return Err(Refusal::bad_name("a flavor's name", &flavor.name));
    }
    check_size(flavor.size_bytes)?;
    check_limits(&flavor.limits)?;
    desk.beside(move |desk| {
        desk.book.write(|sqlite| {
            if let Some(known) = store::flavor(sqlite, &flavor.name)? {
                return match known == flavor {
                    true => Ok(()),
                    false => Err(Refusal::conflict(
                        format!("there is another flavor \"{}\"", flavor.name),
                        "delete it first: ssds made by it stay as they are",
                    )),
                };
            }
            if store::flavors(sqlite)?.len() >= FLAVORS_MAX {
                return Err(Refusal::conflict(format!("there are {FLAVORS_MAX} flavors"), "delete some"));
            }
            store::put_flavor(sqlite, &flavor).map_err(store::StoreError::from)?;
            Ok(())
        })?;
        Ok((StatusCode::CREATED, Json(flavor)))
    })
    .await
}

/// Deletes a flavor. Ssds made by it stay as they are.
#[utoipa::path(delete, operation_id = "flavor_delete", tag = "flavor", path = "/api/v1/flavors/{name}", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = Problem)))]
pub(super) async fn delete(State(desk): State<Desk>, Name(name): Name) -> Result<StatusCode, Refusal> {
    desk.beside(move |desk| {
        desk.book.write(|sqlite| {
            store::flavor(sqlite, &name)?.ok_or_else(|| Refusal::missing("flavor", &name))?;
            store::remove_flavor(sqlite, &name)?;
            Ok(StatusCode::NO_CONTENT)
        })
    })
    .await
}
