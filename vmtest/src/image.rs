//! The guest image: a Debian folder with QEMU 11, a stock kernel and the tools, and an initramfs that boots into it.
//!
//! It is made once and kept outside the checkout (`GODWIT_CACHE`, else `$XDG_CACHE_HOME/godwit`, else `~/.cache/godwit`), in folders
//! named by a hash of their recipe.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cpio::Archive;
use crate::debian::{Recipe, fnv1a, kernel_release, lock_cache, program, remove_folder, run};

/// vfio-user-pci came with QEMU 10.1, and the suite itself has 10.0. The extra block drivers are those of `qemu-io` and `qemu-img`.
const ROOT: Recipe = Recipe {
    suite: "trixie",
    packages_from_backports: &["qemu-system-x86", "qemu-utils", "qemu-block-extra"],
    packages: &["busybox-static", "e2fsprogs", "fio", "kmod", "nvme-cli", "pciutils", "xz-utils"],
    kernel: Some("linux-image-amd64"),
};
/// The oldest QEMU that disks are for: Debian 12's, 7.2. A guest under it has the kernel and the tools of [`ROOT`].
const OLD_QEMU: Recipe =
    Recipe { suite: "bookworm", packages_from_backports: &[], packages: &["qemu-system-x86"], kernel: None };
/// What the initramfs loads before the root is there. Everything else comes by `modprobe`.
const MODULES: [&str; 5] = ["9pnet_virtio", "9p", "overlay", "ext4", "nvme"];

const INIT: &str = include_str!("../guest/init.sh");
const AGENT: &str = include_str!("../guest/agent.sh");

/// A finished image.
#[derive(Debug, Clone)]
pub struct Image {
    root: PathBuf,
    boot: PathBuf,
    qemu_root: PathBuf,
}

impl Image {
    /// The image: found, or built with a line of progress per stage on standard error.
    pub fn ensure() -> Result<Image> {
        let root = ROOT.ensure()?;
        let boot_hash = fnv1a(&format!("{} {MODULES:?} {INIT} {AGENT}", root.display()));
        let boot = cache_folder()?.join(format!("boot-{boot_hash:016x}"));
        let qemu_root = std::env::var_os("VMTEST_QEMU_ROOT").map_or_else(|| root.clone(), PathBuf::from);
        let image = Image { root, boot, qemu_root };
        if !image.boot.is_dir() {
            let _lock = lock_cache()?;
            if !image.boot.is_dir() {
                image.build_boot()?;
            }
        }
        Ok(image)
    }

    /// The same guests under QEMU 7.2, which is fetched when this is first called. It knows disks only.
    pub fn ensure_with_old_qemu() -> Result<Image> {
        let image = Image::ensure()?;
        let qemu_root = OLD_QEMU.ensure().context("QEMU 7.2, for clients without vfio-user")?;
        Ok(Image { qemu_root, ..image })
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

    /// QEMU, and the Debian root that it is of: the image's own unless `VMTEST_QEMU_ROOT` names another with `qemu-system-x86`
    /// installed. The guest is the same.
    pub fn qemu(&self) -> (Command, &Path) {
        (program(&self.qemu_root, "qemu-system-x86_64"), &self.qemu_root)
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
