//! For tests: the other end of a QMP socket, which says what it is told to.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::Error;
use crate::qmp::Qmp;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 3, "minor": 1, "major": 11}, "package": "Debian"}, "capabilities": ["oob"]}}"#;

/// The other end of the socket: what QEMU would say, as told.
pub(crate) struct Peer {
    pub(crate) stream: BufReader<UnixStream>,
}

impl Peer {
    pub(crate) fn say(&mut self, text: &str) {
        // The other side may be gone.
        let _ = self.stream.get_mut().write_all(text.as_bytes());
    }

    /// The next command.
    pub(crate) fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Answers the next command with `{}`.
    pub(crate) fn accept(&mut self) -> Value {
        let command = self.hear();
        self.answer(&command, &json!({}));
        command
    }

    pub(crate) fn answer(&mut self, command: &Value, value: &Value) {
        self.say(&format!("{}\n", json!({ "return": value, "id": command["id"] })));
    }

    pub(crate) fn greet(&mut self) {
        self.say(&format!("{GREETING}\r\n"));
        assert_eq!(self.accept()["execute"], "qmp_capabilities");
    }
}

pub(crate) fn with_peer<T: Send + 'static>(
    script: impl FnOnce(Peer) -> T + Send + 'static,
) -> (UnixStream, JoinHandle<T>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || script(Peer { stream: BufReader::new(theirs) }));
    (ours, thread)
}

/// A connection past the greeting, and a peer that does `script` then.
pub(crate) fn greeted<T: Send + 'static>(
    script: impl FnOnce(Peer) -> T + Send + 'static,
) -> (Qmp, JoinHandle<T>) {
    let (ours, thread) = with_peer(|mut peer| {
        peer.greet();
        script(peer)
    });
    (over(ours, PATIENCE).unwrap(), thread)
}

pub(crate) fn over(stream: UnixStream, patience: Duration) -> Result<Qmp, Error> {
    Qmp::over(stream, Path::new("/run/vm.qmp"), patience)
}

pub(crate) fn event(name: &str) -> String {
    format!("{}\n", json!({ "event": name, "timestamp": { "seconds": 1, "microseconds": 2 } }))
}

/// A QEMU that answers each command by `answers` (a value, or an error's text) until the connection ends; then, what it was asked.
pub(crate) fn qemu(
    mut answers: impl FnMut(&str, &Value) -> Result<Value, &'static str> + Send + 'static,
) -> (Qmp, JoinHandle<Vec<String>>) {
    greeted(move |mut peer| {
        let mut asked = Vec::new();
        let mut line = String::new();
        while peer.stream.read_line(&mut line).is_ok_and(|count| count > 0) {
            let command: Value = serde_json::from_str(&line).unwrap();
            line.clear();
            let name = command["execute"].as_str().unwrap();
            match answers(name, &command["arguments"]) {
                Ok(value) => peer.answer(&command, &value),
                Err(text) => {
                    let error = json!({ "class": "GenericError", "desc": text });
                    peer.say(&format!("{}\n", json!({ "error": error, "id": command["id"] })));
                }
            }
            asked.push(name.to_owned());
        }
        asked
    })
}
