//! QEMU's own way with a local disk: its data by `blockdev-mirror` to an NBD server in the QEMU that waits, as libvirt has it do with `--copy-storage-all`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::vm::Vm;

const PATIENCE: Duration = Duration::from_secs(240);
/// The device's drive, as the test bed names it.
const DRIVE: &str = "a-drive";
/// The device's, of [`crate::vm::VmBuilder::emulated_nvme`].
pub const ID: &str = "a";

/// The disk's files, one a host, and a socket between them: without TLS, which Godwit's data goes through.
pub struct Mirror {
    files: [PathBuf; 2],
    folder: TempDir,
}

impl Mirror {
    /// Two empty disks of this size.
    pub fn new(size_mib: u64) -> Result<Mirror> {
        let folder = TempDir::with_prefix("mirror-").context("create a folder for two disks")?;
        let files = ["a.img", "b.img"].map(|name| folder.path().join(name));
        for file in &files {
            File::create(file).and_then(|file| file.set_len(size_mib << 20)).context("create a disk")?;
        }
        Ok(Mirror { files, folder })
    }

    /// Of the host where the guest is (0), and of the other.
    pub fn file(&self, side: usize) -> &Path {
        &self.files[side]
    }

    /// The guest is at the other host now.
    pub fn turn(&mut self) {
        self.files.reverse();
    }

    /// Copies the disk. When this returns both are the same, and each write goes to both before the guest hears of it.
    pub fn begin(&self, vm: &mut Vm, there: &mut Vm) -> Result<()> {
        let socket = self.folder.path().join("nbd");
        let _ = std::fs::remove_file(&socket);
        let address = json!({ "type": "unix", "path": socket });
        there.qmp("nbd-server-start", &json!({ "addr": { "type": "unix", "data": { "path": socket } } }))?;
        let node = node(there)?;
        let export =
            json!({ "type": "nbd", "id": "mirror", "node-name": node, "name": DRIVE, "writable": true });
        there.qmp("block-export-add", &export)?;
        let target = json!({ "driver": "nbd", "node-name": "target", "server": address, "export": DRIVE });
        vm.qmp("blockdev-add", &target)?;
        let job = json!({ "job-id": "mirror", "device": DRIVE, "target": "target", "sync": "full", "copy-mode": "write-blocking" });
        vm.qmp("blockdev-mirror", &job)?;
        until(vm, |jobs| {
            ensure!(jobs.len() == 1, "the mirror has ended");
            Ok(jobs[0]["ready"] == true)
        })
    }

    /// Ends the copy: the guest stands still, so the other disk is as this one.
    pub fn end(&self, vm: &mut Vm) -> Result<()> {
        vm.qmp("block-job-cancel", &json!({ "device": "mirror" }))?;
        until(vm, |jobs| Ok(jobs.is_empty()))?;
        vm.qmp("blockdev-del", &json!({ "node-name": "target" })).map(drop)
    }

    /// The disk there is its guest's alone.
    pub fn let_go(there: &mut Vm) -> Result<()> {
        there.qmp("nbd-server-stop", &json!({})).map(drop)
    }
}

/// What QEMU calls the drive's topmost node.
fn node(vm: &mut Vm) -> Result<Value> {
    let told = vm.qmp("query-block", &json!({}))?;
    let drive = told.as_array().into_iter().flatten().find(|one| one["device"] == DRIVE);
    Ok(drive.context("QEMU has no such drive")?["inserted"]["node-name"].clone())
}

fn until(vm: &mut Vm, is: impl Fn(&[Value]) -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let told = vm.qmp("query-block-jobs", &json!({}))?;
        if is(told.as_array().map_or(&[], Vec::as_slice))? {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the mirror takes too long: {told}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
