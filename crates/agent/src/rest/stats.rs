//! What the engine counts of each ssd: `/api/v1/stats` for pages and programs, `/metrics` for Prometheus.
//!
//! It is read from the pages that the keeper keeps; the engine is not asked and does not notice.

use super::Desk;
use super::query::{Asked, Since};
use crate::refusal::Refusal;
use api::control::{EngineStatus, SsdStatus, Status};
use api::rest::{OpStats, Problem, SsdStats, Stats};
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use metrics::{BUCKETS, Counts, Engine, Histogram, Observed, Op, Part, Snapshot, floor_ns};
use std::fs::File;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// How old an answer may be that is given to another one who asks.
const AGE_MAX: Duration = Duration::from_millis(100);
/// How often one may ask to hear, at the soonest and the latest.
const EVERY_MS: std::ops::RangeInclusive<u64> = 100..=30_000;
/// If he does not say.
const EVERY_MS_DEFAULT: u64 = 1000;

/// What was read last, and when.
pub(crate) type SeenStats = (Instant, Arc<Stats>);

/// What was counted of all ssds. With `after_ms`, when `every_ms` have passed since then: a page that draws live asks with the
/// `clock_ms` of the answer before.
#[utoipa::path(get, operation_id = "stats", tag = "host", path = "/api/v1/stats", params(Since),
    responses((status = 200, body = Stats), (status = 503, description = "The daemon does not answer", body = Problem)))]
pub(super) async fn stats(
    State(desk): State<Desk>,
    Asked(since): Asked<Since>,
) -> Result<Json<Stats>, Refusal> {
    let every_ms = since.every_ms.unwrap_or(EVERY_MS_DEFAULT).clamp(*EVERY_MS.start(), *EVERY_MS.end());
    if let Some(after_ms) = since.after_ms {
        // Should the host have been started anew since, the wait is over at once.
        let passed = (desk.clock_ms)().checked_sub(after_ms);
        let left_ms = passed.map_or(0, |passed| every_ms.saturating_sub(passed));
        tokio::time::sleep(Duration::from_millis(left_ms)).await;
    }
    let all = desk.beside(read).await?;
    let Some(name) = since.ssd else { return Ok(Json(Arc::unwrap_or_clone(all))) };
    let ssd = all.ssds.iter().find(|ssd| ssd.name == name).cloned();
    let ssd = ssd.ok_or_else(|| Refusal::missing("ssd", &name))?;
    Ok(Json(Stats {
        ssds: vec![ssd],
        bucket_floors_ns: all.bucket_floors_ns.clone(),
        at_ms: all.at_ms,
        clock_ms: all.clock_ms,
        engine_generation: all.engine_generation,
    }))
}

/// The same for Prometheus, and how the engine is (docs/guide/metrics.md).
#[utoipa::path(get, operation_id = "metrics", tag = "host", path = "/metrics",
    responses((status = 200, description = "Prometheus' text", body = String, content_type = "text/plain"),
        (status = 503, description = "The daemon does not answer", body = Problem)))]
pub(super) async fn metrics(State(desk): State<Desk>) -> Result<impl IntoResponse, Refusal> {
    let text = desk
        .beside(|desk| {
            let status = desk.status().map_err(|why| away(&why))?;
            let EngineStatus { generation, crashes, handovers, serving_ms, ref state, .. } = status.engine;
            let engine = Engine { serving: state == "serving", generation, crashes, handovers, serving_ms };
            let observed: Vec<Observed> = status.ssds.iter().map(observed).collect();
            Ok(::metrics::prometheus(&engine, &observed))
        })
        .await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text))
}

pub(super) fn away(why: &str) -> Refusal {
    Refusal::new(503, "daemon", format!("the daemon cannot be asked: {why}"), "godwit status shows how it is")
}

fn observed(ssd: &SsdStatus) -> Observed {
    Observed {
        ssd: ssd.name.clone(),
        state: ssd.state.clone(),
        client: ssd.client,
        crashes: ssd.crashes,
        page: snapshot(ssd).inspect_err(|why| tracing::debug!(ssd = ssd.name, why, "no metrics")).ok(),
    }
}

/// The page is opened anew each time: after the keeper replaced itself it is elsewhere.
fn snapshot(ssd: &SsdStatus) -> Result<Snapshot, String> {
    let Some(path) = &ssd.metrics else {
        return Err("it is not served yet, or by an engine of an older release".to_owned());
    };
    let page = File::open(path).map_err(|error| {
        let path = path.display();
        format!("its page of metrics {path} cannot be opened: {error}; run the agent as root or as the daemon's user")
    })?;
    Snapshot::read(&page).map_err(|error| error.to_string())
}

/// One reads at a time; the others get the same.
fn read(desk: &Desk) -> Result<Arc<Stats>, Refusal> {
    let mut seen = desk.seen_stats.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((at, stats)) = &*seen
        && at.elapsed() < AGE_MAX
    {
        return Ok(Arc::clone(stats));
    }
    let status = desk.status().map_err(|why| away(&why))?;
    let stats = Arc::new(counted(&status, (desk.now_ms)(), (desk.clock_ms)()));
    *seen = Some((Instant::now(), Arc::clone(&stats)));
    Ok(stats)
}

fn counted(status: &Status, at_ms: u64, clock_ms: u64) -> Stats {
    Stats {
        at_ms,
        clock_ms,
        bucket_floors_ns: (0..BUCKETS).map(floor_ns).collect(),
        engine_generation: status.engine.generation,
        ssds: status.ssds.iter().map(ssd_stats).collect(),
    }
}

fn ssd_stats(ssd: &SsdStatus) -> SsdStats {
    let (page, reason) = match snapshot(ssd) {
        Ok(page) => (page, None),
        Err(why) => (Snapshot::default(), Some(why)),
    };
    let op = |op| op_stats(page.of(op));
    SsdStats {
        name: ssd.name.clone(),
        serial: page.facts.serial.clone(),
        state: ssd.state.clone(),
        client: ssd.client,
        reason,
        read: op(Op::Read),
        write: op(Op::Write),
        other: op(Op::Other),
    }
}

fn op_stats(counts: &Counts) -> OpStats {
    let times = |part| pairs(&counts.time(part));
    OpStats {
        ios: counts.ios(),
        bytes: counts.bytes,
        errors: counts.errors,
        queue: times(Part::Queue),
        throttle: times(Part::Throttle),
        drive: times(Part::Drive),
    }
}

fn pairs(times: &Histogram) -> Vec<[u64; 2]> {
    (0..).zip(times.counts()).filter(|(_, count)| **count > 0).map(|(at, count)| [at, *count]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_what_was_counted_and_empty_buckets_are_left_out() {
        let mut page = Snapshot::default();
        page.record(Op::Read, 4096, [100, 0, 50_000]);
        page.record(Op::Read, 4096, [100, 0, 90_000]);
        let told = op_stats(page.of(Op::Read));
        assert_eq!((told.ios, told.bytes, told.errors), (2, 8192, 0));
        assert_eq!(told.queue, [[1, 2]]);
        let [[first, 1], [second, 1]] = told.drive[..] else { panic!("{:?}", told.drive) };
        let floor = |bucket: u64| floor_ns(usize::try_from(bucket).unwrap());
        assert!(floor(first) <= 50_000 && 50_000 < floor(first + 1));
        assert!(floor(second) <= 90_000 && 90_000 < floor(second + 1));
        assert_eq!(op_stats(page.of(Op::Write)), OpStats::default());
    }

    #[test]
    fn an_ssd_whose_page_cannot_be_read_is_listed_with_the_reason() {
        let gone =
            SsdStatus { name: "a".to_owned(), metrics: Some("/proc/0/fd/0".into()), ..SsdStatus::default() };
        let status = Status { ssds: vec![gone], ..Status::default() };
        let stats = counted(&status, 1, 2);
        assert_eq!(stats.ssds.len(), 1);
        assert!(stats.ssds[0].reason.as_ref().is_some_and(|why| why.contains("/proc/0/fd/0")));
        assert_eq!(stats.bucket_floors_ns.len(), BUCKETS);
    }
}
