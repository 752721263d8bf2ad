//! `cargo xtask bench`: the release build, measured by the `bench` program of the guest crate.

use std::process::Command;

use anyhow::Result;

use crate::run::{build, run, top};

pub(crate) fn command(arguments: &[String]) -> Result<()> {
    let godwitd = build("godwitd", "godwitd", true)?;
    let bench = build("guest", "bench", true)?;
    run(Command::new(bench).args(arguments).env("GODWITD", godwitd).current_dir(top()))
}
