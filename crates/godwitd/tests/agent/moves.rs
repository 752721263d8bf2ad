//! What the agent tells of migrations.

use super::*;
use api::control::{MigrationStatus, TimelineMark, TimelinePoint};

/// What the daemon's double says: each of its time lines is of a migration.
pub(super) fn answer(moves: &[Timeline], request: &Value) -> Response {
    let status = |line: &Timeline| MigrationStatus {
        ssd: line.ssd.clone(),
        peer: "host-b:8010".to_owned(),
        state: "copying".to_owned(),
        p99_ns: Some(450_000),
        ..MigrationStatus::default()
    };
    match request["question"].as_str() {
        Some("migrations") => Response::Migrations(moves.iter().map(status).collect()),
        Some("timeline") => {
            let line = moves.iter().find(|line| line.ssd == request["ssd"]);
            Response::Timeline(line.cloned().unwrap())
        }
        _ => Response::Error("what?".to_owned()),
    }
}

/// Two minutes of it, as much as a daemon keeps.
fn line(ssd: &str) -> Timeline {
    let points = (0..12_000).map(|at| TimelinePoint { at_us: at * 10_000, ios: at * 1000 }).collect();
    let marks = vec![TimelineMark { at_us: 5, state: "copying".to_owned() }];
    Timeline { ssd: ssd.to_owned(), began_unix_ms: 7, points, marks }
}

#[test]
fn migrations_are_told_as_the_daemon_tells_them_and_without_it_the_reason_is() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control.sock");
    let served = daemon(&control);
    let agent = Agent::start(folder.path());
    assert_eq!(agent.get("/api/v1/migrations"), json!({"items": [], "reason": null}));
    served.lock().unwrap().moves = vec![line("a"), line("b")];
    let begun = Instant::now();
    while agent.get("/api/v1/migrations")["items"] == json!([]) {
        assert!(begun.elapsed() < PATIENCE, "what the daemon said once is told for ever");
        std::thread::sleep(Duration::from_millis(10));
    }
    let list = agent.get("/api/v1/migrations");
    let first = &list["items"][0];
    assert_eq!((&first["ssd"], &first["peer"]), (&json!("a"), &json!("host-b:8010")), "{list}");
    assert_eq!(first["p99_ns"], 450_000, "{list}");
    for ssd in ["a", "b"] {
        let told = agent.get(&format!("/api/v1/migrations/{ssd}/timeline"));
        assert_eq!((&told["ssd"], &told["marks"][0]["state"]), (&json!(ssd), &json!("copying")));
        assert_eq!(told["points"].as_array().unwrap().len(), 12_000);
        assert_eq!(told["points"][3], json!({"t": 30_000, "n": 3000}));
    }
    std::fs::remove_file(&control).unwrap();
    let begun = Instant::now();
    while agent.get("/api/v1/migrations")["reason"].is_null() {
        assert!(begun.elapsed() < PATIENCE, "a daemon that is gone goes on talking");
        std::thread::sleep(Duration::from_millis(10));
    }
    let away = agent.get("/api/v1/migrations");
    assert!(away["items"] == json!([]) && away["reason"].as_str().unwrap().contains("godwitd"), "{away}");
    let (status, problem) = agent.ask("GET", "/api/v1/migrations/a/timeline", &[], None).unwrap();
    assert!(status == 503 && problem.contains("godwit status"), "{status} {problem}");
}

#[test]
fn of_many_who_ask_for_a_time_line_few_ask_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let served = daemon(&folder.path().join("control.sock"));
    served.lock().unwrap().moves = vec![line("a")];
    let agent = Agent::start(folder.path());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| agent.get("/api/v1/migrations/a/timeline"));
        }
    });
    // Two questions each quarter of a second, at the most.
    let most = 2 * (2 + begun.elapsed().as_millis() / 250);
    let asked = served.lock().unwrap().asked;
    assert!(u128::from(asked) <= most, "{asked} in {:?}", begun.elapsed());
}
