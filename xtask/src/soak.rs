//! `cargo xtask soak`: the release build under a verifying load while its processes die and are replaced, by the `soak`
//! program of the guest crate; and guests that move.

mod guests;

use std::process::Command;

use anyhow::Result;

use crate::run::{build, run, top};

pub(crate) fn command(arguments: &[String]) -> Result<()> {
    if let Some((_, more)) = arguments.split_first().filter(|(what, _)| *what == "guests") {
        return guests::command(more);
    }
    let godwitd = build("godwitd", "godwitd", true)?;
    let soak = build("guest", "soak", true)?;
    let mut command = Command::new(soak);
    if arguments.iter().any(|argument| argument == "migrations") {
        // For the hosts' certificates.
        command.env("GODWIT", build("cli", "godwit", true)?);
    }
    run(command.args(arguments).env("GODWITD", godwitd).current_dir(top()))
}
