//! `cargo xtask test`: every stage that must pass, then one closing line with the totals.

use anyhow::{Result, ensure};
use vmtest::image::Image;

use crate::run::{build, cargo, run_heard, top};
use crate::{deb, lint, tool};

/// Guests at once. Each has two emulated processors, so more would only slow one another down.
const GUESTS_AT_ONCE: &str = "1";

/// How many tests did what.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

pub(crate) fn command() -> Result<()> {
    let mut total = Tally::default();
    heading("lint");
    total.failed += lint::failures();
    heading("unit and property tests");
    total.add(tests(&["--workspace", "--exclude", "vmtest", "--exclude", "webtest"], None)?);
    heading("documentation tests");
    total.add(stage(cargo(&["test", "--quiet", "--workspace", "--doc", "--no-fail-fast"]), Runner::Libtest)?);
    heading("every interleaving where fences are argued");
    total.add(models()?);
    heading("unsafe copies under Miri");
    total.add(under_miri()?);
    heading("soak");
    total.add(soaks()?);
    heading("Debian package");
    total.add(debian_package());
    heading("the page in Chromium");
    total.add(in_full(webtest::browser::ensure_installed(), &["-p", "webtest"])?);
    heading("guest tests");
    total.add(in_full(Image::ensure().map(drop), &["-p", "vmtest", "-p", "guest"])?);
    println!("{} passed, {} failed", total.passed, total.failed);
    ensure!(total.passed > 0, "no test ran");
    ensure!(total.failed == 0, "tests failed");
    Ok(())
}

/// What the model checker goes through, compiled with its own atomics, so beside the other builds.
fn models() -> Result<Tally> {
    let mut total = Tally::default();
    for (package, module) in
        [("dirty", "models"), ("engine", "bell"), ("nvme", "models"), ("virtio", "models")]
    {
        let mut command = cargo(&["test", "--quiet", "-p", package, "--lib", module]);
        command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", top().join("target/loom"));
        // Built seldom, and large.
        command.env("CARGO_INCREMENTAL", "0");
        total.add(stage(command, Runner::Libtest)?);
    }
    Ok(total)
}

/// The accesses to guest memory, on private memory, watched by Miri where there is one.
fn under_miri() -> Result<Tally> {
    if !tool::has_miri() {
        println!("left out: no Miri (`rustup toolchain install nightly --component miri` gets it)");
        return Ok(Tally::default());
    }
    let mut command = cargo(&["miri", "test", "--quiet", "-p", "memory", "--lib"]);
    // Segments are numbers that were pointers: their provenance is exposed.
    command.env("RUSTUP_TOOLCHAIN", "nightly").env("MIRIFLAGS", "-Zmiri-permissive-provenance");
    command.env_remove("CARGO").env_remove("RUSTC").env("CARGO_TARGET_DIR", top().join("target/miri"));
    stage(command, Runner::Libtest)
}

/// A few of everything that can happen to the processes, under the verifying load of both frontends: the row must be zero. The debug build, which the tests have made already;
/// how long anything takes is for `cargo xtask soak`.
fn soaks() -> Result<Tally> {
    let (godwitd, soak) = (build("godwitd", "godwitd", false)?, build("guest", "soak", false)?);
    let godwit = build("cli", "godwit", false)?;
    let mut total = Tally::default();
    // A debug build on a busy machine is written as quickly as it is copied: what is left may take its time. The same faults each time.
    let moved = ["--faults", "--max-stun", "2000", "--mebibytes", "32", "--seed", "29"];
    for (what, count, more) in [
        ("kills", "10", &[][..]),
        ("upgrades", "4", &[]),
        ("keeper", "4", &[]),
        ("restarts", "2", &[]),
        ("migrations", "4", &moved),
    ] {
        let mut command = std::process::Command::new(&soak);
        command
            .args([what, "--count", count, "--patience", "120"])
            .args(more)
            .env("GODWITD", &godwitd)
            .env("GODWIT", &godwit)
            .current_dir(top());
        let (clean, _) = run_heard(&mut command)?;
        total.add(Tally { passed: clean.into(), failed: (!clean).into() });
    }
    Ok(total)
}

/// Of the debug build, which the tests have made already: installed, run, removed.
fn debian_package() -> Tally {
    match deb::check() {
        Ok(()) => Tally { passed: 1, failed: 0 },
        Err(error) => {
            eprintln!("error: the Debian package: {error:#}");
            Tally { passed: 0, failed: 1 }
        }
    }
}

/// Tests that start the daemon beside something large, once that is there.
fn in_full(ready: Result<()>, packages: &[&str]) -> Result<Tally> {
    let built = || build("cli", "godwit", false).and_then(|_| build("godwitd", "godwitd", false));
    match ready.and_then(|()| built()) {
        Ok(godwitd) => tests(packages, Some(&godwitd)),
        Err(error) => {
            eprintln!("error: the tests of {} cannot run: {error:#}", packages.join(" "));
            Ok(Tally { passed: 0, failed: 1 })
        }
    }
}

/// Tests by nextest if the machine has it, else by Cargo; of guests or browsers, one by one, if a daemon is given.
fn tests(packages: &[&str], godwitd: Option<&std::path::Path>) -> Result<Tally> {
    // A guest's test takes long enough that one wants to hear of each.
    let level = if godwitd.is_some() { "--status-level=pass" } else { "--status-level=fail" };
    let (mut command, runner) = if tool::on_path("cargo-nextest").is_some() {
        let common =
            ["nextest", "run", "--no-fail-fast", "--no-tests=pass", "--final-status-level=fail", level];
        (cargo(&common), Runner::Nextest)
    } else {
        (cargo(&["test", "--no-fail-fast", "--lib", "--bins", "--tests"]), Runner::Libtest)
    };
    command.args(packages);
    if let Some(godwitd) = godwitd {
        command.env("GODWITD", godwitd);
        match runner {
            Runner::Nextest => command.args(["--test-threads", GUESTS_AT_ONCE]),
            Runner::Libtest => command.args(["--", "--test-threads", GUESTS_AT_ONCE]),
        };
    }
    stage(command, runner)
}

fn stage(mut command: std::process::Command, runner: Runner) -> Result<Tally> {
    let (success, heard) = run_heard(command.env("CARGO_TERM_COLOR", "never"))?;
    let mut tally = match runner {
        Runner::Nextest => nextest_tally(&heard),
        Runner::Libtest => libtest_tally(&heard),
    };
    if !success && tally.failed == 0 {
        // It did not come to the tests: something does not compile.
        tally.failed = 1;
    }
    Ok(tally)
}

#[derive(Clone, Copy)]
enum Runner {
    Nextest,
    Libtest,
}

fn heading(name: &str) {
    println!("== {name}");
}

/// `Summary [ 0.1s] 7 tests run: 5 passed (1 slow), 1 failed, 1 timed out, 2 skipped`
fn nextest_tally(heard: &str) -> Tally {
    let line = heard.lines().rfind(|line| line.trim_start().starts_with("Summary ["));
    let mut tally = Tally::default();
    for part in line.and_then(|line| line.split_once("run:")).map_or("", |(_, parts)| parts).split(',') {
        let mut words = part.split_whitespace();
        let count = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        match words.next() {
            Some("passed") => tally.passed += count,
            Some("failed" | "timed" | "exec" | "aborted") => tally.failed += count,
            _ => {}
        }
    }
    tally
}

/// `test result: ok. 5 passed; 1 failed; 0 ignored; ...`, one per program.
fn libtest_tally(heard: &str) -> Tally {
    let mut tally = Tally::default();
    for line in heard.lines().filter(|line| line.starts_with("test result:")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        for pair in words.windows(2) {
            let count = pair[0].parse().unwrap_or(0);
            match pair[1] {
                "passed;" => tally.passed += count,
                "failed;" => tally.failed += count,
                _ => {}
            }
        }
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::{Tally, libtest_tally, nextest_tally};

    #[test]
    fn the_summary_of_nextest_is_counted() {
        let heard = "   Summary [   0.005s] 9 tests run: 6 passed (1 slow), 2 failed, 1 timed out, 4 skipped\n FAIL x";
        assert_eq!(nextest_tally(heard), Tally { passed: 6, failed: 3 });
        assert_eq!(
            nextest_tally("     Summary [ 0.1s] 3 tests run: 3 passed, 0 skipped"),
            Tally { passed: 3, failed: 0 }
        );
        assert_eq!(nextest_tally("error: could not compile"), Tally::default());
    }

    #[test]
    fn the_summaries_of_every_test_program_are_added() {
        let heard = "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                     test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        assert_eq!(libtest_tally(heard), Tally { passed: 7, failed: 1 });
    }
}
