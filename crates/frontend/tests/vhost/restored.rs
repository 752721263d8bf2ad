//! A session that goes on in another process.

use frontend::vhost_user::{Blk, Errno, F_RING_PACKED, Session};

use crate::harness::*;

fn everything() -> Client {
    let mut client = Client::running();
    client.start_ring(3);
    client.tell(SET_VRING_ERR, &u64s(&[3]), vec![event()]);
    client.tell(SET_VRING_NUM, &u32s(&[1, 8]), vec![]);
    client.send(SET_LOG_BASE, false, &u64s(&[4096, 64]), vec![memfd(8192)]);
    client.tell(SET_LOG_FD, &[], vec![event()]);
    client.tell(SET_FEATURES, &u64s(&[VERSION_1 | PROTOCOL | LOG_ALL]), vec![]);
    let (_ours, theirs) = std::os::unix::net::UnixStream::pair().expect("pair");
    client.tell(SET_BACKEND_REQ_FD, &[], vec![theirs.into()]);
    client.tell(SET_CONFIG, &[u32s(&[32, 1, 0]), vec![1]].concat(), vec![]);
    client.tell(SET_STATUS, &u64s(&[15]), vec![]);
    client
}

#[test]
fn a_successor_tells_the_device_all_that_the_client_said() {
    let client = everything();
    let successor = client.successor().expect("restored");
    assert_eq!(successor.session.saved(), client.session.saved());
    assert_eq!(successor.blk.running, client.blk.running);
    assert_eq!(successor.blk.memory, client.blk.memory);
    assert_eq!(successor.blk.events, client.blk.events);
    assert_eq!(successor.blk.features, client.blk.features);
    assert_eq!(successor.blk.inflight, client.blk.inflight);
    let calls = &successor.blk.calls;
    let at = |call: &str| calls.iter().position(|one| one.starts_with(call)).expect(call);
    for before in ["memory", "inflight", "log", "features", "writeback", "kick 0"] {
        assert!(at(before) < at("start 0"), "{before} comes before the first start: {calls:?}");
    }
    assert!(!calls.iter().any(|call| call.starts_with("clear") || call.starts_with("new inflight")));
}

#[test]
fn a_successor_answers_what_comes_next() {
    let mut client = everything().successor().expect("restored");
    client.blk.positions.insert(0, 9);
    assert_eq!(client.ask(GET_VRING_BASE, &u32s(&[0, 0])), u32s(&[0, 9]));
    assert_eq!(u64_of(&client.ask(GET_STATUS, &[])), 15);
    client.tell(SET_MEM_TABLE, &table(&[FIRST]), vec![memfd(REGION_BYTES)]);
}

#[test]
fn a_session_in_which_nothing_was_said_is_restored_as_one() {
    let client = Client::new();
    let successor = client.successor().expect("restored");
    assert!(successor.blk.calls.is_empty());
}

#[test]
fn every_descriptor_a_successor_needs_is_named_once_and_missed_when_it_is_not_there() {
    let client = everything();
    let saved = client.session.saved();
    let mut ids = saved.fd_ids();
    ids.sort_unstable();
    let count = ids.len();
    ids.dedup();
    // One region, two rings with kick and call, one err, in-flight region, log, log event, channel.
    assert_eq!((count, ids.len()), (10, 10));
    for missing in &ids {
        let fds = ids.iter().filter(|id| *id != missing);
        let fds = fds.map(|id| (*id, client.held[id].try_clone().expect("dup"))).collect();
        let refusal = Session::restore(&saved, fds, &mut Fake::new()).expect_err("one is missing");
        assert_eq!(refusal.errno, Errno::BADF);
    }
}

#[test]
fn a_saved_session_that_does_not_fit_the_device_is_refused() {
    let client = everything();
    let restore = |change: &dyn Fn(&mut frontend::vhost_user::Saved)| {
        let mut saved = client.session.saved();
        change(&mut saved);
        let dup = |id: u32| (id, client.held[&id].try_clone().expect("dup"));
        let fds = client.held.keys().map(|id| dup(*id)).collect();
        Session::restore(&saved, fds, &mut Fake::new()).map(|_| ())
    };
    assert_eq!(restore(&|_| ()), Ok(()));
    assert!(restore(&|saved| saved.features = 1 << 60).is_err());
    assert!(restore(&|saved| saved.protocol_features = 1 << 60).is_err());
    assert!(restore(&|saved| saved.vrings.resize(5, saved.vrings[0])).is_err());
    assert!(restore(&|saved| saved.vrings[1].num = 512).is_err());
    assert!(restore(&|saved| saved.regions[0].size = 0).is_err());
    assert!(restore(&|saved| saved.regions.push(saved.regions[0])).is_err());
    assert!(restore(&|saved| saved.features |= F_RING_PACKED | 1 << 63).is_err());
}

#[test]
fn a_successor_whose_device_has_grown_says_so_until_the_client_has_looked() {
    let mut client = Client::running();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("pair");
    ours.set_nonblocking(true).expect("socket");
    client.tell(SET_BACKEND_REQ_FD, &[], vec![theirs.into()]);
    let heard = || {
        let mut bytes = [0; 64];
        rustix::io::read(&ours, &mut bytes).map(|count| bytes[..count].to_vec())
    };
    let sized = |capacity| Fake { capacity, ..Fake::new() };
    let look = |client: &mut Client| {
        let answer = client.ask(GET_CONFIG, &[u32s(&[0, 60, 0]), vec![0; 60]].concat());
        u64_of(&answer[12..20])
    };
    assert_eq!(look(&mut client), CAPACITY);
    let client = client.successor_with(sized(CAPACITY)).expect("restored");
    assert_eq!(heard(), Err(Errno::AGAIN), "nothing has changed");
    let client = client.successor_with(sized(CAPACITY + 9)).expect("restored");
    assert_eq!(heard(), Ok(u32s(&[2, 1, 0])));
    // It may have died before the client could look.
    let mut client = client.successor_with(sized(CAPACITY + 9)).expect("restored");
    assert_eq!(heard(), Ok(u32s(&[2, 1, 0])));
    assert_eq!(look(&mut client), CAPACITY + 9);
    let client = client.successor_with(sized(CAPACITY + 9)).expect("restored");
    assert_eq!(heard(), Err(Errno::AGAIN), "it knows");
    let refusal = client.successor_with(sized(CAPACITY + 8)).map(drop).expect_err("smaller");
    assert_eq!(refusal.errno, Errno::NOSPC);
}

#[test]
fn a_client_that_has_no_channel_or_has_closed_it_finds_the_grown_device_when_it_looks() {
    let mut client = Client::running();
    client.ask(GET_CONFIG, &[u32s(&[0, 60, 0]), vec![0; 60]].concat());
    let client = client.successor_with(Fake { capacity: CAPACITY + 9, ..Fake::new() }).expect("restored");
    let mut client = client;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("pair");
    client.tell(SET_BACKEND_REQ_FD, &[], vec![theirs.into()]);
    drop(ours);
    client.successor_with(Fake { capacity: CAPACITY + 9, ..Fake::new() }).expect("restored");
}

#[test]
fn the_promise_of_a_region_before_any_start_holds_for_a_successor() {
    let mut client = Client::negotiated().successor().expect("restored");
    client.calls();
    client.tell(SET_MEM_TABLE, &table(&[FIRST]), vec![memfd(REGION_BYTES)]);
    client.start_ring(0);
    assert!(!client.calls().iter().any(|call| call.contains("inflight")), "the region was kept");
    assert_eq!(client.blk.info().queues_max, QUEUES);
}
