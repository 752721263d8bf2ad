//! The guest image: a Debian folder with QEMU 11, a stock kernel and the tools, and an initramfs that boots into it.
//!
//! It is made once and kept outside the checkout (`GODWIT_CACHE`, else `$XDG_CACHE_HOME/godwit`, else `~/.cache/godwit`), in folders
//! named by a hash of their recipe. A build works in a `.partial` folder, notes every finished stage and renames at its
//! end, so that it can be interrupted anywhere and a finished image is always whole.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::cpio::Archive;

const SUITE: &str = "trixie";
const MIRROR: &str = "http://deb.debian.org/debian";
/// From the suite's backports: vfio-user-pci came with QEMU 10.1, and the suite itself has 10.0.
const PACKAGES_FROM_BACKPORTS: [&str; 2] = ["qemu-system-x86", "qemu-utils"];
const PACKAGES: [&str; 7] =
    ["busybox-static", "e2fsprogs", "fio", "kmod", "nvme-cli", "pciutils", "xz-utils"];
/// A metapackage: only the one it depends on is fetched, and unpacked without its scripts, which want a boot loader.
const KERNEL: &str = "linux-image-amd64";
/// What the initramfs loads before the root is there. Everything else comes by `modprobe`.
const MODULES: [&str; 5] = ["9pnet_virtio", "9p", "overlay", "ext4", "nvme"];

const INIT: &str = include_str!("../guest/init.sh");
const AGENT: &str = include_str!("../guest/agent.sh");

/// Documentation is a third of the packages and of no use in a test.
const DPKG_EXCLUDES: &str =
    "path-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\npath-exclude=/usr/share/locale/*\n";

/// A finished image.
#[derive(Debug, Clone)]
pub struct Image {
    root: PathBuf,
    boot: PathBuf,
}

impl Image {
    /// The image of this recipe: found, or built with a line of progress per stage on standard error.
    pub fn ensure() -> Result<Image> {
        let cache = cache_folder()?;
        let root_hash = fnv1a(&root_recipe());
        let boot_hash = fnv1a(&format!("{root_hash:x} {MODULES:?} {INIT} {AGENT}"));
        let image = Image {
            root: cache.join(format!("root-{root_hash:016x}")),
            boot: cache.join(format!("boot-{boot_hash:016x}")),
        };
        if image.is_whole() {
            return Ok(image);
        }
        fs::create_dir_all(&cache).with_context(|| format!("create the cache folder {}", cache.display()))?;
        let lock = File::create(cache.join("lock")).context("open the cache's lock")?;
        lock.lock().context("lock the cache")?;
        if !image.root.is_dir() {
            image.build_root()?;
        }
        if !image.boot.is_dir() {
            image.build_boot()?;
        }
        Ok(image)
    }

    fn is_whole(&self) -> bool {
        self.root.is_dir() && self.boot.is_dir()
    }

    /// The Debian folder, which is also the guest's root file system.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The kernel to boot.
    pub fn kernel(&self) -> PathBuf {
        self.boot.join("vmlinuz")
    }

    /// The initramfs that mounts [`Image::root`] and starts the agent.
    pub fn initramfs(&self) -> PathBuf {
        self.boot.join("initramfs")
    }

    /// A program of the image, run on the host with the image's own loader and libraries: no chroot, so it sees the
    /// host's files and sockets.
    pub fn program(&self, name: &str) -> Command {
        program(&self.root, name)
    }

    /// QEMU of the image, or of another Debian root (`VMTEST_QEMU_ROOT`, with `qemu-system-x86` installed), and that root. The guest is
    /// the same.
    pub fn qemu(&self) -> (Command, PathBuf) {
        let Some(root) = std::env::var_os("VMTEST_QEMU_ROOT").map(PathBuf::from) else {
            return (self.program("qemu-system-x86_64"), self.root.clone());
        };
        let mut qemu = program(&root, "qemu-system-x86_64");
        // QEMU before 8 looks for its modules, TCG among them, only where it was installed.
        qemu.env("QEMU_MODULE_DIR", root.join("usr/lib/x86_64-linux-gnu/qemu"));
        (qemu, root)
    }

    fn build_root(&self) -> Result<()> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "building the guest image needs root (debootstrap and chroot): run this once with sudo"
        );
        install_on_host("debootstrap", "/usr/sbin/debootstrap")?;
        let partial = self.root.with_extension("partial");
        let root = partial.as_path();
        let stage = |name: &str, work: &dyn Fn() -> Result<()>| stage(root, name, work);
        stage("the base system", &|| debootstrap(root))?;
        stage("QEMU and the tools", &|| packages(root))?;
        stage("the kernel", &|| kernel(root))?;
        for entry in fs::read_dir(root).context("list the new root")? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".done-")) {
                fs::remove_file(path)?;
            }
        }
        fs::rename(root, &self.root).context("put the new root in place")
    }

    fn build_boot(&self) -> Result<()> {
        eprintln!("image: the initramfs");
        let partial = self.boot.with_extension("partial");
        remove_folder(&partial)?;
        fs::create_dir_all(&partial)?;
        let release = kernel_release(&self.root)?;
        fs::copy(self.root.join(format!("boot/vmlinuz-{release}")), partial.join("vmlinuz"))
            .context("copy the kernel")?;
        fs::write(partial.join("initramfs"), self.build_initramfs(&release)?)
            .context("write the initramfs")?;
        fs::rename(&partial, &self.boot).context("put the new boot folder in place")
    }

    fn build_initramfs(&self, release: &str) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        for folder in ["bin", "modules", "proc", "sys", "dev", "lower", "upper", "newroot"] {
            archive.folder(folder);
        }
        let busybox = fs::read(self.root.join("usr/bin/busybox")).context("read busybox-static's busybox")?;
        archive.program("bin/busybox", &busybox);
        archive.program("init", INIT.as_bytes());
        archive.program("agent", AGENT.as_bytes());
        let modules = self.root.join("usr/lib/modules").join(release);
        let mut order = String::new();
        for path in load_order(&fs::read_to_string(modules.join("modules.dep")).context("read modules.dep")?)?
        {
            let name = path.rsplit('/').next().unwrap_or(&path).trim_end_matches(".xz").to_owned();
            archive.program(&format!("modules/{name}"), &self.module(&modules.join(&path))?);
            order.push_str(&name);
            order.push('\n');
        }
        archive.program("modules/order", order.as_bytes());
        Ok(archive.finish())
    }

    fn module(&self, path: &Path) -> Result<Vec<u8>> {
        if path.extension().is_none_or(|ending| ending != "xz") {
            return fs::read(path).with_context(|| format!("read {}", path.display()));
        }
        let output =
            self.program("xz").arg("-dc").arg(path).stderr(Stdio::inherit()).output().context("run xz")?;
        ensure!(output.status.success(), "xz could not unpack {}", path.display());
        Ok(output.stdout)
    }
}

/// Where downloads and images are kept.
pub fn cache_folder() -> Result<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("GODWIT_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|folder| folder.join("godwit")))
        .or_else(|| from("HOME").map(|folder| folder.join(".cache/godwit")))
        .context("no place for the cache: set GODWIT_CACHE to a folder with 3 GiB of room")
}

/// Installs a Debian package on the host if the file it brings is not there.
pub fn install_on_host(package: &str, file: &str) -> Result<()> {
    if Path::new(file).exists() {
        return Ok(());
    }
    eprintln!("image: installing {package}");
    let apt = |arguments: &[&str]| {
        run(Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    apt(&["update", "-qq"])
        .and_then(|()| apt(&["install", "-y", "-qq", "--no-install-recommends", package]))
        .with_context(|| format!("{package} is missing and apt-get did not install it: install it by hand"))
}

fn root_recipe() -> String {
    format!("1 {SUITE} {PACKAGES_FROM_BACKPORTS:?} {PACKAGES:?} {KERNEL} {DPKG_EXCLUDES}")
}

fn mirror() -> String {
    std::env::var("GODWIT_MIRROR").unwrap_or_else(|_| MIRROR.to_owned())
}

/// Runs one stage of a build unless an earlier, interrupted build has finished it.
fn stage(root: &Path, name: &str, work: &dyn Fn() -> Result<()>) -> Result<()> {
    let done = root.join(format!(".done-{}", name.replace(' ', "-")));
    if done.exists() {
        return Ok(());
    }
    eprintln!("image: {name}");
    work().with_context(|| {
        format!("building {name} of the guest image in {}; run again to resume", root.display())
    })?;
    fs::write(&done, "").context("note the finished stage")
}

/// Cannot be resumed by itself, so it begins anew.
fn debootstrap(root: &Path) -> Result<()> {
    remove_folder(root)?;
    run(Command::new("debootstrap").args(["--variant=minbase", SUITE]).arg(root).arg(mirror()))?;
    let backports = format!("deb {} {SUITE}-backports main\n", mirror());
    fs::write(root.join("etc/apt/sources.list.d/backports.list"), backports)?;
    fs::write(root.join("etc/dpkg/dpkg.cfg.d/small"), DPKG_EXCLUDES)?;
    Ok(())
}

fn packages(root: &Path) -> Result<()> {
    let install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends"];
    run(&mut inside(root, &["dpkg", "--configure", "-a"]))?;
    run(&mut inside(root, &["apt-get", "update", "-qq"]))?;
    run(inside(root, &install).args(["-t", &format!("{SUITE}-backports")]).args(PACKAGES_FROM_BACKPORTS))?;
    run(inside(root, &install).args(PACKAGES))?;
    run(&mut inside(root, &["apt-get", "clean"]))
}

fn kernel(root: &Path) -> Result<()> {
    let depends = inside(root, &["apt-cache", "depends", KERNEL]).output().context("run apt-cache")?;
    let depends = String::from_utf8_lossy(&depends.stdout).into_owned();
    let package = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("{KERNEL} depends on no kernel: {depends}"))?;
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

fn kernel_release(root: &Path) -> Result<String> {
    let modules = root.join("usr/lib/modules");
    let mut names = fs::read_dir(&modules).with_context(|| format!("list {}", modules.display()))?;
    let name = names.next().context("the image has no kernel modules")??.file_name();
    Ok(name.to_string_lossy().into_owned())
}

/// The files of [`MODULES`] and of what they need, in an order that loads. A line of modules.dep is
/// `file: nearest ... farthest`, whole: what is needed by what is needed stands there too.
fn load_order(modules_dep: &str) -> Result<Vec<String>> {
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for module in MODULES {
        let is_it =
            |file: &str| file.rsplit('/').next().and_then(|name| name.split('.').next()) == Some(module);
        let line = modules_dep.lines().find(|line| line.split(':').next().is_some_and(is_it));
        let (file, needs) =
            line.and_then(|line| line.split_once(':')).with_context(|| format!("no module {module}"))?;
        for path in needs.split_whitespace().rev().chain([file]) {
            if seen.insert(path.to_owned()) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

fn program(root: &Path, name: &str) -> Command {
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
    // Debian's libceph sits in a folder that an absolute RUNPATH names, which would find the host's, of another version.
    command.arg("--library-path").arg(format!("{0}:{0}/ceph", libraries.display()));
    let found = ["usr/bin", "usr/sbin"]
        .map(|folder| root.join(folder).join(name))
        .into_iter()
        .find(|path| path.exists());
    command.arg(found.unwrap_or_else(|| root.join("usr/bin").join(name)));
    command
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
fn run(command: &mut Command) -> Result<()> {
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

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// FNV-1a, 64 bits: stable for ever, which the standard library's hash is not.
fn fnv1a(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::load_order;

    #[test]
    fn a_module_is_loaded_after_what_it_needs_and_only_once() {
        let dep = "a/9pnet_virtio.ko.xz: a/9pnet.ko.xz a/netfs.ko.xz\na/9p.ko.xz: a/9pnet.ko.xz a/netfs.ko.xz\n\
                   a/9pnet.ko.xz: a/netfs.ko.xz\na/overlay.ko.xz:\na/ext4.ko.xz: a/crc16.ko.xz\na/nvme.ko.xz: a/nvme-core.ko.xz\n";
        let order = load_order(dep).unwrap();
        let expected =
            ["netfs", "9pnet", "9pnet_virtio", "9p", "overlay", "crc16", "ext4", "nvme-core", "nvme"];
        assert_eq!(order, expected.map(|name| format!("a/{name}.ko.xz")));
    }

    #[test]
    fn a_kernel_without_a_needed_module_is_refused() {
        assert!(load_order("a/ext4.ko:").is_err());
    }
}
