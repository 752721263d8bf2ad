//! The picture, as lines of text: pure.

use metrics::{Counts, Histogram, Op, Part, Snapshot};
use std::fmt::Write as _;

/// What is to be seen.
pub(super) struct View {
    pub(super) title: String,
    pub(super) rows: Vec<Row>,
}

/// An ssd.
#[derive(Clone)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) state: String,
    /// What came between two looks, so many seconds apart.
    pub(super) seen: Option<(Snapshot, f64)>,
    /// Ever.
    pub(super) errors: u64,
}

/// How rows are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// As the daemon has them.
    Given,
    /// The busiest first.
    Busiest,
    /// The slowest drive time first, by its 99th percentile.
    Slowest,
}

impl Order {
    pub(super) fn next(self) -> Self {
        match self {
            Self::Given => Self::Busiest,
            Self::Busiest => Self::Slowest,
            Self::Slowest => Self::Given,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Given => "as configured",
            Self::Busiest => "busiest first",
            Self::Slowest => "slowest first",
        }
    }
}

/// The shares of I/Os that are told of each part.
const SHARES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];
/// A time, and the space before it.
const TIME: usize = 6;
/// A figure, and the space before it.
const FIGURE: usize = 7;
const STATE: usize = 12;
const NAME_MIN: usize = 8;
const NAME_MAX: usize = 24;

/// Which columns there is room for.
#[derive(Clone, Copy)]
struct Layout {
    name: usize,
    /// Reads and writes each have their own.
    split: bool,
    state: bool,
}

impl Layout {
    fn new(columns: usize, longest_name: usize) -> Self {
        let times = 3 * (3 * TIME + 1);
        let split = columns >= NAME_MAX + 4 * FIGURE + times + STATE;
        let figures = if split { 4 * FIGURE } else { 2 * FIGURE };
        let left = columns.saturating_sub(figures + times);
        let state = left >= longest_name.clamp(NAME_MIN, NAME_MAX) + STATE;
        let left = if state { left - STATE } else { left };
        Self { name: left.min(longest_name).clamp(NAME_MIN, NAME_MAX), split, state }
    }
}

/// What a line is, for those who have more than letters to say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// A row, or a word.
    Plain,
    /// The title, or the sum.
    Strong,
    /// The columns' heads.
    Head,
    /// An ssd of which more than one I/O in a hundred is held back by a limit.
    HeldBack,
    /// An ssd whose drive failed I/Os, or that is not served.
    Wrong,
}

/// A line of the picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) tone: Tone,
    pub(super) text: String,
}

impl Line {
    fn new(tone: Tone, text: String) -> Self {
        Self { tone, text }
    }
}

/// At most `rows` lines of at most `columns` characters.
pub(super) fn lines(view: &View, order: Order, columns: usize, rows: usize) -> Vec<Line> {
    let layout =
        Layout::new(columns, view.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0));
    let mut lines = vec![
        Line::new(Tone::Strong, format!("godwit top - {}", view.title)),
        Line::new(Tone::Plain, format!("q: quit   s: sort ({})", order.name())),
        Line::new(Tone::Plain, String::new()),
    ];
    lines.extend(heads(layout).map(|text| Line::new(Tone::Head, text)));
    let mut sorted = view.rows.clone();
    match order {
        Order::Given => {}
        Order::Busiest => sorted.sort_by(|a, b| rate(b).total_cmp(&rate(a))),
        Order::Slowest => sorted.sort_by_key(|row| std::cmp::Reverse(slowness(row))),
    }
    let room = rows.saturating_sub(lines.len() + 1);
    let shown = if sorted.len() > room { room.saturating_sub(1) } else { sorted.len() };
    lines.extend(sorted.iter().take(shown).map(|row| Line::new(tone(row), line(row, layout))));
    if shown < sorted.len() {
        lines.push(Line::new(Tone::Plain, format!("... and {} more", sorted.len() - shown)));
    }
    lines.push(Line::new(Tone::Strong, line(&total(&view.rows), layout)));
    lines.truncate(rows);
    for line in &mut lines {
        line.text = line.text.trim_end().chars().take(columns).collect();
    }
    lines
}

fn tone(row: &Row) -> Tone {
    let held_back = row.seen.as_ref().and_then(|(seen, _)| seen.all().time(Part::Throttle).quantile_ns(0.99));
    match row.state.as_str() {
        "quarantined" => Tone::Wrong,
        _ if row.errors > 0 => Tone::Wrong,
        _ if held_back > Some(0) => Tone::HeldBack,
        _ => Tone::Plain,
    }
}

fn heads(layout: Layout) -> [String; 2] {
    let figures: &[&str] = if layout.split { &["r/s", "w/s", "rMB/s", "wMB/s"] } else { &["IO/s", "MB/s"] };
    let (mut above, mut below) = (" ".repeat(layout.name), format!("{:<1$}", "SSD", layout.name));
    for figure in figures {
        let _infallible = (write!(above, "{:FIGURE$}", ""), write!(below, "{figure:>FIGURE$}"));
    }
    for part in Part::ALL {
        let _infallible = write!(above, " {:-^1$}", format!(" {} ", part.name()), 3 * TIME);
        below.push(' ');
        for (share, _) in SHARES {
            let _infallible = write!(below, "{share:>TIME$}");
        }
    }
    if layout.state {
        below.push_str("  STATE");
    }
    [above, below]
}

fn rate(row: &Row) -> f64 {
    row.seen.as_ref().map_or(0.0, |(seen, seconds)| per_second(seen.all().ios(), *seconds))
}

fn slowness(row: &Row) -> u64 {
    row.seen.as_ref().and_then(|(seen, _)| seen.all().time(Part::Drive).quantile_ns(0.99)).unwrap_or(0)
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// All as one.
fn total(rows: &[Row]) -> Row {
    let mut all: Option<(Snapshot, f64)> = None;
    for (seen, seconds) in rows.iter().filter_map(|row| row.seen.as_ref()) {
        match &mut all {
            None => all = Some((seen.clone(), *seconds)),
            Some((sum, _)) => sum.merge(seen),
        }
    }
    let errors = rows.iter().map(|row| row.errors).fold(0, u64::wrapping_add);
    Row { name: "total".to_owned(), state: String::new(), seen: all, errors }
}

fn line(row: &Row, layout: Layout) -> String {
    let name: String = row.name.chars().take(layout.name).collect();
    let mut line = format!("{name:<0$}", layout.name);
    let none = (Snapshot::default(), 0.0);
    let (seen, seconds) = row.seen.as_ref().unwrap_or(&none);
    let (reads, writes, all) = (seen.of(Op::Read), seen.of(Op::Write), seen.all());
    let ios = |counts: &Counts| figure(per_second(counts.ios(), *seconds));
    let megabytes = |counts: &Counts| figure(per_second(counts.bytes, *seconds) / 1e6);
    let mut moved = reads.clone();
    moved.merge(writes);
    let figures = match layout.split {
        true => vec![ios(reads), ios(writes), megabytes(reads), megabytes(writes)],
        false => vec![ios(&all), megabytes(&moved)],
    };
    for figure in figures {
        let _infallible =
            write!(line, "{:>FIGURE$}", if row.seen.is_some() { figure } else { "-".to_owned() });
    }
    for part in Part::ALL {
        line.push(' ');
        let times = all.time(part);
        for (_, share) in SHARES {
            let _infallible = write!(line, "{:>TIME$}", time(&times, share));
        }
    }
    if layout.state {
        let errors =
            if row.errors > 0 { format!("{} errors", figure(row.errors as f64)) } else { String::new() };
        let state = if errors.is_empty() || row.state == "quarantined" { &row.state } else { &errors };
        let _infallible = write!(line, "  {state}");
    }
    line
}

/// A number in at most five characters.
fn figure(number: f64) -> String {
    let (mut number, mut unit) = (number, "");
    for next in ["k", "M", "G", "T"] {
        if number < 9_999.5 {
            break;
        }
        (number, unit) = (number / 1000.0, next);
    }
    if number < 99.95 && (!unit.is_empty() || number.fract() > 0.0) {
        format!("{number:.1}{unit}")
    } else {
        format!("{number:.0}{unit}")
    }
}

/// A time in at most five characters.
fn time(times: &Histogram, share: f64) -> String {
    let Some(ns) = times.quantile_ns(share) else { return "-".to_owned() };
    let (mut number, mut unit) = (ns as f64, "ns");
    for next in ["us", "ms", "s"] {
        if number < 999.5 {
            break;
        }
        (number, unit) = (number / 1000.0, next);
    }
    match unit {
        _ if ns == 0 => "0".to_owned(),
        "ns" => format!("{number:.0}ns"),
        unit if number < 9.95 => format!("{number:.1}{unit}"),
        unit => format!("{number:.0}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_fit_their_columns() {
        let figures = [0.0, 0.5, 7.0, 99.9, 99.97, 850.4, 9_999.0, 12_345.0, 999_949.0, 12.7e6, 3.2e9, 5e12];
        let shown =
            ["0", "0.5", "7", "99.9", "100", "850", "9999", "12.3k", "1000k", "12.7M", "3200M", "5000G"];
        for (number, text) in figures.iter().zip(shown) {
            assert_eq!(figure(*number), text, "{number}");
        }
        for ns in (0..36).map(|shift| 1_u64 << shift) {
            let mut times = Histogram::default();
            times.record(ns);
            assert!(time(&times, 0.5).len() <= 5, "{}", time(&times, 0.5));
        }
    }

    fn row(name: &str, ns: u64) -> Row {
        let mut seen = Snapshot::default();
        seen.record(Op::Read, 4096, [1_000, 0, ns]);
        Row { name: name.to_owned(), state: "serving".to_owned(), seen: Some((seen, 1.0)), errors: 0 }
    }

    fn texts(lines: Vec<Line>) -> Vec<String> {
        lines.into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn what_is_held_back_and_what_is_wrong_stands_out() {
        let (mut limited, mut failing, mut gone) = (row("limited", 1), row("failing", 1), row("gone", 1));
        limited.seen.as_mut().unwrap().0.record(Op::Read, 4096, [0, 5_000_000, 1_000]);
        failing.errors = 1;
        "quarantined".clone_into(&mut gone.state);
        let view = View { title: String::new(), rows: vec![row("well", 1), limited, failing, gone] };
        let tones: Vec<Tone> =
            lines(&view, Order::Given, 140, 24).into_iter().skip(5).map(|line| line.tone).collect();
        assert_eq!(tones, [Tone::Plain, Tone::HeldBack, Tone::Wrong, Tone::Wrong, Tone::Strong]);
    }

    #[test]
    fn every_line_fits_the_screen_and_its_columns_end_where_their_heads_do() {
        let rows = vec![row("a", 80_000), row("a-name-that-is-much-too-long-for-any-column", 5_000_000)];
        let view = View { title: "engine serving".to_owned(), rows };
        for columns in [20, 80, 100, 130, 200] {
            let lines = texts(lines(&view, Order::Given, columns, 24));
            assert!(lines.iter().all(|line| line.chars().count() <= columns), "{columns}: {lines:#?}");
            if columns >= 80 {
                let end = lines[4].rfind("p99.9").unwrap() + 5;
                for line in &lines[5..8] {
                    assert!(line[..end].ends_with(|last: char| "0s".contains(last)), "{columns}: {line}");
                    assert_eq!(&line[end - TIME..=end - TIME], " ", "{columns}: {line}");
                }
            }
        }
    }

    #[test]
    fn a_short_screen_shows_the_first_rows_and_how_many_are_left_out() {
        let rows: Vec<Row> = (0..50_u64).map(|at| row(&format!("ssd{at}"), at * 10_000)).collect();
        let view = View { title: String::new(), rows };
        let lines = texts(lines(&view, Order::Slowest, 80, 12));
        assert_eq!(lines.len(), 12);
        assert!(lines[5].starts_with("ssd4") && lines[5].contains("475us"), "{lines:#?}");
        assert!(lines[10].contains("and 45 more"), "{lines:#?}");
        assert!(lines[11].starts_with("total"), "{lines:#?}");
    }
}
