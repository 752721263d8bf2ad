//! `godwitd agent` beside a daemon of [`vmtest::daemon`]: started, asked, killed and started again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::http::{Answer, ask_socket};

const START_PATIENCE: Duration = Duration::from_secs(30);
/// An operation that takes longer than this has failed.
const OPERATION_PATIENCE_S: u32 = 30;

/// A running agent; dropping it kills it.
pub struct Agent {
    folder: PathBuf,
    binary: PathBuf,
    child: Child,
}

impl Agent {
    /// Starts an agent whose daemon has its configuration and its control socket in `folder`, as [`vmtest::daemon::Daemon`]'s do;
    /// its own files are there too.
    pub fn start(binary: &Path, folder: &Path) -> Result<Agent> {
        let child = spawn(binary, folder)?;
        let mut agent = Agent { folder: folder.to_owned(), binary: binary.to_owned(), child };
        agent.wait()?;
        Ok(agent)
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("agent.sock")
    }

    /// The socket of an NVMe ssd.
    #[must_use]
    pub fn ssd_socket(&self, name: &str) -> PathBuf {
        self.folder.join("guests").join(format!("{name}.sock"))
    }

    /// Kills it without a word.
    pub fn kill(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again after [`Agent::kill`].
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        self.child = spawn(&self.binary, &self.folder)?;
        self.wait()
    }

    /// Asks for something.
    pub fn get(&self, path: &str) -> Result<Value> {
        let answer = self.ask("GET", path, &Value::Null)?;
        ensure!(answer.status == 200, "GET {path}: {} {}", answer.status, answer.body);
        Ok(answer.body)
    }

    /// Asks for a change, and waits until it is made.
    pub fn change(&self, method: &str, path: &str, body: &Value) -> Result<()> {
        let answer = self.ask(method, path, body)?;
        ensure!(answer.status == 202, "{method} {path}: {} {}", answer.status, answer.body);
        let id = answer.body["id"].as_str().context("an operation has an id")?.to_owned();
        let operation = self.get(&format!("operations/{id}?wait_s={OPERATION_PATIENCE_S}"))?;
        ensure!(operation["state"] == "done", "{method} {path}: {operation}\n{}", self.log());
        Ok(())
    }

    /// What it said so far.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.join("agent.log")).unwrap_or_default())
            .into_owned()
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Answer> {
        ask_socket(&self.socket(), method, &format!("/api/v1/{path}"), &[], body)
    }

    fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        while self.get("flavors").is_err() {
            if let Some(status) = self.child.try_wait().context("look after the agent")? {
                bail!("the agent ended at its start with {status}\n{}", self.log());
            }
            ensure!(Instant::now() < deadline, "the agent does not answer\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent said:\n{}", self.log());
        }
        self.kill();
    }
}

/// The wish for an ssd, as the agent takes it.
#[must_use]
pub fn ssd(name: &str, size_mib: u64) -> Value {
    json!({ "name": name, "size_bytes": size_mib << 20 })
}

fn spawn(binary: &Path, folder: &Path) -> Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join("agent.log"))
        .context("open the agent's log")?;
    let mut command = Command::new(binary);
    let pairs = [
        ("--state", "agent.db"),
        ("--socket", "agent.sock"),
        ("--control", "control.sock"),
        ("--config", "godwit.toml"),
        ("--ssds", "ssds"),
        ("--sockets", "guests"),
    ];
    command.arg("agent");
    for (option, name) in pairs {
        command.arg(option).arg(folder.join(name));
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("start {} agent", binary.display()))
}
