//! `cargo xtask fuzz`: libFuzzer targets of fuzz/fuzz_targets, for a given time each.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::run::{run, top};
use crate::tool::{cargo_plugin, has_nightly};

pub(crate) fn command(target: Option<&str>, seconds: u32) -> Result<()> {
    let targets = targets()?;
    let chosen: Vec<&String> =
        targets.iter().filter(|name| target.is_none_or(|wanted| wanted == *name)).collect();
    ensure!(
        !chosen.is_empty(),
        "no fuzz target `{}`; there are: {}",
        target.unwrap_or_default(),
        targets.join(", ")
    );
    let program = cargo_plugin("cargo-fuzz")?;
    let mut failed = Vec::new();
    for name in chosen {
        println!("== fuzz {name} for {seconds} s");
        let mut fuzz = Command::new(&program);
        // Sanitizer flags are unstable: a nightly toolchain, or a stable one told to behave like it.
        if has_nightly() {
            fuzz.env("RUSTUP_TOOLCHAIN", "nightly").env_remove("CARGO").env_remove("RUSTC");
        } else {
            fuzz.env("RUSTC_BOOTSTRAP", "1");
        }
        fuzz.args(["fuzz", "run", "--fuzz-dir", "fuzz", name]);
        fuzz.args(folders(name)?).arg("--").arg(format!("-max_total_time={seconds}"));
        fuzz.args(["-timeout=20", "-rss_limit_mb=4096"]).current_dir(top());
        if run(&mut fuzz).is_err() {
            failed.push(name.as_str());
        }
    }
    if !failed.is_empty() {
        bail!(
            "found by {}: the inputs are in fuzz/artifacts; fix them and keep them in fuzz/regressions",
            failed.join(", ")
        );
    }
    println!("fuzz: nothing found");
    Ok(())
}

/// Where inputs come from; new ones go to the first, the working corpus, which is not committed.
fn folders(target: &str) -> Result<Vec<PathBuf>> {
    let corpus = top().join("fuzz/corpus").join(target);
    fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
    let kept = ["seeds", "regressions"].map(|kind| top().join("fuzz").join(kind).join(target));
    Ok(std::iter::once(corpus).chain(kept.into_iter().filter(|folder| folder.is_dir())).collect())
}

fn targets() -> Result<Vec<String>> {
    let folder = top().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder)
        .with_context(|| format!("there are no fuzz targets in {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "rs") {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}
