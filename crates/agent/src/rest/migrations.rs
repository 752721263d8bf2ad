//! `/api/v1/migrations`: the ssds that move between this host and others. All of it is the daemon's word, and the daemon's doing.

use super::query::{Asked, Body, Dry, Name};
use super::stats::away;
use super::{Desk, STATUS_AGE_MAX};
use crate::desired::incoming::check_hypervisor;
use crate::plane::PlaneError;
use crate::refusal::Refusal;
use api::control::{EngineRequest, MigrationStatus, Steer, Timeline};
use api::rest::{MigrationAnswer, MigrationCreate, Migrations, Problem, is_name};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

/// What the daemon answered last, and when. A time line is some hundred thousand bytes: that of the ssd that was asked for last is kept.
#[derive(Default)]
pub(crate) struct SeenMigrations {
    list: Option<(Instant, Result<Vec<MigrationStatus>, String>)>,
    timeline: Option<(Instant, Timeline)>,
}

impl SeenMigrations {
    fn list(&mut self, desk: &Desk) -> &Result<Vec<MigrationStatus>, String> {
        let kept = self.list.take().filter(|(at, _)| at.elapsed() < STATUS_AGE_MAX);
        let ask = || (Instant::now(), desk.plane.migrations().map_err(|error| error.to_string()));
        &self.list.insert(kept.unwrap_or_else(ask)).1
    }

    fn timeline(&mut self, desk: &Desk, ssd: &str) -> Result<&Timeline, Refusal> {
        let list = self.list(desk).as_ref().map_err(|why| away(why))?;
        if !list.iter().any(|migration| migration.ssd == ssd) {
            return Err(Refusal::missing("migration", ssd));
        }
        let is_good = |(at, line): &(Instant, Timeline)| line.ssd == ssd && at.elapsed() < STATUS_AGE_MAX;
        let kept = match self.timeline.take().filter(is_good) {
            Some(kept) => kept,
            None => {
                let line = desk.plane.timeline(ssd).map_err(|error| away(&error.to_string()))?;
                (Instant::now(), line)
            }
        };
        Ok(&self.timeline.insert(kept).1)
    }
}

/// One asks the daemon at a time; the others get the same.
fn seen<T>(desk: &Desk, look: impl FnOnce(&mut SeenMigrations) -> T) -> T {
    look(&mut desk.seen_migrations.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The migrations that this host takes part in, and those that ended last. None, with the reason, while the daemon does not answer.
#[utoipa::path(get, operation_id = "migration_list", tag = "migration", path = "/api/v1/migrations",
    responses((status = 200, body = Migrations)))]
pub(super) async fn list(State(desk): State<Desk>) -> Result<Json<Migrations>, Refusal> {
    desk.beside(|desk| {
        Ok(Json(match seen(desk, |seen| seen.list(desk).clone()) {
            Ok(items) => Migrations { items, reason: None },
            Err(why) => Migrations { items: Vec::new(), reason: Some(why) },
        }))
    })
    .await
}

/// How a guest's I/O went during the last migration of its ssd, as this host counted it.
#[utoipa::path(get, operation_id = "migration_timeline", tag = "migration", path = "/api/v1/migrations/{ssd}/timeline",
    params(("ssd" = String, Path)),
    responses((status = 200, body = Timeline), (status = 404, body = Problem),
        (status = 503, description = "The daemon does not answer", body = Problem)))]
pub(super) async fn timeline(State(desk): State<Desk>, Name(ssd): Name) -> Result<Json<Timeline>, Refusal> {
    desk.beside(move |desk| seen(desk, |seen| seen.timeline(desk, &ssd).cloned()).map(Json)).await
}

/// The daemon's word. It does what it is told at once, and asks nobody whether it was told before: an ssd is moved once at a time.
async fn tell(desk: &Desk, request: EngineRequest) -> Result<Json<MigrationAnswer>, Refusal> {
    // The daemon may wait for another host, and goes on with that when whoever asked has left.
    let Ok(turn) = Arc::clone(&desk.tells).try_acquire_owned() else {
        let text = "as many migrations are begun or steered as can be at once";
        return Err(Refusal::new(503, "busy", text.to_owned(), "ask again in a moment"));
    };
    desk.beside(move |desk| {
        let said = desk.plane.engine(request);
        drop(turn);
        match said {
            Ok(message) => Ok(Json(MigrationAnswer { message })),
            Err(PlaneError::Silent(why)) => Err(away(&why)),
            Err(PlaneError::Refused(why)) => {
                Err(Refusal::new(409, "daemon", why, "GET /api/v1/migrations shows those that are under way"))
            }
        }
    })
    .await
}

/// Begins to move an ssd, or a guest with its ssds. The other host expects each of them.
#[utoipa::path(post, operation_id = "migration_create", tag = "migration", path = "/api/v1/migrations", params(Dry),
    request_body = MigrationCreate,
    responses((status = 200, description = "dry_run", body = MigrationAnswer),
        (status = 202, description = "It has begun", body = MigrationAnswer), (status = 400, body = Problem), (status = 409, body = Problem),
        (status = 503, description = "The daemon does not answer: it may have begun", body = Problem)))]
pub(super) async fn create(
    State(desk): State<Desk>,
    Asked(Dry { dry_run }): Asked<Dry>,
    Body(body): Body<MigrationCreate>,
) -> Result<(StatusCode, Json<MigrationAnswer>), Refusal> {
    let (to, terms) = (body.to.clone(), body.terms());
    let request = match (body.ssd, body.vm) {
        (Some(ssd), None) if !is_name(&ssd) => return Err(Refusal::bad_name("an ssd's name", &ssd)),
        (Some(ssd), None) => EngineRequest::Migrate { ssd, to, terms, dry_run },
        (None, Some(vm)) => {
            check_hypervisor(&vm)?;
            EngineRequest::MigrateGuest { qmp: vm.into(), to, terms, dry_run }
        }
        _ => {
            let text = "either an ssd is moved, or a guest with its ssds".to_owned();
            return Err(Refusal::bad(text, "give `ssd` or `vm`"));
        }
    };
    let answer = tell(&desk, request).await?;
    Ok((if dry_run { StatusCode::OK } else { StatusCode::ACCEPTED }, answer))
}

/// Ends a migration: the ssd stays where it is, and what was copied is wiped.
#[utoipa::path(delete, operation_id = "migration_cancel", tag = "migration", path = "/api/v1/migrations/{ssd}", params(("ssd" = String, Path)),
    responses((status = 200, body = MigrationAnswer), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn cancel(
    State(desk): State<Desk>,
    Name(ssd): Name,
) -> Result<Json<MigrationAnswer>, Refusal> {
    tell(&desk, EngineRequest::Steer { ssd, steer: Steer::Cancel }).await
}

/// Copies nothing for now; the guest goes on.
#[utoipa::path(post, operation_id = "migration_pause", tag = "migration", path = "/api/v1/migrations/{ssd}/pause", params(("ssd" = String, Path)),
    responses((status = 200, body = MigrationAnswer), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn pause(
    State(desk): State<Desk>,
    Name(ssd): Name,
) -> Result<Json<MigrationAnswer>, Refusal> {
    tell(&desk, EngineRequest::Steer { ssd, steer: Steer::Pause }).await
}

/// Copies on.
#[utoipa::path(post, operation_id = "migration_resume", tag = "migration", path = "/api/v1/migrations/{ssd}/resume", params(("ssd" = String, Path)),
    responses((status = 200, body = MigrationAnswer), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn resume(
    State(desk): State<Desk>,
    Name(ssd): Name,
) -> Result<Json<MigrationAnswer>, Refusal> {
    tell(&desk, EngineRequest::Steer { ssd, steer: Steer::Resume }).await
}
