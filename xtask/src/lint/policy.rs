//! The crate policy (policy.toml): which arrows between crates there may be, and which libraries from outside.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::source::{code_only, has_word};
use crate::run::{Metadata, top};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Policy {
    /// A library from outside and why it is worth having.
    external: BTreeMap<String, String>,
    crates: BTreeMap<String, Room>,
}

/// What one crate may do.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Room {
    /// Arrows point to lower floors only.
    floor: u32,
    #[serde(default)]
    uses: BTreeSet<String>,
    /// What only its tests use; of any floor.
    #[serde(default)]
    tests_use: BTreeSet<String>,
    #[serde(default)]
    external: BTreeSet<String>,
    /// Why it may have unsafe code.
    #[serde(rename = "unsafe")]
    unsafe_reason: Option<String>,
}

impl Policy {
    pub(super) fn load() -> Result<Policy> {
        toml::from_str(&super::read(&top().join("policy.toml"))?).context("policy.toml")
    }

    pub(super) fn allows_unsafe(&self, package: &str) -> bool {
        self.crates.get(package).is_some_and(|room| room.unsafe_reason.is_some())
    }
}

/// A dependency as the policy sees it.
struct Arrow {
    from: String,
    to: String,
    workspace: bool,
    tests_only: bool,
}

pub(super) fn findings(metadata: &Metadata) -> Result<Vec<String>> {
    let policy = Policy::load()?;
    let mut findings = Vec::new();
    for package in &metadata.packages {
        if !policy.crates.contains_key(&package.name) {
            findings.push(format!(
                "crate {0} has no place: add [crates.{0}] with its floor to policy.toml",
                package.name
            ));
        }
        let manifest = super::read(&package.manifest_path)?;
        if !manifest.contains("[lints]\nworkspace = true") {
            findings.push(format!(
                "crate {}: add `[lints]` with `workspace = true` to its Cargo.toml",
                package.name
            ));
        }
    }
    let arrows = arrows(metadata);
    findings.extend(arrows.iter().filter_map(|arrow| fault(&policy, arrow)));
    findings.extend(circle(&arrows).map(|path| format!("a circle: {}: break it", path.join(" -> "))));
    let packages = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    findings.extend(unused(&policy, &packages, &arrows));
    findings.extend(idle(metadata)?);
    Ok(findings)
}

fn arrows(metadata: &Metadata) -> Vec<Arrow> {
    let of = |package: &crate::run::Package| {
        let from = package.name.clone();
        let arrow = |dependency: &crate::run::Dependency| Arrow {
            from: from.clone(),
            to: dependency.name.clone(),
            workspace: dependency.path.is_some(),
            tests_only: dependency.kind.as_deref() == Some("dev"),
        };
        package.dependencies.iter().map(arrow).collect::<Vec<_>>()
    };
    metadata.packages.iter().flat_map(of).collect()
}

fn fault(policy: &Policy, arrow: &Arrow) -> Option<String> {
    let Arrow { from, to, .. } = arrow;
    let room = policy.crates.get(from)?;
    if !arrow.workspace {
        if !policy.external.contains_key(to) {
            return Some(format!(
                "{from} uses {to}: give `{to} = \"why\"` in [external] of policy.toml, or do without it"
            ));
        }
        let listed = room.external.contains(to) || (arrow.tests_only && room.tests_use.contains(to));
        return (!listed)
            .then(|| format!("{from} uses {to}: add it to `external` of [crates.{from}] in policy.toml"));
    }
    if arrow.tests_only {
        let listed = room.uses.contains(to) || room.tests_use.contains(to);
        return (!listed)
            .then(|| format!("tests of {from} use {to}: add it to `tests_use` of [crates.{from}]"));
    }
    let (own, other) = (room.floor, policy.crates.get(to).map_or(0, |room| room.floor));
    if other >= own {
        return Some(format!(
            "{from} (floor {own}) uses {to} (floor {other}): arrows go down only; move what is shared to a lower floor"
        ));
    }
    let known = room.uses.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    (!room.uses.contains(to))
        .then(|| format!("{from} may use [{known}], not {to}: invert it, or change policy.toml"))
}

/// A way from a crate back to itself, tests included.
fn circle(arrows: &[Arrow]) -> Option<Vec<String>> {
    fn walk(arrows: &[Arrow], path: &mut Vec<String>, done: &mut BTreeSet<String>) -> bool {
        let here = path.last().cloned().unwrap_or_default();
        if path[..path.len() - 1].contains(&here) {
            return true;
        }
        for arrow in arrows.iter().filter(|arrow| arrow.workspace && arrow.from == here) {
            if !done.contains(&arrow.to) {
                path.push(arrow.to.clone());
                if walk(arrows, path, done) {
                    return true;
                }
                path.pop();
            }
        }
        done.insert(here);
        false
    }
    let mut done = BTreeSet::new();
    arrows.iter().find_map(|arrow| {
        let mut path = vec![arrow.from.clone()];
        walk(arrows, &mut path, &mut done).then_some(path)
    })
}

/// Permissions nobody uses: a policy that has grown stale allows too much.
fn unused(policy: &Policy, packages: &BTreeSet<&str>, arrows: &[Arrow]) -> Vec<String> {
    let mut findings = Vec::new();
    for (name, room) in policy.crates.iter().filter(|(name, _)| packages.contains(name.as_str())) {
        for library in room.uses.iter().chain(&room.external).chain(&room.tests_use) {
            if !arrows.iter().any(|arrow| arrow.from == *name && arrow.to == *library) {
                findings.push(format!(
                    "{name} no longer uses {library}: take it out of [crates.{name}] in policy.toml"
                ));
            }
        }
    }
    findings
}

/// Dependencies that no source file names: they cost time to build and allow what nobody wants.
fn idle(metadata: &Metadata) -> Result<Vec<String>> {
    let mut code: BTreeMap<String, String> = BTreeMap::new();
    for (package, path) in super::rust_files(metadata)? {
        *code.entry(package).or_default() += &code_only(&super::read(&path)?);
    }
    let mut findings = Vec::new();
    for package in &metadata.packages {
        let code = code.get(&package.name).map_or("", String::as_str);
        for library in package.dependencies.iter().map(|dependency| &dependency.name) {
            if !names(code, library) {
                findings
                    .push(format!("{} names {library} nowhere: take it out of its Cargo.toml", package.name));
            }
        }
    }
    Ok(findings)
}

fn names(code: &str, library: &str) -> bool {
    has_word(code, &library.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Arrow, Policy, circle, code_only, fault, names, unused};

    fn policy() -> Policy {
        toml::from_str(
            "[external]\nlibc = 'calls'\nproptest = 'properties'\n\
             [crates.low]\nfloor = 1\nexternal = ['libc']\n[crates.mid]\nfloor = 2\nuses = ['low']\n\
             [crates.top]\nfloor = 3\nuses = ['mid']\ntests_use = ['proptest', 'low']\n",
        )
        .unwrap()
    }

    fn arrow(from: &str, to: &str, workspace: bool, tests_only: bool) -> Arrow {
        Arrow { from: from.into(), to: to.into(), workspace, tests_only }
    }

    #[test]
    fn an_arrow_down_that_is_listed_is_allowed() {
        assert_eq!(fault(&policy(), &arrow("mid", "low", true, false)), None);
        assert_eq!(fault(&policy(), &arrow("low", "libc", false, false)), None);
    }

    #[test]
    fn an_arrow_up_or_unlisted_is_refused_with_what_to_do() {
        assert!(fault(&policy(), &arrow("low", "mid", true, false)).unwrap().contains("arrows go down only"));
        assert!(fault(&policy(), &arrow("top", "low", true, false)).unwrap().contains("may use [mid]"));
    }

    #[test]
    fn a_library_needs_a_reason_and_a_permission() {
        assert!(fault(&policy(), &arrow("low", "rand", false, false)).unwrap().contains("[external]"));
        assert!(fault(&policy(), &arrow("mid", "libc", false, false)).unwrap().contains("[crates.mid]"));
    }

    #[test]
    fn what_only_tests_use_is_a_permission_of_its_own() {
        assert_eq!(fault(&policy(), &arrow("top", "proptest", false, true)), None);
        assert!(fault(&policy(), &arrow("top", "proptest", false, false)).is_some());
        assert_eq!(fault(&policy(), &arrow("top", "low", true, true)), None);
    }

    #[test]
    fn a_circle_through_tests_is_found() {
        let down = arrow("top", "mid", true, false);
        assert_eq!(circle(&[down]), None);
        let both = [arrow("top", "mid", true, false), arrow("mid", "top", true, true)];
        assert!(circle(&both).is_some());
    }

    #[test]
    fn a_permission_that_nobody_uses_is_told_be_it_for_a_crate_or_a_library() {
        let told = |packages: &[&str], arrows: &[Arrow]| {
            unused(&policy(), &packages.iter().copied().collect::<BTreeSet<_>>(), arrows)
        };
        assert!(told(&["mid"], &[])[0].starts_with("mid no longer uses low"));
        assert!(told(&["low"], &[])[0].starts_with("low no longer uses libc"));
        assert!(told(&["mid"], &[arrow("mid", "low", true, false)]).is_empty());
    }

    #[test]
    fn a_dependency_is_named_as_a_word_of_the_code() {
        let code = code_only("use io_uring::opcode;\n// spec says\nlet respect = inspect(tempfile_of(x));\n");
        let names = |library| names(&code, library);
        assert!(names("io-uring"));
        assert!(!names("spec"));
        assert!(!names("tempfile"));
    }
}
