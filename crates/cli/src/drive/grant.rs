//! `godwit drive carve`, `give`, `take-back` and `grants`: whole drives and namespaces for ssds.

use crate::output;
use ::drive::discovery::{Controller, Device, Host};
use ::drive::grant::{DEFAULT_FOLDER, Grant, GrantError, Grants, Need, Step, What, advance};
use ::drive::nvme::ioctl::Ioctl;
use ::drive::nvme::namespaces::{Shape, own_cntlid};
use ::drive::survey::Survey;
use anyhow::{Context, bail, ensure};
use api::size::Size;
use clap::Args;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Until the kernel shows a namespace that was attached.
const DEVICE_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Args)]
pub(crate) struct Carve {
    /// The drive: its serial number, or its controller (`/dev/nvme0`).
    drive: String,
    /// The ssd that gets the namespace.
    ssd: String,
    /// Its size, such as 465GiB; it is made larger where the drive has coarser units.
    #[arg(long)]
    size: Option<Size>,
    /// Bytes of a block: 512, 4096, or what else the drive can be formatted with.
    #[arg(long, default_value_t = 512)]
    block: u32,
    /// The folder of the records. Another than the default must stand in the configuration, too.
    #[arg(long, value_name = "FOLDER", default_value = DEFAULT_FOLDER)]
    grants: PathBuf,
}

#[derive(Args)]
pub(crate) struct Give {
    /// The device or file.
    drive: PathBuf,
    /// The ssd that gets it.
    ssd: String,
    /// The drive is taken, and is to be wiped: its serial number, as `godwit drive list` shows it.
    #[arg(long, value_name = "SERIAL")]
    force_destroy_data: Option<String>,
    /// The folder of the records. Another than the default must stand in the configuration, too.
    #[arg(long, value_name = "FOLDER", default_value = DEFAULT_FOLDER)]
    grants: PathBuf,
}

#[derive(Args)]
pub(crate) struct TakeBack {
    /// The ssd.
    ssd: String,
    /// The serial number of its drive, as `godwit drive grants` shows it: the ssd's data are lost for good.
    #[arg(long, value_name = "SERIAL")]
    force_destroy_data: Option<String>,
    /// The folder of the records.
    #[arg(long, value_name = "FOLDER", default_value = DEFAULT_FOLDER)]
    grants: PathBuf,
}

/// Held while something is given or taken back: two at once could take each other's namespace for their own.
fn lock(folder: &Path) -> anyhow::Result<File> {
    let taken = || -> std::io::Result<File> {
        std::fs::create_dir_all(folder)?;
        let file = File::options().write(true).create(true).truncate(false).open(folder.join(".lock"))?;
        file.lock()?;
        Ok(file)
    };
    taken().with_context(|| format!("the records in {} cannot be locked", folder.display()))
}

fn find_controller(host: &Host, drive: &str) -> anyhow::Result<Controller> {
    let all = host.controllers().context("cannot list the NVMe controllers of this host")?;
    let is_it = |one: &Controller| {
        one.serial.as_deref() == Some(drive) || one.path == Path::new(drive) || one.name == drive
    };
    let found: Vec<Controller> = all.into_iter().filter(is_it).collect();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => bail!(
            "there is no NVMe controller {drive}; `godwit drive list -o wide` shows the drives and their serial numbers"
        ),
        many => {
            let names: Vec<&str> = many.iter().map(|one| one.name.as_str()).collect();
            bail!("{drive} has several controllers ({}); name one of them", names.join(", "))
        }
    }
}

pub(crate) fn carve(host: &Host, carve: &Carve) -> anyhow::Result<String> {
    let grants = Grants::new(&carve.grants);
    let _locked = lock(&carve.grants)?;
    let controller = find_controller(host, &carve.drive)?;
    let serial = controller.serial.clone().context("the controller has no serial number")?;
    let mut admin = Ioctl::open(&controller.path).with_context(|| controller.path.display().to_string())?;
    let mut grant = match grants.load(&carve.ssd)? {
        Some(grant) => {
            let goes_on = grant.what == What::Namespace && grant.serial == serial && !grant.step.is_return();
            ensure!(goes_on, "ssd \"{}\" has {} ({})", carve.ssd, grant.describe(), grant.step.name());
            grant
        }
        None => {
            refuse_whole(&grants, &serial)?;
            let size = carve.size.context("add --size: how large the namespace is to be")?;
            let shape = Shape::fit(&mut admin, size.bytes, carve.block)
                .with_context(|| format!("drive {serial} cannot be carved so"))?;
            let grant = Grant::of_namespace(&carve.ssd, &serial, shape);
            grants.save(&grant)?;
            grant
        }
    };
    ready(host, &grants, &mut grant, &mut admin)?;
    Ok(in_words(&grant, &carve.grants))
}

/// A drive that an ssd has whole is not carved.
fn refuse_whole(grants: &Grants, serial: &str) -> anyhow::Result<()> {
    let there = grants.of_drive(serial)?;
    match there.iter().find(|grant| grant.what == What::Drive) {
        Some(grant) => bail!("ssd \"{}\" has all of drive {serial}", grant.ssd),
        None => Ok(()),
    }
}

pub(crate) fn give(host: &Host, give: &Give) -> anyhow::Result<String> {
    let grants = Grants::new(&give.grants);
    let _locked = lock(&give.grants)?;
    let survey = super::survey(host, &give.drive)?;
    let mut grant = Grant::of_drive(&give.ssd, &survey.device);
    let begun = grants.load(&give.ssd)?;
    if let Some(there) = &begun {
        let goes_on = there.what == What::Drive && there.serial == grant.serial && there.step == Step::Clean;
        ensure!(goes_on, "ssd \"{}\" has {} ({})", give.ssd, there.describe(), there.step.name());
    } else if let Some(other) = grants.of_drive(&grant.serial)?.first() {
        bail!("ssd \"{}\" has {}: take that back first", other.ssd, other.describe());
    }
    // A wipe that was begun for it goes on.
    if begun.is_none() {
        let survey = super::survey(host, &give.drive)?.with_wipes(&super::shelf());
        drop(survey.clear(give.force_destroy_data.as_deref())?.open()?);
        grants.save(&grant)?;
    }
    // What somebody left there, nobody else reads.
    super::wipe::for_grant(&survey, &grant.serial)?;
    grant.wiped();
    grants.save(&grant)?;
    Ok(in_words(&grant, &give.grants))
}

/// Brings a namespace's grant to its end: given, or taken back. `true`: there is nothing left of it.
fn ready(host: &Host, grants: &Grants, grant: &mut Grant, admin: &mut Ioctl) -> anyhow::Result<bool> {
    let cntlid = own_cntlid(admin)?;
    loop {
        let need = advance(grant, admin, cntlid, &mut |grant| grants.save(grant))?;
        // The kernel may have seen it by itself.
        let _ = admin.rescan();
        match need {
            Need::Nothing => return Ok(false),
            Need::Forget => return Ok(true),
            Need::Wipe => {
                let survey = Survey::of(appear(host, grant)?);
                super::wipe::for_grant(&survey, &grant.serial)?;
                grant.wiped();
                grants.save(grant)?;
            }
        }
    }
}

fn appear(host: &Host, grant: &Grant) -> Result<Device, GrantError> {
    let begun = Instant::now();
    loop {
        match grant.device(host) {
            Err(GrantError::Gone { .. }) if begun.elapsed() < DEVICE_PATIENCE => {
                std::thread::sleep(Duration::from_millis(100));
            }
            found => return found,
        }
    }
}

pub(crate) fn take_back(host: &Host, back: &TakeBack) -> anyhow::Result<String> {
    let grants = Grants::new(&back.grants);
    let _locked = lock(&back.grants)?;
    let Some(mut grant) = grants.load(&back.ssd)? else {
        bail!("ssd \"{}\" was given nothing; `godwit drive grants` shows who was", back.ssd)
    };
    if !grant.step.is_return() {
        ensure!(
            back.force_destroy_data.as_deref() == Some(grant.serial.as_str()),
            "this destroys the data of ssd \"{}\" on {} for good: add --force-destroy-data {:?}",
            grant.ssd,
            grant.describe(),
            grant.serial
        );
        // Before it was given, there may be nothing to wipe, and nothing made.
        grant.step = match grant.step {
            Step::Planned => return forget(&grants, &grant),
            Step::Create => bail!(
                "it is not known whether its namespace was made: finish that first, with `godwit drive carve {} {}`",
                grant.serial,
                grant.ssd
            ),
            Step::Attach => Step::Detach,
            _ => Step::Empty,
        };
        grants.save(&grant)?;
    }
    if grant.what == What::Drive {
        let survey = Survey::of(grant.device(host)?);
        super::wipe::for_grant(&survey, &grant.serial)?;
        return forget(&grants, &grant);
    }
    let controller = find_controller(host, &grant.serial)?;
    let mut admin = Ioctl::open(&controller.path).with_context(|| controller.path.display().to_string())?;
    ensure!(ready(host, &grants, &mut grant, &mut admin)?, "it is not taken back: {}", grant.step.name());
    forget(&grants, &grant)
}

fn forget(grants: &Grants, grant: &Grant) -> anyhow::Result<String> {
    grants.remove(&grant.ssd)?;
    Ok(format!("ssd \"{}\" has {} no more\n", grant.ssd, grant.describe()))
}

pub(crate) fn list(folder: &Path) -> anyhow::Result<String> {
    let row = |grant: Grant| {
        let nsid = grant.nsid.map_or("-".to_owned(), |nsid| nsid.to_string());
        let what = if grant.what == What::Drive { "drive" } else { "namespace" };
        let step = grant.step.name().to_owned();
        vec![grant.ssd, grant.serial, what.to_owned(), nsid, output::size(grant.size_bytes), step]
    };
    let rows: Vec<Vec<String>> = Grants::new(folder).all()?.into_iter().map(row).collect();
    Ok(output::table(&["SSD", "DRIVE", "WHAT", "NSID", "SIZE", "STEP"], &rows))
}

fn in_words(grant: &Grant, folder: &Path) -> String {
    let kind = if grant.what == What::Drive { "drive" } else { "namespace" };
    let grants = match folder == Path::new(DEFAULT_FOLDER) {
        true => String::new(),
        false => format!(", grants = \"{}\"", folder.display()),
    };
    format!(
        "ssd \"{}\" has {} ({}); in the configuration: backend = {{ type = \"{kind}\", serial = \"{}\"{grants} }}\n",
        grant.ssd,
        grant.describe(),
        output::size(grant.size_bytes),
        grant.serial
    )
}
