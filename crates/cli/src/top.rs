//! `godwit top`: what each ssd does now, and where its I/Os spend their time.
//!
//! Each look asks the daemon for its ssds and reads their pages; what is shown is what came between two looks. The engine does not
//! notice: nothing is asked of it.

mod frame;
mod terminal;

use crate::daemon;
use crate::observe;
use api::config::Config;
use api::control::Status;
use frame::{Order, Row, View};
use metrics::Snapshot;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use terminal::{Key, Terminal};

/// What a screen looks like that nobody knows the size of.
const PLAIN_COLUMNS: usize = 140;

/// Shows until it is told to stop; or, not on a terminal or with `rounds`, prints so many times and ends.
pub(crate) fn run(config: &Config, every: Duration, rounds: Option<u32>) -> anyhow::Result<()> {
    let mut looks = Looks::default();
    looks.look(&daemon::state(config)?, Instant::now());
    match Terminal::open()? {
        Some(terminal) if rounds.is_none() => live(config, every, looks, &terminal),
        _ => {
            for _ in 0..rounds.unwrap_or(1) {
                std::thread::sleep(every);
                let view = looks.look(&daemon::state(config)?, Instant::now());
                let mut lines = frame::lines(&view, Order::Given, PLAIN_COLUMNS, usize::MAX);
                // There are no keys to tell of.
                lines.remove(1);
                let text: String = lines.into_iter().map(|line| line.text + "\n").collect();
                std::io::stdout().write_all(text.as_bytes())?;
            }
            Ok(())
        }
    }
}

fn live(config: &Config, every: Duration, mut looks: Looks, terminal: &Terminal) -> anyhow::Result<()> {
    let mut order = Order::Given;
    // The first figures come soon.
    let mut next = Instant::now() + every.min(Duration::from_millis(250));
    let mut view = looks.view(&daemon::state(config)?);
    loop {
        let (columns, rows) = terminal.size();
        terminal.show(&frame::lines(&view, order, columns, rows))?;
        match terminal.key(next.saturating_duration_since(Instant::now()))? {
            Key::Quit => return Ok(()),
            Key::Order => order = order.next(),
            Key::None if Instant::now() >= next => {
                next = Instant::now() + every;
                // A daemon that goes away for a moment comes back.
                view = match daemon::state(config) {
                    Ok(status) => looks.look(&status, Instant::now()),
                    Err(error) => View { title: format!("{error:#}"), rows: Vec::new() },
                };
            }
            Key::None => {}
        }
    }
}

/// What was seen last.
#[derive(Default)]
struct Looks {
    at: Option<Instant>,
    /// By ssd.
    pages: BTreeMap<String, Page>,
}

struct Page {
    path: PathBuf,
    file: File,
    last: Snapshot,
    /// What came between the last two looks, and how long that was.
    between: Option<(Snapshot, Duration)>,
}

impl Looks {
    fn look(&mut self, status: &Status, now: Instant) -> View {
        let passed = self.at.replace(now).map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let known = std::mem::take(&mut self.pages);
        for (name, mut page) in known {
            let path = status.ssds.iter().find(|ssd| ssd.name == name).and_then(|ssd| ssd.metrics.as_ref());
            // Elsewhere after the keeper replaced itself, but the same page; or another ssd of that name.
            if path == Some(&page.path)
                && let Ok(snapshot) = Snapshot::read(&page.file)
            {
                page.between = Some((snapshot.since(&page.last), passed));
                page.last = snapshot;
                self.pages.insert(name, page);
            }
        }
        for ssd in &status.ssds {
            if !self.pages.contains_key(&ssd.name)
                && let Some(path) = &ssd.metrics
                && let Ok(file) = observe::open(ssd)
                && let Ok(last) = Snapshot::read(&file)
            {
                let page = Page { path: path.clone(), file, last, between: None };
                self.pages.insert(ssd.name.clone(), page);
            }
        }
        self.view(status)
    }

    fn view(&self, status: &Status) -> View {
        let engine = &status.engine;
        let title = format!(
            "engine {} {}, generation {}, {} crashes, {} handovers",
            engine.release, engine.state, engine.generation, engine.crashes, engine.handovers
        );
        let row = |ssd: &api::control::SsdStatus| {
            let page = self.pages.get(&ssd.name);
            let between = page.and_then(|page| page.between.as_ref());
            Row {
                name: ssd.name.clone(),
                state: match ssd.state.as_str() {
                    "serving" if !ssd.client => "no client".to_owned(),
                    state => state.to_owned(),
                },
                seen: between.map(|(snapshot, passed)| (snapshot.clone(), passed.as_secs_f64())),
                errors: page.map_or(0, |page| page.last.all().errors),
            }
        };
        View { title, rows: status.ssds.iter().map(row).collect() }
    }
}
