//! From one configuration to another without a restart: what is to be done, and what cannot be.
//!
//! An ssd is known by its name. Two ssds of the same name are the same ssd, which keeps all that its guest knows of it; what differs
//! between them beyond what is named here cannot change under a guest.

use crate::config::{Config, Engine, Pool, Ssd, files, plain};
use crate::size::Size;
use std::collections::HashMap;
use std::fmt;

/// What leads from one configuration to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Names of ssds that are new, in the new configuration's order.
    pub added: Vec<String>,
    /// Names of ssds that are there no more, in the old configuration's order.
    pub removed: Vec<String>,
    /// Names of ssds that grow, with their old and new sizes.
    pub grown: Vec<Grown>,
    /// Names of ssds whose limits or weight change.
    pub limited: Vec<String>,
    /// Names of ssds of which it is said otherwise whether they come from another host, or to which hypervisor their guests come.
    pub expected: Vec<String>,
    /// Names of pools that are new, in the new configuration's order.
    pub added_pools: Vec<String>,
    /// Names of pools that are there no more. No ssd of the new configuration has anything of them.
    pub removed_pools: Vec<String>,
    /// How many reactors there are before and after, if they change in number or in how they run.
    pub reactors: Option<(usize, usize)>,
}

/// An ssd that grows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grown {
    /// Its name.
    pub name: String,
    /// What it has.
    pub from_bytes: u64,
    /// What it will have.
    pub to_bytes: u64,
}

/// Why one cannot follow the other without a restart: one reason a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Refused(pub Vec<String>);

impl Plan {
    /// What leads from `old` to `new`.
    ///
    /// # Errors
    /// All that cannot be done online, each with what to do instead.
    pub fn between(old: &Config, new: &Config) -> Result<Self, Refused> {
        let mut plan = Self::default();
        let mut reasons = Vec::new();
        let Engine { reactors, cpus, spin_us, idle_us, isolation } = &new.engine;
        let former = &old.engine;
        let same = (*reactors, cpus, *spin_us, *idle_us)
            == (former.reactors, &former.cpus, former.spin_us, former.idle_us);
        plan.reactors = (!same).then_some((former.reactors, *reactors));
        if *isolation != former.isolation {
            reasons.push(
                "[engine]: isolation cannot change while godwitd runs: leave it as it is, or restart godwitd"
                    .to_owned(),
            );
        }
        if new.control != old.control {
            reasons.push(
                "`control` cannot change while godwitd runs: leave it as it is, or restart godwitd"
                    .to_owned(),
            );
        }
        if new.migration != old.migration {
            reasons.push(
                "[migration] cannot change while godwitd runs: leave it as it is, or restart godwitd"
                    .to_owned(),
            );
        }
        plan.compare_pools(old, new, &mut reasons);
        for ssd in &new.ssds {
            match old.ssd(&ssd.name) {
                None => plan.added.push(ssd.name.clone()),
                Some(former) => plan.compare(former, ssd, &mut reasons),
            }
        }
        for ssd in old.ssds.iter().filter(|ssd| new.ssd(&ssd.name).is_none()) {
            plan.removed.push(ssd.name.clone());
        }
        plan.check_files(old, new, &mut reasons);
        if reasons.is_empty() { Ok(plan) } else { Err(Refused(reasons)) }
    }

    /// Nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { added, removed, grown, limited, expected, added_pools, removed_pools, reactors } = self;
        added.is_empty()
            && removed.is_empty()
            && grown.is_empty()
            && limited.is_empty()
            && expected.is_empty()
            && added_pools.is_empty()
            && removed_pools.is_empty()
            && reactors.is_none()
    }

    fn compare_pools(&mut self, old: &Config, new: &Config, reasons: &mut Vec<String>) {
        for pool in &old.pools {
            match new.pools.iter().find(|other| other.name == pool.name) {
                None => self.removed_pools.push(pool.name.clone()),
                Some(same) if same == pool => {}
                Some(_) => reasons.push(format!(
                    "pool \"{}\" cannot change while godwitd runs: leave it as it is, or restart godwitd",
                    pool.name
                )),
            }
        }
        let is_new = |pool: &&Pool| old.pools.iter().all(|other| other.name != pool.name);
        for pool in new.pools.iter().filter(is_new) {
            // What goes lets go of its drive last.
            if let Some(former) = old.pools.iter().find(|former| plain(&former.path) == plain(&pool.path)) {
                reasons.push(format!(
                    "pool \"{}\": its drive {} is still that of pool \"{}\": remove that one first, then add this one in a second step",
                    pool.name,
                    pool.path.display(),
                    former.name
                ));
            }
            self.added_pools.push(pool.name.clone());
        }
    }

    /// An ssd that stays. Each field of it is looked at: one that is added to the configuration has to be decided about here.
    fn compare(&mut self, old: &Ssd, new: &Ssd, reasons: &mut Vec<String>) {
        let Ssd { name, size_bytes, socket, door, state, backend, key, lba_bytes, profile, identity, .. } =
            new;
        // By the engine's `isolation`.
        let Ssd { limits, limits_written, journal, controller_id, isolated: _, .. } = new;
        // It means nothing while the ssd is here, and something when it has gone.
        let Ssd { incoming, spared, hypervisor, .. } = new;
        if (*incoming, *spared, hypervisor) != (old.incoming, old.spared, &old.hypervisor) {
            self.expected.push(name.clone());
        }
        // What is written from now on may hold in place of what it came with, though the two configurations say the same.
        if (*limits, *limits_written) != (old.limits, old.limits_written) {
            self.limited.push(name.clone());
        }
        let fixed = [
            ("socket", *socket == old.socket && *door == old.door),
            ("state", *state == old.state),
            ("journal", *journal == old.journal || *state != old.state),
            ("backend", *backend == old.backend),
            ("key", *key == old.key),
            ("lba", *lba_bytes == old.lba_bytes),
            ("profile", *profile == old.profile),
            ("controller_id", *controller_id == old.controller_id),
            ("serial, nqn or uuid", *identity == old.identity),
        ];
        for (field, _) in fixed.iter().filter(|(_, same)| !same) {
            reasons.push(format!(
                "ssd \"{name}\": its {field} cannot change under its guest: leave it as it is, or remove the ssd and add it in a \
                 second step"
            ));
        }
        match (old.size_bytes, *size_bytes) {
            (old, new) if old == new => {}
            (Some(from_bytes), Some(to_bytes)) if from_bytes < to_bytes => {
                self.grown.push(Grown { name: name.clone(), from_bytes, to_bytes });
            }
            (Some(from_bytes), Some(_)) => reasons.push(format!(
                "ssd \"{name}\": it cannot shrink under its guest: write size = \"{}\" or more",
                Size { bytes: from_bytes }
            )),
            _ => reasons.push(format!(
                "ssd \"{name}\": its size can grow from one that is written to one that is written, and not appear or vanish: \
                 leave `size` as it was"
            )),
        }
    }

    /// What is added is made ready before what is removed lets go.
    fn check_files(&self, old: &Config, new: &Config, reasons: &mut Vec<String>) {
        let mut going = HashMap::new();
        for ssd in self.removed.iter().filter_map(|name| old.ssd(name)) {
            going.extend(files(ssd).map(|(_, file)| (plain(file), &ssd.name)));
        }
        for ssd in self.added.iter().filter_map(|name| new.ssd(name)) {
            for (what, file) in files(ssd) {
                if let Some(former) = going.get(&plain(file)) {
                    let name = &ssd.name;
                    reasons.push(format!(
                        "ssd \"{name}\": its {what} {} is still that of ssd \"{former}\": remove \"{former}\" first, then add \
                         \"{name}\" in a second step",
                        file.display()
                    ));
                }
            }
        }
    }
}

impl fmt::Display for Plan {
    /// One line for each step; none for nothing to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pools = self.added_pools.iter().map(|name| format!("+ pool \"{name}\""));
        let added = self.added.iter().map(|name| format!("+ ssd \"{name}\""));
        let removed = self.removed.iter().map(|name| format!("- ssd \"{name}\""));
        let grown = self.grown.iter().map(|Grown { name, from_bytes, to_bytes }| {
            let (from, to) = (Size { bytes: *from_bytes }, Size { bytes: *to_bytes });
            format!("~ ssd \"{name}\": size {from} -> {to}")
        });
        let limited = self.limited.iter().map(|name| format!("~ ssd \"{name}\": limits"));
        let reactors = self.reactors.iter().map(|(from, to)| match from == to {
            true => "~ [engine]: how its reactors run".to_owned(),
            false => format!("~ [engine]: reactors {from} -> {to}"),
        });
        let gone = self.removed_pools.iter().map(|name| format!("- pool \"{name}\""));
        let expected = self.expected.iter();
        let expected = expected.map(|name| {
            format!("~ ssd \"{name}\": whether it comes from another host, and its guest with it")
        });
        let ssds = removed.chain(gone).chain(pools).chain(added).chain(grown).chain(limited).chain(expected);
        let lines: Vec<String> = ssds.chain(reactors).collect();
        f.write_str(&lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn ssd(name: &str, size: &str, more: &str) -> String {
        format!(
            "[[ssd]]\nname = \"{name}\"\nsize = \"{size}\"\nsocket = \"/run/{name}.sock\"\n\
             backend = {{ type = \"uring\", path = \"/srv/{name}.img\" }}\n{more}\n"
        )
    }

    fn between(old: &str, new: &str) -> Result<Plan, String> {
        let parse = |text: &str| Config::parse(Path::new("test"), text).unwrap();
        Plan::between(&parse(old), &parse(new)).map_err(|refused| refused.to_string())
    }

    #[test]
    fn what_is_the_same_in_both_is_left_alone_whatever_its_place() {
        let (a, b) = (ssd("a", "1GiB", "lba = 4096"), ssd("b", "2GiB", ""));
        let plan = between(&(a.clone() + &b), &(b + "\n# moved\n" + &a)).unwrap();
        assert!(plan.is_empty(), "{plan}");
        assert_eq!(plan.to_string(), "");
    }

    #[test]
    fn ssds_come_go_and_grow() {
        let old = ssd("a", "1GiB", "") + &ssd("b", "1GiB", "");
        let new = ssd("a", "1536MiB", "") + &ssd("c", "1GiB", "");
        let plan = between(&old, &new).unwrap();
        assert_eq!(plan.to_string(), "- ssd \"b\"\n+ ssd \"c\"\n~ ssd \"a\": size 1GiB -> 1536MiB");
    }

    #[test]
    fn pools_come_and_go_but_do_not_change() {
        let pool = |name: &str, path: &str| format!("[[pool]]\nname = \"{name}\"\npath = \"{path}\"\n");
        let (p, q) = (pool("p", "/dev/p"), pool("q", "/dev/q"));
        assert_eq!(between("", &p).unwrap().to_string(), "+ pool \"p\"");
        assert_eq!(between(&p, &q).unwrap().to_string(), "- pool \"p\"\n+ pool \"q\"");
        assert!(!between("", &p).unwrap().is_empty() && !between(&p, "").unwrap().is_empty());
        assert!(between(&(p.clone() + &q), &(q + &p)).unwrap().is_empty());
        assert!(between(&p, &pool("p", "/dev/other")).unwrap_err().contains("cannot change"));
        assert!(between(&p, &pool("other", "/dev/p")).unwrap_err().contains("remove that one first"));
    }

    #[test]
    fn limits_change_under_a_guest() {
        let new = ssd("a", "1GiB", "[ssd.limits]\niops = 1000\n");
        let plan = between(&ssd("a", "1GiB", ""), &new).unwrap();
        assert_eq!(plan.to_string(), "~ ssd \"a\": limits");
        // Whoever writes that there are none means it: the ssd may have come with some.
        let none = ssd("a", "1GiB", "[ssd.limits]\nweight = 100\n");
        assert_eq!(between(&ssd("a", "1GiB", ""), &none).unwrap().limited, ["a"]);
        assert!(between(&none, &none).unwrap().is_empty());
        assert!(between(&new, &new).unwrap().is_empty());
    }

    #[test]
    fn that_an_ssd_comes_from_another_host_and_with_whom_is_said_and_left_out_under_its_guest() {
        let with = |more: &str| ssd("a", "1GiB", &format!("journal = \"/j\"\n{more}"));
        let (own, comes) = (with(""), with("incoming = true"));
        let both = with("incoming = true\nhypervisor = \"/q\"");
        let spared = with("incoming = true\nspared = true");
        for (old, new) in [
            (&own, &comes),
            (&comes, &own),
            (&comes, &both),
            (&both, &comes),
            (&comes, &spared),
            (&spared, &comes),
        ] {
            let plan = between(old, new).unwrap();
            assert!(!plan.is_empty() && plan.expected == ["a"], "{plan}");
            assert!(plan.to_string().starts_with("~ ssd \"a\": whether it comes"), "{plan}");
        }
        assert!(between(&both, &both).unwrap().is_empty());
    }

    #[test]
    fn reactors_come_and_go_under_guests() {
        let old = ssd("a", "1GiB", "");
        let plan = between(&old, &format!("[engine]\nreactors = 2\n{old}")).unwrap();
        assert_eq!(plan.to_string(), "~ [engine]: reactors 1 -> 2");
        let plan = between(&old, &format!("[engine]\ncpus = [3]\n{old}")).unwrap();
        assert_eq!(plan.to_string(), "~ [engine]: how its reactors run");
    }

    #[test]
    fn what_cannot_change_under_a_guest_is_refused_with_what_to_do_and_all_of_it_is_named() {
        let old = ssd("a", "1GiB", "");
        for (new, expected) in [
            (ssd("a", "1023MiB", ""), "size = \"1GiB\" or more"),
            (ssd("a", "1GiB", "lba = 4096"), "its lba cannot"),
            (ssd("a", "1GiB", "serial = \"S\""), "its serial"),
            (ssd("a", "1GiB", "state = \"/s\""), "its state cannot"),
            (ssd("a", "1GiB", "journal = \"/j\""), "its journal cannot"),
            (old.replace("/run/a.sock", "/run/b.sock"), "its socket cannot"),
            (old.replace("socket =", "vhost_socket ="), "its socket cannot"),
            (old.replace("/srv/a.img", "/srv/b.img"), "its backend cannot"),
            (old.replace("size = \"1GiB\"\n", ""), "leave `size` as it was"),
            (format!("[engine]\nisolation = false\n{old}"), "isolation cannot change"),
            (format!("control = \"/c\"\n{old}"), "`control` cannot change"),
        ] {
            let refused = between(&old, &new).expect_err(expected);
            assert!(refused.contains(expected), "{refused}");
        }
        let both = between(&old, &ssd("a", "1MiB", "lba = 4096")).unwrap_err();
        assert_eq!(both.lines().count(), 2, "{both}");
    }

    #[test]
    fn a_file_does_not_go_from_a_removed_ssd_to_an_added_one_in_one_step() {
        let new = ssd("b", "1GiB", "").replace("/srv/b.img", "/srv/../srv/a.img");
        let refused = between(&ssd("a", "1GiB", ""), &new).unwrap_err();
        assert!(refused.contains("remove \"a\" first"), "{refused}");
    }
}
