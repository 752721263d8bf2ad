//! `cargo xtask soak`: the release build under a verifying load while its processes die and are replaced, by the `soak`
//! program of the guest crate.

use std::process::Command;

use anyhow::Result;

use crate::run::{build, run, top};

pub(crate) fn command(arguments: &[String]) -> Result<()> {
    let godwitd = build("godwitd", "godwitd", true)?;
    let soak = build("guest", "soak", true)?;
    run(Command::new(soak).args(arguments).env("GODWITD", godwitd).current_dir(top()))
}
