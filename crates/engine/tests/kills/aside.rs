//! Telling the devices of an engine in another process what a migration in it would tell them: one request a connection, "what name bytes".

use engine::{Passenger, Passengers};
use guest::PATIENCE;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// In the engine's process.
pub(crate) fn listen(path: &Path, passengers: Passengers) {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let passengers = std::sync::Arc::new(passengers);
        for socket in listener.incoming().map_while(Result::ok) {
            let passengers = passengers.clone();
            std::thread::spawn(move || answer(socket, &passengers));
        }
    });
}

fn answer(mut socket: UnixStream, passengers: &Passengers) {
    let mut request = Vec::new();
    socket.read_to_end(&mut request).unwrap();
    let mut parts = request.splitn(3, |byte| *byte == b' ');
    let mut next = || parts.next().unwrap_or_default().to_vec();
    let (what, name, bytes) = (next(), String::from_utf8(next()).unwrap(), next());
    let answer = match passengers.named(&name) {
        None => b"again".to_vec(),
        Some(passenger) => match carry_out(&passenger, &what, &bytes) {
            Ok(bytes) => [&b"ok "[..], &bytes].concat(),
            Err(error) => format!("no {error:#}").into_bytes(),
        },
    };
    // Who asked may be gone.
    let _ = socket.write_all(&answer);
}

fn carry_out(passenger: &Passenger, what: &[u8], bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let nothing = |()| Vec::new();
    match what {
        b"halt" => passenger.halt().map(nothing),
        b"save" => passenger.save(),
        b"load" => passenger.load(bytes).map(nothing),
        b"run" => passenger.run().map(nothing),
        b"log" => passenger.log_written().map(nothing),
        b"touch" => passenger.touch_written().map(|pages| pages.to_string().into_bytes()),
        b"barrier" => passenger.barrier().map(nothing),
        b"end" => passenger.end_log().map(nothing),
        _ => anyhow::bail!("what?"),
    }
}

/// To the engine that listens there, once it serves the ssd. What it says, or why not; "killed" if it ended meanwhile.
pub(crate) fn tell(path: &Path, what: &str, name: &str, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "{what} {name}: no engine");
        let request = [format!("{what} {name} ").as_bytes(), bytes].concat();
        if let Ok(mut socket) = UnixStream::connect(path) {
            let mut answer = Vec::new();
            let asked = socket
                .write_all(&request)
                .and_then(|()| socket.shutdown(std::net::Shutdown::Write))
                .and_then(|()| socket.read_to_end(&mut answer));
            match answer.split_at_checked(3) {
                Some((b"ok ", rest)) => return Ok(rest.to_vec()),
                Some((b"no ", why)) => return Err(String::from_utf8_lossy(why).into_owned()),
                Some(_) => {}
                None if asked.is_ok() || answer.is_empty() => return Err("killed".to_owned()),
                None => {}
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
