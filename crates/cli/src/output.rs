//! What `-o` chooses: a table, more columns, JSON, YAML, or names alone.

use clap::ValueEnum;
use serde_json::Value;
use std::fmt::Write as _;

/// How a list is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Table,
    /// For people with wide screens.
    Wide,
    /// Every field; sizes in bytes.
    Json,
    /// The same as YAML.
    Yaml,
    /// One name a line.
    Name,
}

/// Columns under their headings, as wide as their longest cell. The last is not padded.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = headings.iter().map(|heading| heading.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let headings: Vec<String> = headings.iter().map(|&heading| heading.to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&headings).chain(rows) {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _infallible = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// A JSON value as YAML in block style. A string is a JSON string, which is one of YAML's own.
pub(crate) fn yaml(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

fn block(value: &Value, depth: usize, text: &mut String) {
    let pad = "  ".repeat(depth);
    match value {
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut inner = String::new();
                block(item, depth + 1, &mut inner);
                let _infallible = write!(text, "{pad}- {}", inner.trim_start());
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            for (key, item) in fields {
                let nested = match item {
                    Value::Array(items) => !items.is_empty(),
                    Value::Object(fields) => !fields.is_empty(),
                    _ => false,
                };
                let key = scalar_key(key);
                if nested {
                    let _infallible = writeln!(text, "{pad}{key}:");
                    block(item, depth + 1, text);
                } else {
                    let _infallible = writeln!(text, "{pad}{key}: {item}");
                }
            }
        }
        scalar => {
            let _infallible = writeln!(text, "{pad}{scalar}");
        }
    }
}

fn scalar_key(key: &str) -> String {
    let plain = key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if plain { key.to_owned() } else { Value::String(key.to_owned()).to_string() }
}

/// A size in four characters or so: `931.5 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = (63 - bytes.leading_zeros()) / 10;
    let tenths = (u128::from(bytes) * 10) >> (10 * power);
    let unit = UNITS.get(usize::try_from(power).unwrap_or(1) - 1).copied().unwrap_or("EiB");
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole} {unit}"),
        (whole, tenth) => format!("{whole}.{tenth} {unit}"),
    }
}

/// A moment, UTC.
pub(crate) fn time(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years from March on, in eras of 400: the leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell() {
        let rows = [vec!["a".to_owned(), "é23".to_owned(), "x".to_owned()]];
        assert_eq!(table(&["NAME", "Z", "Y"], &rows), "NAME  Z    Y\na     é23  x\n");
    }

    #[test]
    fn yaml_says_what_json_says() {
        let value =
            json!([{ "name": "a: b", "size": 5, "list": [], "in": { "on": true, "n": [1, [2]] } }, null]);
        assert_eq!(
            yaml(&value),
            "- in:\n    n:\n      - 1\n      - - 2\n    on: true\n  list: []\n  name: \"a: b\"\n  size: 5\n- null\n"
        );
    }

    #[test]
    fn moments_are_written_as_everybody_writes_them() {
        let moments = [0, 951_782_399_999, 951_782_400_000, 1_790_000_000_000, 4_107_542_400_000];
        let texts = [
            "1970-01-01T00:00:00Z",
            "2000-02-28T23:59:59Z",
            "2000-02-29T00:00:00Z",
            "2026-09-21T14:13:20Z",
            "2100-03-01T00:00:00Z",
        ];
        assert_eq!(moments.map(time), texts);
    }

    #[test]
    fn sizes_are_short_and_never_round_up() {
        let sizes = [0, 1023, 1024, 1_000_204_886_016, 256 << 30, u64::MAX];
        let texts = ["0 B", "1023 B", "1 KiB", "931.5 GiB", "256 GiB", "15.9 EiB"];
        assert_eq!(sizes.map(size), texts);
    }
}
