//! `godwit metrics` and `godwit top`, on a daemon's double: its control socket, and a page that the test writes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use api::control::{EngineStatus, Response, SsdStatus, Status};
use memory::SharedRegion;
use metrics::{Facts, Op, Page, Part, bucket_of};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

struct Daemon {
    directory: TempDir,
    page: SharedRegion<Page>,
}

impl Daemon {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let page = SharedRegion::<Page>::memfd("test").unwrap();
        page.begin(&Facts { serial: "GW7".to_owned(), device: "/dev/nvme3n1".to_owned(), namespaces: true });
        page.open_lane(0);
        let number = page.fd().unwrap().as_raw_fd();
        let ssd = |name: &str, client, metrics| SsdStatus {
            name: name.to_owned(),
            state: "serving".to_owned(),
            client,
            metrics,
            ..SsdStatus::default()
        };
        let path = format!("/proc/{}/fd/{number}", std::process::id());
        let ssds = vec![ssd("busy", true, Some(path.into())), ssd("unpowered", false, None)];
        let engine = EngineStatus { state: "serving".to_owned(), generation: 3, ..EngineStatus::default() };
        let status = Response::Status(Box::new(Status { engine, ssds, ..Status::default() }));
        let answer = serde_json::to_string(&status).unwrap() + "\n";
        let control = directory.path().join("control.sock");
        let listener = UnixListener::bind(&control).unwrap();
        let text = format!(
            "control = \"{}\"\n[[ssd]]\nname = \"busy\"\nsize = \"1MiB\"\nsocket = \"/x\"\nbackend = {{ type = \"null\" }}\n",
            control.display()
        );
        std::fs::write(directory.path().join("godwit.toml"), text).unwrap();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.unwrap();
                let mut question = String::new();
                let _ = BufReader::new(client.try_clone().unwrap()).read_line(&mut question);
                let _ = client.write_all(answer.as_bytes());
            }
        });
        Self { directory, page }
    }

    fn godwit(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
        command.arg("--config").arg(self.directory.path().join("godwit.toml")).args(arguments);
        command
    }

    /// Reads of 4 KiB that waited 2 µs and took 80 µs, with one in a hundred that took 5 ms.
    fn work(&self) {
        let class = self.page.lane(0).class(Op::Read);
        for at in 0..200 {
            class.time(Part::Queue, bucket_of(2_000));
            class.time(Part::Drive, bucket_of(if at % 50 == 0 { 5_000_000 } else { 80_000 }));
            class.moved(4096);
        }
    }
}

#[test]
fn metrics_are_printed_for_what_is_served_and_said_to_be_missing_for_what_is_not() {
    let daemon = Daemon::start();
    daemon.work();
    let output = daemon.godwit(&["metrics"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let reads = "godwit_ssd_ios_total{ssd=\"busy\",serial=\"GW7\",device=\"/dev/nvme3n1\",nsid=\"all\",op=\"read\"} 200\n";
    assert!(text.contains(reads), "{text}");
    assert!(text.contains("godwit_ssd_state{ssd=\"unpowered\",state=\"serving\"} 1\n"), "{text}");
    assert!(said.contains("\"unpowered\" has no metrics"), "{said}");
}

#[test]
fn top_without_a_terminal_prints_once_and_ends() {
    let daemon = Daemon::start();
    for more in [&[][..], &["--once"], &["--rounds", "1"]] {
        let arguments = [&["top", "--every", "0.1"], more].concat();
        let output = daemon.godwit(&arguments).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && !text.contains('\x1b'), "{text}");
        assert!(text.contains("busy") && text.matches("total").count() == 1, "{text}");
    }
}

/// What a terminal shows, by the few codes that are used.
fn screen(bytes: &str, columns: usize, rows: usize) -> Vec<String> {
    let mut screen = vec![vec![' '; columns]; rows];
    let (mut row, mut column) = (0, 0);
    let mut rest = bytes.chars();
    while let Some(next) = rest.next() {
        match next {
            '\x1b' => {
                assert_eq!(rest.next(), Some('['));
                let mut code = String::new();
                for part in rest.by_ref() {
                    code.push(part);
                    if part.is_ascii_alphabetic() {
                        break;
                    }
                }
                match code.as_str() {
                    "H" => (row, column) = (0, 0),
                    "K" => screen[row][column..].fill(' '),
                    "J" => {
                        screen[row][column..].fill(' ');
                        screen[row + 1..].iter_mut().for_each(|line| line.fill(' '));
                    }
                    "?1049h" | "?25l" | "?25h" | "?1049l" | "0m" | "1m" | "7m" | "31m" | "33m" => {}
                    other => panic!("a terminal is told {other:?}"),
                }
            }
            '\r' => column = 0,
            '\n' => row += 1,
            shown => {
                screen[row][column] = shown;
                column += 1;
            }
        }
    }
    screen.into_iter().map(|line| line.into_iter().collect::<String>().trim_end().to_owned()).collect()
}

/// `godwit top` in a terminal of its own.
struct Session {
    keys: File,
    output: Receiver<Vec<u8>>,
    seen: String,
    child: Child,
    size: (u16, u16),
}

impl Session {
    fn start(daemon: &Daemon, (columns, rows): (u16, u16)) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        tcsetwinsize(&ours, Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let theirs = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let mut command = daemon.godwit(&["top", "--every", "0.1"]);
        command.stdin(theirs.try_clone().unwrap()).stdout(theirs);
        let child = command.spawn().unwrap();
        // The command has the terminal's other end open as long as it lives.
        drop(command);
        let (send, output) = channel();
        let mut reader = File::from(ours.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if send.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { keys: File::from(ours), output, seen: String::new(), child, size: (columns, rows) }
    }

    /// The screen, once it is as it should be.
    fn until(&mut self, is_so: impl Fn(&[String]) -> bool) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(bytes) = self.output.recv_timeout(Duration::from_millis(50)) {
                self.seen.push_str(&String::from_utf8(bytes).unwrap());
            }
            // Whole pictures only: each ends so.
            let whole = self.seen.rfind("\x1b[J").map_or("", |end| &self.seen[..end + 3]);
            let screen = screen(whole, self.size.0.into(), self.size.1.into());
            if is_so(&screen) {
                return screen;
            }
            assert!(Instant::now() < deadline, "{screen:#?}");
        }
    }

    fn press(&mut self, key: &str) {
        self.keys.write_all(key.as_bytes()).unwrap();
    }

    fn end(mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(self.child.wait().unwrap().success());
        // Until nobody has the terminal's other end.
        while let Ok(bytes) = self.output.recv_timeout(PATIENCE) {
            self.seen.push_str(&String::from_utf8(bytes).unwrap());
        }
        self.seen
    }
}

#[test]
fn top_shows_rates_and_latencies_in_columns_and_leaves_the_terminal_as_it_was() {
    for size in [(80, 24), (140, 40)] {
        let daemon = Daemon::start();
        let mut session = Session::start(&daemon, size);
        let screen = session.until(|screen| {
            daemon.work();
            screen.iter().any(|line| line.starts_with("busy") && line.contains("5.0ms"))
        });
        println!("{}", screen.join("\n"));
        assert!(screen[0].contains("engine  serving, generation 3"), "{screen:#?}");
        let heads = &screen[4];
        let busy = screen.iter().find(|line| line.starts_with("busy")).unwrap();
        // Under each third of the head: median, 99 and 99.9 of a hundred, of queue, throttle and drive.
        let ends: Vec<usize> = heads.match_indices("p50").map(|(at, _)| at + 3).collect();
        let cell = |end: usize| busy[end - 5..end].trim();
        assert_eq!(
            ends.iter().map(|end| cell(*end)).collect::<Vec<_>>(),
            ["2.0us", "0", "78us"],
            "{screen:#?}"
        );
        let unpowered = screen.iter().find(|line| line.starts_with("unpowered")).unwrap();
        assert!(unpowered.contains(" -"), "nothing is known of it: {unpowered}");
        session.press("s");
        session.until(|screen| screen[1].contains("busiest first"));
        session.press("q");
        let seen = session.end();
        assert!(seen.ends_with("\x1b[?25h\x1b[?1049l"), "the cursor and the old screen are back");
    }
}
