//! `cargo xtask sim`: the simulation, built with crash points.

use anyhow::Result;

use crate::run::{cargo, run};

pub(crate) fn command(arguments: &[String]) -> Result<()> {
    let mut command =
        cargo(&["run", "--quiet", "-p", "sim", "--features", "crash-points", "--bin", "sim", "--"]);
    run(command.args(arguments))
}
