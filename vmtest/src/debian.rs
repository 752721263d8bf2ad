//! Debian in a folder: made once by its recipe, found ever after.
//!
//! A build works in a `.partial` folder, notes every finished stage and renames at its end, so that it can be interrupted anywhere
//! and a finished folder is always whole. Programs run from it on the host with the folder's own loader and libraries.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::image::{cache_folder, install_on_host};

const MIRROR: &str = "http://deb.debian.org/debian";

/// Documentation is a third of the packages and of no use in a test.
const DPKG_EXCLUDES: &str =
    "path-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\npath-exclude=/usr/share/locale/*\n";

/// What goes into a folder.
#[derive(Debug)]
pub(crate) struct Recipe {
    /// Debian's release.
    pub suite: &'static str,
    pub packages_from_backports: &'static [&'static str],
    pub packages: &'static [&'static str],
    /// A metapackage: only the one it depends on is fetched, and unpacked without its scripts, which want a boot loader.
    pub kernel: Option<&'static str>,
}

impl Recipe {
    /// The folder: found, or built with a line of progress per stage on standard error.
    pub(crate) fn ensure(&self) -> Result<PathBuf> {
        let folder = self.folder()?;
        if folder.is_dir() {
            return Ok(folder);
        }
        let _lock = lock_cache()?;
        if !folder.is_dir() {
            self.build(&folder)?;
        }
        Ok(folder)
    }

    /// Where it is, or will be.
    fn folder(&self) -> Result<PathBuf> {
        Ok(cache_folder()?.join(format!("root-{:016x}", fnv1a(&format!("2 {self:?} {DPKG_EXCLUDES}")))))
    }

    fn build(&self, folder: &Path) -> Result<()> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "building a Debian folder for guests needs root (debootstrap and chroot): run this once with sudo"
        );
        install_on_host("debootstrap", "/usr/sbin/debootstrap")?;
        let partial = folder.with_extension("partial");
        let root = partial.as_path();
        let stage = |name: &str, work: &dyn Fn() -> Result<()>| stage(self.suite, root, name, work);
        stage("the base system", &|| self.debootstrap(root))?;
        stage("QEMU and the tools", &|| self.install(root))?;
        if let Some(metapackage) = self.kernel {
            stage("the kernel", &|| kernel(root, metapackage))?;
        }
        for entry in fs::read_dir(root).context("list the new root")? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".done-")) {
                fs::remove_file(path)?;
            }
        }
        fs::rename(root, folder).context("put the new root in place")
    }

    /// Cannot be resumed by itself, so it begins anew.
    fn debootstrap(&self, root: &Path) -> Result<()> {
        remove_folder(root)?;
        run(Command::new("debootstrap").args(["--variant=minbase", self.suite]).arg(root).arg(mirror()))?;
        if !self.packages_from_backports.is_empty() {
            let backports = format!("deb {} {}-backports main\n", mirror(), self.suite);
            fs::write(root.join("etc/apt/sources.list.d/backports.list"), backports)?;
        }
        fs::write(root.join("etc/dpkg/dpkg.cfg.d/small"), DPKG_EXCLUDES)?;
        Ok(())
    }

    fn install(&self, root: &Path) -> Result<()> {
        let install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends"];
        run(&mut inside(root, &["dpkg", "--configure", "-a"]))?;
        run(&mut inside(root, &["apt-get", "update", "-qq"]))?;
        if !self.packages_from_backports.is_empty() {
            let backports = format!("{}-backports", self.suite);
            run(inside(root, &install).args(["-t", &backports]).args(self.packages_from_backports))?;
        }
        run(inside(root, &install).args(self.packages))?;
        run(&mut inside(root, &["apt-get", "clean"]))
    }
}

/// The release of the folder's kernel.
pub(crate) fn kernel_release(root: &Path) -> Result<String> {
    let modules = root.join("usr/lib/modules");
    let mut names = fs::read_dir(&modules).with_context(|| format!("list {}", modules.display()))?;
    let name = names.next().context("the image has no kernel modules")??.file_name();
    Ok(name.to_string_lossy().into_owned())
}

/// A program of the folder, run on the host: no chroot, so it sees the host's files and sockets.
pub(crate) fn program(root: &Path, name: &str) -> Command {
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
    // Debian's libceph sits in a folder that an absolute RUNPATH names, which would find the host's, of another version.
    command.arg("--library-path").arg(format!("{0}:{0}/ceph", libraries.display()));
    let found = ["usr/bin", "usr/sbin"]
        .map(|folder| root.join(folder).join(name))
        .into_iter()
        .find(|path| path.exists());
    command.arg(found.unwrap_or_else(|| root.join("usr/bin").join(name)));
    // QEMU before 8 looks for its modules, TCG among them, only where it was installed.
    command.env("QEMU_MODULE_DIR", libraries.join("qemu"));
    command
}

/// Holds the cache until dropped.
pub(crate) fn lock_cache() -> Result<File> {
    let cache = cache_folder()?;
    fs::create_dir_all(&cache).with_context(|| format!("create the cache folder {}", cache.display()))?;
    let lock = File::create(cache.join("lock")).context("open the cache's lock")?;
    lock.lock().context("lock the cache")?;
    Ok(lock)
}

fn mirror() -> String {
    std::env::var("GODWIT_MIRROR").unwrap_or_else(|_| MIRROR.to_owned())
}

/// Runs one stage of a build unless an earlier, interrupted build has finished it.
fn stage(suite: &str, root: &Path, name: &str, work: &dyn Fn() -> Result<()>) -> Result<()> {
    let done = root.join(format!(".done-{}", name.replace(' ', "-")));
    if done.exists() {
        return Ok(());
    }
    eprintln!("image: {name} ({suite})");
    work().with_context(|| {
        format!("making Debian {suite} in {}: {name} failed; run again to resume", root.display())
    })?;
    fs::write(&done, "").context("note the finished stage")
}

fn kernel(root: &Path, metapackage: &str) -> Result<()> {
    let depends = inside(root, &["apt-cache", "depends", metapackage]).output().context("run apt-cache")?;
    let depends = String::from_utf8_lossy(&depends.stdout).into_owned();
    let package = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("{metapackage} depends on no kernel: {depends}"))?;
    let folder = root.join("tmp/kernel");
    remove_folder(&folder)?;
    fs::create_dir_all(&folder)?;
    run(&mut inside(root, &["sh", "-c", "cd /tmp/kernel && exec apt-get download -qq \"$0\"", package]))?;
    for entry in fs::read_dir(&folder)? {
        let name = entry?.file_name();
        run(&mut inside(root, &["dpkg-deb", "-x", &format!("/tmp/kernel/{}", name.to_string_lossy()), "/"]))?;
    }
    remove_folder(&folder)?;
    run(&mut inside(root, &["depmod", "-a", &kernel_release(root)?]))
}

/// A command inside the folder.
fn inside(root: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("chroot");
    command.arg(root).args(words);
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// Runs a step; its output is shown only if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let tail: Vec<&str> = text.lines().rev().take(20).collect();
    bail!(
        "{command:?} ended with {}:\n{}",
        output.status,
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    )
}

pub(crate) fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// FNV-1a, 64 bits: stable for ever, which the standard library's hash is not.
pub(crate) fn fnv1a(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
