//! QEMU's own live migration from one guest's process to another, held where storage may pass (`pause-before-switchover`).

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::vm::Vm;

const PATIENCE: Duration = Duration::from_secs(240);
/// For the first pass over the guest's memory.
const FIRST_BYTES_S: u64 = 128 << 20;
/// From then on: less than a guest writes that is at work, so that the copy does not come to its end.
const SLOW_BYTES_S: u64 = 1 << 20;

/// A migration under way: memory is copied, again and again, as the guest writes it.
pub struct Migration<'a> {
    source: &'a mut Vm,
    destination: &'a mut Vm,
}

impl<'a> Migration<'a> {
    /// Begins to copy memory over a socket at `path`. It does not end before [`Migration::hurry`].
    pub fn begin(source: &'a mut Vm, destination: &'a mut Vm, path: &Path) -> Result<Self> {
        let uri = format!("unix:{}", path.display());
        let on = |capability: &str| json!({ "capability": capability, "state": true });
        let capabilities =
            json!({ "capabilities": [on("events"), on("return-path"), on("pause-before-switchover")] });
        for vm in [&mut *source, &mut *destination] {
            vm.qmp("migrate-set-capabilities", &capabilities)?;
        }
        destination.qmp("migrate-incoming", &json!({ "uri": uri, "exit-on-error": false }))?;
        let first = json!({ "max-bandwidth": FIRST_BYTES_S, "downtime-limit": 1 });
        source.qmp("migrate-set-parameters", &first)?;
        source.qmp("migrate", &json!({ "uri": uri }))?;
        Ok(Self { source, destination })
    }

    /// The guest, which still runs at its source.
    pub fn guest(&mut self) -> &mut Vm {
        self.source
    }

    /// Until all memory was copied once. What is written from then on is copied slowly, until [`Migration::hurry`].
    pub fn wait_first_pass(&mut self) -> Result<()> {
        while self.source.qmp_event("MIGRATION_PASS", PATIENCE)?["data"]["pass"].as_u64() < Some(2) {}
        self.source.qmp("migrate-set-parameters", &json!({ "max-bandwidth": SLOW_BYTES_S })).map(drop)
    }

    /// Copies as quickly as may be. When this returns the guest stands still, and its disks have ended all I/O.
    pub fn hurry(&mut self) -> Result<()> {
        let quick = json!({ "max-bandwidth": 0, "downtime-limit": 2000 });
        self.source.qmp("migrate-set-parameters", &quick)?;
        wait_status(self.source, "pre-switchover")
    }

    /// Lets the guest go on at its destination.
    pub fn switch_over(self) -> Result<()> {
        self.source.qmp("migrate-continue", &json!({ "state": "pre-switchover" }))?;
        wait_status(self.source, "completed").context("the source")?;
        wait_status(self.destination, "completed").context("the destination")?;
        self.destination.qmp("cont", &json!({})).map(drop)
    }
}

fn wait_status(vm: &mut Vm, wanted: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let event = vm.qmp_event("MIGRATION", PATIENCE)?;
        let status = event["data"]["status"].as_str().unwrap_or_default().to_owned();
        if status == wanted {
            return Ok(());
        }
        let ended = ["failed", "failing", "cancelled", "completed"].contains(&&*status);
        if ended {
            let told = vm.qmp("query-migrate", &json!({}))?;
            anyhow::bail!("instead of {wanted}, the migration is {status}: {told}");
        }
        ensure!(Instant::now() < deadline, "the migration does not come to {wanted}");
    }
}
