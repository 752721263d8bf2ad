//! What a migration asks of the house: to serve an ssd no more, to open one beside its guests, to wipe what is left of one.

use super::Migrations;
use super::blocks::{Landing, hold, pages_of};
use crate::passage::{Absent, Passage, Standing, Store};
use crate::passenger::Passenger;
use crate::pool::Purpose;
use crate::records::Records;
use crate::run::{House, is_busy};
use crate::serve::{Kept, open_ssd};
use crate::served::Served;
use crate::ssd::Ssd;
use crate::terms::Hold;
use crate::vhost;
use anyhow::{Context, bail, ensure};
use api::config::{self, Backend, Door};
use api::control::{EngineRequest, Response};
use state::migration::MigrationV1;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long that takes at most.
const FREE_PATIENCE: Duration = Duration::from_secs(10);
const FREE_LOOK: Duration = Duration::from_millis(1);

impl House {
    /// Those that are served and those that are not.
    pub(super) fn configs(&self) -> Vec<config::Ssd> {
        self.configs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn config(&self, name: &str) -> Option<config::Ssd> {
        self.configs().into_iter().find(|config| config.name == name)
    }

    pub(super) fn migrations(&self) -> Option<&Migrations> {
        self.migrations.get()
    }

    pub(crate) fn number(&self, name: &str) -> Option<usize> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let open = slots.open.iter().find(|(_, served)| served.ssd().name == name).map(|(number, _)| *number);
        open.or_else(|| {
            slots.absent.iter().find(|(_, absent)| absent.config.name == name).map(|(number, _)| *number)
        })
    }

    /// Refuses what cannot be done to an ssd that is being moved.
    pub(crate) fn check_stays(&self, number: usize) -> anyhow::Result<()> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let open = slots.open.get(&number).map(|served| served.ssd().name.clone());
        let name = open.or_else(|| slots.absent.get(&number).map(|absent| absent.config.name.clone()));
        drop(slots);
        let Some(name) = name else { return Ok(()) };
        match self.migrations().filter(|all| all.is_known()) {
            Some(all) if !all.is_moving(&name) => Ok(()),
            Some(_) => bail!(
                "ssd \"{name}\" is being moved: wait for the end of that, or `godwit migration cancel {name}`"
            ),
            None => self.check_settled(&name),
        }
    }

    /// The migrations that an engine before this one began are not known yet: their journals are.
    fn check_settled(&self, name: &str) -> anyhow::Result<()> {
        let Some(config) = self.config(name) else { return Ok(()) };
        ensure!(
            !Passage::of(&config, self.pools()?).is_under_way(),
            "ssd \"{name}\" may be on its way between hosts, and the engine has just begun: ask again in a moment"
        );
        Ok(())
    }

    /// One that is served.
    pub(super) fn ssd(&self, number: usize) -> Option<Arc<Ssd>> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.open.get(&number).map(|served| Arc::clone(served.ssd()))
    }

    pub(crate) fn is_open(&self, number: usize) -> bool {
        self.ssd(number).is_some()
    }

    /// The controller of an ssd that is served, or waits for its drive.
    pub(crate) fn passenger(&self, number: usize) -> Option<Passenger> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = slots.absent.get(&number).and_then(|absent| absent.waiting.as_ref());
        slots.open.get(&number).or(waiting)?.passenger()
    }

    /// The controllers of all ssds.
    pub(crate) fn passengers(&self) -> Vec<Passenger> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = slots.absent.values().filter_map(|absent| absent.waiting.as_ref());
        slots.open.values().chain(waiting).filter_map(Served::passenger).collect()
    }

    /// `None`: this engine is about to end.
    pub(super) fn records(&self) -> Option<Records> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.as_ref().map(|(records, _)| records.clone())
    }

    /// Serves an ssd no more: its owner is elsewhere. Its client loses it; what it still asks for is not answered any more, and nothing of that reaches the drive.
    pub(super) fn depart(&self, number: usize) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let name = slots.open.get(&number).map(|served| served.ssd().name.clone());
        let absent = name.and_then(|name| self.config(&name)).map(|config| Absent::new(&config));
        let Some((served, absent)) = absent.and_then(|absent| Some((slots.open.remove(&number)?, absent)))
        else {
            drop(slots);
            // An engine before this one served it; this one never did.
            self.forget_former(number);
            self.say_standing(number);
            // Its client's session ends with that.
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            let client = slots.absent.get_mut(&number).and_then(|absent| absent.client.take());
            drop(slots);
            return drop(client);
        };
        // A client that comes meanwhile finds it so.
        slots.absent.insert(number, absent);
        drop(slots);
        let ssd = Arc::clone(served.ssd());
        self.close(&served);
        if let Err(error) = served.join() {
            tracing::info!(ssd = ssd.name, error = format!("{error:#}"), "it has moved");
        }
        drop(ssd);
        self.say_standing(number);
    }

    /// Ends what is served here and is another's: nothing of it is answered any more, or made durable.
    fn close(&self, served: &Served) {
        let ssd = served.ssd();
        // Before its session ends: that is to answer nothing.
        ssd.terms.set_hold(Hold::Closed);
        served.stop();
        ssd.watch.close();
        hold(ssd, Hold::Closed, self.duty.crew());
    }

    /// Ends what is served here. What was granted to another host does not wait for that one's word.
    pub(crate) fn end(&self, served: &Served) {
        let config = self.config(&served.ssd().name);
        let is_away = || config.is_some_and(|config| self.away(&config).is_ok_and(|away| away.is_some()));
        if served.ssd().terms.hold() == Hold::Frozen && is_away() {
            self.close(served);
        } else {
            served.stop();
        }
    }

    /// Says anew how an ssd stands: its journal has another step.
    pub(crate) fn say_standing(&self, number: usize) {
        let open = self.ssd(number).and_then(|ssd| self.config(&ssd.name));
        let is_open = open.is_some();
        let config = open.or_else(|| self.absent_config(number));
        let (Some(config), Ok(pools)) = (config, self.pools()) else { return };
        match Passage::of(&config, pools).standing() {
            // It is served until it departs; meanwhile it may be granted, and stand still.
            Standing::Away(away) if is_open => {
                if away.holds {
                    self.keeper.stands(number, Some(away.standing()));
                }
            }
            Standing::Away(away) => self.say_away(number, &config, &away),
            Standing::Here(_) if is_open => self.keeper.stands(number, None),
            Standing::Here(_) => {}
        }
    }

    /// What an engine before this one had of an ssd is of a life that is over: another comes from elsewhere.
    pub(super) fn forget_former(&self, number: usize) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(absent) = slots.absent.get_mut(&number) {
            absent.found = None;
        }
    }

    /// Opens the drive of an ssd that is not served.
    pub(super) fn open_beside(&self, number: usize, config: &config::Ssd) -> anyhow::Result<Arc<Ssd>> {
        ensure!(self.ssd(number).is_none(), "it is served here");
        // Its record is of another time, and comes anew.
        let config = config::Ssd { state: None, ..config.clone() };
        when_free(|| {
            let kept = Kept { purpose: Purpose::Land, ..Kept::default() };
            let keeper = Some(Arc::clone(&self.keeper));
            Ok(match config.door {
                Door::VfioUser => open_ssd(number, &config, kept, keeper, self.pools()?)?.0,
                Door::VhostUser => vhost::open_ssd(number, &config, kept, keeper, self.pools()?)?,
            })
        })
    }

    /// Held while an ssd's drive is emptied, or comes to be served: neither may happen in the middle of the other.
    pub(super) fn turn_of(&self, number: usize) -> Arc<Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(number).or_default())
    }

    /// Nothing of an ssd that a migration left here, or did not bring whole, can be read any more when this returns: verified by reading.
    pub(super) fn wipe(&self, number: usize, store: &dyn Store, migration: [u8; 16]) -> anyhow::Result<()> {
        let turn = self.turn_of(number);
        let _mine = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let record = store.read()?.map(|bytes| MigrationV1::from_bytes(&bytes)).transpose()?;
        let is_mine = |record: &MigrationV1| {
            record.migration == migration && record.owned_here().is_none() && record.is_over()
        };
        ensure!(
            record.as_ref().is_some_and(is_mine),
            "its journal is of another time by now: nothing was touched"
        );
        let config = self.absent_config(number).context("it is served here, or not of this host")?;
        if let Backend::Pool { pool, .. } = &config.backend {
            // By the pool's own steps: recorded, verified, resumed. The volume stays, with its journal.
            return when_free(|| self.pools()?.vacate(&config, pool));
        }
        let ssd = self.open_beside(number, &config)?;
        let pages = pages_of(&ssd).context("its size is no multiple of 4 KiB")?;
        let landing = Landing::new(&ssd, pages, 2)?;
        landing.verify_empty(&ssd)
    }

    /// Goes on with migrations, and takes new ones from here on. What is wrong with that is a fault; the ssds are served all the same.
    pub(crate) fn open_migrations(self: &Arc<Self>, config: &config::Config) {
        let (house, config) = (Arc::clone(self), config.migration.clone());
        // It may wait for drives and for other hosts; the ssds that are served do not.
        let open = move || {
            // Before their drives are a migration's, and after what a dead engine had of them was let go.
            house.await_guests();
            let migrations = house.migrations.get_or_init(|| Migrations::new(config.as_ref()));
            if let Err(error) = migrations.open(&house, config.as_ref()) {
                house.keeper.fault(None, format!("no ssd can be moved: {error:#}"));
            }
        };
        if let Err(error) = std::thread::Builder::new().name("migrations".to_owned()).spawn(open) {
            self.keeper.fault(None, format!("no ssd can be moved: no thread is left: {error}"));
        }
    }

    /// Answers what is asked of this process and its migrations.
    pub(crate) fn answer(self: &Arc<Self>, request: EngineRequest) -> Response {
        let Some(migrations) = self.migrations() else {
            return Response::Error("the engine does not serve yet: ask again in a moment".to_owned());
        };
        match request {
            // It does not say that there are none.
            EngineRequest::Migrations | EngineRequest::Timeline { .. } | EngineRequest::Steer { .. }
                if !migrations.is_known() =>
            {
                Response::Error("migrations are not known yet: ask again in a moment".to_owned())
            }
            EngineRequest::Migrate { ssd, to, terms, dry_run } => {
                match migrations.begin(self, &ssd, &to, terms, dry_run) {
                    Ok(text) => Response::Done(text),
                    Err(error) => Response::Error(format!("{error:#}")),
                }
            }
            EngineRequest::MigrateGuest { qmp, to, terms, dry_run } => {
                match migrations.begin_guest(self, &qmp, &to, terms, dry_run) {
                    Ok(text) => Response::Done(text),
                    Err(error) => Response::Error(format!("{error:#}")),
                }
            }
            EngineRequest::Migrations => Response::Migrations(migrations.list()),
            EngineRequest::Timeline { ssd } => migrations.timeline(&ssd),
            EngineRequest::Steer { ssd, steer } => migrations.steer(&ssd, steer),
            EngineRequest::Limits => Response::Limits(self.all_limits()),
            EngineRequest::Reactors => Response::Reactors(self.duty.reactors()),
        }
    }
}

/// Opens a drive as soon as it is free: the keeper lets go of what it holds of an ssd's former life a moment after it was told.
///
/// # Errors
/// As opening it has them.
pub(crate) fn when_free<T>(mut open: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        match open() {
            Err(error) if is_busy(&error) && start.elapsed() < FREE_PATIENCE => std::thread::sleep(FREE_LOOK),
            result => return result,
        }
    }
}
