//! What goes along with an ssd beside its data: its limits; and that what is encrypted is encrypted there, too
//! (`docs/decisions/0039-what-goes-along.md`).
//!
//! ```text
//!  offer (limits, encrypted) --> expect: a key? --> There (limits by which it will be held, encrypted) --> plan, for people
//!  each step (limits by now) --> Journal::bring --> the next record --> limits_that_came --> Terms, at each opening
//! ```

use super::word::{Along, There};
use crate::data_key::DataKey;
use crate::passage::Passage;
use crate::pool::Pools;
use crate::run::House;
use crate::terms;
use anyhow::{Context, bail, ensure};
use api::config::{self, Backend, Limits, Rate};
use api::control::{LimitsStatus, MigrationTerms, PoolRequest, Response, VolumeStatus};
use state::migration::{LimitsV1, MigrationV1, RateV1};
use std::collections::BTreeSet;
use std::sync::PoisonError;

/// What the names of all snapshots may take in an offer.
const NAMES_BYTES_MAX: usize = 32 << 10;

pub(super) fn saved(limits: &Limits) -> LimitsV1 {
    let rate = |rate: Option<Rate>| rate.map(|Rate { per_second, burst }| RateV1 { per_second, burst });
    LimitsV1 {
        weight: limits.weight,
        iops: rate(limits.iops),
        read_iops: rate(limits.read_iops),
        write_iops: rate(limits.write_iops),
        bandwidth: rate(limits.bandwidth),
        read_bandwidth: rate(limits.read_bandwidth),
        write_bandwidth: rate(limits.write_bandwidth),
    }
}

fn of_saved(saved: &LimitsV1) -> Limits {
    let rate = |rate: Option<RateV1>| rate.map(|RateV1 { per_second, burst }| Rate { per_second, burst });
    let limits = Limits {
        weight: saved.weight,
        iops: rate(saved.iops),
        read_iops: rate(saved.read_iops),
        write_iops: rate(saved.write_iops),
        bandwidth: rate(saved.bandwidth),
        read_bandwidth: rate(saved.read_bandwidth),
        write_bandwidth: rate(saved.write_bandwidth),
    };
    limits.within_bounds()
}

/// The limits that an ssd came here with, by its journal: those by which it is held unless the configuration has its own.
pub(crate) fn limits_that_came(config: &config::Ssd, pools: &Pools) -> Option<Limits> {
    let read = Passage::of(config, pools).store()?.read();
    // Who looked whether the ssd may be opened could read it.
    let failed = |error: &anyhow::Error| {
        tracing::error!(
            ssd = config.name,
            error = format!("{error:#}"),
            "it has none of the limits that it came with"
        );
    };
    let record = read.and_then(|bytes| Ok(bytes.map(|bytes| MigrationV1::from_bytes(&bytes)).transpose()?));
    record.inspect_err(failed).ok()??.limits.as_ref().map(of_saved)
}

impl House {
    /// By which an ssd of this host is held, or would be if it was served.
    pub(super) fn limits_of(&self, number: usize) -> Option<Limits> {
        if let Some(ssd) = self.ssd(number) {
            return Some(ssd.terms.limits());
        }
        let (config, pools) = (self.absent_config(number)?, self.pools().ok()?);
        Some(config.own_limits().or_else(|| limits_that_came(&config, pools)).unwrap_or_default())
    }

    /// Of all that are served.
    pub(super) fn all_limits(&self) -> Vec<LimitsStatus> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let ssds = slots.open.values().map(|served| served.ssd());
        ssds.map(|ssd| LimitsStatus { ssd: ssd.name.clone(), limits: ssd.terms.limits() }).collect()
    }

    /// An ssd whose device was here before its journal had what it comes with.
    pub(crate) fn hold_to_what_came(&self, number: usize, config: &config::Ssd) -> anyhow::Result<()> {
        let ssd = self.awaited(number).context("its device does not wait any more")?;
        let came = limits_that_came(config, self.pools()?);
        let now = self.clock.at(crate::clock::ticks());
        terms::set_limits_that_came(&ssd, came, now, self.duty.crew());
        Ok(())
    }
}

/// What an offer says of an ssd that is served here.
pub(super) fn offered(
    config: &config::Ssd,
    limits: Limits,
    terms: MigrationTerms,
    snapshots: &[String],
) -> Along {
    let (encrypted, allow_unencrypted) = (config.key.is_some(), terms.allow_unencrypted);
    // More than a word has place for stay, all of them: nobody would know which.
    let bytes: usize = snapshots.iter().map(|name| name.escape_default().count() + 3).sum();
    let snapshots = if bytes <= NAMES_BYTES_MAX { snapshots.to_vec() } else { Vec::new() };
    Along { limits, encrypted, allow_unencrypted, snapshots }
}

/// How an ssd that is offered would be here.
///
/// # Errors
/// It is encrypted there, and would lie in the clear here; or its key here cannot be had.
pub(super) fn here(config: &config::Ssd, along: &Along) -> anyhow::Result<There> {
    check_key(config, along)?;
    // Asked for now, though it is not needed yet: one that cannot be had is heard of before anything is on record.
    DataKey::open(config, None).context("its key")?;
    Ok(there(config, along))
}

/// Of an ssd in a pool: the snapshots that were made of it, oldest first.
pub(super) fn snapshots(config: &config::Ssd, pools: &Pools) -> Vec<String> {
    let Backend::Pool { pool, .. } = &config.backend else { return Vec::new() };
    let Response::Pool(all) = pools.ask(PoolRequest::List) else { return Vec::new() };
    let volumes = all.into_iter().filter(|status| status.name == *pool).flat_map(|status| status.volumes);
    let is_of_it =
        |volume: &VolumeStatus| volume.read_only && volume.parent.as_deref() == Some(config.volume());
    volumes.filter(is_of_it).map(|volume| volume.name).collect()
}

/// # Errors
/// A snapshot that would come has the name of something that is here.
pub(super) fn check_names(config: &config::Ssd, along: &Along, pools: &Pools) -> anyhow::Result<()> {
    let Backend::Pool { pool, .. } = &config.backend else { return Ok(()) };
    if along.snapshots.is_empty() {
        return Ok(());
    }
    let Response::Pool(all) = pools.ask(PoolRequest::List) else { bail!("pool \"{pool}\" does not answer") };
    let volumes = all.into_iter().filter(|status| status.name == *pool).flat_map(|status| status.volumes);
    let here: BTreeSet<String> = volumes.map(|volume| volume.name).collect();
    let is_taken = |name: &&String| here.contains(*name) || *name == config.volume();
    if let Some(name) = along.snapshots.iter().find(is_taken) {
        bail!(
            "snapshot \"{name}\" of ssd \"{}\" cannot come along: pool \"{pool}\" here has a volume of that name already; delete that one here, or the \
             snapshot at the source",
            config.name
        );
    }
    Ok(())
}

/// As [`here`], of one that was looked at before.
pub(super) fn there(config: &config::Ssd, along: &Along) -> There {
    let limits = config.own_limits().unwrap_or_else(|| along.limits.within_bounds());
    let snapshots = !along.snapshots.is_empty() && matches!(config.backend, Backend::Pool { .. });
    There { limits, own_limits: config.limits_written, encrypted: config.key.is_some(), snapshots }
}

/// # Errors
/// It is encrypted there, and would lie in the clear here, and no operator has said that it may.
pub(super) fn check_key(config: &config::Ssd, along: &Along) -> anyhow::Result<()> {
    ensure!(
        !along.encrypted || along.allow_unencrypted || config.key.is_some(),
        "ssd \"{}\" is encrypted at the source, and would lie in the clear here: give it `encryption` in this host's configuration, or move it with \
         --allow-unencrypted",
        config.name
    );
    Ok(())
}

pub(super) fn that_stay(snapshots: &[String]) -> String {
    let names = snapshots.join("\", \"");
    format!("Its snapshots stay here, with what they contain, and are not wiped: \"{names}\"")
}

/// What the other host's answer means, for people.
pub(super) struct Outlook {
    /// To be said whatever else is.
    pub(super) warnings: Vec<String>,
    /// For who asks for a plan.
    pub(super) details: Vec<String>,
}

impl Outlook {
    /// Behind what is told of a migration that has begun.
    pub(super) fn said(&self) -> String {
        self.warnings.iter().map(|warning| format!(". {warning}")).collect()
    }
}

/// `there`: as the other host says; `None`: it is of an older release.
///
/// # Errors
/// The ssd may not go there.
pub(super) fn outlook(
    name: &str,
    along: &Along,
    there: Option<&There>,
    snapshots: &[String],
) -> anyhow::Result<Outlook> {
    let (mut warnings, mut details) = (Vec::new(), Vec::new());
    if there.is_some_and(|there| there.snapshots) {
        details.push(format!("Its snapshots go along: \"{}\"", along.snapshots.join("\", \"")));
    } else if !snapshots.is_empty() {
        warnings.push(that_stay(snapshots));
    }
    let clear = "It is encrypted here, and will lie in the clear there";
    let Some(There { limits, own_limits, encrypted, .. }) = there else {
        if along.encrypted && !along.allow_unencrypted {
            bail!(
                "ssd \"{name}\" is encrypted here, and the other host is of a release that does not say whether it has a key for it: look at its \
                 configuration, then use --allow-unencrypted"
            );
        }
        warnings.push(format!(
            "The other host is of an older release, and takes no limits along: it has those of its configuration there, not {}",
            along.limits
        ));
        return Ok(Outlook { warnings, details });
    };
    match (along.encrypted, *encrypted) {
        (true, true) => {
            details.push("It is deciphered here and enciphered there, with that host's key".to_owned())
        }
        (true, false) => warnings.push(clear.to_owned()),
        (false, true) => {
            details.push("It lies in the clear here, and will be enciphered there".to_owned());
        }
        (false, false) => {}
    }
    match own_limits {
        _ if *limits == along.limits => details.push(format!("Its limits there: {limits}, as here")),
        true => warnings.push(format!(
            "Its limits there, by that host's configuration: {limits}; here they are: {}",
            along.limits
        )),
        false => details.push(format!("Its limits there: {limits}; here they are: {}", along.limits)),
    }
    Ok(Outlook { warnings, details })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn ssd(more: &str) -> config::Ssd {
        let text = format!(
            "[[ssd]]\nname = \"a\"\nsize = \"1GiB\"\nsocket = \"/run/a\"\nbackend = {{ type = \"ram\" }}\n{more}"
        );
        config::Config::parse(Path::new("godwit.toml"), &text).unwrap().ssds.remove(0)
    }

    fn iops(per_second: u64) -> Limits {
        Limits { iops: Some(Rate { per_second, burst: Some(7) }), weight: 300, ..Limits::default() }
    }

    fn along(encrypted: bool, allow_unencrypted: bool) -> Along {
        Along { limits: iops(1000), encrypted, allow_unencrypted, snapshots: Vec::new() }
    }

    const KEY: &str = "encryption = { key_command = [\"/usr/bin/printf\", \"%0128d\", \"7\"] }";

    #[test]
    fn limits_are_saved_and_read_again() {
        let limits = Limits {
            read_iops: Some(Rate { per_second: 11, burst: None }),
            write_iops: Some(Rate { per_second: 12, burst: Some(1) }),
            bandwidth: Some(Rate { per_second: 1 << 20, burst: None }),
            read_bandwidth: Some(Rate { per_second: 2 << 20, burst: Some(3) }),
            write_bandwidth: Some(Rate { per_second: 3 << 20, burst: None }),
            ..iops(10)
        };
        assert_eq!(of_saved(&saved(&limits)), limits);
        assert_eq!(of_saved(&saved(&Limits::default())), Limits::default());
        // Of a disk that somebody else wrote on.
        assert_eq!(of_saved(&saved(&Limits { weight: 0, ..limits })).weight, 1);
    }

    #[test]
    fn limits_that_are_written_at_the_destination_hold_there_and_else_those_that_come() {
        let brought = here(&ssd(""), &along(false, false)).unwrap();
        assert_eq!((brought.limits, brought.own_limits), (iops(1000), false));
        let own = here(&ssd("limits = { iops = 20 }"), &along(false, false)).unwrap();
        assert_eq!((own.limits.iops.map(|it| it.per_second), own.own_limits), (Some(20), true));
        let none = here(&ssd("limits = { weight = 100 }"), &along(false, false)).unwrap();
        assert_eq!((none.limits, none.own_limits), (Limits::default(), true), "an operator's word, too");
        let wild = Along { limits: iops(0), ..along(false, false) };
        assert_eq!(here(&ssd(""), &wild).unwrap().limits, iops(10));
        let told = |there: &There| outlook("a", &along(false, false), Some(there), &[]).unwrap();
        assert_eq!(told(&brought).details, ["Its limits there: iops 1000 (burst 7), weight 300, as here"]);
        assert!(told(&brought).warnings.is_empty());
        let [warning] = &told(&own).warnings[..] else { panic!("one warning") };
        assert!(warning.contains("by that host's configuration: iops 20, weight 100; here"), "{warning}");
    }

    #[test]
    fn what_is_encrypted_does_not_come_to_lie_in_the_clear_unless_somebody_says_so() {
        let refused = here(&ssd(""), &along(true, false)).unwrap_err().to_string();
        assert!(refused.contains("in the clear here: give it `encryption`"), "{refused}");
        let allowed = here(&ssd(""), &along(true, true)).unwrap();
        assert!(!allowed.encrypted);
        let told = outlook("a", &along(true, true), Some(&allowed), &[]).unwrap();
        assert!(told.warnings[0].contains("will lie in the clear there"), "{:?}", told.warnings);
        let encrypted = here(&ssd(KEY), &along(true, false)).unwrap();
        assert!(encrypted.encrypted);
        let told = outlook("a", &along(true, false), Some(&encrypted), &[]).unwrap();
        assert!(told.warnings.is_empty() && told.details[0].contains("with that host's key"));
        assert!(here(&ssd(KEY), &along(false, false)).unwrap().encrypted);
        let lost = KEY.replace("/usr/bin/printf", "/nowhere/printf");
        assert!(here(&ssd(&lost), &along(true, true)).is_err(), "before anything is on record");
    }

    #[test]
    fn snapshots_go_where_they_are_taken_and_stay_by_name_where_they_are_not() {
        let names = ["monday".to_owned(), "tuesday".to_owned()];
        let terms = MigrationTerms::default();
        let mut pooled = ssd("");
        let along = offered(&pooled, Limits::default(), terms, &names);
        let stay =
            "Its snapshots stay here, with what they contain, and are not wiped: \"monday\", \"tuesday\"";
        for there in [None, Some(here(&pooled, &along).unwrap())] {
            let told = outlook("a", &along, there.as_ref(), &names).unwrap();
            assert!(told.warnings.contains(&stay.to_owned()), "{:?}", told.warnings);
        }
        pooled.backend = Backend::Pool { pool: "p".to_owned(), volume: None, thin: true };
        let told = outlook("a", &along, Some(&here(&pooled, &along).unwrap()), &names).unwrap();
        assert!(told.details.contains(&"Its snapshots go along: \"monday\", \"tuesday\"".to_owned()));
        assert!(told.warnings.is_empty(), "{:?}", told.warnings);
        // Too many to be said.
        let many: Vec<String> = (0..2000).map(|number| format!("{number:0100}")).collect();
        let along = offered(&pooled, Limits::default(), terms, &many);
        assert!(along.snapshots.is_empty() && !here(&pooled, &along).unwrap().snapshots);
        let told = outlook("a", &along, Some(&here(&pooled, &along).unwrap()), &many).unwrap();
        assert!(told.warnings[0].starts_with("Its snapshots stay here"));
    }

    #[test]
    fn a_host_of_an_older_release_gets_what_is_encrypted_only_by_an_operators_word() {
        let refused = outlook("a", &along(true, false), None, &[]).err().unwrap().to_string();
        assert!(refused.contains("does not say whether it has a key"), "{refused}");
        for along in [along(true, true), along(false, false)] {
            let told = outlook("a", &along, None, &[]).unwrap();
            assert!(told.warnings[0].contains("not iops 1000 (burst 7), weight 300"), "{:?}", told.warnings);
        }
    }
}
