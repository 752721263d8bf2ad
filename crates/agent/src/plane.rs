//! The data plane, as the agent sees it: what serves a configuration.

use api::control::{
    EngineRequest, MigrationStatus, PoolRequest, PoolStatus, Request, Response, Status, Timeline,
};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// Longest wait for the next line of an answer to a change.
const CHANGE_PATIENCE: Duration = Duration::from_secs(120);
/// Longest wait for how things are.
const STATUS_PATIENCE: Duration = Duration::from_secs(3);
/// The longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// What the daemon says when it is at something else: it is asked again later.
const BUSY: [&str; 7] = [
    "is under way",
    "the daemon is stopping",
    "takes too long to make ready",
    "no engine serves now",
    "ask again in a moment",
    "the engine ended before it answered",
    "is resting",
];

/// How a change is to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct How {
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
    /// Remove ssds whose clients are connected, too.
    pub force: bool,
}

/// Why the data plane did not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaneError {
    /// Nobody knows whether it was done. Asking for the same again is safe: whatever is so already is left as it is.
    #[error("{0}")]
    Silent(String),
    /// It was not done, and asking again will not help.
    #[error("{0}")]
    Refused(String),
}

/// What serves a configuration.
pub trait Plane: Send + Sync {
    /// Serves what `config` says; whatever is served so already is not disturbed. All or nothing.
    ///
    /// # Errors
    /// [`PlaneError`].
    fn apply(&self, config: &str, how: How) -> Result<String, PlaneError>;

    /// How things are.
    ///
    /// # Errors
    /// [`PlaneError`].
    fn status(&self) -> Result<Status, PlaneError>;

    /// How the pools are. One whose drive hangs says so in its state.
    ///
    /// # Errors
    /// [`PlaneError`].
    fn pools(&self) -> Result<Vec<PoolStatus>, PlaneError>;

    /// Does something with a pool.
    ///
    /// # Errors
    /// [`PlaneError`].
    fn pool(&self, request: PoolRequest) -> Result<String, PlaneError>;

    /// The migrations that the host takes part in, and those that ended last.
    ///
    /// # Errors
    /// [`PlaneError`].
    fn migrations(&self) -> Result<Vec<MigrationStatus>, PlaneError>;

    /// Has the engine do something about migrations; what it said.
    ///
    /// # Errors
    /// [`PlaneError`]. What nobody heard of may have been done.
    fn engine(&self, request: EngineRequest) -> Result<String, PlaneError>;

    /// How a guest's I/O went during the last migration of its ssd.
    ///
    /// # Errors
    /// [`PlaneError`].
    fn timeline(&self, ssd: &str) -> Result<Timeline, PlaneError>;
}

/// `godwitd`, by its control socket.
#[derive(Clone, Debug)]
pub struct Daemon {
    control: PathBuf,
}

impl Daemon {
    /// The daemon that listens at `control`.
    #[must_use]
    pub fn new(control: PathBuf) -> Self {
        Self { control }
    }

    fn ask(&self, request: &Request, patience: Duration) -> Result<Response, PlaneError> {
        let place = self.control.display();
        let silent = |what: &str, error: std::io::Error| {
            PlaneError::Silent(format!("the daemon at {place} {what}: {error}; is godwitd running?"))
        };
        let mut socket = UnixStream::connect(&self.control).map_err(|e| silent("does not answer", e))?;
        let limited =
            socket.set_read_timeout(Some(patience)).and(socket.set_write_timeout(Some(STATUS_PATIENCE)));
        limited.map_err(|e| silent("cannot be asked", e))?;
        let line = serde_json::to_string(request).map_err(|e| PlaneError::Refused(e.to_string()))?;
        socket.write_all(format!("{line}\n").as_bytes()).map_err(|e| silent("does not listen", e))?;
        for line in BufReader::new(socket.take(ANSWER_BYTES_MAX)).lines() {
            let line = line.map_err(|e| silent("did not answer in time", e))?;
            match serde_json::from_str(&line) {
                Ok(Response::Progress(text)) => tracing::debug!(text, "the daemon is at it"),
                Ok(Response::Error(text)) => return Err(refusal(text)),
                Ok(last) => return Ok(last),
                Err(error) => {
                    let text =
                        format!("the daemon speaks another release's language ({error}); upgrade the older");
                    return Err(PlaneError::Refused(text));
                }
            }
        }
        Err(PlaneError::Silent(format!("the daemon at {place} went before it answered")))
    }
}

fn refusal(text: String) -> PlaneError {
    match BUSY.iter().any(|busy| text.contains(busy)) {
        true => PlaneError::Silent(text),
        false => PlaneError::Refused(text),
    }
}

impl Plane for Daemon {
    fn apply(&self, config: &str, how: How) -> Result<String, PlaneError> {
        let request = Request::Apply {
            config: config.to_owned(),
            path: Some("the agent's desired state".into()),
            dry_run: how.dry_run,
            force: how.force,
        };
        match self.ask(&request, CHANGE_PATIENCE)? {
            Response::Done(text) => Ok(text),
            other => Err(PlaneError::Refused(format!("the daemon answered something else: {other:?}"))),
        }
    }

    fn status(&self) -> Result<Status, PlaneError> {
        match self.ask(&Request::Status, STATUS_PATIENCE)? {
            Response::Status(status) => Ok(*status),
            other => Err(PlaneError::Refused(format!("the daemon answered something else: {other:?}"))),
        }
    }

    fn pools(&self) -> Result<Vec<PoolStatus>, PlaneError> {
        match self.ask(&Request::Pool(PoolRequest::List), STATUS_PATIENCE)? {
            Response::Pool(pools) => Ok(pools),
            other => Err(PlaneError::Refused(format!("the daemon answered something else: {other:?}"))),
        }
    }

    fn pool(&self, request: PoolRequest) -> Result<String, PlaneError> {
        match self.ask(&Request::Pool(request), CHANGE_PATIENCE)? {
            Response::Done(text) => Ok(text),
            other => Err(PlaneError::Refused(format!("the daemon answered something else: {other:?}"))),
        }
    }

    fn migrations(&self) -> Result<Vec<MigrationStatus>, PlaneError> {
        match self.ask(&Request::Engine(EngineRequest::Migrations), STATUS_PATIENCE)? {
            Response::Migrations(migrations) => Ok(migrations),
            other => Err(PlaneError::Refused(format!("the daemon answered something else: {other:?}"))),
        }
    }

    fn engine(&self, request: EngineRequest) -> Result<String, PlaneError> {
        match self.ask(&Request::Engine(request), CHANGE_PATIENCE)? {
            Response::Done(text) => Ok(text),
            other => Err(PlaneError::Refused(format!("the daemon answered something else: {other:?}"))),
        }
    }

    fn timeline(&self, ssd: &str) -> Result<Timeline, PlaneError> {
        let request = Request::Engine(EngineRequest::Timeline { ssd: ssd.to_owned() });
        match self.ask(&request, STATUS_PATIENCE)? {
            Response::Timeline(line) => Ok(line),
            other => Err(PlaneError::Refused(format!("the daemon answered something else: {other:?}"))),
        }
    }
}
