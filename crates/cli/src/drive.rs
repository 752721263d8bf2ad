//! `godwit drive`: the drives of this host.

use crate::output::{self, Output};
use ::drive::discovery::Host;
use ::drive::nvme::health::Verdict;
use ::drive::survey::Survey;
use ::drive::wipe::Shelf;
use anyhow::Context;
use clap::Subcommand;
use serde_json::Value;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

mod grant;
mod wipe;

#[derive(Subcommand)]
pub(crate) enum DriveCommand {
    /// List drives: what they are, what is on them, how they are, and whether they can be given to Godwit.
    List {
        /// Only these devices or files. Without any: every block device of the host.
        drives: Vec<PathBuf>,
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show all that is known of one drive.
    Show {
        /// The device or file: `/dev/nvme0n1`, or `nvme0n1`.
        drive: PathBuf,
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Wipe a drive or one NVMe namespace: by the best way it has, read back, with a certificate. An interrupted wipe goes on
    /// where it was.
    Wipe {
        /// The device or file.
        drive: PathBuf,
        #[command(flatten)]
        how: wipe::Arguments,
    },
    /// Make an NVMe namespace for an ssd, wipe it, and give it to the ssd. An interrupted one goes on where it was.
    Carve(grant::Carve),
    /// Give a whole drive to an ssd. One that is taken is refused, or wiped first.
    Give(grant::Give),
    /// Take back what an ssd was given: it is wiped, and a namespace deleted. An interrupted one goes on where it was.
    TakeBack(grant::TakeBack),
    /// List what ssds were given.
    Grants {
        /// The folder of the records.
        #[arg(long, value_name = "FOLDER", default_value = ::drive::grant::DEFAULT_FOLDER)]
        grants: PathBuf,
    },
}

/// Runs a command; returns what to print.
pub(crate) fn run(command: &DriveCommand) -> anyhow::Result<String> {
    let host = Host::default();
    match command {
        DriveCommand::List { drives, output } => {
            let surveys = if drives.is_empty() {
                host.survey().context("cannot list the block devices of this host")?
            } else {
                drives.iter().map(|path| survey(&host, path)).collect::<anyhow::Result<_>>()?
            };
            let surveys: Vec<Survey> =
                surveys.into_iter().map(|survey| survey.with_wipes(&shelf())).collect();
            list(&surveys, *output)
        }
        DriveCommand::Show { drive, output } => show(&survey(&host, drive)?.with_wipes(&shelf()), *output),
        DriveCommand::Wipe { drive, how } => wipe::run(&host, drive, how),
        DriveCommand::Carve(carve) => grant::carve(&host, carve),
        DriveCommand::Give(give) => grant::give(&host, give),
        DriveCommand::TakeBack(back) => grant::take_back(&host, back),
        DriveCommand::Grants { grants } => grant::list(grants),
    }
}

fn shelf() -> Shelf {
    Shelf::new(Path::new(::drive::wipe::DEFAULT_FOLDER))
}

fn survey(host: &Host, path: &Path) -> anyhow::Result<Survey> {
    let device = host.find(path).with_context(|| {
        format!("there is no drive {}; `godwit drive list` shows them all", path.display())
    })?;
    Ok(Survey::of(device))
}

fn list(surveys: &[Survey], output: Output) -> anyhow::Result<String> {
    Ok(match output {
        Output::Json => serde_json::to_string_pretty(surveys)? + "\n",
        Output::Yaml => output::yaml(&serde_json::to_value(surveys)?),
        Output::Name => surveys.iter().map(|survey| survey.device.name.clone() + "\n").collect(),
        Output::Table => {
            let headings = ["NAME", "MODEL", "SERIAL", "SIZE", "STATE", "HEALTH", "WEAR", "CONTENTS"];
            output::table(&headings, &surveys.iter().map(row).collect::<Vec<_>>())
        }
        Output::Wide => {
            let headings = [
                "NAME", "MODEL", "SERIAL", "SIZE", "STATE", "HEALTH", "WEAR", "TEMP", "HOURS", "FIRMWARE",
                "BLOCK", "BUS", "NSID", "CONTENTS",
            ];
            output::table(&headings, &surveys.iter().map(wide_row).collect::<Vec<_>>())
        }
    })
}

fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or("-".to_owned(), |text| text.to_string())
}

fn row(survey: &Survey) -> Vec<String> {
    let health = survey.health.as_ref();
    vec![
        survey.device.name.clone(),
        or_dash(survey.device.model.as_ref()),
        or_dash(survey.device.serial.as_ref()),
        output::size(survey.device.size_bytes),
        survey.state.name().to_owned(),
        or_dash(health.map(|health| verdict(health.verdict))),
        or_dash(health.map(|health| format!("{} %", health.used_percent))),
        contents(survey),
    ]
}

fn wide_row(survey: &Survey) -> Vec<String> {
    let (device, health) = (&survey.device, survey.health.as_ref());
    let mut row = row(survey);
    let last = row.pop();
    row.extend([
        or_dash(health.and_then(|health| health.temperature_c).map(|degrees| format!("{degrees} C"))),
        or_dash(health.map(|health| health.power_on_hours)),
        or_dash(device.firmware.as_ref()),
        device.logical_block_bytes.to_string(),
        or_dash(serde_json::to_value(device.bus).ok().as_ref().and_then(Value::as_str)),
        or_dash(device.nvme.as_ref().map(|nvme| nvme.nsid)),
    ]);
    row.extend(last);
    row
}

fn contents(survey: &Survey) -> String {
    let mut words = vec![survey.contents.summary()];
    words.extend(survey.device.users.iter().cloned());
    words.join(", ")
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "good",
        Verdict::Warning => "warning",
        Verdict::Failing => "failing",
    }
}

fn show(survey: &Survey, output: Output) -> anyhow::Result<String> {
    match output {
        Output::Json => Ok(serde_json::to_string_pretty(survey)? + "\n"),
        Output::Yaml => Ok(output::yaml(&serde_json::to_value(survey)?)),
        Output::Name => Ok(survey.device.name.clone() + "\n"),
        Output::Table | Output::Wide => Ok(in_words(survey)),
    }
}

fn in_words(survey: &Survey) -> String {
    let device = &survey.device;
    let mut lines: Vec<(&str, String)> = vec![
        ("drive", device.path.display().to_string()),
        ("model", or_dash(device.model.as_ref())),
        ("serial", or_dash(device.serial.as_ref())),
        ("firmware", or_dash(device.firmware.as_ref())),
        ("size", format!("{} ({} bytes)", output::size(device.size_bytes), device.size_bytes)),
        (
            "blocks",
            format!("{} bytes, stored as {}", device.logical_block_bytes, device.physical_block_bytes),
        ),
        ("state", survey.state.name().to_owned()),
    ];
    lines.extend(device.backing_file.iter().map(|file| ("file", file.clone())));
    lines.extend(device.users.iter().map(|user| ("used", user.clone())));
    for found in &survey.contents.findings {
        let mut text = format!("{} at byte {}", found.name, found.offset_bytes);
        for more in [&found.label, &found.uuid, &found.detail].into_iter().flatten() {
            let _infallible = write!(text, ", {more}");
        }
        lines.push(("found", text));
    }
    lines.extend(survey.contents.unreadable.iter().map(|text| ("unreadable", text.clone())));
    for part in &device.partitions {
        lines.push(("partition", format!("{}, {}", part.name, output::size(part.size_bytes))));
    }
    if let Some(health) = &survey.health {
        lines.push((
            "health",
            format!(
                "{}; {} % of its life used, {} % spare, {} h powered, {} written",
                verdict(health.verdict),
                health.used_percent,
                health.spare_percent,
                health.power_on_hours,
                output::size(health.written_bytes)
            ),
        ));
        lines.extend(health.warnings.iter().map(|warning| ("warning", warning.clone())));
    }
    match &survey.carving {
        Some(Ok(carving)) => lines.push((
            "namespaces",
            format!(
                "{}, {} more in {}; {}",
                carving.namespaces,
                carving.namespaces_left,
                output::size(carving.unallocated_bytes),
                if carving.wiped_one_by_one {
                    "each is wiped by itself"
                } else {
                    "a format would erase them all"
                }
            ),
        )),
        Some(Err(reason)) => lines.push(("namespaces", reason.clone())),
        None => {}
    }
    lines.extend(survey.unknown.iter().map(|text| ("unknown", text.clone())));
    lines.iter().fold(String::new(), |mut text, (name, value)| {
        let _infallible = writeln!(text, "{name:10}  {value}");
        text
    })
}
