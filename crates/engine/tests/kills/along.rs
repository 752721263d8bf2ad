//! What goes along with an ssd that moves: its limits, and that what is encrypted stays so; also with hosts of the release before this one.

use crate::crossing::{
    FILE, identity_of, migrate, migrate_soon, status, steer, terms, until_it_is, until_over,
};
use crate::disk;
use crate::house::House;
use crate::load::Load;
use api::config::{Limits, Rate};
use api::control::{EngineRequest, MigrationTerms, PoolRequest, Request, Response, Steer};
use guest::PATIENCE;
use guest::hosts::Hosts;
use guest::nvme::Sqe;
use serde_json::{Value, json};
use state::migration::MigrationV1;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use transfer::tls::Protocol;

const PER_SECOND: u64 = 10;
const BURST: u64 = 30;
const THIN: &str = "{ type = \"pool\", pool = \"p\", thin = true }";
const LIMITS: &str = "\n[ssd.limits]\niops = 10\niops_burst = 30\nweight = 300\n";

fn limits() -> Limits {
    let iops = Some(Rate { per_second: PER_SECOND, burst: Some(BURST) });
    Limits { iops, weight: 300, ..Limits::default() }
}

/// "vm" as one house is to have it.
fn text(house: &House, hosts: &Hosts, host: usize, backend: &str) -> String {
    house.config(&[("vm", backend)], 64) + &hosts.sections[host]
}

pub(crate) fn start(hosts: &Hosts, host: usize, backend: &str) -> House {
    House::start_with(&[("vm", backend)], 2, &hosts.sections[host])
}

pub(crate) fn incoming(backend: &str) -> String {
    backend.replacen('}', "}\nincoming = true", 1)
}

/// By which the engine holds "vm", once one serves it.
fn in_force(house: &House) -> Limits {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Response::Limits(all) = house.ask(&Request::Engine(EngineRequest::Limits))
            && let Some(vm) = all.iter().find(|limits| limits.ssd == "vm")
        {
            return vm.limits;
        }
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Of many reads at once no more are answered than the burst and what the time since then gives. That holds however slow the machine is.
fn assert_held(house: &House) {
    let mut driver = house.connect("vm");
    driver.create_queue_pair(1, 64).unwrap();
    let buffer = driver.ram().clone().alloc(512).unwrap();
    let start = Instant::now();
    for block in 0..60 {
        driver.place(1, Sqe::new(2).nsid(1).prp(buffer.iova(), 0).qword(10, block).cdw12(0)).unwrap();
    }
    driver.ring(1).unwrap();
    let mut done = 0;
    while done < BURST || start.elapsed() < Duration::from_millis(300) {
        while let Some(ended) = driver.poll(1).unwrap() {
            ended.ok().unwrap();
            done += 1;
        }
        assert!(start.elapsed() < PATIENCE, "{done} of the burst of {BURST}");
        std::thread::sleep(Duration::from_millis(1));
    }
    let allowed = BURST + PER_SECOND * start.elapsed().as_millis() as u64 / 1000 + 1;
    assert!(done <= allowed, "{done} were answered, and {allowed} may be");
}

pub(crate) fn dry_run(house: &House, to: &str, terms: MigrationTerms) -> Result<String, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (ssd, to) = ("vm".to_owned(), to.to_owned());
        match house.ask(&Request::Engine(EngineRequest::Migrate { ssd, to, terms, dry_run: true })) {
            Response::Done(text) => return Ok(text),
            Response::Error(text)
                if Instant::now() < deadline
                    && (text.contains("ask again") || text.contains("cannot speak")) => {}
            Response::Error(text) => return Err(text),
            other => panic!("{other:?}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn journal(house: &House) -> MigrationV1 {
    MigrationV1::from_bytes(&std::fs::read(house.path("vm.state.migration")).unwrap()).unwrap()
}

#[test]
fn an_ssd_has_its_limits_where_it_moved_to_also_if_they_changed_on_the_way_and_whoever_is_killed_then() {
    let hosts = Hosts::new();
    let (a, b) = (start(&hosts, 0, FILE), start(&hosts, 1, &incoming(FILE)));
    let mut load = Load::new(a.connect("vm"), 2, 16, 7);
    load.run_for(Duration::from_millis(300));
    let _left = load.leave();
    let slow = MigrationTerms { bandwidth: 256 << 10, ..terms() };
    migrate_soon(&a, &hosts.addresses[1], slow);
    a.apply_text(text(&a, &hosts, 0, &format!("{FILE}{LIMITS}"))).unwrap();
    assert!(!status(&a).over && in_force(&a) == limits());
    steer(&a, Steer::Bandwidth(0));
    assert_eq!(until_over(&a, || {}).state, "moved");
    until_it_is(&b, "serving");
    assert_eq!(in_force(&b), limits());
    assert_held(&b);
    b.kill();
    assert_held(&b);
    assert_eq!(in_force(&b), limits());
    // The daemon too.
    let again = text(&b, &hosts, 1, &incoming(FILE));
    let b = b.restart(again);
    until_it_is(&b, "serving");
    assert_eq!(in_force(&b), limits());
    // It sets out for another host, and stays after all: that journal is written over the one it came by.
    migrate_soon(&b, &hosts.addresses[0], slow);
    steer(&b, Steer::Cancel);
    assert_eq!(until_over(&b, || {}).state, "cancelled");
    b.kill();
    until_it_is(&b, "serving");
    assert_eq!(in_force(&b), limits());
    assert_held(&b);
    a.stop();
    b.stop();
}

#[test]
fn limits_that_are_written_at_the_destination_hold_there_until_they_are_taken_out() {
    let hosts = Hosts::new();
    let a = start(&hosts, 0, &format!("{FILE}{LIMITS}"));
    let own = "\n[ssd.limits]\niops = 700\n";
    let b = start(&hosts, 1, &format!("{}{own}", incoming(THIN)));
    let plan = dry_run(&a, &hosts.addresses[1], terms()).unwrap();
    let told =
        "by that host's configuration: iops 700, weight 100; here they are: iops 10 (burst 30), weight 300";
    assert!(plan.contains(told), "{plan}");
    let begun = migrate(&a, &hosts.addresses[1], terms()).unwrap();
    assert!(begun.contains(told), "{begun}");
    assert_eq!(until_over(&a, || {}).state, "moved");
    until_it_is(&b, "serving");
    let iops = |per_second| Some(Rate { per_second, burst: None });
    assert_eq!(in_force(&b), Limits { iops: iops(700), ..Limits::default() });
    b.apply_text(text(&b, &hosts, 1, &incoming(THIN))).unwrap();
    assert_eq!(in_force(&b), limits(), "what it came with");
    b.kill();
    assert_held(&b);
    let unlimited = "\n[ssd.limits]\nweight = 100\n";
    b.apply_text(text(&b, &hosts, 1, &format!("{}{unlimited}", incoming(THIN)))).unwrap();
    assert_eq!(in_force(&b), Limits::default(), "by an operator's word");
    a.stop();
    b.stop();
}

/// The device is there before its limits are.
#[test]
fn a_disk_whose_client_waits_for_it_has_the_limits_that_it_comes_with() {
    let hosts = Hosts::new();
    let backend = format!("virtio-blk on {FILE}\njournal = \"DIR/vm.migration\"\n");
    let a = start(&hosts, 0, &format!("{backend}{LIMITS}"));
    let b = start(&hosts, 1, &format!("{}hypervisor = \"DIR/qmp.sock\"\n", incoming(&backend)));
    until_it_is(&b, "incoming");
    let mut waiting = guest::vhost_user::Driver::connect(b.socket("vm"), Default::default()).unwrap();
    // What is written for it meanwhile is of the device that waits, too.
    let its = format!("{}hypervisor = \"DIR/qmp.sock\"\n", incoming(&backend));
    b.apply_text(text(&b, &hosts, 1, &format!("{its}\n[ssd.limits]\niops = 700\n"))).unwrap();
    migrate_soon(&a, &hosts.addresses[1], terms());
    assert_eq!(until_over(&a, || {}).state, "moved");
    until_it_is(&b, "serving");
    assert_eq!(disk::read(&mut waiting, 0), vec![0; 4096]);
    let iops = Some(Rate { per_second: 700, burst: None });
    assert_eq!(in_force(&b), Limits { iops, ..Limits::default() });
    b.apply_text(text(&b, &hosts, 1, &its)).unwrap();
    assert_eq!(in_force(&b), limits());
    b.kill();
    assert_eq!(disk::read(&mut waiting, 0), vec![0; 4096]);
    assert_eq!(in_force(&b), limits());
    drop(waiting);
    a.stop();
    b.stop();
}

#[test]
fn what_is_encrypted_goes_to_a_host_without_a_key_only_by_an_operators_word() {
    let hosts = Hosts::new();
    let key = "}\nencryption = { key_command = [\"/usr/bin/printf\", \"%0128d\", \"5\"] }";
    let a = start(&hosts, 0, &FILE.replace('}', key));
    let b = start(&hosts, 1, &incoming(FILE));
    let secret = [0x5e; 512];
    let mut driver = a.connect("vm");
    driver.create_queue_pair(1, 64).unwrap();
    let buffer = driver.ram().clone().alloc_with(&secret).unwrap();
    driver.submit(1, Sqe::new(1).nsid(1).prp(buffer.iova(), 0).qword(10, 3).cdw12(0)).unwrap();
    driver.wait_any(1, PATIENCE).unwrap().ok().unwrap();
    drop(driver);
    let refused = dry_run(&a, &hosts.addresses[1], terms()).unwrap_err();
    assert!(refused.contains("would lie in the clear here: give it `encryption`"), "{refused}");
    assert_eq!(migrate(&a, &hosts.addresses[1], terms()).unwrap_err(), refused);
    assert!(!a.path("vm.state.migration").exists() && !b.path("vm.state.migration").exists());
    let there = || std::fs::read(b.path("disk.img")).unwrap();
    assert!(there().iter().all(|byte| *byte == 0));
    let allowed = MigrationTerms { allow_unencrypted: true, ..terms() };
    let plan = dry_run(&a, &hosts.addresses[1], allowed).unwrap();
    assert!(plan.contains("will lie in the clear there"), "{plan}");
    migrate(&a, &hosts.addresses[1], allowed).unwrap();
    assert_eq!(until_over(&a, || {}).state, "moved");
    until_it_is(&b, "serving");
    assert!(there().windows(512).any(|sector| sector == secret));
    a.stop();
    b.stop();
}

#[test]
fn snapshots_stay_where_they_are_and_whoever_moves_their_ssd_is_told() {
    let hosts = Hosts::new();
    let (a, b) = (start(&hosts, 0, THIN), start(&hosts, 1, &incoming(FILE)));
    let mut load = Load::new(a.connect("vm"), 1, 8, 3);
    load.run_for(Duration::from_millis(100));
    let _left = load.leave();
    let plan = dry_run(&a, &hosts.addresses[1], terms()).unwrap();
    assert!(!plan.contains("snapshots"), "{plan}");
    for name in ["monday", "tuesday"] {
        let (pool, volume, name) = ("p".to_owned(), "vm".to_owned(), name.to_owned());
        let done = a.ask(&Request::Pool(PoolRequest::Snapshot { pool, volume, name }));
        assert!(matches!(done, Response::Done(_)), "{done:?}");
    }
    let told = "Its snapshots stay here, with what they contain, and are not wiped: \"monday\", \"tuesday\"";
    let plan = dry_run(&a, &hosts.addresses[1], terms()).unwrap();
    assert!(plan.contains(told), "{plan}");
    let begun = migrate(&a, &hosts.addresses[1], terms()).unwrap();
    assert!(begun.contains(told), "{begun}");
    assert_eq!(until_over(&a, || {}).state, "moved");
    until_it_is(&b, "serving");
    let Response::Pool(pools) = a.ask(&Request::Pool(PoolRequest::List)) else { panic!("no list") };
    let snapshots = pools[0].volumes.iter().filter(|volume| volume.read_only && volume.mapped_bytes > 0);
    assert_eq!(snapshots.count(), 2, "{pools:?}");
    a.stop();
    b.stop();
}

/// One word with its length.
fn send(stream: &mut impl Write, word: &str) {
    stream.write_all(&[&(word.len() as u32).to_le_bytes()[..], word.as_bytes()].concat()).unwrap();
    stream.flush().unwrap();
}

/// `None`: the other side has nothing more to say.
fn receive(stream: &mut impl Read) -> Option<String> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut word = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut word).ok()?;
    Some(String::from_utf8(word).unwrap())
}

#[test]
fn a_host_of_the_release_before_takes_and_brings_ssds_as_it_did() {
    let hosts = Hosts::new();
    let a = start(&hosts, 0, &format!("{FILE}{LIMITS}"));
    // As a destination: it greets, skips what it does not know, and takes nothing.
    let (says, said) = channel();
    let (identity, port) = (identity_of(&hosts, 1), TcpListener::bind(&hosts.addresses[1]).unwrap());
    let former = std::thread::spawn(move || {
        for _ in 0..3 {
            let (mut stream, protocol) = identity.accept(port.accept().unwrap().0).unwrap();
            assert_eq!(protocol, Protocol::Control);
            says.send(receive(&mut stream).unwrap()).unwrap();
            send(&mut stream, r#""welcome""#);
            while let Some(step) = receive(&mut stream) {
                says.send(step.clone()).unwrap();
                let mut step: Value = serde_json::from_str(&step).unwrap();
                let answer = if step["step"]["word"] == "cancel" {
                    step["step"]["word"] = json!("dropped");
                    step["step"].as_object_mut().unwrap().remove("limits").unwrap();
                    step.to_string()
                } else {
                    r#"{"no":{"why":"that is all"}}"#.to_owned()
                };
                send(&mut stream, &answer);
            }
        }
    });
    let plan = dry_run(&a, &hosts.addresses[1], terms()).unwrap();
    assert!(plan.contains("older release, and takes no limits along") && plan.contains("iops 10"), "{plan}");
    migrate(&a, &hosts.addresses[1], terms()).unwrap();
    assert_eq!(until_over(&a, || {}).state, "cancelled");
    former.join().unwrap();
    let said: Vec<String> = said.iter().collect();
    let words: Vec<Value> = said.iter().map(|word| serde_json::from_str(word).unwrap()).collect();
    let [offer, second, third, step, _cancel] = &words[..] else { panic!("{words:?}") };
    for offer in [offer, second, third] {
        assert_eq!(offer["offer"]["along"]["limits"]["iops"]["per_second"], PER_SECOND, "{offer}");
    }
    assert_eq!(step["step"]["word"], json!({ "open": { "round": 1 } }));
    assert_eq!(step["step"]["limits"]["weight"], 300);
    // As a source: what it says is heard, and answered as it was.
    let b = start(&hosts, 1, &incoming(FILE));
    until_it_is(&b, "incoming");
    // Of the text: a migration's number is more than a JSON value holds.
    let (word, _along) = said[2].split_once(",\"along\":").unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut stream = loop {
        let socket = TcpStream::connect(&hosts.addresses[1]);
        if let Ok(socket) = socket {
            break identity_of(&hosts, 0).connect("127.0.0.1", Protocol::Control, socket).unwrap();
        }
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut ask = |word: &str| {
        send(&mut stream, word);
        receive(&mut stream).unwrap()
    };
    assert_eq!(ask(&format!("{word}}}}}")), r#""welcome""#);
    let opened = ask(r#"{"step":{"epoch":2,"word":{"open":{"round":1}}}}"#);
    assert_eq!(opened, r#"{"step":{"epoch":2,"word":{"opened":{"round":1}}}}"#);
    assert_eq!(journal(&b).limits, None);
    assert_eq!(ask(r#"{"step":{"epoch":2,"word":"cancel"}}"#), r#"{"step":{"epoch":2,"word":"dropped"}}"#);
    a.stop();
    b.stop();
}
