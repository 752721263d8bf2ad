//! Questions to the running daemon, over its control socket.

use anyhow::{Context, bail};
use api::config::Config;
use api::control::{DEFAULT_SOCKET, EngineRequest, ReactorStatus, Request, Response, SsdStatus, Status};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Asks the daemon of a configuration; what it says on the way goes to the standard error.
pub(crate) fn ask(config: &Config, request: &Request) -> anyhow::Result<String> {
    match exchange(config, request)? {
        Response::Done(text) => Ok(text),
        other => bail!("the daemon answered something else: {other:?}"),
    }
}

/// Has the daemon serve what a file says. `control` cannot change while it runs, so the file says where the daemon is.
pub(crate) fn apply(file: &Path, dry_run: bool, force: bool) -> anyhow::Result<String> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("{}: cannot be read", file.display()))?;
    let config = Config::parse(file, &text)?;
    let path = Some(file.to_owned());
    ask(&config, &Request::Apply { config: text, path, dry_run, force })
}

/// How things are, for people or as JSON.
pub(crate) fn status(config: &Config, json: bool) -> anyhow::Result<String> {
    let mut status = state(config)?;
    // An engine that does not serve, or is of another release, does not say.
    if let Ok(Response::Reactors(reactors)) = exchange(config, &Request::Engine(EngineRequest::Reactors)) {
        status.reactors = reactors;
    }
    // The keeper knows the configuration's, and not what an ssd came with from another host.
    if let Ok(Response::Limits(in_force)) = exchange(config, &Request::Engine(EngineRequest::Limits)) {
        for ssd in &mut status.ssds {
            let of_it = in_force.iter().find(|in_force| in_force.ssd == ssd.name);
            ssd.limits = of_it.map_or(ssd.limits, |in_force| in_force.limits);
        }
    }
    if json { Ok(serde_json::to_string_pretty(&status)? + "\n") } else { Ok(in_words(&status)) }
}

/// How the daemon's engine and ssds are.
pub(crate) fn state(config: &Config) -> anyhow::Result<Status> {
    match exchange(config, &Request::Status)? {
        Response::Status(status) => Ok(*status),
        other => bail!("the daemon answered something else: {other:?}"),
    }
}

/// Refuses an ssd that no new client would get.
pub(crate) fn check_free(config: &Config, name: &str) -> anyhow::Result<()> {
    let Response::Status(status) = exchange(config, &Request::Status)? else {
        bail!("the daemon answered something else than its status");
    };
    match status.ssds.iter().find(|ssd| ssd.name == name) {
        None => bail!("the running daemon has no ssd \"{name}\": it was started with another configuration"),
        Some(ssd) if ssd.client => bail!("ssd \"{name}\" has a client: it belongs to one guest at a time"),
        Some(_) => Ok(()),
    }
}

/// The daemon's last word.
pub(crate) fn exchange(config: &Config, request: &Request) -> anyhow::Result<Response> {
    let path = config.control.as_deref().unwrap_or(Path::new(DEFAULT_SOCKET));
    let mut socket = UnixStream::connect(path).with_context(|| {
        format!(
            "no daemon answers at {}: is godwitd running, as this user, with this configuration?",
            path.display()
        )
    })?;
    socket.write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes())?;
    for line in BufReader::new(socket).lines() {
        match serde_json::from_str(&line?).context("the daemon speaks another release's language")? {
            Response::Progress(text) => eprintln!("{text}"),
            Response::Error(text) => bail!("{text}"),
            last => return Ok(last),
        }
    }
    bail!("the daemon went before it answered; `godwit status` shows how things are")
}

fn in_words(status: &Status) -> String {
    let mut text = String::new();
    let engine = &status.engine;
    let pid = engine.pid.map_or(String::new(), |pid| format!(", process {pid}"));
    let probation = if engine.on_probation { ", on probation" } else { "" };
    let _infallible = writeln!(
        text,
        "keeper  {} process {}, generation {}",
        status.release, status.pid, status.keeper_generation
    );
    let _infallible = writeln!(
        text,
        "engine  {} {}{pid}, generation {}{probation}, {} crashes, {} handovers",
        engine.release, engine.state, engine.generation, engine.crashes, engine.handovers
    );
    for reactor in &status.reactors {
        let ReactorStatus { reactor, on_duty, busy_permille, iops, ssds, queue_pairs } = reactor;
        let duty = if *on_duty { "" } else { ", off duty" };
        let _infallible = writeln!(
            text,
            "reactor {reactor}  {}.{} % busy, {iops} commands a second, {ssds} ssds, {queue_pairs} queue pairs{duty}",
            busy_permille / 10,
            busy_permille % 10
        );
    }
    for ssd in &status.ssds {
        let SsdStatus { name, state, reason, client, unanswered, .. } = ssd;
        let client = if *client { "client connected" } else { "no client" };
        let reason = reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
        let _infallible = writeln!(text, "ssd     {name}  {state}, {client}, {unanswered} waiting{reason}");
    }
    for restart in status.restarts.iter().rev().take(10) {
        let blackout = restart.blackout_us.map_or("not yet served again".to_owned(), |blackout_us| {
            format!("{}.{:03} ms until the next served", blackout_us / 1000, blackout_us % 1000)
        });
        let _infallible = writeln!(
            text,
            "ended   generation {}: {}; {blackout}; {} commands replayed, {} requests awaited",
            restart.generation, restart.reason, restart.replayed, restart.fenced
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::control::{EngineStatus, Restart};

    #[test]
    fn the_status_says_what_an_operator_asks_first() {
        let restart = Restart {
            generation: 1,
            reason: "killed by SIGKILL".to_owned(),
            blackout_us: Some(12_345),
            replayed: 9,
            ..Restart::default()
        };
        let ssd = SsdStatus {
            name: "a".to_owned(),
            state: "quarantined".to_owned(),
            reason: Some("3 engines crashed".to_owned()),
            client: true,
            unanswered: 2,
            crashes: 3,
            ..SsdStatus::default()
        };
        let engine = EngineStatus {
            state: "serving".to_owned(),
            generation: 2,
            pid: Some(7),
            ..EngineStatus::default()
        };
        let status = Status { engine, ssds: vec![ssd], restarts: vec![restart], ..Status::default() };
        let text = in_words(&status);
        for part in [
            "serving, process 7, generation 2",
            "a  quarantined, client connected, 2 waiting: 3 engines",
            "12.345 ms",
            "9 commands replayed",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
