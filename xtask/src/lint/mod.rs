//! `cargo xtask lint`: what a reviewer should not have to look for.

mod deny;
mod islands;
mod length;
mod policy;
mod sections;
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::run::{Metadata, cargo, metadata, run};

type Check = (&'static str, fn() -> Result<()>);

const CHECKS: [Check; 7] = [
    ("format", || run(&mut cargo(&["fmt", "--all", "--check"])).context("run `cargo fmt`")),
    ("policy", || verdict(policy::findings(&metadata()?)?)),
    ("unsafe islands", || verdict(islands::findings(&metadata()?)?)),
    ("file length", || verdict(length::findings(&metadata()?)?)),
    ("sections of conformance tests", || verdict(sections::findings()?)),
    ("clippy", || {
        run(&mut cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    }),
    ("bans, licences, sources", deny::check),
];

pub(crate) fn command() -> Result<()> {
    let failures = failures();
    ensure!(failures == 0, "{failures} of {} checks failed", CHECKS.len());
    Ok(())
}

/// Runs every check, tells about each, and counts those that fail.
pub(crate) fn failures() -> u64 {
    let mut failures = 0;
    for (name, check) in CHECKS {
        match check() {
            Ok(()) => println!("lint: {name}: ok"),
            Err(error) => {
                println!("lint: {name}: FAILED\n{error:#}");
                failures += 1;
            }
        }
    }
    failures
}

fn verdict(findings: Vec<String>) -> Result<()> {
    if !findings.is_empty() {
        bail!("  {}", findings.join("\n  "));
    }
    Ok(())
}

/// Every Rust file of the workspace's packages, with its package's name.
fn rust_files(metadata: &Metadata) -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    for package in &metadata.packages {
        let mut paths = Vec::new();
        collect(package.folder(), &mut paths)?;
        files.extend(paths.into_iter().map(|path| (package.name.clone(), path)));
    }
    Ok(files)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// A path as a user at the top folder would type it.
fn short(path: &Path) -> String {
    path.strip_prefix(crate::run::top()).unwrap_or(path).display().to_string()
}
