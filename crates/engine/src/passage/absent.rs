//! Ssds of the configuration that are not served because their owner is not here, and what is kept for when they come.

use super::{Away, Passage, Standing, reserve};
use crate::migration::house::when_free;
use crate::pool::Purpose;
use crate::run::House;
use crate::served::Served;
use crate::slot::Plug;
use anyhow::{Context, bail, ensure};
use api::config;
use link::control::Saved;
use std::os::fd::OwnedFd;
use std::sync::PoisonError;
use std::sync::mpsc::channel;

/// An ssd that is not served.
pub(crate) struct Absent {
    /// As it will be served.
    pub(crate) config: config::Ssd,
    /// What an engine before this one left of it, when it was served here.
    pub(crate) found: Option<(Saved, Vec<OwnedFd>)>,
    /// Its client. Its link is not read: what it says waits.
    pub(crate) client: Option<Plug>,
    /// Who answers its client instead ([`super::waiting`]).
    pub(crate) waiting: Option<Served>,
}

impl Absent {
    pub(crate) fn new(config: &config::Ssd) -> Self {
        Self { config: config.clone(), found: None, client: None, waiting: None }
    }

    /// A client comes.
    pub(crate) fn plug(&mut self, plug: Plug) {
        match &self.waiting {
            Some(waiting) => waiting.plug(plug),
            None => self.client = Some(plug),
        }
    }
}

impl House {
    /// Why an ssd is not to be served, if so; makes room for one that is to come.
    pub(crate) fn away(&self, config: &config::Ssd) -> anyhow::Result<Option<Away>> {
        let pools = self.pools()?;
        let Standing::Away(mut away) = Passage::of(config, pools).standing() else { return Ok(None) };
        if config.incoming
            && away.word == "incoming"
            && let Err(error) = reserve(config, pools)
        {
            away.why = format!("there is no room for it: {error:#}. {}", away.why);
        }
        Ok(Some(away))
    }

    /// Whether an ssd that is not served may be said to be larger. Where it is it would not be.
    ///
    /// # Errors
    /// It is at another host, and nobody says that it comes from there.
    pub(crate) fn check_grows_elsewhere(&self, config: &config::Config, number: usize) -> anyhow::Result<()> {
        let Some(ssd) = self.absent_config(number).and_then(|absent| config.ssd(&absent.name)) else {
            return Ok(());
        };
        let passage = Passage::of(ssd, self.pools()?);
        let Standing::Away(away) = passage.standing() else { return Ok(()) };
        if ssd.incoming {
            return Ok(());
        }
        ensure!(
            !passage.is_in_use(),
            "ssd \"{}\": the engine has just begun, and cannot read its journal yet: ask again in a moment",
            ssd.name
        );
        bail!(
            "ssd \"{}\" is not here any more ({}), and does not grow here. If it has grown where it is, and is to come back, say so: `incoming = true`",
            ssd.name,
            away.word
        )
    }

    /// Whether an ssd was never moved.
    pub(crate) fn has_no_journal(&self, config: &config::Ssd) -> bool {
        self.pools().is_ok_and(|pools| Passage::of(config, pools).has_no_journal())
    }

    /// Tells the keeper that an ssd is not served, and keeps what is there of it.
    pub(crate) fn stay_away(&self, number: usize, absent: Absent, away: &Away) {
        // The keeper logs it, where that is news.
        tracing::debug!(ssd = absent.config.name, word = away.word, why = away.why, "not served");
        let config = absent.config.clone();
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.absent.insert(number, absent);
        drop(slots);
        self.say_away(number, &config, away);
    }

    /// Serves an ssd that stood away, if its journal says by now that its owner is here; else says anew how it stands.
    ///
    /// # Errors
    /// It cannot be served, though it is owned here. The next engine tries again.
    pub(crate) fn arrive(&self, number: usize) -> anyhow::Result<()> {
        let config = self.absent_config(number).context("it is served already, or not of this host")?;
        if let Some(away) = self.away(&config)? {
            self.say_away(number, &config, &away);
            return Ok(());
        }
        let served = if self.waits_for_drive(number) {
            self.put_behind(number, &config)
        } else {
            self.end_wait_of(number);
            self.take_in(number)
        };
        if let Err(error) = &served {
            self.keeper.fault(Some(number), format!("it cannot be served: {error:#}"));
        }
        served
    }

    /// Looks anew at ssds whose pools were in use when this engine began.
    pub(crate) fn look_again(&self) -> anyhow::Result<()> {
        let pools = self.pools()?.look_again();
        let is_of = |config: &config::Ssd| matches!(&config.backend, config::Backend::Pool { pool, .. } if pools.contains(pool));
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let absent = slots.absent.iter().filter(|(_, absent)| is_of(&absent.config));
        let numbers: Vec<usize> = absent.map(|(number, _)| *number).collect();
        drop(slots);
        for number in numbers {
            // It was told as a fault.
            let _ = self.arrive(number);
        }
        Ok(())
    }

    fn take_in(&self, number: usize) -> anyhow::Result<()> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let absent = slots.absent.get_mut(&number).context("it is served already")?;
        let (config, found) = (absent.config.clone(), absent.found.take());
        // The client of what is found comes with it: its commands go on, and need its memory. Of no other it is known whose life it is of.
        let client = found.as_ref().and_then(|_| absent.client.take());
        drop(slots);
        self.keeper.stands(number, None);
        // What is found comes with its drive; what is not may be free in a moment.
        let planned = match found {
            Some(found) => self.plan(number, &config, Some(found), client, Purpose::Serve)?,
            None => when_free(|| self.plan(number, &config, None, None, Purpose::Serve))?,
        };
        self.take_up_one(number, planned)?;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // A client that came meanwhile was put there.
        let client = slots.absent.remove(&number).and_then(|absent| absent.client);
        if let Some((served, client)) = slots.open.get(&number).zip(client) {
            served.plug(client);
        }
        Ok(())
    }

    /// Begins to serve what is open; a client that comes meanwhile finds it.
    pub(crate) fn take_up_one(&self, number: usize, planned: crate::served::Planned) -> anyhow::Result<()> {
        let name = planned.ssd().name.clone();
        let (ready, readies) = channel();
        // Its client may come as soon as it is powered on, and finds it here.
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let started: Result<Served, _> = planned.start(ready);
        let started = started.map(|served| _ = slots.open.insert(number, served));
        drop(slots);
        let started = started.map_err(anyhow::Error::from);
        let served = started.and_then(|()| readies.recv().context("its thread ended")?.map(drop));
        match &served {
            Ok(()) => tracing::info!(ssd = name, "served from now on"),
            Err(_) => {
                let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
                slots.open.remove(&number);
            }
        }
        served
    }
}
