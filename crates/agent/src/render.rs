//! The desired state as a configuration of the daemon.

use crate::place::Place;
use crate::store::{PoolRow, SsdRow, SsdSpec};
use api::rest::{Interface, Limits, Phase};
use api::size::Size;
use serde::Serialize;

/// An `[[ssd]]` of `godwit.toml`.
#[derive(Serialize)]
struct Entry {
    name: String,
    size: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vhost_socket: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    journal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    incoming: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spared: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hypervisor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uuid: Option<String>,
    serial: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    nqn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
    backend: Backend,
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption: Option<Encryption>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<LimitsEntry>,
}

/// Where its key is, never the key.
#[derive(Serialize)]
struct Encryption {
    key_file: String,
}

#[derive(Serialize)]
struct Backend {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thin: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    volume: Option<String>,
}

/// A `[[pool]]` of `godwit.toml`.
#[derive(Serialize)]
struct PoolEntry {
    name: String,
    path: String,
}

/// An `[ssd.limits]`: sizes are text there.
#[derive(Serialize)]
struct LimitsEntry {
    #[serde(skip_serializing_if = "Option::is_none")]
    iops: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iops_burst: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_iops: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_iops_burst: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    write_iops: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    write_iops_burst: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bandwidth: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bandwidth_burst: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_bandwidth: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_bandwidth_burst: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    write_bandwidth: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    write_bandwidth_burst: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u16>,
}

#[derive(Serialize)]
struct Entries {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pool: Vec<PoolEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssd: Vec<Entry>,
}

fn limits_entry(limits: &Limits) -> LimitsEntry {
    let size = |bytes: Option<u64>| bytes.map(|bytes| Size { bytes }.to_string());
    LimitsEntry {
        iops: limits.iops,
        iops_burst: limits.iops_burst,
        read_iops: limits.read_iops,
        read_iops_burst: limits.read_iops_burst,
        write_iops: limits.write_iops,
        write_iops_burst: limits.write_iops_burst,
        bandwidth: size(limits.bandwidth),
        bandwidth_burst: size(limits.bandwidth_burst),
        read_bandwidth: size(limits.read_bandwidth),
        read_bandwidth_burst: size(limits.read_bandwidth_burst),
        write_bandwidth: size(limits.write_bandwidth),
        write_bandwidth_burst: size(limits.write_bandwidth_burst),
        weight: limits.weight,
    }
}

/// What the daemon's configuration has against these limits: what a release can limit, and how much, is said there alone.
pub(crate) fn check_limits(limits: &Limits) -> Result<(), String> {
    let spec = SsdSpec { size_bytes: 1 << 20, limits: limits.clone(), ..SsdSpec::default() };
    check("00000000-0000-4000-8000-000000000001", &spec)
}

/// What it has against an ssd that is wished so, wherever it would lie.
pub(crate) fn check(uuid: &str, spec: &SsdSpec) -> Result<(), String> {
    let place = Place { ssds: "/".into(), sockets: "/".into(), keys: "/keys".into() };
    let ssd = SsdRow {
        name: "ssd".to_owned(),
        uuid: uuid.to_owned(),
        generation: 1,
        phase: Phase::Ready,
        operation: None,
        reason: None,
        spec: SsdSpec { pool: None, ..spec.clone() },
    };
    let text = configuration("", &place, &[], &[ssd]).map_err(|e| e.to_string())?;
    let path = std::path::Path::new("limits");
    api::config::Config::parse(path, &text).map(drop).map_err(|error| error.to_string())
}

fn entry(ssd: &SsdRow, place: &Place) -> Entry {
    let socket = place.socket(&ssd.name, ssd.spec.interface).display().to_string();
    let nvme = ssd.spec.interface == Interface::Nvme;
    Entry {
        name: ssd.name.clone(),
        size: Size { bytes: ssd.spec.size_bytes }.to_string(),
        socket: nvme.then(|| socket.clone()),
        vhost_socket: (!nvme).then_some(socket),
        state: nvme.then(|| place.state(ssd).display().to_string()),
        journal: ssd.spec.journal.then(|| place.journal(ssd).display().to_string()),
        // Also of one that has gone: should its journal be lost, nothing of this host is taken for it.
        incoming: ssd.is_elsewhere().then_some(true),
        spared: (ssd.is_elsewhere() && ssd.spec.superseded).then_some(true),
        hypervisor: ssd.spec.hypervisor.clone(),
        uuid: nvme.then(|| ssd.uuid.clone()),
        serial: ssd.serial(),
        nqn: ssd.spec.nqn.clone(),
        profile: ssd.spec.profile(),
        limits: (!ssd.spec.limits.is_empty()).then(|| limits_entry(&ssd.spec.limits)),
        encryption: ssd
            .spec
            .key
            .as_ref()
            .map(|id| Encryption { key_file: place.key(id).display().to_string() }),
        backend: backend(ssd, place),
    }
}

fn backend(ssd: &SsdRow, place: &Place) -> Backend {
    match &ssd.spec.pool {
        None => {
            let path = Some(place.data(ssd).display().to_string());
            Backend { r#type: "uring", path, pool: None, thin: None, volume: None }
        }
        Some(pool) => Backend {
            r#type: "pool",
            path: None,
            pool: Some(pool.clone()),
            thin: Some(ssd.spec.thin),
            volume: Some(ssd.volume()),
        },
    }
}

/// What the daemon is to serve: the text of its own file, and the agent's ssds after it.
pub(crate) fn configuration(
    base: &str,
    place: &Place,
    pools: &[PoolRow],
    ssds: &[SsdRow],
) -> Result<String, toml::ser::Error> {
    let is_kept = |ssd: &&SsdRow| ssd.phase == Phase::Ready || ssd.is_elsewhere();
    let ssd: Vec<Entry> = ssds.iter().filter(is_kept).map(|ssd| entry(ssd, place)).collect();
    let pool: Vec<PoolEntry> = pools
        .iter()
        .filter(|pool| pool.phase == Phase::Ready)
        .map(|pool| PoolEntry { name: pool.name.clone(), path: pool.spec.path.clone() })
        .collect();
    let own = match ssd.is_empty() && pool.is_empty() {
        true => String::new(),
        false => toml::to_string(&Entries { pool, ssd })?,
    };
    Ok(format!("{}\n\n{own}", base.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::PoolSpec;
    use api::config::{Config, Door};
    use std::path::Path;

    fn row(name: &str, interface: Interface) -> SsdRow {
        SsdRow {
            name: name.to_owned(),
            uuid: "1b4e28ba-2fa1-11d2-883f-0016d3cca427".replace('1', &name.len().to_string()),
            generation: 1,
            phase: Phase::Ready,
            operation: None,
            reason: None,
            spec: SsdSpec { size_bytes: 3 << 20, interface, thin: true, ..SsdSpec::default() },
        }
    }

    #[test]
    fn an_ssd_in_a_pool_has_a_volume_that_no_other_ssd_of_its_name_ever_has() {
        let place = Place { ssds: "/s".into(), sockets: "/r".into(), keys: "/keys".into() };
        let mut ssd = row("a", Interface::Nvme);
        (ssd.spec.pool, ssd.spec.thin) = (Some("p".to_owned()), false);
        let spec =
            PoolSpec { path: "/dev/\"x\"".to_owned(), uuid: None, size_bytes: None, extent_bytes: None };
        let mut pool = PoolRow { name: "p".to_owned(), phase: Phase::Ready, operation: None, spec };
        let text = configuration("control = \"/c\"", &place, &[pool.clone()], &[ssd.clone()]).unwrap();
        let config = Config::parse(Path::new("x"), &text).unwrap();
        assert_eq!(config.pools[0].path, Path::new("/dev/\"x\""));
        assert_eq!(config.ssds[0].volume(), format!("a.{}", ssd.uuid));
        pool.phase = Phase::Creating;
        let text = configuration("", &place, &[pool], &[]).unwrap();
        assert!(Config::parse(Path::new("x"), &text).unwrap().pools.is_empty());
    }

    #[test]
    fn the_daemon_reads_what_is_rendered_beside_its_own_ssds_whatever_the_folders_are_called() {
        let base = "control = \"/c\"\n[engine]\nreactors = 2\n[[ssd]]\nname = \"own\"\nsize = \"1MiB\"\nsocket = \"/own\"\nbackend = { type = \"ram\" }";
        let place =
            Place { ssds: "/srv/a \"b\" \\ é".into(), sockets: "/run/'g'".into(), keys: "/keys".into() };
        let mut gone = row("gone", Interface::Nvme);
        gone.phase = Phase::Deleting;
        let rows = [row("a", Interface::Nvme), row("bb", Interface::VirtioBlk), gone];
        let text = configuration(base, &place, &[], &rows).unwrap();
        let config = Config::parse(Path::new("x"), &text).unwrap();
        let names: Vec<&str> = config.ssds.iter().map(|ssd| ssd.name.as_str()).collect();
        assert_eq!(names, ["own", "a", "bb"]);
        assert_eq!(config.engine.reactors, 2);
        assert_eq!(config.ssds[1].size_bytes, Some(3 << 20));
        assert_eq!(config.ssds[1].state.as_deref(), Some(place.state(&rows[0]).as_path()));
        assert_eq!((config.ssds[2].door, &config.ssds[2].state), (Door::VhostUser, &None));
    }

    #[test]
    fn an_ssd_keeps_the_profile_it_was_made_with_and_one_of_an_older_agent_the_first() {
        let place = Place { ssds: "/s".into(), sockets: "/r".into(), keys: "/keys".into() };
        let mut made = row("a", Interface::Nvme);
        made.spec.profile = Some("godwit-2".to_owned());
        let text =
            configuration("control = \"/c\"", &place, &[], &[made, row("bb", Interface::Nvme)]).unwrap();
        let config = Config::parse(Path::new("x"), &text).unwrap();
        assert_eq!((&*config.ssds[0].profile, &*config.ssds[1].profile), ("godwit-2", "godwit-1"));
        // As it was written down before there was a choice.
        let old = "{\"size_bytes\":1048576,\"interface\":\"nvme\"}";
        let spec: SsdSpec = serde_json::from_str(old).unwrap();
        assert_eq!(spec.profile().as_deref(), Some("godwit-1"));
    }

    #[test]
    fn an_ssd_that_is_elsewhere_is_expected_and_never_the_daemons_own() {
        let place = Place { ssds: "/s".into(), sockets: "/r".into(), keys: "/keys".into() };
        for phase in [Phase::Incoming, Phase::Gone] {
            let mut nvme = row("a", Interface::Nvme);
            (nvme.phase, nvme.spec.hypervisor) = (phase, Some("/q".to_owned()));
            (nvme.spec.serial, nvme.spec.nqn) = (Some("S 1".to_owned()), Some("nqn.x".to_owned()));
            let mut disk = row("bb", Interface::VirtioBlk);
            (disk.phase, disk.spec.journal) = (phase, true);
            let rows = [nvme, disk];
            let text = configuration("control = \"/c\"", &place, &[], &rows).unwrap();
            let config = Config::parse(Path::new("x"), &text).unwrap();
            assert!(config.ssds.iter().all(|ssd| ssd.incoming), "{text}");
            // Both have their journals where the agent looks for them.
            let journals: Vec<_> = config.ssds.iter().map(|ssd| ssd.journal.clone()).collect();
            assert_eq!(journals, rows.each_ref().map(|row| Some(place.journal(row))));
            assert_eq!(config.ssds[0].hypervisor.as_deref(), Some(Path::new("/q")));
            let identity = &config.ssds[0].identity;
            assert_eq!((&*identity.serial, identity.nqn.as_deref()), ("S 1", Some("nqn.x")));
        }
        let text = configuration("", &place, &[], &[row("a", Interface::Nvme)]).unwrap();
        assert!(!Config::parse(Path::new("x"), &text).unwrap().ssds[0].incoming);
    }

    #[test]
    fn an_agent_without_ssds_leaves_the_daemon_its_own() {
        let place = Place { ssds: "/s".into(), sockets: "/r".into(), keys: "/keys".into() };
        let text = configuration("control = \"/c\"\n", &place, &[], &[]).unwrap();
        assert!(Config::parse(Path::new("x"), &text).unwrap().ssds.is_empty());
    }
}
