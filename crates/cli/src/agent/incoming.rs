//! Ssds that are to come from another host's agent to this one's.

use super::{How, Reach, part, show, submit};
use crate::output::Output;
use anyhow::{Context, bail};
use api::rest::{Incoming, Ssd, SsdCreate};
use hyper::Method;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longest description of an ssd.
const BYTES_MAX: u64 = 64 << 10;

/// Where it is to lie, and what goes with it.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Here {
    /// The pool to take its space from. Without it: a file.
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// Take space in the pool when it is written, not now.
    #[arg(long, requires = "pool")]
    thin: bool,
    /// The QMP socket of the QEMU here that its guest comes to with it (-S -incoming defer).
    #[arg(long, value_name = "QMP-SOCKET")]
    hypervisor: Option<PathBuf>,
}

/// Prints what another host's agent has to know of an ssd.
pub(super) fn export(name: &str, reach: &Reach) -> anyhow::Result<()> {
    if !matches!(reach.output, Output::Table | Output::Json) {
        bail!("an ssd is exported as JSON\n  next: leave -o out");
    }
    let ssd: Ssd = reach.client()?.get(&format!("ssds/{}", part(name)))?;
    show(&(serde_json::to_string_pretty(&exported(ssd))? + "\n"))
}

/// All but where it lies: that is the other host's to say.
fn exported(ssd: Ssd) -> SsdCreate {
    SsdCreate {
        name: ssd.name,
        size_bytes: Some(ssd.size_bytes),
        interface: ssd.interface,
        profile: ssd.profile,
        // Its key stays here: the other host makes its own.
        encrypted: ssd.encrypted.then_some(true),
        limits: Some(ssd.limits).filter(|limits| !limits.is_empty()),
        incoming: Some(Incoming { uuid: ssd.uuid, serial: Some(ssd.serial), nqn: ssd.nqn }),
        ..SsdCreate::default()
    }
}

/// Has a place made for an ssd that another host's agent exported.
pub(super) fn accept(file: Option<&Path>, here: &Here, how: &How) -> anyhow::Result<()> {
    let text = read(file)?;
    let hint = "\n  next: give what `godwit ssd export NAME` printed at the other host";
    let exported: SsdCreate =
        serde_json::from_str(&text).map_err(|error| anyhow::anyhow!("it is no ssd: {error}{hint}"))?;
    if exported.incoming.is_none() {
        bail!("it is no ssd that comes from another host: `incoming` is missing{hint}");
    }
    let hypervisor = here.hypervisor.as_ref().map(|path| path.display().to_string());
    let wish = SsdCreate {
        pool: here.pool.clone().or(exported.pool),
        thin: here.thin.then_some(true).or(exported.thin),
        hypervisor: hypervisor.or(exported.hypervisor),
        ..exported
    };
    submit(&Method::POST, "ssds", Some(&wish), None, how)
}

fn read(file: Option<&Path>) -> anyhow::Result<String> {
    let mut text = String::new();
    match file.filter(|file| *file != Path::new("-")) {
        None => std::io::stdin().take(BYTES_MAX).read_to_string(&mut text).context("the standard input")?,
        Some(file) => {
            let opened = std::fs::File::open(file).with_context(|| file.display().to_string())?;
            opened.take(BYTES_MAX).read_to_string(&mut text).with_context(|| file.display().to_string())?
        }
    };
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exported_names_the_ssd_to_its_guest_and_not_the_host_where_it_was() {
        let text = r#"{"name": "vm", "uuid": "u", "serial": "S", "nqn": "nqn.x", "generation": 3, "phase": "ready",
            "operation": null, "size_bytes": 1048576, "interface": "nvme", "profile": "godwit-2", "pool": "p", "thin": true,
            "flavor": "f", "encrypted": true, "limits": {"iops": 500}, "socket": "/s", "hypervisor": "/q", "reason": null,
            "serving": {"state": "serving", "reason": null, "client": true, "unanswered": 0}}"#;
        let ssd: Ssd = serde_json::from_str(text).unwrap();
        let told = serde_json::to_value(exported(ssd)).unwrap();
        let expected = serde_json::json!({"name": "vm", "size_bytes": 1_048_576, "interface": "nvme", "profile": "godwit-2",
            "encrypted": true, "limits": {"iops": 500}, "incoming": {"uuid": "u", "serial": "S", "nqn": "nqn.x"}});
        assert_eq!(told, expected);
    }
}
