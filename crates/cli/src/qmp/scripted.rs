//! A QEMU by script, for tests.

use super::{Monitor, PATIENCE};
use ::hypervisor::Qmp;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

pub(super) const GREETING: &str = "{\"QMP\":{\"version\":{\"qemu\":{\"major\":11,\"minor\":1,\"micro\":3},\"package\":\"\"},\"capabilities\":[]}}\n";

/// A monitor at which `script` says what follows each command. An empty answer closes it.
pub(super) fn monitor(
    greeting: &str,
    mut script: impl FnMut(&str, &Value) -> Vec<Value> + Send + 'static,
) -> Monitor {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let greeting = greeting.to_owned();
    std::thread::spawn(move || {
        let mut out = theirs.try_clone().unwrap();
        let _client_gone = out.write_all(greeting.as_bytes());
        for line in BufReader::new(theirs).lines() {
            let Ok(line) = line else { return };
            let request: Value = serde_json::from_str(&line).unwrap();
            let answers = script(request["execute"].as_str().unwrap(), &request["arguments"]);
            if answers.is_empty() {
                return;
            }
            for mut answer in answers {
                if answer.get("event").is_none() {
                    answer["id"] = request["id"].clone();
                }
                let _client_gone = out.write_all(format!("{answer}\n").as_bytes());
            }
        }
    });
    Monitor::over(Qmp::over(ours, Path::new("qmp"), PATIENCE).unwrap())
}
