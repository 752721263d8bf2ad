//! REST over a unix socket, or over TCP with TLS.

use super::TlsArguments;
use super::remote::Remote;
use anyhow::{Context, bail};
use api::rest::{DEFAULT_SOCKET, OPERATION_HEADER, Operation, OperationState, Plan, Problem, ROOT};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(160);
/// How long an agent may be away while one waits for an operation.
const ABSENCE: Duration = Duration::from_secs(60);
/// The largest answer.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// An agent.
#[derive(Clone, Debug)]
pub(crate) enum Client {
    /// Of this host.
    Local(PathBuf),
    /// Of another, or of this one by its address.
    Remote(Remote),
}

/// A request that changes something.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) operation: Option<String>,
    pub(crate) if_match: Option<u64>,
    pub(crate) dry_run: bool,
}

/// What came of it.
pub(crate) enum Submitted {
    Operation(Operation),
    Plan(Plan),
}

/// No answer came: the agent is away, or went.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Away(pub(super) String);

impl Client {
    pub(super) fn new(place: Option<&str>, tls: &TlsArguments) -> anyhow::Result<Self> {
        let place = place.unwrap_or(DEFAULT_SOCKET);
        if place.starts_with("http://") {
            bail!(
                "{place}: an agent speaks https only\n  next: write https://, and give --cert, --key and --ca"
            );
        }
        Ok(match place.strip_prefix("https://") {
            Some(rest) => Self::Remote(Remote::new(rest, tls)?),
            None => Self::Local(place.into()),
        })
    }

    fn host(&self) -> &str {
        match self {
            Self::Local(_) => "godwit",
            Self::Remote(remote) => remote.host(),
        }
    }

    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let (_, body) = self.call(Method::GET, path, &[], None)?;
        Ok(serde_json::from_slice(&body)?)
    }

    /// A change that needs no operation.
    pub(crate) fn change(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<()> {
        let body = body.map(serde_json::to_vec).transpose()?;
        self.call(method, path, &[], body).map(drop)
    }

    /// Asks for a change. Should the agent go before it answers, the same is asked again: with the same id it is the same operation.
    pub(crate) fn submit(
        &self,
        method: &Method,
        path: &str,
        body: Option<&impl Serialize>,
        terms: &Terms,
    ) -> anyhow::Result<Submitted> {
        let id = terms.operation.clone().map_or_else(new_id, Ok)?;
        let mut headers = vec![(OPERATION_HEADER, id)];
        headers.extend(terms.if_match.map(|generation| ("if-match", format!("\"{generation}\""))));
        let mark = if path.contains('?') { '&' } else { '?' };
        let path = if terms.dry_run { format!("{path}{mark}dry_run=true") } else { path.to_owned() };
        let body = body.map(serde_json::to_vec).transpose()?;
        let mut answer = self.call(method.clone(), &path, &headers, body.clone());
        if answer.as_ref().is_err_and(|error| error.is::<Away>()) {
            std::thread::sleep(Duration::from_millis(300));
            answer = self.call(method.clone(), &path, &headers, body);
        }
        let (status, body) = answer?;
        Ok(match status {
            StatusCode::ACCEPTED => Submitted::Operation(serde_json::from_slice(&body)?),
            _ => Submitted::Plan(serde_json::from_slice(&body)?),
        })
    }

    /// Waits for an operation's end, over restarts of the agent; says each new step.
    pub(crate) fn wait(&self, id: &str, say: &mut dyn FnMut(&Operation)) -> anyhow::Result<Operation> {
        let mut answered = Instant::now();
        let mut pause = 0;
        loop {
            match self.get::<Operation>(&format!("operations/{id}?wait_s={pause}")) {
                Ok(operation) => {
                    answered = Instant::now();
                    say(&operation);
                    if operation.state != OperationState::Running {
                        return Ok(operation);
                    }
                    pause = 1;
                }
                Err(error) if error.is::<Away>() && answered.elapsed() < ABSENCE => {
                    std::thread::sleep(Duration::from_millis(200));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, String)],
        body: Option<Vec<u8>>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut request =
            Request::builder().method(method).uri(format!("{ROOT}/{path}")).header("host", self.host());
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default())))?;
        let exchange = async { tokio::time::timeout(PATIENCE, self.exchange(request)).await };
        let (status, body) = runtime
            .block_on(exchange)
            .unwrap_or_else(|_| Err(Away("the agent does not answer; see its log".to_owned())))?;
        if status.is_success() {
            return Ok((status, body));
        }
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => bail!("{}\n  next: {}", problem.message, problem.next_step),
            Err(_) => bail!("the agent answered {status} without a reason: is it of another release?"),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), Away> {
        match self {
            Self::Remote(remote) => talk(remote.connect().await?, request).await,
            Self::Local(socket) => {
                let stream = UnixStream::connect(socket).await.map_err(|error| {
                    let place = socket.display();
                    Away(format!(
                        "no agent answers at {place}: {error}\n  next: is `godwitd agent` running, and may this user use its socket?"
                    ))
                })?;
                talk(stream, request).await
            }
        }
    }
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), Away> {
    let went = |error: &dyn std::fmt::Display| Away(format!("the agent went before it answered: {error}"));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| went(&e))?;
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(|e| went(&e))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|e| went(&e))?;
    connection.abort();
    Ok((status, body.to_bytes()))
}

/// An id that nobody else has.
fn new_id() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("there is no randomness for the operation's id; give one with --operation")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
