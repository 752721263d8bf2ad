//! Profiles of ssds: the device models by name, as a configuration says them.

use super::{Wrong, wrong};
use toml::Spanned;

/// Those of this release, oldest first.
pub const PROFILES: [&str; 2] = ["godwit-1", "godwit-2"];

/// What an ssd has whose configuration says none. It is what such ssds have always had, and stays so: they are in use.
pub const PROFILE_DEFAULT: &str = "godwit-1";

/// This release's profiles, for people.
#[must_use]
pub fn profiles() -> String {
    PROFILES.map(|name| format!("\"{name}\"")).join(" and ")
}

pub(super) fn check(raw: Option<&Spanned<String>>) -> Result<String, Wrong> {
    match raw {
        None => Ok(PROFILE_DEFAULT.to_owned()),
        Some(name) if PROFILES.contains(&name.get_ref().as_str()) => Ok(name.get_ref().clone()),
        Some(name) => {
            let reason = format!(
                "this release knows the profiles {}: write one of them, or leave it out for \"{PROFILE_DEFAULT}\"",
                profiles()
            );
            Err(wrong(name, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use std::path::Path;

    fn profile(more: &str) -> String {
        let text = format!(
            "[[ssd]]\nname = \"a\"\nsize = \"1MiB\"\nsocket = \"/run/a.sock\"\nbackend = {{ type = \"ram\" }}\n{more}"
        );
        Config::parse(Path::new("x"), &text).unwrap().ssds[0].profile.clone()
    }

    #[test]
    fn an_ssd_without_a_word_of_it_has_the_first_profile_for_ever() {
        assert_eq!(profile(""), "godwit-1");
        assert_eq!(profile("profile = \"godwit-1\""), "godwit-1");
        assert_eq!(profile("profile = \"godwit-2\""), "godwit-2");
    }
}
