//! What the demo tells: steps and excerpts on the terminal, everything in a log file.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use vmtest::vm::Vm;

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

    /// For the log only.
    pub(super) fn note(&mut self, text: &str) {
        // A full disk must not hide the demo's own outcome.
        let _ = writeln!(self.log, "{text}");
    }
}
