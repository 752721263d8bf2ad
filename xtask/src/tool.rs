//! Cargo's plug-ins, installed into the project's cache when the machine lacks them.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use vmtest::image::cache_folder;

use crate::run::{cargo, run};

/// The program of a plug-in such as `cargo-deny`: the machine's, else the cache's, else freshly built into the cache.
pub(crate) fn cargo_plugin(name: &str) -> Result<PathBuf> {
    if let Some(path) = on_path(name) {
        return Ok(path);
    }
    let tools = cache_folder()?.join("tools");
    let program = tools.join("bin").join(name);
    if !program.is_file() {
        eprintln!("{name} is missing: building it once, which takes some minutes");
        run(cargo(&["install", name, "--locked", "--quiet", "--root"]).arg(&tools))
            .with_context(|| format!("install {name} by hand: cargo install {name} --locked"))?;
    }
    Ok(program)
}

/// Whether the machine has a plug-in already.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Whether rustup has a nightly toolchain.
pub(crate) fn has_nightly() -> bool {
    nightly_runs(&["--version"])
}

/// Whether the nightly toolchain has Miri.
pub(crate) fn has_miri() -> bool {
    nightly_runs(&["miri", "--version"])
}

fn nightly_runs(arguments: &[&str]) -> bool {
    let probe = Command::new("cargo")
        .arg("+nightly")
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    probe.is_ok_and(|status| status.success())
}
