//! As much HTTP as chromedriver and the agent need: one request a connection.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

/// Longer than anything that is asked here takes.
const PATIENCE: Duration = Duration::from_secs(90);

/// An answer: its status and its body.
#[derive(Debug)]
pub struct Answer {
    /// Such as 200.
    pub status: u16,
    /// JSON, or null.
    pub body: Value,
}

/// Asks a server on this host.
pub fn ask_port(port: u16, method: &str, path: &str, body: &Value) -> Result<Answer> {
    let socket = TcpStream::connect(("127.0.0.1", port)).context("connect")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    exchange(socket, method, path, &[], body)
}

/// Asks a server at a unix socket.
pub fn ask_socket(
    socket: &Path,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> Result<Answer> {
    let socket = UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    exchange(socket, method, path, headers, body)
}

fn exchange(
    mut socket: impl Read + Write,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> Result<Answer> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n{more}\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).context("ask")?;
    let text = read(&mut socket).with_context(|| format!("{method} {path}"))?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("{method} {path}: no answer"))?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no status")?;
    Ok(Answer { status, body: serde_json::from_str(body).unwrap_or(Value::Null) })
}

/// A server need not close what we said we would.
fn read(socket: &mut impl Read) -> Result<String> {
    let (mut answer, mut piece) = (Vec::new(), [0; 1 << 16]);
    loop {
        let count = socket.read(&mut piece).context("read the answer")?;
        answer.extend_from_slice(piece.get(..count).unwrap_or_default());
        let text = String::from_utf8_lossy(&answer);
        let whole = text.split_once("\r\n\r\n").is_some_and(|(head, _)| {
            let head_bytes = head.len() + 4;
            length(head).is_some_and(|length| answer.len() >= head_bytes + length)
        });
        if count == 0 || whole {
            return Ok(text.into_owned());
        }
    }
}

fn length(head: &str) -> Option<usize> {
    let mut headers = head.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = headers.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?;
    value.trim().parse().ok()
}
