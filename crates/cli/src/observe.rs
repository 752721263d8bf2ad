//! What the engine counts, read from the pages that the keeper keeps.

use anyhow::Context;
use api::control::{EngineStatus, SsdStatus, Status};
use metrics::{Engine, Observed, Snapshot, prometheus};
use std::fs::File;

/// Everything, as Prometheus reads it. What cannot be read is said, and left out.
pub(crate) fn text(status: &Status) -> String {
    let EngineStatus { generation, crashes, handovers, serving_ms, .. } = status.engine;
    let engine =
        Engine { serving: status.engine.state == "serving", generation, crashes, handovers, serving_ms };
    let observed = |ssd: &SsdStatus| Observed {
        ssd: ssd.name.clone(),
        state: ssd.state.clone(),
        client: ssd.client,
        crashes: ssd.crashes,
        page: open(ssd)
            .and_then(|page| Ok(Snapshot::read(&page)?))
            .inspect_err(|error| eprintln!("godwit: {error:#}"))
            .ok(),
    };
    prometheus(&engine, &status.ssds.iter().map(observed).collect::<Vec<_>>())
}

/// The page of an ssd.
pub(crate) fn open(ssd: &SsdStatus) -> anyhow::Result<File> {
    let name = &ssd.name;
    let path = ssd.metrics.as_ref().with_context(|| {
        format!("ssd \"{name}\" has no metrics: it is not served yet, or by an engine of an older release")
    })?;
    File::open(path).with_context(|| {
        format!(
            "the metrics of ssd \"{name}\" cannot be opened at {}: run this as root or as the daemon's user",
            path.display()
        )
    })
}
