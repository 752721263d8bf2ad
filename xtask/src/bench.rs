//! `cargo xtask bench`: the release build, measured by the `bench` program of the guest crate; and what moves cost real guests.

mod guests;

use std::process::Command;

use anyhow::Result;

use crate::run::{build, run, top};

pub(crate) fn command(arguments: &[String]) -> Result<()> {
    if let Some((_, more)) = arguments.split_first().filter(|(what, _)| *what == "guests") {
        return guests::command(more);
    }
    let godwitd = build("godwitd", "godwitd", true)?;
    let bench = build("guest", "bench", true)?;
    // For the certificates of hosts between which ssds move.
    let godwit = build("cli", "godwit", true)?;
    let mut command = Command::new(bench);
    run(command.args(arguments).env("GODWITD", godwitd).env("GODWIT", godwit).current_dir(top()))
}
