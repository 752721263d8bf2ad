//! `[management]`: the migration management controller, through which a virtual machine or a program moves the guests of others
//! (NVMe Base 2.1, 8.1.12).

use super::{Backend, Door, Limits, Ssd, Wrong, check_name, files, plain, wrong};
use crate::identity::{Identity, serial_of_name};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::PathBuf;
use toml::Spanned;

/// Its profile: what is served with this one manages, and has no data.
pub const MANAGEMENT_PROFILE: &str = "godwit-management-1";
/// Controller identifiers that an ssd can have: 0 is the management controller's, and the specification keeps those above.
const CONTROLLER_IDS: std::ops::RangeInclusive<u16> = 1..=0xffef;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawManagement {
    name: Option<Spanned<String>>,
    socket: Spanned<PathBuf>,
}

/// It is served as an ssd is, in a place of its own.
pub(super) fn check(raw: &Spanned<RawManagement>, ssds: &[Ssd]) -> Result<Ssd, Wrong> {
    let RawManagement { name: raw_name, socket } = raw.get_ref();
    let name = raw_name.as_ref().map(check_name).transpose()?.unwrap_or_else(|| "management".to_owned());
    if ssds.iter().any(|ssd| ssd.name == name) {
        let reason = format!("there is an ssd `{name}`; give the management controller a name of its own");
        return Err(Wrong { span: raw_name.as_ref().map_or(raw.span(), Spanned::span), reason });
    }
    let path = socket.get_ref();
    if path.as_os_str().is_empty() || path.as_os_str().len() > 107 {
        return Err(wrong(socket, "a unix socket's path has 1 to 107 bytes; use a shorter directory"));
    }
    let own = plain(path);
    for ssd in ssds {
        if let Some((what, _)) = files(ssd).find(|(_, file)| plain(file) == own) {
            let reason = format!("this is the {what} of ssd \"{}\"; give it a socket of its own", ssd.name);
            return Err(wrong(socket, reason));
        }
    }
    Ok(Ssd {
        identity: Identity { serial: serial_of_name(&name), nqn: None, uuid: None },
        name,
        size_bytes: Some(1 << 20),
        socket: path.clone(),
        door: Door::VfioUser,
        state: None,
        journal: None,
        incoming: false,
        spared: false,
        hypervisor: None,
        backend: Backend::Null,
        key: None,
        lba_bytes: 512,
        profile: MANAGEMENT_PROFILE.to_owned(),
        controller_id: None,
        limits: Limits::default(),
        limits_written: false,
        isolated: false,
    })
}

/// Each is one that there can be, and of one ssd.
pub(super) fn check_controller_ids(ids: &[Option<&Spanned<u16>>], ssds: &[Ssd]) -> Result<(), Wrong> {
    let mut seen: HashMap<u16, &str> = HashMap::new();
    for (id, ssd) in ids.iter().zip(ssds).filter_map(|(id, ssd)| Some(((*id)?, ssd))) {
        if ssd.door == Door::VhostUser {
            let reason = "a virtio-blk disk is not managed by an NVMe controller; leave `controller_id` out";
            return Err(wrong(id, reason));
        }
        if !CONTROLLER_IDS.contains(id.get_ref()) {
            return Err(wrong(id, "a controller_id is 1 to 65519"));
        }
        if let Some(other) = seen.insert(*id.get_ref(), &ssd.name) {
            return Err(wrong(id, format!("`{other}` has this controller_id; give each ssd its own")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;

    fn parse(more: &str, management: &str) -> Result<Config, String> {
        let ssd = |name: &str, more: &str| {
            format!(
                "[[ssd]]\nname = \"{name}\"\nsize = \"1MiB\"\nsocket = \"/run/{name}.sock\"\n{more}\nbackend = {{ type = \"ram\" }}\n"
            )
        };
        let text = ssd("a", "controller_id = 1") + &ssd("b", more) + management;
        Config::parse(Path::new("test"), &text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_management_controller_is_served_in_a_place_of_its_own() {
        let config = parse("controller_id = 7", "[management]\nsocket = \"/run/m.sock\"\n").unwrap();
        let ids: Vec<_> = config.ssds.iter().map(|ssd| ssd.controller_id).collect();
        assert_eq!(ids, [Some(1), Some(7), None]);
        let management = config.ssd("management").expect("it is the last");
        assert_eq!(management.profile, MANAGEMENT_PROFILE);
        assert_eq!(management.socket, Path::new("/run/m.sock"));
        assert_eq!(parse("", "").unwrap().ssds.len(), 2);
        let named = parse("", "[management]\nname = \"m\"\nsocket = \"/run/m.sock\"\n").unwrap();
        assert!(named.ssd("m").is_some());
    }

    #[test]
    fn what_cannot_be_managed_is_refused_with_what_to_write() {
        for (more, management, expected) in [
            ("controller_id = 1", "", "`a` has this controller_id"),
            ("controller_id = 0", "", "is 1 to 65519"),
            ("controller_id = 65520", "", "is 1 to 65519"),
            ("", "[management]\n", "socket"),
            ("", "[management]\nname = \"a\"\nsocket = \"/run/m.sock\"\n", "a name of its own"),
            ("", "[management]\nsocket = \"/run/./b.sock\"\n", "the socket of ssd \"b\""),
            ("profile = \"godwit-management-1\"", "", "knows the profiles"),
        ] {
            let refused = parse(more, management).expect_err(expected);
            assert!(refused.contains(expected), "{refused}");
        }
    }
}
