//! Unsafe code lives on islands: in crates whose policy allows it, in files that say so and why they are sound.

use std::path::Path;

use anyhow::Result;

use super::policy::Policy;
use super::source::{code_only, has_word};
use super::{read, rust_files, short};
use crate::run::{Metadata, top};

const ISLAND: &str = "#![expect(unsafe_code";
const PROOF: &str = "UNSAFETY:";
const FORBID: &str = "#![forbid(unsafe_code)]";

pub(super) fn findings(metadata: &Metadata) -> Result<Vec<String>> {
    let policy = Policy::load()?;
    let mut findings = Vec::new();
    for (package, path) in rust_files(metadata)? {
        let text = read(&path)?;
        if has_word(&code_only(&text), "unsafe") {
            let allowed = policy.allows_unsafe(&package) || is_outside_the_library(&path);
            findings.extend(island(&text, allowed).map(|what| format!("{}: {what}", short(&path))));
        }
    }
    for package in metadata.packages.iter().filter(|package| !policy.allows_unsafe(&package.name)) {
        for target in &package.targets {
            let is_root = target.kind.iter().any(|kind| kind == "lib" || kind == "bin");
            if is_root && !read(&target.src_path)?.contains(FORBID) {
                findings.push(format!(
                    "{}: add `{FORBID}`; a crate that needs unsafe code gets `unsafe = \"why\"` in policy.toml",
                    short(&target.src_path)
                ));
            }
        }
    }
    Ok(findings)
}

/// Tests and examples stand in for others, such as a drive that writes to guest memory, so they may have islands.
fn is_outside_the_library(path: &Path) -> bool {
    let path = path.strip_prefix(top()).unwrap_or(path);
    path.components()
        .any(|part| ["tests", "examples", "benches"].iter().any(|name| part.as_os_str() == *name))
}

/// What is wrong with a file that has unsafe code.
fn island(text: &str, allowed: bool) -> Option<String> {
    if !allowed {
        return Some(
            "unsafe code in a crate without `unsafe = \"why\"` in policy.toml: move it to an island"
                .to_owned(),
        );
    }
    let spaceless: String = text.split_whitespace().collect();
    if !spaceless.contains(ISLAND) {
        return Some(format!(
            "unsafe code outside an island: begin the file with `{ISLAND}, reason = \"...\")]`"
        ));
    }
    (!text.contains(PROOF))
        .then(|| format!("an island needs a comment `// {PROOF}` that says why the whole is sound"))
}

#[cfg(test)]
mod tests {
    use super::island;

    #[test]
    fn an_island_is_allowed_declared_and_argued() {
        let whole = "#![expect(unsafe_code, reason = \"mmap\")]\n// UNSAFETY: owned until drop.";
        assert_eq!(island(whole, true), None);
        assert_eq!(island(&whole.replace("(unsafe", "(\n    unsafe"), true), None);
        assert!(island(whole, false).is_some());
        assert!(island("// UNSAFETY: x", true).is_some());
        assert!(island("#![expect(unsafe_code)]", true).is_some());
    }
}
