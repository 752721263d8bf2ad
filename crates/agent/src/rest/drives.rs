//! `/api/v1/drives`: the drives of this host, as far as the agent may look at them.

use super::Desk;
use super::query::Name;
use crate::refusal::Refusal;
use crate::store::{self, PoolRow};
use api::rest::{Drive, DriveHealth, List, PoolCreate, Problem};
use axum::Json;
use axum::extract::State;
use drive::discovery::Host;
use drive::nvme::health::{Health, Verdict};
use drive::survey::Survey;
use drive::wipe::{DEFAULT_FOLDER, Shelf};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// How old a look may be that is given to another one who asks: it reads some megabytes of each drive.
const AGE_MAX: Duration = Duration::from_secs(5);

/// What was seen last, and when.
pub(crate) type SeenDrives = (Instant, Arc<Vec<Survey>>);

/// Looks at the drives. One looks at a time; the others get the same.
fn look(desk: &Desk) -> Result<Arc<Vec<Survey>>, Refusal> {
    let mut seen = desk.seen_drives.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((at, drives)) = &*seen
        && at.elapsed() < AGE_MAX
    {
        return Ok(Arc::clone(drives));
    }
    let surveys = Host::default().survey().map_err(|error| {
        let text = format!("the block devices of this host cannot be listed: {error}");
        Refusal::new(500, "drives", text, "is /sys there, and may the agent read it?")
    })?;
    let shelf = Shelf::new(Path::new(DEFAULT_FOLDER));
    let drives: Arc<Vec<_>> = Arc::new(surveys.into_iter().map(|one| one.with_wipes(&shelf)).collect());
    *seen = Some((Instant::now(), Arc::clone(&drives)));
    Ok(drives)
}

fn shown(survey: &Survey, pools: &[PoolRow]) -> Drive {
    let device = &survey.device;
    let pool = pools.iter().find(|pool| is_path(&pool.spec.path, &device.path));
    let bus = serde_json::to_value(device.bus).ok();
    Drive {
        name: device.name.clone(),
        path: device.path.display().to_string(),
        bus: bus.as_ref().and_then(|bus| bus.as_str()).unwrap_or("other").to_owned(),
        model: device.model.clone(),
        serial: device.serial.clone(),
        firmware: device.firmware.clone(),
        size_bytes: device.size_bytes,
        state: survey.state.name().to_owned(),
        contents: survey.contents.summary(),
        users: device.users.clone(),
        pool: pool.map(|pool| pool.name.clone()),
        health: survey.health.as_ref().map(health),
        confirmation: device.confirmation(),
        unknown: survey.contents.unreadable.iter().chain(&survey.unknown).cloned().collect(),
    }
}

/// A pool's path may be a link to the device, such as those in /dev/disk/by-id.
fn is_path(path: &str, device: &Path) -> bool {
    Path::new(path) == device || std::fs::canonicalize(path).is_ok_and(|real| real == device)
}

fn health(health: &Health) -> DriveHealth {
    let verdict = match health.verdict {
        Verdict::Good => "good",
        Verdict::Warning => "warning",
        Verdict::Failing => "failing",
    };
    DriveHealth {
        verdict: verdict.to_owned(),
        used_percent: health.used_percent.into(),
        spare_percent: health.spare_percent.into(),
        temperature_c: health.temperature_c.map(i64::from),
        warnings: health.warnings.clone(),
    }
}

/// All drives. Regular files are drives only where somebody names them.
#[utoipa::path(get, operation_id = "drive_list", tag = "drive", path = "/api/v1/drives", responses((status = 200, body = List<Drive>)))]
pub(super) async fn list(State(desk): State<Desk>) -> Result<Json<List<Drive>>, Refusal> {
    desk.beside(|desk| {
        let drives = look(desk)?;
        desk.book.read(|sqlite| {
            let pools = store::pools(sqlite)?;
            let items = drives.iter().map(|survey| shown(survey, &pools)).collect();
            Ok(Json(List { items, version: store::version(sqlite)? }))
        })
    })
    .await
}

/// One drive, by its name in /dev.
#[utoipa::path(get, operation_id = "drive_show", tag = "drive", path = "/api/v1/drives/{name}", params(("name" = String, Path)),
    responses((status = 200, body = Drive), (status = 404, body = Problem)))]
pub(super) async fn show(State(desk): State<Desk>, Name(name): Name) -> Result<Json<Drive>, Refusal> {
    desk.beside(move |desk| {
        let drives = look(desk)?;
        let survey = drives.iter().find(|survey| survey.device.name == name);
        let survey = survey.ok_or_else(|| Refusal::missing("drive", &name))?;
        let pools = desk.book.read(store::pools)?;
        Ok(Json(shown(survey, &pools)))
    })
    .await
}

/// Refuses a drive that carries somebody's data, unless its serial number was repeated. The engine looks again, and its word counts:
/// what the agent may not read is left to it.
pub(super) fn check_clear(wanted: &PoolCreate) -> Result<(), Refusal> {
    let path = Path::new(&wanted.path);
    if wanted.import || !path.is_absolute() || !path.exists() {
        return Ok(());
    }
    let Ok(device) = Host::default().find(path) else { return Ok(()) };
    let survey = Survey::of(device).with_wipes(&Shelf::new(Path::new(DEFAULT_FOLDER)));
    if !survey.contents.unreadable.is_empty() || survey.wipes_unread.is_some() {
        return Ok(());
    }
    match survey.clear(wanted.force_destroy_data.as_deref()) {
        Ok(_cleared) => Ok(()),
        Err(refusal) => Err(Refusal::new(
            409,
            "drive-taken",
            refusal.to_string(),
            "take another drive, import its pool if it has one, or repeat its serial number: force_destroy_data",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_with_data_is_refused_with_what_to_repeat_and_a_blank_or_missing_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("drive.img");
        let mut wanted = PoolCreate { path: path.display().to_string(), ..PoolCreate::default() };
        assert!(check_clear(&wanted).is_ok(), "a file is made");
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        assert!(check_clear(&wanted).is_ok());
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let refusal = check_clear(&wanted).unwrap_err();
        assert_eq!(refusal.code(), "drive-taken");
        assert!(format!("{refusal:?}").contains(&wanted.path), "{refusal:?}");
        wanted.force_destroy_data = Some("yes".to_owned());
        assert!(check_clear(&wanted).is_err());
        wanted.force_destroy_data = Some(wanted.path.clone());
        assert!(check_clear(&wanted).is_ok());
    }
}
