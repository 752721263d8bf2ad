//! `godwit drive wipe`.

use ::drive::discovery::{Bus, Host};
use ::drive::nvme::ioctl::Ioctl;
use ::drive::nvme::{Admin, active_namespaces, allocated_namespaces};
use ::drive::survey::Survey;
use ::drive::wipe::{
    Certificate, DEFAULT_FOLDER, DirectMedium, Hands, NoKeys, Options, Plan, Rung, Scope, Shelf, Step,
    Target, Verdict, Wipe, plan, run as run_wipe,
};
use anyhow::{Context, bail, ensure};
use clap::Args;
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Between two looks at a sanitize.
const POLL: Duration = Duration::from_millis(500);

#[derive(Args)]
pub(crate) struct Arguments {
    /// The drive's serial number, as `godwit drive list` shows it (its path, if it has none): what is on it is lost for good.
    #[arg(long, value_name = "SERIAL")]
    force_destroy_data: Option<String>,
    /// An NVMe drive with all its namespaces, by sanitize, and not just the one named.
    #[arg(long)]
    whole_drive: bool,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Begin anew, whatever became of an earlier wipe: also of one that ended in quarantine.
    #[arg(long)]
    anew: bool,
    /// Print the certificate as JSON.
    #[arg(long)]
    json: bool,
    /// Where records and certificates are kept. `godwit drive list` looks at the default only.
    #[arg(long, value_name = "FOLDER", default_value = DEFAULT_FOLDER)]
    records: PathBuf,
}

pub(crate) fn run(host: &Host, path: &Path, arguments: &Arguments) -> anyhow::Result<String> {
    let survey = super::survey(host, path)?;
    let scope = if survey.device.bus == Bus::Nvme && !arguments.whole_drive {
        Scope::Namespace
    } else {
        Scope::Drive
    };
    let mut admin = match survey.device.bus {
        Bus::Nvme => Some(Ioctl::open(&survey.device.path).context("the drive cannot be asked")?),
        _ => None,
    };
    let namespaces = admin.as_mut().map_or(0, count_namespaces);
    let plan = plan(scope, false, survey.capabilities.as_ref(), namespaces);
    if arguments.dry_run {
        return Ok(in_words(&survey, scope, &plan));
    }
    if scope == Scope::Drive {
        check_siblings(host, &survey)?;
    }
    let Some(serial) = arguments.force_destroy_data.as_deref() else {
        bail!(
            "a wipe destroys what is on {} ({}) for good: add --force-destroy-data {:?}",
            survey.device.path.display(),
            survey.contents.summary(),
            survey.device.confirmation()
        );
    };
    let earlier = if arguments.anew { Earlier::Forget } else { Earlier::GoOn };
    let (certificate, kept) = carry_out(&survey, Some(serial), (scope, plan), earlier, &arguments.records)?;
    let text = if arguments.json {
        serde_json::to_string_pretty(&certificate)? + "\n"
    } else {
        format!("{certificate}\n  kept as   {}\n", kept.display())
    };
    if certificate.verdict == Verdict::Quarantined {
        print!("{text}");
        bail!("the wipe of {} did not succeed: nobody may get it", survey.device.path.display());
    }
    Ok(text)
}

/// What becomes of the record of an earlier wipe.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Earlier {
    GoOn,
    Forget,
}

/// Wipes an NVMe namespace by itself, or another device whole, for a step of a grant. Goes on with an interrupted one.
pub(super) fn for_grant(survey: &Survey, serial: &str) -> anyhow::Result<PathBuf> {
    let scope = if survey.device.bus == Bus::Nvme { Scope::Namespace } else { Scope::Drive };
    let namespaces = match survey.device.bus {
        Bus::Nvme => Ioctl::open(&survey.device.path).map_or(0, |mut admin| count_namespaces(&mut admin)),
        _ => 0,
    };
    let plan = plan(scope, false, survey.capabilities.as_ref(), namespaces);
    let records = Path::new(DEFAULT_FOLDER);
    let (certificate, kept) = carry_out(survey, Some(serial), (scope, plan), Earlier::GoOn, records)?;
    ensure!(
        certificate.verdict != Verdict::Quarantined,
        "the wipe of {} did not succeed: nobody may get it (`godwit drive wipe --anew` tries again)",
        survey.device.path.display()
    );
    Ok(kept)
}

fn carry_out(
    survey: &Survey,
    serial: Option<&str>,
    (scope, plan): (Scope, Plan),
    earlier: Earlier,
    records: &Path,
) -> anyhow::Result<(Certificate, PathBuf)> {
    let mut admin = match survey.device.bus {
        Bus::Nvme => Some(Ioctl::open(&survey.device.path).context("the drive cannot be asked")?),
        _ => None,
    };
    let cleared = survey.clear(serial)?;
    let found = Target::of(&survey.device);
    let mut shelf = Shelf::new(records);
    let mut wipe = begin_or_resume(&shelf, &found, scope, plan, earlier == Earlier::Forget)?;
    let medium = DirectMedium::new(cleared.open()?, found.offset_bytes, found.len_bytes)?;
    let admin = admin.as_mut().map(|admin| admin as &mut dyn Admin);
    let mut hands = Hands { admin, medium: &medium, keys: &mut NoKeys, found };
    let mut said = String::new();
    let mut wait = |wipe: &Wipe, sanitizing: bool| {
        let text = progress(wipe);
        if text != said {
            eprintln!("{text}");
            said = text;
        }
        if sanitizing {
            std::thread::sleep(POLL);
        }
    };
    let certificate = run_wipe(&mut wipe, &mut hands, &mut shelf, &mut now_unix_s, &mut wait)?;
    let kept =
        shelf.conclude(&certificate).context("the wipe has ended, and its certificate cannot be kept")?;
    Ok((certificate, kept))
}

fn count_namespaces(admin: &mut Ioctl) -> usize {
    let active = active_namespaces(admin).map_or(0, |list| list.len());
    allocated_namespaces(admin).map_or(active, |list| list.len().max(active))
}

/// What else is on the same drive goes with it, so none of it may be in use.
fn check_siblings(host: &Host, survey: &Survey) -> anyhow::Result<()> {
    let device = &survey.device;
    for sibling in host.devices().context("cannot look for other namespaces of the drive")? {
        let same = sibling.name != device.name && sibling.serial.is_some() && sibling.serial == device.serial;
        ensure!(
            !(same && sibling.bus == device.bus && !sibling.users.is_empty()),
            "{} is on the same drive and in use ({}); stop that first, or leave --whole-drive out",
            sibling.path.display(),
            sibling.users.join(", ")
        );
    }
    Ok(())
}

fn begin_or_resume(
    shelf: &Shelf,
    found: &Target,
    scope: Scope,
    plan: Plan,
    anew: bool,
) -> anyhow::Result<Wipe> {
    let earlier = shelf.record(found).context("the record of an earlier wipe cannot be read")?;
    if let Some(record) = earlier.filter(|_| !anew) {
        let record = record?;
        ensure!(
            record.at != Step::Quarantined,
            "wipe {} of it ended in quarantine; to try all rungs again, add --anew",
            record.id
        );
        ensure!(
            record.scope == scope,
            "wipe {} of it was interrupted, and had another scope: give the same options, or --anew",
            record.id
        );
        eprintln!("going on with wipe {}", record.id);
        return Ok(Wipe::resume(record)?);
    }
    let mut drawn = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut drawn))
        .context("no randomness")?;
    let (seed, now) = (u64::from_le_bytes(drawn), now_unix_s());
    let id = format!("{now}-{seed:016x}");
    Ok(Wipe::begin(&id, seed, found.clone(), (scope, None), plan, Options::default(), now)?)
}

fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn rung_of(wipe: &Wipe, rung: usize) -> &'static str {
    wipe.record().rungs.get(rung).map_or("", |rung| Rung::name(*rung))
}

fn progress(wipe: &Wipe) -> String {
    let percent = |done: u64, total: u64| u128::from(done) * 100 / u128::from(total.max(1));
    let total = wipe.record().target.len_bytes;
    match wipe.record().at {
        Step::Witness { rung } => format!("{}: patterns are laid out", rung_of(wipe, rung)),
        Step::Act { rung } => format!("{}: started", rung_of(wipe, rung)),
        Step::Poll { rung, progress, .. } => {
            format!("{}: {} %", rung_of(wipe, rung), percent(progress.into(), 65536))
        }
        Step::CheckWitness { rung } => format!("{}: are the patterns gone?", rung_of(wipe, rung)),
        Step::Zero { rung, done_bytes } | Step::Scribble { rung, done_bytes } => {
            format!("{}: {} %", rung_of(wipe, rung), percent(done_bytes, total))
        }
        Step::IsBlank { done_bytes, .. }
        | Step::ReadScribble { done_bytes, .. }
        | Step::ReadBack { done_bytes, .. } => format!("read back: {} %", percent(done_bytes, total)),
        Step::Wiped => "wiped".to_owned(),
        Step::Quarantined => "quarantined".to_owned(),
    }
}

fn in_words(survey: &Survey, scope: Scope, plan: &Plan) -> String {
    let what = match scope {
        Scope::Namespace => "this namespace",
        _ => "the whole drive",
    };
    let mut text = format!(
        "would wipe {} ({what}, {} bytes; on it: {})\n",
        survey.device.path.display(),
        survey.device.size_bytes,
        survey.contents.summary()
    );
    for (number, rung) in (1..).zip(&plan.rungs) {
        let _infallible = writeln!(text, "  {number}. {}", rung.name());
    }
    for left in &plan.left_out {
        let _infallible = writeln!(text, "  not {}: {}", left.rung.name(), left.reason);
    }
    text
}
