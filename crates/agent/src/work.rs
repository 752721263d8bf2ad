//! The one who works: takes operations to their ends, and keeps the daemon at what is wanted.
//!
//! Every step can be done again: after a kill at any point, the next agent begins the step anew. What an operation is done to
//! changes in the transaction that ends it, so it is done once.
//!
//! ```text
//!  ssd-create   (its key is made) --> apply with it --> it is ready, end
//!                  | refused
//!                  `-> undo: apply without it, remove its files --> it is no more, end: failed
//!  ssd-change   apply as it will be -----------------> it is so, end
//!                  | refused
//!                  `-> undo: apply as it is ---------> end: failed
//!  ssd-delete   apply without it --> remove: its files --> it is no more, end     (in a pool: see `wipe`)
//!                  | refused            | cannot
//!                  `-> undo (as above)  `-> quarantined, end: failed
//! ```
//!
//! Pools and snapshots: see `pool`. Ssds that come from other hosts and go there: see `passage`.
//!
//! Each operation applies what all others have *ended* with, and its own wish: one that the daemon refuses does not take others
//! with it.

pub(crate) mod along;
mod key;
mod passage;
mod pool;
mod wipe;

use crate::book::Book;
use crate::desired::{Kept, Wish};
use crate::place::Place;
use crate::plane::{How, Plane, PlaneError};
use crate::render;
use crate::store::{self, OperationRow, PoolRow, SsdRow, StoreError};
use api::control::Status;
use api::rest::{OperationState, Phase};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use wipe::Doomed;

/// How often the daemon is looked at when nothing is to be done.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How soon a step that waits for the daemon is tried again, at first and at most.
const AGAIN_AFTER: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Where the daemon's own configuration comes from.
#[derive(Clone, Debug)]
pub struct Base {
    /// Its file.
    pub file: PathBuf,
    /// What takes its place if there is none.
    pub otherwise: String,
}

impl Base {
    fn text(&self) -> Result<String, String> {
        match std::fs::read_to_string(&self.file) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(self.otherwise.clone()),
            Err(error) => Err(format!("{}: cannot be read: {error}", self.file.display())),
        }
    }
}

/// What is wrong with the daemon, for those who ask.
pub(crate) type Trouble = Arc<Mutex<Option<String>>>;

/// How a step went.
enum Step {
    /// The operation has ended.
    Ended,
    /// Go on with the next step at once.
    On,
    /// Try it again later; why.
    Later(String),
}

/// The worker.
pub(crate) struct Work {
    pub(crate) book: Book,
    pub(crate) plane: Arc<dyn Plane>,
    pub(crate) place: Place,
    pub(crate) base: Base,
    pub(crate) now_ms: fn() -> u64,
    pub(crate) uuid: fn() -> String,
    pub(crate) trouble: Trouble,
    /// The daemon's life that has been told what is wanted: its process and generation.
    pub(crate) told: Option<(u32, u64)>,
    /// Called between any two effects. Tests end the agent there.
    pub(crate) between: Box<dyn Fn() + Send>,
}

impl Work {
    /// Works until nobody can ask any more.
    pub(crate) fn run(mut self, asked: &Receiver<()>) {
        let mut again = AGAIN_AFTER.0;
        loop {
            while asked.try_recv().is_ok() {}
            let waits = self.turn();
            let patience = match waits {
                true => {
                    let longer = (again * 2).min(AGAIN_AFTER.1);
                    std::mem::replace(&mut again, longer)
                }
                false => {
                    again = AGAIN_AFTER.0;
                    LOOK_EVERY
                }
            };
            match asked.recv_timeout(patience) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Takes every operation as far as it goes now. Returns whether something waits for the daemon.
    pub(crate) fn turn(&mut self) -> bool {
        let running = match self.book.read(store::running) {
            Ok(running) => running,
            Err(error) => return self.failed(&error),
        };
        let mut waits = false;
        for operation in running {
            match self.finish(operation) {
                Ok(ended) => waits |= !ended,
                Err(error) => return self.failed(&error),
            }
        }
        match self.settle() {
            Ok(()) => *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None,
            Err(why) => {
                *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
                waits = true;
            }
        }
        waits
    }

    fn failed(&self, error: &StoreError) -> bool {
        tracing::error!(%error, "the state file");
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(format!("the state file: {error}"));
        true
    }

    /// Takes an operation to its end, or to where it must wait.
    fn finish(&mut self, mut operation: OperationRow) -> Result<bool, StoreError> {
        let kept: Kept = serde_json::from_str(&operation.request)
            .map_err(|e| StoreError::Content(format!("operation {}: {e}", operation.shown.id)))?;
        loop {
            let step = self.step(&operation, &kept.wish)?;
            if let Step::Ended = step {
                return Ok(true);
            }
            // It may be at another step by now.
            let id = operation.shown.id.clone();
            match self.book.read(|sqlite| store::operation(sqlite, &id))? {
                Some(row) => operation = row,
                None => return Ok(true),
            }
            if let Step::Later(why) = step {
                self.write_step(&operation, &operation.shown.step, Some(&why))?;
                return Ok(false);
            }
        }
    }

    fn write_step(&self, operation: &OperationRow, step: &str, why: Option<&str>) -> Result<(), StoreError> {
        self.book.write(|sqlite| store::step(sqlite, operation.number, &operation.shown.id, step, why))
    }

    fn step(&mut self, operation: &OperationRow, wish: &Wish) -> Result<Step, StoreError> {
        match (operation.shown.step.as_str(), wish) {
            ("undo", _) => self.undo(operation, wish),
            ("remove", Wish::SsdDelete { name, .. }) => self.remove(operation, name),
            ("wipe", Wish::SsdDelete { name, .. }) => {
                let doomed = self.ssd(name)?.as_ref().and_then(Doomed::ssd);
                let doomed = doomed.ok_or_else(|| early(name))?;
                self.await_wipe(operation, &doomed)
            }
            (step, Wish::SnapshotDelete { name }) => {
                let snapshot = self.book.read(|sqlite| store::snapshot(sqlite, name))?;
                let doomed = snapshot.as_ref().map(Doomed::snapshot).ok_or_else(|| early(name))?;
                match step {
                    "wipe" => self.await_wipe(operation, &doomed),
                    _ => self.delete_volume(operation, &doomed),
                }
            }
            (_, Wish::SnapshotCreate { name, uuid, spec }) => self.snapshot(operation, name, uuid, spec),
            ("begin", Wish::PoolCreate { name, spec, force_destroy_data }) => {
                self.format(operation, name, spec, force_destroy_data.as_ref())
            }
            ("begin", Wish::SsdCreate { name, spec, .. }) if spec.incoming => {
                self.begin_incoming(operation, name)
            }
            ("begin", Wish::SsdCreate { name, uuid, spec }) if spec.source.is_some() => {
                self.derive(operation, spec, format!("{name}.{uuid}"))
            }
            ("begin", Wish::SsdCreate { spec, .. }) if spec.key.is_some() => self.begin_key(operation, spec),
            ("begin", Wish::SsdChange { name, spec }) => self.begin_change(operation, name, spec),
            (_, Wish::SsdDelete { name, .. })
                if self.ssd(name)?.is_some_and(|ssd| ssd.phase == Phase::Quarantined) =>
            {
                // The daemon has not served it since its first deletion.
                self.write_step(operation, "remove", None)?;
                Ok(Step::On)
            }
            _ => self.accept(operation, wish),
        }
    }

    fn ssd(&self, name: &str) -> Result<Option<SsdRow>, StoreError> {
        self.book.read(|sqlite| store::ssd(sqlite, name))
    }

    /// How an operation goes on that the daemon did not do: later, or back. `None`: it is done.
    fn unless_done(
        &self,
        operation: &OperationRow,
        said: Result<(), PlaneError>,
    ) -> Result<Option<Step>, StoreError> {
        match said {
            Ok(()) => Ok(None),
            Err(PlaneError::Silent(why)) => Ok(Some(Step::Later(why))),
            Err(PlaneError::Refused(why)) => {
                (self.between)();
                self.write_step(operation, "undo", Some(&why))?;
                Ok(Some(Step::On))
            }
        }
    }

    /// Has the daemon serve what has ended, and this wish.
    fn accept(&mut self, operation: &OperationRow, wish: &Wish) -> Result<Step, StoreError> {
        let force = matches!(wish, Wish::SsdDelete { force: true, .. });
        // Its journal has to be read when the daemon has let go of it.
        if let Wish::SsdDelete { name, .. } = wish
            && let Some(Err(error)) = self.ssd(name)?.map(|ssd| self.passage(&ssd))
        {
            return Ok(Step::Later(error.to_string()));
        }
        let said = match self.apply(Some(wish), force)? {
            Ok(()) => self.has_room(wish)?.and(self.is_still_here(wish)?),
            said => said,
        };
        if let Some(step) = self.unless_done(operation, said)? {
            return Ok(step);
        }
        (self.between)();
        if let Wish::SsdDelete { name, .. } = wish
            && let Some(step) = self.spare_what_came(operation, name)?
        {
            return Ok(step);
        }
        self.accepted(operation, wish)
    }

    /// The daemon has accepted it.
    fn accepted(&self, operation: &OperationRow, wish: &Wish) -> Result<Step, StoreError> {
        let now_ms = (self.now_ms)();
        let removes = matches!(wish, Wish::SsdDelete { .. });
        self.book.write(|sqlite| {
            accepted(sqlite, wish)?;
            match removes {
                true => store::step(sqlite, operation.number, &operation.shown.id, "remove", None),
                false => store::end(sqlite, operation, OperationState::Done, None, now_ms),
            }
        })?;
        (self.between)();
        Ok(if removes { Step::On } else { Step::Ended })
    }

    /// Has the daemon serve what has ended, without this wish: nobody knows whether an earlier agent had it served. As long as
    /// the daemon refuses that, too, the wish may not be to blame.
    fn undo(&mut self, operation: &OperationRow, wish: &Wish) -> Result<Step, StoreError> {
        // One that comes from another host may have come by now, and have its guest: the daemon would not let go of it, nor is it to. If it
        // has not come, whoever is at its socket has nothing there.
        let has_come = self.may_have_come(wish)?;
        if has_come == Some(true)
            && let Some(step) = self.keep_what_came(operation, wish)?
        {
            return Ok(step);
        }
        let force = matches!(wish, Wish::SsdCreate { .. }) && has_come == Some(false);
        if let Err(PlaneError::Silent(_) | PlaneError::Refused(_)) = self.apply(None, force)? {
            // The reason of the refusal stays to be seen.
            return Ok(Step::Later(operation.shown.message.clone().unwrap_or_default()));
        }
        (self.between)();
        if let Some(step) = self.keep_what_came(operation, wish)? {
            return Ok(step);
        }
        if let Wish::SsdCreate { name, .. } = wish
            && let Some(ssd) = self.ssd(name)?
        {
            if let Err(error) = self.place.remove(&ssd) {
                return Ok(Step::Later(format!("the files of ssd \"{name}\" cannot be removed: {error}")));
            }
            if let Some(pool) = &ssd.spec.pool
                && let Err(PlaneError::Silent(_) | PlaneError::Refused(_)) =
                    self.forget_volume(pool, &ssd.volume())
            {
                return Ok(Step::Later(operation.shown.message.clone().unwrap_or_default()));
            }
            if let Err(why) = self.end_key(&ssd.uuid, ssd.spec.key.as_deref())? {
                return Ok(Step::Later(why));
            }
        }
        (self.between)();
        let why = operation.shown.message.as_deref();
        let now_ms = (self.now_ms)();
        self.book.write(|sqlite| {
            if let Wish::SsdCreate { name, .. } = wish {
                store::remove_ssd(sqlite, name)?;
            } else if let Wish::PoolCreate { name, .. } = wish {
                store::remove_pool(sqlite, name)?;
            } else if let Wish::PoolDelete { name } = wish
                && let Some(mut pool) = store::pool(sqlite, name)?
            {
                pool.operation = None;
                store::put_pool(sqlite, &pool)?;
            } else if let Wish::SsdChange { name, .. } | Wish::SsdDelete { name, .. } = wish
                && let Some(mut ssd) = store::ssd(sqlite, name)?
            {
                ssd.operation = None;
                store::put_ssd(sqlite, &ssd)?;
            }
            store::end(sqlite, operation, OperationState::Failed, why, now_ms)
        })?;
        (self.between)();
        Ok(Step::Ended)
    }

    /// Removes the data of an ssd that is served no more.
    fn remove(&mut self, operation: &OperationRow, name: &str) -> Result<Step, StoreError> {
        let Some(mut ssd) = self.ssd(name)? else {
            return Err(early(name));
        };
        // A daemon that was started anew may have it from a file of its own.
        match self.plane.status() {
            Err(error) => return Ok(Step::Later(error.to_string())),
            Ok(status) if status.ssds.iter().any(|served| served.name == name) => {
                if let Err(error) = self.apply(None, false)? {
                    return Ok(Step::Later(error.to_string()));
                }
            }
            Ok(_) => {}
        }
        (self.between)();
        // In a pool: when its certificate is begun.
        if ssd.spec.pool.is_none()
            && let Err(why) = self.end_key(&ssd.uuid, ssd.spec.key.as_deref())?
        {
            return Ok(Step::Later(why));
        }
        let result = self.place.remove(&ssd);
        (self.between)();
        if result.is_ok()
            && let Some(doomed) = Doomed::ssd(&ssd)
        {
            return self.delete_volume(operation, &doomed);
        }
        let now_ms = (self.now_ms)();
        self.book.write(|sqlite| match &result {
            Ok(()) => {
                store::remove_ssd(sqlite, name)?;
                store::end(sqlite, operation, OperationState::Done, None, now_ms)
            }
            Err(error) => {
                let why = format!("its files in {} cannot be removed: {error}", self.place.ssds.display());
                ssd.phase = Phase::Quarantined;
                ssd.operation = None;
                ssd.reason = Some(why.clone());
                store::put_ssd(sqlite, &ssd)?;
                store::end(sqlite, operation, OperationState::Failed, Some(&why), now_ms)
            }
        })?;
        (self.between)();
        Ok(Step::Ended)
    }

    /// Has the daemon serve what has ended, with a wish on top.
    fn apply(&mut self, wish: Option<&Wish>, force: bool) -> Result<Result<(), PlaneError>, StoreError> {
        let text = match self.configuration(wish)? {
            Ok(text) => text,
            Err(why) => return Ok(Err(PlaneError::Silent(why))),
        };
        Ok(self.plane.apply(&text, How { dry_run: false, force }).map(|said| tracing::info!(said, "applied")))
    }

    pub(crate) fn configuration(&self, wish: Option<&Wish>) -> Result<Result<String, String>, StoreError> {
        configuration(&self.book, &self.base, &self.place, wish)
    }

    /// Has the daemon serve what has ended, if it does not.
    fn settle(&mut self) -> Result<(), String> {
        let status = self.plane.status().map_err(|e| e.to_string())?;
        self.follow(&status).map_err(|e| e.to_string())?;
        let text = self.configuration(None).map_err(|e| e.to_string())??;
        let life = (status.pid, status.keeper_generation);
        if self.told == Some(life) && serves(&status, &text) {
            return Ok(());
        }
        if let Err(error) = self.plane.apply(&text, How::default()) {
            if self.told != Some(life) && matches!(error, PlaneError::Refused(_)) {
                self.settle_in_parts(&status).map_err(|e| e.to_string())?;
            }
            return Err(error.to_string());
        }
        (self.between)();
        self.told = Some(life);
        Ok(())
    }
}

/// The text that the daemon is to serve: what has ended, with a wish on top.
pub(crate) fn configuration(
    book: &Book,
    base: &Base,
    place: &Place,
    wish: Option<&Wish>,
) -> Result<Result<String, String>, StoreError> {
    let base = match base.text() {
        Ok(base) => base,
        Err(why) => return Ok(Err(why)),
    };
    let (mut pools, mut ssds) =
        book.read(|sqlite| Ok::<_, StoreError>((store::pools(sqlite)?, store::ssds(sqlite)?)))?;
    if let Some(wish) = wish {
        with(&mut pools, &mut ssds, wish);
    }
    Ok(render::configuration(&base, place, &pools, &ssds).map_err(|e| e.to_string()))
}

/// An operation's target is there until the operation has ended.
fn early(name: &str) -> StoreError {
    StoreError::Content(format!("{name} left before its deletion ended"))
}

/// Pools and ssds as a wish would have them.
fn with(pools: &mut Vec<PoolRow>, ssds: &mut Vec<SsdRow>, wish: &Wish) {
    match wish {
        Wish::SsdCreate { name, uuid, spec } => {
            ssds.retain(|ssd| ssd.name != *name);
            ssds.push(SsdRow {
                name: name.clone(),
                uuid: uuid.clone(),
                generation: 1,
                phase: spec.begins(),
                operation: None,
                reason: None,
                spec: spec.clone(),
            });
            ssds.sort_by(|one, other| one.name.cmp(&other.name));
        }
        Wish::SsdChange { name, spec } => {
            ssds.iter_mut().filter(|ssd| ssd.name == *name).for_each(|ssd| ssd.spec = spec.clone());
        }
        Wish::SsdDelete { name, .. } => ssds.retain(|ssd| ssd.name != *name),
        Wish::PoolCreate { name, spec, .. } => {
            pools.retain(|pool| pool.name != *name);
            let (name, spec) = (name.clone(), spec.clone());
            pools.push(PoolRow { name, phase: Phase::Ready, operation: None, spec });
            pools.sort_by(|one, other| one.name.cmp(&other.name));
        }
        Wish::PoolDelete { name } => pools.retain(|pool| pool.name != *name),
        Wish::SnapshotCreate { .. } | Wish::SnapshotDelete { .. } => {}
    }
}

/// The daemon serves it: the ssd is as wished.
fn accepted(sqlite: &rusqlite::Connection, wish: &Wish) -> Result<(), StoreError> {
    match wish {
        Wish::PoolDelete { name } => return store::remove_pool(sqlite, name),
        Wish::PoolCreate { name, .. } => {
            let Some(mut pool) = store::pool(sqlite, name)? else { return Err(early(name)) };
            (pool.phase, pool.operation) = (Phase::Ready, None);
            return store::put_pool(sqlite, &pool);
        }
        _ => {}
    }
    let (Wish::SsdCreate { name, .. } | Wish::SsdChange { name, .. } | Wish::SsdDelete { name, .. }) = wish
    else {
        return Ok(());
    };
    let Some(mut ssd) = store::ssd(sqlite, name)? else {
        return Err(StoreError::Content(format!("ssd {name} left before its operation ended")));
    };
    match wish {
        Wish::SsdDelete { .. } => {
            ssd.phase = Phase::Deleting;
            store::remove_attachment(sqlite, name)?;
        }
        Wish::SsdChange { spec, .. } => {
            ssd.spec = spec.clone();
            ssd.generation += 1;
            ssd.operation = None;
        }
        _ => {
            ssd.phase = ssd.spec.begins();
            ssd.operation = None;
        }
    }
    store::put_ssd(sqlite, &ssd)
}

/// The daemon has exactly the ssds of a configuration.
fn serves(status: &Status, text: &str) -> bool {
    let Ok(config) = api::config::Config::parse(std::path::Path::new("desired state"), text) else {
        return false;
    };
    let mut wanted: Vec<&str> = config.ssds.iter().map(|ssd| ssd.name.as_str()).collect();
    let mut served: Vec<&str> = status.ssds.iter().map(|ssd| ssd.name.as_str()).collect();
    wanted.sort_unstable();
    served.sort_unstable();
    wanted == served
}
