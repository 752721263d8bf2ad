//! A package proves itself: installed by dpkg into a root of its own, its programs run there, removed and purged again.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::{package, said};
use crate::tool::on_path;

/// What the package's scripts and this check call; a root has these and nothing else.
const TOOLS: [&str; 4] = ["sh", "rmdir", "systemd-sysusers", "timeout"];

/// Keys of the unit that systemd 252 does not know: it does without them.
const NEWER_KEYS: [&str; 3] = ["FileDescriptorStorePreserve", "RestartSteps", "RestartMaxDelaySec"];

/// Builds a package of the debug programs and installs it. Needs root, as dpkg does.
pub(crate) fn check() -> Result<()> {
    let package = package(false)?;
    let root = package.with_file_name("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
    }
    prepare(&root)?;
    dpkg(&root, &["--install", &package.to_string_lossy()])?;
    for program in ["godwit", "godwitd"] {
        let version = said(Command::new("chroot").arg(&root).args([program, "--version"]))?;
        ensure!(version.starts_with(program), "{program} --version says: {version}");
    }
    let checked = said(Command::new("chroot").arg(&root).args(["godwitd", "--check"]))?;
    ensure!(checked.ends_with("0 ssds"), "godwitd --check says of the configuration: {checked}");
    if root.join("usr/bin/systemd-sysusers").exists() || root.join("bin/systemd-sysusers").exists() {
        let users = fs::read_to_string(root.join("etc/passwd")).context("read the users")?;
        ensure!(users.lines().any(|line| line.starts_with("godwit:")), "there is no user godwit: {users}");
    }
    unit(&root, "godwitd.service")?;
    unit(&root, "godwit-agent.service")?;
    network(&root)?;
    lintian(&package)?;
    let config = root.join("etc/godwit/godwit.toml");
    fs::write(&config, "# the operator's own\n").context("change the configuration")?;
    dpkg(&root, &["--force-confold", "--install", &package.to_string_lossy()])?;
    dpkg(&root, &["--remove", "godwit"])?;
    ensure!(config.exists(), "the operator's configuration went with the package");
    dpkg(&root, &["--purge", "godwit"])?;
    ensure!(!config.exists() && !root.join("usr/bin/godwitd").exists(), "a purge leaves files");
    fs::remove_dir_all(&root).context("remove the root")
}

/// What lintian finds is an error. `false`: there is no lintian.
pub(super) fn lintian(package: &Path) -> Result<bool> {
    if on_path("lintian").is_none() {
        println!("left out: no lintian (apt-get install lintian)");
        return Ok(false);
    }
    // Not asked of us: pages for what has none, and the bug tracker of the archive.
    let suppressed = "no-manual-page,initial-upload-closes-no-bugs,bad-distribution-in-changes-file";
    let mut command = Command::new("lintian");
    command.args(["--allow-root", "--fail-on", "error,warning", "--suppress-tags", suppressed]);
    let output = command.arg(package).output().context("start lintian")?;
    let findings = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "lintian:\n{}", findings.trim());
    Ok(true)
}

/// The unit is one that the manager understands.
fn unit(root: &Path, name: &str) -> Result<()> {
    if on_path("systemd-analyze").is_none() {
        println!("left out: no systemd-analyze");
        return Ok(());
    }
    // The manager wants to see the programs; they are in the root only.
    let text = fs::read_to_string(root.join("lib/systemd/system").join(name)).context("read the unit")?;
    let text = text.replace("/usr/bin/godwit", &format!("{}/usr/bin/godwit", root.display()));
    let unit = root.join(name);
    fs::write(&unit, text).context("write the unit")?;
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output();
    let verified = verified.context("start systemd-analyze")?;
    let complaints = String::from_utf8_lossy(&verified.stderr);
    // Of other units of this machine one learns too, and an older manager says what it passes over.
    let is_newer = |line: &str| NEWER_KEYS.iter().any(|key| line.contains(&format!("Unknown key '{key}'")));
    let ours: Vec<&str> =
        complaints.lines().filter(|line| line.contains(&format!("/{name}")) && !is_newer(line)).collect();
    if !ours.is_empty() {
        bail!("systemd-analyze verify: {}", ours.join("\n"));
    }
    fs::remove_file(unit).context("remove the unit")
}

/// The drop-in that gives the agent a network: the manager understands it, and the agent its options.
fn network(root: &Path) -> Result<()> {
    let example = root.join("usr/share/doc/godwit/examples/godwit-agent-network.conf");
    let text = fs::read_to_string(&example).context("read the drop-in")?;
    let drop_ins = root.join("godwit-agent.service.d");
    fs::create_dir(&drop_ins).context("create the folder of drop-ins")?;
    fs::write(drop_ins.join("network.conf"), &text).context("write the drop-in")?;
    unit(root, "godwit-agent.service")?;
    fs::remove_dir_all(&drop_ins).context("remove the drop-ins")?;
    let options = text.lines().find_map(|line| line.strip_prefix("Environment=\"GODWIT_AGENT_OPTIONS="));
    let options = options.and_then(|rest| rest.strip_suffix('"')).context("the drop-in says no options")?;
    // There are no certificates in the root: an agent that understood its options says which it wants first.
    let mut agent = Command::new("chroot");
    agent.arg(root).args(["timeout", "10", "godwitd", "agent"]).args(options.split_whitespace());
    let output = agent.output().context("start the agent")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(error.contains("/etc/godwit/clients.pem"), "the agent says of the drop-in's options: {error}");
    Ok(())
}

/// A root with a shell, the tools of the scripts, the libraries of all, and an empty database of packages.
fn prepare(root: &Path) -> Result<()> {
    for folder in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "usr/bin", "etc", "dev", "tmp", "run"] {
        fs::create_dir_all(root.join(folder)).with_context(|| format!("create {folder} in a root"))?;
    }
    // A file for /dev/null is as good for what scripts write there.
    for file in ["dev/null", "var/lib/dpkg/status", "var/lib/dpkg/available", "etc/passwd", "etc/group"] {
        fs::write(root.join(file), "").with_context(|| format!("create {file} in a root"))?;
    }
    for program in TOOLS.iter().filter_map(|name| on_path(name)) {
        bring(root, &program)?;
    }
    std::os::unix::fs::symlink("usr/bin", root.join("bin")).context("link bin")?;
    for program in ["godwit", "godwitd"] {
        for library in needed(&crate::run::build(package_of(program), program, false)?)? {
            copy(root, &library, &library)?;
        }
    }
    Ok(())
}

fn package_of(program: &str) -> &str {
    if program == "godwit" { "cli" } else { program }
}

/// A program into `usr/bin`, and its libraries where they are.
fn bring(root: &Path, program: &Path) -> Result<()> {
    let name = program.file_name().context("a program has a name")?;
    copy(root, program, &Path::new("/usr/bin").join(name))?;
    needed(program)?.iter().try_for_each(|library| copy(root, library, library))
}

/// `ldd`: the paths it names.
fn needed(program: &Path) -> Result<Vec<PathBuf>> {
    let text = said(Command::new("ldd").arg(program))?;
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

fn copy(root: &Path, from: &Path, to: &Path) -> Result<()> {
    let to = root.join(to.strip_prefix("/").unwrap_or(to));
    let folder = to.parent().context("a file is in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    fs::copy(from, &to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).context("set a program's mode")
}

/// What it depends on is not there, and need not be: what runs was brought.
fn dpkg(root: &Path, words: &[&str]) -> Result<()> {
    let mut command = Command::new("dpkg");
    command
        .arg(format!("--root={}", root.display()))
        .args(["--force-depends", "--log=/dev/null"])
        .args(words);
    let path = std::env::var("PATH").unwrap_or_default();
    said(command.env("PATH", format!("{path}:/usr/sbin:/sbin"))).map(drop)
}
