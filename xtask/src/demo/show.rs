//! What the demo tells: steps and excerpts on the terminal, everything in a log file.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vmtest::vm::Vm;

/// A program of the host, and what it finds in its environment.
pub(super) struct Program {
    path: PathBuf,
    environment: Vec<(&'static str, PathBuf)>,
}

impl Program {
    pub(super) fn new(path: &Path) -> Program {
        Program { path: path.to_owned(), environment: Vec::new() }
    }

    pub(super) fn with(mut self, name: &'static str, value: &Path) -> Program {
        self.environment.push((name, value.to_owned()));
        self
    }
}

pub(super) struct Show {
    log: File,
    start: Instant,
    steps: u32,
}

impl Show {
    pub(super) fn new(log: &Path) -> Result<Show> {
        let log = File::create(log).with_context(|| format!("create {}", log.display()))?;
        Ok(Show { log, start: Instant::now(), steps: 0 })
    }

    pub(super) fn step(&mut self, title: &str) {
        self.steps += 1;
        let line = format!("{}. {title}", self.steps);
        println!("\n{line}");
        self.note(&format!("[{:.1} s] {line}", self.start.elapsed().as_secs_f64()));
    }

    /// An excerpt, indented.
    pub(super) fn text(&mut self, text: &str) {
        for line in text.trim_end().lines() {
            println!("     {line}");
        }
        self.note(text);
    }

    /// A command in the guest and what it prints.
    pub(super) fn guest(&mut self, vm: &mut Vm, command: &str) -> Result<()> {
        let output = vm.run(command)?;
        self.note(&format!("guest# {command}\n{}{}[{}]", output.stdout, output.stderr, output.status));
        println!("   # {command}");
        let text = output.into_ok(command)?;
        for line in text.trim_end().lines() {
            println!("     {line}");
        }
        Ok(())
    }

    /// A command on the host and what it prints.
    pub(super) fn host(&mut self, program: &Program, arguments: &[&str]) -> Result<()> {
        let name = program.path.file_name().unwrap_or_default().to_string_lossy();
        let shown = format!("{name} {}", arguments.join(" "));
        println!("   $ {shown}");
        let output = Command::new(&program.path)
            .args(arguments)
            .envs(program.environment.iter().map(|(name, value)| (name, value)))
            .output()
            .with_context(|| format!("start {}", program.path.display()))?;
        let text =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        self.note(&format!("host$ {shown}\n{text}[{}]", output.status));
        ensure!(output.status.success(), "`{shown}` ended with {}\n{text}", output.status);
        for line in text.trim_end().lines() {
            println!("     {line}");
        }
        Ok(())
    }

    /// For the log only.
    pub(super) fn note(&mut self, text: &str) {
        // A full disk must not hide the demo's own outcome.
        let _ = writeln!(self.log, "{text}");
    }
}
