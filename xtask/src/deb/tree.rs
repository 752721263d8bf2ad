//! The package's files before they are packed.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::said;

/// A folder that becomes a package.
pub(super) struct Tree {
    root: PathBuf,
}

impl Tree {
    pub(super) fn new(root: &Path) -> Result<Tree> {
        fs::create_dir_all(root).with_context(|| format!("create {}", root.display()))?;
        Ok(Tree { root: root.to_owned() })
    }

    pub(super) fn write(&self, path: &str, content: &str, mode: u32) -> Result<()> {
        self.put(path, content.as_bytes(), mode)
    }

    /// A program without its symbols.
    pub(super) fn program(&self, from: &Path, path: &str) -> Result<()> {
        let to = self.root.join(path);
        self.put(path, &fs::read(from).with_context(|| format!("read {}", from.display()))?, 0o755)?;
        said(Command::new("strip").args(["--strip-all", "--remove-section=.comment"]).arg(&to)).map(drop)
    }

    /// Without a time or a name inside, so that the same content is the same file.
    pub(super) fn compressed(&self, path: &str, content: &[u8]) -> Result<()> {
        let mut gzip = Command::new("gzip")
            .args(["-9", "-n", "-c"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start gzip")?;
        gzip.stdin.take().context("gzip's input")?.write_all(content).context("write to gzip")?;
        let output = gzip.wait_with_output().context("wait for gzip")?;
        ensure!(output.status.success(), "gzip ended with {}", output.status);
        self.put(path, &output.stdout, 0o644)
    }

    /// Manual pages, if this `godwit` writes them (`godwit man FOLDER`).
    pub(super) fn manuals(&self, godwit: &Path) -> Result<()> {
        let folder = self.root.with_file_name("manuals");
        let _none_before = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).context("create a folder for manual pages")?;
        if let Err(error) = said(Command::new(godwit).arg("man").arg(&folder)) {
            eprintln!("left out: manual pages ({})", first_line(&error));
            return Ok(());
        }
        for entry in fs::read_dir(&folder).context("list the manual pages")? {
            let path = entry?.path();
            let name = path.file_name().context("a page has a name")?.to_string_lossy().into_owned();
            let page = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            self.compressed(&format!("usr/share/man/man1/{name}.gz"), &page)?;
        }
        Ok(())
    }

    /// Completions for shells, if this `godwit` writes them (`godwit completion SHELL`).
    pub(super) fn completions(&self, godwit: &Path) -> Result<()> {
        for (shell, path) in [
            ("bash", "usr/share/bash-completion/completions/godwit"),
            ("zsh", "usr/share/zsh/vendor-completions/_godwit"),
            ("fish", "usr/share/fish/vendor_completions.d/godwit.fish"),
        ] {
            match said(Command::new(godwit).args(["completion", shell])) {
                Ok(text) => self.write(path, &(text + "\n"), 0o644)?,
                Err(error) => eprintln!("left out: completion for {shell} ({})", first_line(&error)),
            }
        }
        Ok(())
    }

    /// What the files take, in bytes.
    pub(super) fn bytes(&self) -> Result<u64> {
        self.files()?.iter().map(|path| Ok(fs::metadata(self.root.join(path))?.len())).sum()
    }

    /// DEBIAN/md5sums, of all that is installed.
    pub(super) fn sums(&self) -> Result<()> {
        let files = self.files()?;
        let sums = said(Command::new("md5sum").args(&files).current_dir(&self.root))?;
        self.write("DEBIAN/md5sums", &(sums + "\n"), 0o644)
    }

    /// What is installed, in order.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        collect(&self.root, &mut files)?;
        files =
            files.iter().filter_map(|path| Some(path.strip_prefix(&self.root).ok()?.to_owned())).collect();
        files.retain(|path| !path.starts_with("DEBIAN"));
        files.sort();
        Ok(files)
    }

    fn put(&self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        let to = self.root.join(path);
        let mut folder = self.root.clone();
        for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
            folder.push(part);
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        }
        fs::write(&to, content).with_context(|| format!("write {}", to.display()))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(mode)).context("set a file's mode")
    }
}

fn first_line(error: &anyhow::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() { collect(&path, files)? } else { files.push(path) }
    }
    Ok(())
}
