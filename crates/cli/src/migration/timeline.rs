//! How a guest's I/O went while its ssd moved: as JSON, and as a picture.

use super::daemon;
use anyhow::{Context, bail, ensure};
use api::config::Config;
use api::control::{EngineRequest, Request, Response, Timeline};
use std::fmt::Write as _;
use std::path::Path;

/// Of the field in the picture, a place each, and of the picture.
const COLUMNS: u16 = 925;
const WIDTH: f64 = LEFT + COLUMNS as f64 + RIGHT;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 15.0;
const TOP: f64 = 75.0;
const BOTTOM: f64 = 30.0;
/// Of each host, on white and on black.
const COLOURS: [&str; 2] = ["#2a78c8", "#c8642a"];
/// Words that would lie on one another are moved up and down, over so many rows.
const ROWS: usize = 5;

/// Prints a time line, or draws it into a file.
pub(super) fn run(
    config: &Config,
    ssd: &str,
    svg: Option<&Path>,
    with: Option<&Path>,
) -> anyhow::Result<String> {
    let request = Request::Engine(EngineRequest::Timeline { ssd: ssd.to_owned() });
    let line = match daemon::exchange(config, &request)? {
        Response::Timeline(line) => line,
        Response::Error(why) => bail!(why),
        other => bail!("the daemon answered something else: {other:?}"),
    };
    let Some(svg) = svg else { return Ok(serde_json::to_string(&line)? + "\n") };
    let mut lines = vec![line];
    if let Some(with) = with {
        let other: Timeline = std::fs::read(with)
            .map_err(anyhow::Error::from)
            .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
            .with_context(|| {
                format!("{}: this is not what `godwit migration timeline` prints", with.display())
            })?;
        lines.push(other);
        lines.sort_by_key(|line| line.began_unix_ms);
    }
    let picture = draw(&lines)?;
    std::fs::write(svg, picture).with_context(|| format!("cannot write {}", svg.display()))?;
    Ok(format!("{}\n", svg.display()))
}

/// When it was, since `from_ms`, s.
fn second(line: &Timeline, from_ms: u64, at_us: u64) -> f64 {
    line.began_unix_ms.saturating_sub(from_ms) as f64 / 1e3 + at_us as f64 / 1e6
}

/// I/Os a second between one look and the next: from, to (s), and how many.
fn rates(line: &Timeline, from_ms: u64) -> Vec<[f64; 3]> {
    let second = |at_us| second(line, from_ms, at_us);
    let pairs = line.points.iter().zip(line.points.iter().skip(1));
    let rate = |(before, after): (&api::control::TimelinePoint, &api::control::TimelinePoint)| {
        let took = after.at_us.saturating_sub(before.at_us).max(1) as f64 / 1e6;
        [second(before.at_us), second(after.at_us), after.ios.saturating_sub(before.ios) as f64 / took]
    };
    pairs.map(rate).collect()
}

/// The field's scales.
struct Scale {
    from: f64,
    to: f64,
    most: f64,
}

impl Scale {
    fn x(&self, second: f64) -> f64 {
        LEFT + (second - self.from) / (self.to - self.from) * f64::from(COLUMNS)
    }

    fn second(&self, x: f64) -> f64 {
        self.from + (x - LEFT) / f64::from(COLUMNS) * (self.to - self.from)
    }

    fn y(&self, rate: f64) -> f64 {
        HEIGHT - BOTTOM - rate.min(self.most) / self.most * (HEIGHT - TOP - BOTTOM)
    }
}

fn draw(lines: &[Timeline]) -> anyhow::Result<String> {
    let from_ms = lines.iter().map(|line| line.began_unix_ms).min().unwrap_or(0);
    let all: Vec<_> = lines.iter().map(|line| rates(line, from_ms)).collect();
    let seconds = || all.iter().flatten();
    let from = seconds().map(|rate| rate[0]).fold(f64::INFINITY, f64::min);
    let to = seconds().map(|rate| rate[1]).fold(0.0, f64::max);
    ensure!(to > from, "nothing was counted yet");
    let scale = Scale { from, to, most: most(seconds().map(|rate| rate[2]).collect()) };
    let mut svg = String::new();
    let _infallible = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <style>text{{fill:#333}}.f{{stroke:#999;fill:none}}@media(prefers-color-scheme:dark){{text{{fill:#ccc}}.f{{stroke:#666}}}}</style>\n"
    );
    axes(&mut svg, &scale);
    let mut rows = (0..ROWS).cycle();
    for ((line, rates), colour) in lines.iter().zip(&all).zip(COLOURS) {
        bars(&mut svg, rates, &scale, colour);
        marks(&mut svg, line, from_ms, &scale, colour, &mut rows);
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// Where several bins share a column the least is drawn strong and the most pale, so that I/O that stood still for one bin is a notch, however long the line.
fn bars(svg: &mut String, rates: &[[f64; 3]], scale: &Scale, colour: &str) {
    let (mut paths, mut rest) = ([String::new(), String::new()], rates);
    for column in 0..COLUMNS {
        let x = LEFT + f64::from(column);
        let (from, to) = (scale.second(x), scale.second(x + 1.0));
        while rest.first().is_some_and(|[_, end, _]| *end <= from) {
            rest = &rest[1..];
        }
        let here = rest.iter().take_while(|[begin, ..]| *begin < to).map(|[.., rate]| *rate);
        let Some(ends) = here.map(|rate| [rate; 2]).reduce(|[a, b], [c, d]| [a.min(c), b.max(d)]) else {
            continue;
        };
        for (path, rate) in paths.iter_mut().zip(ends) {
            let (height, bottom) = (scale.y(rate), scale.y(0.0));
            let _infallible = write!(path, "M{x} {bottom:.1}V{height:.1}h1V{bottom:.1}Z");
        }
    }
    for (path, opacity) in paths.iter().zip([0.9, 0.35]) {
        let _infallible = writeln!(svg, "<path d=\"{path}\" fill=\"{colour}\" fill-opacity=\"{opacity}\"/>");
    }
}

/// What the field shows at most: a single bin in which much was caught up with must not press down all others.
fn most(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    let near = rates.get(rates.len() * 99 / 100).copied().unwrap_or(0.0);
    (near * 1.1).max(1.0)
}

fn axes(svg: &mut String, scale: &Scale) {
    let (left, right, bottom) = (scale.x(scale.from), scale.x(scale.to), scale.y(0.0));
    let _infallible = writeln!(svg, "<path class=\"f\" d=\"M{left:.1} {TOP}V{bottom:.1}H{right:.1}\"/>");
    for part in 0..=4 {
        let rate = scale.most * f64::from(part) / 4.0;
        let _infallible = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 4.0,
            scale.y(rate) + 4.0,
            short(rate)
        );
    }
    for part in 0..=5 {
        let second = scale.from + (scale.to - scale.from) * f64::from(part) / 5.0;
        let _infallible = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{}\">{second:.2} s</text>",
            scale.x(second),
            HEIGHT - 10.0,
            if part == 5 { "end" } else { "middle" }
        );
    }
    let _infallible = writeln!(svg, "<text x=\"4\" y=\"14\">I/Os a second</text>");
}

fn short(rate: f64) -> String {
    if rate >= 1000.0 { format!("{:.1} k", rate / 1000.0) } else { format!("{rate:.0}") }
}

/// When what was done.
fn marks(
    svg: &mut String,
    line: &Timeline,
    from_ms: u64,
    scale: &Scale,
    colour: &str,
    rows: &mut impl Iterator<Item = usize>,
) {
    for mark in &line.marks {
        let second = second(line, from_ms, mark.at_us);
        if !(scale.from..=scale.to).contains(&second) {
            continue;
        }
        let (x, y) = (scale.x(second), 24.0 + 11.0 * rows.next().unwrap_or(0) as f64);
        let anchor = if x > WIDTH / 2.0 { "end" } else { "start" };
        let _infallible = writeln!(
            svg,
            "<path d=\"M{x:.1} {y:.1}V{:.1}\" stroke=\"{colour}\" stroke-dasharray=\"2 3\"/><text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
            scale.y(0.0),
            escaped(&mark.state)
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::control::{TimelineMark, TimelinePoint};

    fn line(began_unix_ms: u64, ios: &[u64]) -> Timeline {
        let points = ios.iter().enumerate();
        let points = points.map(|(at, ios)| TimelinePoint { at_us: at as u64 * 10_000, ios: *ios }).collect();
        let marks = vec![TimelineMark { at_us: 0, state: "a<b".to_owned() }];
        Timeline { ssd: "a".to_owned(), began_unix_ms, points, marks }
    }

    #[test]
    fn a_rate_is_of_the_time_between_two_looks() {
        let rates = rates(&line(5_000, &[100, 110, 110]), 4_000);
        assert_eq!(rates, [[1.0, 1.01, 1000.0], [1.01, 1.02, 0.0]]);
    }

    #[test]
    fn two_hosts_are_one_picture_and_words_are_words_in_it() {
        let svg = draw(&[line(0, &[0, 10, 10]), line(20, &[0, 5])]).unwrap();
        assert_eq!(svg.matches("<path d=\"M").count(), 6, "four of rates, two of marks");
        assert!(svg.contains("a&lt;b") && !svg.contains("a<b"));
        assert!(svg.contains("0.03 s"), "the end of the second");
    }

    #[test]
    fn nothing_is_no_picture() {
        assert!(draw(&[line(0, &[7])]).is_err());
        assert!(draw(&[]).is_err());
    }

    #[test]
    fn one_bin_does_not_press_down_the_others() {
        let mut rates = vec![100.0; 999];
        rates.push(1e9);
        assert!(most(rates) < 200.0);
    }

    #[test]
    fn a_bin_without_an_io_is_seen_in_a_long_line() {
        let mut ios: Vec<u64> = (0..10_000).map(|at| at * 10).collect();
        ios.iter_mut().skip(5_000).for_each(|ios| *ios -= 10);
        let rates = rates(&line(0, &ios), 0);
        let mut svg = String::new();
        bars(&mut svg, &rates, &Scale { from: 0.0, to: 99.99, most: 1000.0 }, "red");
        let none = format!("V{:.1}h1", HEIGHT - BOTTOM);
        let columns = |line: &str| line.matches(none.as_str()).count();
        let [strong, pale] = svg.lines().map(columns).collect::<Vec<_>>()[..] else { panic!("{svg}") };
        assert_eq!((strong, pale), (1, 0), "the least of one column is nothing, and its most is not");
    }
}
