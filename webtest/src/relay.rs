//! A TCP port before the agent's unix socket, as `ssh -L` makes one for a person's browser. A test may put answers of its own
//! before the agent's.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use serde_json::Value;

/// More than any browser sends before an empty line.
const HEAD_BYTES_MAX: usize = 64 << 10;

type Answers = Arc<Mutex<BTreeMap<String, Value>>>;

/// See the module. It listens until the process ends.
pub struct Relay {
    port: u16,
    answers: Answers,
}

impl Relay {
    /// Listens at a free port of this host.
    pub fn start(socket: &Path) -> Result<Relay> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("listen")?;
        let port = listener.local_addr()?.port();
        let answers = Answers::default();
        let (known, socket) = (Arc::clone(&answers), socket.to_owned());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (known, socket) = (Arc::clone(&known), socket.clone());
                // A browser that leaves in the middle of an answer is no fault.
                std::thread::spawn(move || pass(client, &socket, &known));
            }
        });
        Ok(Relay { port, answers })
    }

    /// What a person would type.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// From now on, this path (without what stands behind `?`) is answered with this.
    pub fn answer(&self, path: &str, body: Value) {
        self.lock().insert(path.to_owned(), body);
    }

    /// From now on, the agent answers everything itself.
    pub fn be_honest(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Value>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pass(mut client: TcpStream, socket: &PathBuf, answers: &Answers) -> std::io::Result<()> {
    let head = head(&mut client)?;
    let target = head.split(' ').nth(1).unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    let own = answers.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
    if let Some(body) = own {
        if target.contains("wait_s") || target.contains("after_ms") {
            // As the agent does, else the page would ask without a pause.
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        let body = body.to_string();
        let text = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        return client.write_all(text.as_bytes());
    }
    // Without an agent, the browser is hung up on, as by ssh.
    let mut agent = UnixStream::connect(socket)?;
    agent.write_all(closing(&head).as_bytes())?;
    std::io::copy(&mut agent, &mut client).map(drop)
}

/// The request: the page only ever gets, so there is no body.
fn head(client: &mut TcpStream) -> std::io::Result<String> {
    let (mut bytes, mut one) = (Vec::new(), [0]);
    while !bytes.ends_with(b"\r\n\r\n") && bytes.len() < HEAD_BYTES_MAX && client.read(&mut one)? == 1 {
        bytes.extend_from_slice(&one);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The same request, after which the connection ends.
fn closing(head: &str) -> String {
    let lines = head.trim_end().lines().filter(|line| !line.to_lowercase().starts_with("connection:"));
    lines.map(|line| format!("{line}\r\n")).collect::<String>() + "connection: close\r\n\r\n"
}
