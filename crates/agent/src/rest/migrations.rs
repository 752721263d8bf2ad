//! `/api/v1/migrations`: the ssds that move between this host and others. All of it is the daemon's word.

use super::query::Name;
use super::stats::away;
use super::{Desk, STATUS_AGE_MAX};
use crate::refusal::Refusal;
use api::control::{MigrationStatus, Timeline};
use api::rest::{Migrations, Problem};
use axum::Json;
use axum::extract::State;
use std::sync::PoisonError;
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
