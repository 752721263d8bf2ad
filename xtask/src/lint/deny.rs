//! Licences, sources and bans of every crate in the lock file, by cargo-deny and deny.toml.

use std::process::Command;

use anyhow::{Context, Result};

use crate::run::{run, top};
use crate::tool::cargo_plugin;

pub(super) fn check() -> Result<()> {
    let program = cargo_plugin("cargo-deny")?;
    let mut deny = Command::new(program);
    deny.args(["--log-level", "error", "check", "bans", "licenses", "sources"]).current_dir(top());
    run(&mut deny).context("see deny.toml, which says why each licence and source is allowed")
}
