//! The bed of a guest test: a daemon, a guest on its ssds, and the promise checked at the end.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::daemon::{Daemon, Ssd};
use crate::image::Image;
use crate::kernel_log::nvme_complaints;
use crate::vm::{Vm, VmBuilder};

/// Which drive the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drive {
    /// Godwit's, over vfio-user.
    Godwit,
    /// QEMU's own emulated one: to tell a fault of a test from a fault of Godwit (`VMTEST_DRIVE=qemu`).
    Qemu,
}

impl Drive {
    /// As the environment says; Godwit's unless `VMTEST_DRIVE=qemu`.
    pub fn chosen() -> Drive {
        match std::env::var("VMTEST_DRIVE").as_deref() {
            Ok("qemu") => Drive::Qemu,
            _ => Drive::Godwit,
        }
    }
}

/// A guest with its drives.
pub struct Bed {
    vm: Option<Vm>,
    daemon: Option<Daemon>,
    ssds: Vec<Ssd>,
    image: Image,
    expected_complaints: Vec<&'static str>,
    /// What guests that are gone have said.
    earlier_log: String,
    folder: TempDir,
}

impl Bed {
    /// Starts the daemon and boots a guest with these ssds.
    pub fn new(image: Image, ssds: &[Ssd]) -> Result<Bed> {
        let folder = TempDir::with_prefix("bed-").context("create a folder for the test")?;
        let daemon = match Drive::chosen() {
            Drive::Godwit => Some(Daemon::start(folder.path(), ssds)?),
            Drive::Qemu => None,
        };
        let mut bed = Bed {
            vm: None,
            daemon,
            ssds: ssds.to_vec(),
            image,
            expected_complaints: Vec::new(),
            earlier_log: String::new(),
            folder,
        };
        bed.boot()?;
        Ok(bed)
    }

    /// The guest.
    pub fn vm(&mut self) -> &mut Vm {
        self.vm.as_mut().expect("a bed without a guest: call boot() after shutdown() or crash()")
    }

    /// The daemon. There is none under QEMU's own drive.
    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("no daemon under VMTEST_DRIVE=qemu")
    }

    /// Has the daemon serve these ssds instead; the next guest is booted on them. What `godwit apply` said.
    pub fn apply(&mut self, ssds: &[Ssd]) -> Result<String> {
        let said = self.daemon().apply(ssds)?;
        self.ssds = ssds.to_vec();
        Ok(said)
    }

    /// The folder of the daemon's files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The test causes kernel messages with this text on purpose.
    pub fn expect_complaint(&mut self, text: &'static str) {
        self.expected_complaints.push(text);
    }

    /// Boots a new guest on the same ssds after [`Bed::crash_guest`] or [`Bed::shutdown_guest`].
    pub fn boot(&mut self) -> Result<()> {
        let mut builder = Vm::builder();
        for ssd in &self.ssds {
            builder = self.attach(builder, ssd)?;
        }
        self.vm = Some(builder.boot(&self.image)?);
        Ok(())
    }

    /// Kills QEMU without a word.
    pub fn crash_guest(&mut self) {
        if let Some(vm) = self.vm.take() {
            vm.kill();
        }
    }

    /// Powers the guest off in an orderly way.
    pub fn shutdown_guest(&mut self) -> Result<()> {
        let vm = self.vm.take().context("no guest to shut down")?;
        self.earlier_log.push_str(&vm.shutdown()?);
        Ok(())
    }

    /// The promise of every guest test: the kernel had nothing to complain about, and the daemon still lives and stops
    /// cleanly.
    pub fn finish(mut self) -> Result<()> {
        let mut log = std::mem::take(&mut self.earlier_log);
        if let Some(vm) = &mut self.vm {
            log.push_str(&vm.kernel_log()?);
        }
        let complaints = nvme_complaints(&log, &self.expected_complaints);
        ensure!(complaints.is_empty(), "the guest's kernel complains:\n{}", complaints.join("\n"));
        self.crash_guest();
        self.daemon.as_mut().map_or(Ok(()), Daemon::stop)
    }

    fn attach(&self, builder: VmBuilder, ssd: &Ssd) -> Result<VmBuilder> {
        if let Some(daemon) = self.daemon.as_ref().filter(|_| ssd.disk) {
            return Ok(builder.vhost_user(&ssd.name, &daemon.socket(&ssd.name)));
        }
        if let Some(daemon) = &self.daemon {
            return Ok(builder.vfio_user(&ssd.name, &daemon.socket(&ssd.name)));
        }
        let file = self.folder.path().join(format!("{}.img", ssd.name));
        let open = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&file)
            .context("create the drive's file")?;
        open.set_len(ssd.size_mib << 20).context("size the drive's file")?;
        Ok(builder.emulated_nvme(&ssd.name, &file))
    }
}

/// Runs a test on a bed and keeps the promise of [`Bed::finish`]. On an error the logs are printed.
pub fn with_guest(ssds: &[Ssd], test: impl FnOnce(&mut Bed) -> Result<()>) -> Result<()> {
    with_guest_of(Image::ensure()?, ssds, test)
}

/// [`with_guest`] on an image of the caller's choice.
pub fn with_guest_of(image: Image, ssds: &[Ssd], test: impl FnOnce(&mut Bed) -> Result<()>) -> Result<()> {
    let mut bed = Bed::new(image, ssds)?;
    let outcome = test(&mut bed);
    if outcome.is_err() {
        if let Some(vm) = &mut bed.vm {
            let log = vm.run_ok("dmesg | grep -i nvme | tail -40").unwrap_or_else(|_| vm.console());
            eprintln!("the guest's kernel says:\n{log}");
            let stuck = vm.run_ok("echo w >/proc/sysrq-trigger; dmesg | sed -n '/Show Blocked State/,$p'");
            eprintln!(
                "who waits in the guest's kernel:\n{}",
                stuck.unwrap_or_else(|error| error.to_string())
            );
        }
        if let Some(daemon) = &bed.daemon {
            eprintln!("{}", daemon.log_tail());
        }
    }
    outcome.and_then(|()| bed.finish())
}
