//! Messages in every order (hostile inputs, row 20).

use crate::harness::*;

/// All orders of `0..count`.
fn orders(count: usize) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for next in 0..count {
        let insert = |order: &Vec<usize>| {
            (0..=order.len())
                .map(|at| {
                    let mut longer = order.clone();
                    longer.insert(at, next);
                    longer
                })
                .collect::<Vec<_>>()
        };
        all = all.iter().flat_map(insert).collect();
    }
    all
}

fn step(client: &mut Client, step: usize) {
    let memory = || vec![memfd(REGION_BYTES)];
    let _taken_or_not = match step {
        0 => client.send(SET_MEM_TABLE, true, &table(&[FIRST]), memory()),
        1 => client.send(SET_VRING_NUM, true, &u32s(&[2, 128]), vec![]),
        2 => client.send(SET_VRING_ADDR, true, &good_addr(2), vec![]),
        3 => client.send(SET_VRING_KICK, true, &u64s(&[2]), vec![event()]),
        4 => client.send(SET_VRING_ENABLE, true, &u32s(&[2, 1]), vec![]),
        _ => client.send(SET_VRING_CALL, true, &u64s(&[2]), vec![event()]),
    };
}

#[test]
fn a_ring_runs_when_all_it_needs_has_been_said_in_whatever_order() {
    for order in orders(6) {
        let mut client = Client::negotiated();
        for (said, next) in order.iter().enumerate() {
            let needed = order[..said].iter().filter(|step| **step < 5).count();
            assert_eq!(client.blk.running.is_empty(), needed < 5, "too early or too late: {order:?}");
            step(&mut client, *next);
        }
        assert!(client.blk.running.contains_key(&2), "{order:?}");
        assert!(client.blk.events.contains(&("call", 2)));
    }
}

#[test]
fn a_crash_after_any_message_of_any_order_is_not_noticed() {
    for order in orders(5).into_iter().step_by(7) {
        for crash in 0..=order.len() {
            let mut client = Client::negotiated();
            order[..crash].iter().for_each(|next| step(&mut client, *next));
            let mut client = client.successor().expect("restored");
            // What was not answered is delivered again.
            let again = crash.saturating_sub(1);
            order[again..].iter().for_each(|next| step(&mut client, *next));
            assert!(client.blk.running.contains_key(&2), "{order:?} {crash}");
        }
    }
}

#[test]
fn a_running_ring_takes_no_other_size_and_no_other_base() {
    let mut client = Client::running();
    assert_eq!(client.refused(SET_VRING_NUM, &u32s(&[0, 32]), vec![]), EBUSY);
    assert_eq!(client.refused(SET_VRING_BASE, &u32s(&[0, 7]), vec![]), EBUSY);
    assert!(client.blk.running.contains_key(&0));
}

#[test]
fn a_reset_in_the_middle_of_anything_leaves_a_device_that_can_be_used() {
    for order in orders(5).into_iter().step_by(11) {
        for cut in 0..order.len() {
            let mut client = Client::negotiated();
            order[..cut].iter().for_each(|next| step(&mut client, *next));
            client.tell(RESET_DEVICE, &[], vec![]);
            assert!(client.blk.running.is_empty());
            client.tell(SET_FEATURES, &u64s(&[VERSION_1 | PROTOCOL]), vec![]);
            order.iter().for_each(|next| step(&mut client, *next));
            assert!(client.blk.running.contains_key(&2));
        }
    }
}
