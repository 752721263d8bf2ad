//! A conformance test names the section of the specification whose promise it states.

use anyhow::Result;

use super::{collect, read, short};
use crate::run::top;

/// Where the conformance tests are.
const FOLDER: &str = "crates/nvme/tests";
/// The specifications; a section number or the title of a figure comes after. `Ours` is a promise of this project's own.
const SOURCES: [&str; 4] = ["Base 2.1, ", "NVM 1.1, ", "PCIe 1.1, ", "Ours: "];

pub(super) fn findings() -> Result<Vec<String>> {
    let mut files = Vec::new();
    collect(&top().join(FOLDER), &mut files)?;
    let mut findings = Vec::new();
    for path in files {
        for (line, name) in without_section(&read(&path)?) {
            findings.push(format!(
                "{}:{line}: `{name}` names no section: begin its doc comment with `/// {}5.1.2.` or the like, or with \
                 `/// Ours:` where no specification promises it",
                short(&path),
                SOURCES[0]
            ));
        }
    }
    Ok(findings)
}

/// Tests whose doc comment names no source: the line and name of each.
fn without_section(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let (mut is_test, mut is_cited) = (false, false);
    for (at, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if let Some(doc) = line.strip_prefix("///") {
            is_cited |= SOURCES.iter().any(|source| doc.contains(source));
        } else if line == "#[test]" {
            is_test = true;
        } else if !line.starts_with("#[") {
            if let (true, false, Some(rest)) = (is_test, is_cited, line.strip_prefix("fn ")) {
                found.push((at + 1, rest.split('(').next().unwrap_or(rest)));
            }
            (is_test, is_cited) = (false, false);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::without_section;

    #[test]
    fn a_test_without_a_section_is_found_and_one_of_our_own_is_not() {
        let cited = "/// Base 2.1, 5.1.2.\n#[test]\nfn a() {\n}\n/// Ours: it waits.\n#[test]\n#[ignore]\nfn b() {}\n";
        assert!(without_section(cited).is_empty());
        assert_eq!(without_section("/// It waits.\n#[test]\nfn c() {}\nfn help() {}\n"), [(3, "c")]);
        assert_eq!(without_section("/// NVM 1.1, 3.3.\nfn help() {}\n#[test]\nfn d() {}\n"), [(4, "d")]);
    }
}
