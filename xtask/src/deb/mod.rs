//! `cargo xtask deb`: a Debian package, by dpkg-deb alone.
//!
//! What is in it: both programs, the unit, the user, an empty configuration that dpkg keeps, the guide, and the manual pages and
//! completions that `godwit` writes. The same commit gives the same bytes: times are the commit's.
//!
//! Not here: a source package, other architectures than the machine's own, debug symbols in a package of their own, signing.

mod check;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run::{build, cargo, metadata, top};
use tree::Tree;

pub(crate) use check::check;

/// Builds the package from release programs and prints where it is.
pub(crate) fn command() -> Result<()> {
    let package = package(true)?;
    println!("{}", package.display());
    if check::lintian(&package)? {
        println!("lintian: clean");
    }
    Ok(())
}

/// A package of the programs of one profile, in Cargo's target folder.
fn package(release: bool) -> Result<PathBuf> {
    let programs = [build("cli", "godwit", release)?, build("godwitd", "godwitd", release)?];
    let version = version()?;
    let architecture = said(Command::new("dpkg").arg("--print-architecture"))?;
    let folder = metadata()?.target_directory.join(if release { "debian" } else { "debian-debug" });
    let staging = folder.join("tree");
    if staging.exists() {
        fs::remove_dir_all(&staging).with_context(|| format!("remove {}", staging.display()))?;
    }
    let tree = Tree::new(&staging)?;
    fill(&tree, &programs)?;
    let installed_kib = tree.bytes()?.div_ceil(1024);
    tree.sums()?;
    let control = read(&top().join("packaging/debian/control.in"))?
        .replace("@VERSION@", &version)
        .replace("@ARCHITECTURE@", &architecture)
        .replace("@INSTALLED_KIB@", &installed_kib.to_string())
        .replace("@LIBRARIES@", &libraries(&programs)?);
    tree.write("DEBIAN/control", &control, 0o644)?;
    let package = folder.join(format!("godwit_{version}_{architecture}.deb"));
    let mut command = Command::new("dpkg-deb");
    command.args(["--root-owner-group", "--build"]).arg(&staging).arg(&package);
    said(command.env("SOURCE_DATE_EPOCH", commit_time()?))?;
    Ok(package)
}

/// All that is installed, and the scripts.
fn fill(tree: &Tree, programs: &[PathBuf]) -> Result<()> {
    for program in programs {
        let name = program.file_name().context("a program has a name")?.to_string_lossy().into_owned();
        tree.program(program, &format!("usr/bin/{name}"))?;
    }
    let packaging = top().join("packaging");
    for (from, to) in [
        ("systemd/godwitd.service", "lib/systemd/system/godwitd.service"),
        ("systemd/godwit-agent.service", "lib/systemd/system/godwit-agent.service"),
        ("systemd/godwit-agent-network.conf", "usr/share/doc/godwit/examples/godwit-agent-network.conf"),
        ("sysusers.d/godwit.conf", "usr/lib/sysusers.d/godwit.conf"),
        ("godwit.toml", "etc/godwit/godwit.toml"),
        ("debian/copyright", "usr/share/doc/godwit/copyright"),
        ("debian/lintian-overrides", "usr/share/lintian/overrides/godwit"),
    ] {
        tree.write(to, &read(&packaging.join(from))?, 0o644)?;
    }
    for script in ["postinst", "prerm", "postrm"] {
        tree.write(&format!("DEBIAN/{script}"), &read(&packaging.join("debian").join(script))?, 0o755)?;
    }
    tree.write("DEBIAN/conffiles", "/etc/godwit/godwit.toml\n", 0o644)?;
    tree.compressed("usr/share/doc/godwit/changelog.gz", changelog()?.as_bytes())?;
    for entry in fs::read_dir(top().join("docs/guide")).context("list the guide")? {
        let path = entry?.path();
        let name = path.file_name().context("a page has a name")?.to_string_lossy().into_owned();
        tree.write(&format!("usr/share/doc/godwit/guide/{name}"), &read(&path)?, 0o644)?;
    }
    let godwit = programs.first().context("there is a program")?;
    tree.manuals(godwit)?;
    tree.completions(godwit)
}

/// Debian's form of the change log: the release, and where to read more.
fn changelog() -> Result<String> {
    let date = said(Command::new("date").args(["--utc", "-R", "-d", &format!("@{}", commit_time()?)]))?;
    Ok(format!(
        "godwit ({}) unstable; urgency=medium\n\n  * See CHANGELOG.md of the project.\n\n -- Godwit <godwit@localhost.localdomain>  {date}\n",
        version()?
    ))
}

fn version() -> Result<String> {
    let id = said(cargo(&["pkgid", "-p", "godwitd"]).current_dir(top()))?;
    let version = id.rsplit(['#', '@']).next().context("the package has a version")?;
    Ok(version.to_owned())
}

/// Seconds since 1970 of the commit; of now, outside a repository.
fn commit_time() -> Result<String> {
    said(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(top()))
        .or_else(|_| said(Command::new("date").arg("+%s")))
}

/// The C library's lowest version that has what the programs use, as their symbols say.
fn libraries(programs: &[PathBuf]) -> Result<String> {
    let mut newest = (0, 0);
    for program in programs {
        let symbols = said(Command::new("objdump").arg("-T").arg(program))?;
        newest = symbols.split("GLIBC_").skip(1).filter_map(release).fold(newest, Ord::max);
    }
    ensure!(newest > (0, 0), "the programs use no C library: objdump -T named none");
    Ok(format!("libc6 (>= {}.{}), libgcc-s1 (>= 3.0)", newest.0, newest.1))
}

/// `2.34)  __libc_start_main`: 2 and 34.
fn release(text: &str) -> Option<(u32, u32)> {
    let end = text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len());
    let mut parts = text.get(..end)?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// What a program wrote; an error with what it complained of if it failed.
fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {}", output.status, error.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::release;

    #[test]
    fn the_release_of_a_symbol_is_read_and_the_newest_counts_by_number() {
        assert_eq!(release("2.34)  __libc_start_main"), Some((2, 34)));
        assert_eq!(release("2.2.5  read"), Some((2, 2)));
        assert_eq!(release("PRIVATE x"), None);
        assert!(release("2.34 ") > release("2.4 "));
    }
}
