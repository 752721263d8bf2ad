//! Any bytes, and queues with any fields, as the controller state that a host sends by Set Controller State (NVMe Base 2.1, 5.1.17): refused,
//! or a state that is written as it was read, and is loaded into a sound region or refused with nothing touched.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use block::Now;
use godwit_fuzz::{region, rig};
use libfuzzer_sys::fuzz_target;
use memory::{DoorbellPage, SharedRegion};
use nvme::controller::saved::{Place, check};
use nvme::management::format::{Parts, Queues, Received, has_unanswered, read, write};
use nvme::profile::GODWIT_1;
use nvme::queue::inspect;
use state::SsdV1;
use state::controller::ControllerV1;

const NOW: Now = Now(5_000_000_000);

#[derive(Arbitrary, Debug)]
struct Input {
    nvme: bool,
    vendor: bool,
    from: From,
}

#[derive(Arbitrary, Debug)]
enum From {
    Bytes(Vec<u8>),
    /// Sizes that are right, and queues with any fields.
    Queues {
        sqs: Vec<[u8; 24]>,
        cqs: Vec<[u8; 24]>,
        vendor: Vec<u8>,
    },
    /// A good state, with some bytes others.
    Changed(Vec<(u16, u8)>),
}

/// A controller that is ready, and has no I/O queue.
fn good() -> ControllerV1 {
    let mut rig = rig::Rig::new(&SsdV1::default(), 16);
    rig.enable();
    rig.controller.save(NOW)
}

fn bytes_of(from: From) -> Vec<u8> {
    match from {
        From::Bytes(bytes) => bytes,
        From::Queues { sqs, cqs, mut vendor } => {
            let count = |len: usize| u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes();
            vendor.resize(vendor.len().next_multiple_of(4), 0);
            let dwords = (2 + 6 * (sqs.len() + cqs.len())) as u128;
            let mut bytes = vec![0; 16];
            bytes.extend_from_slice(&dwords.to_le_bytes());
            bytes.extend_from_slice(&(vendor.len() as u128 / 4).to_le_bytes());
            bytes.extend_from_slice(&[0, 0]);
            bytes.extend_from_slice(&count(sqs.len()));
            bytes.extend_from_slice(&count(cqs.len()));
            bytes.extend_from_slice(&[0, 0]);
            bytes.extend(sqs.into_iter().flatten());
            bytes.extend(cqs.into_iter().flatten());
            bytes.extend(vendor);
            bytes
        }
        From::Changed(changes) => {
            let mut bytes = write(&good(), true, Parts { nvme: true, vendor: true }).expect("our own");
            for (at, byte) in changes {
                let len = bytes.len();
                bytes[usize::from(at) % len] = byte;
            }
            bytes
        }
    }
}

fn load(state: &ControllerV1) {
    let here = good().record;
    let (region, page) = (region::fresh(), Arc::new(SharedRegion::<DoorbellPage>::private()));
    let ours = rig::controller(&region, &page, &here, 0);
    let (before, identity) = (ours.save(NOW), rig::identity());
    let place = Place {
        region: &region,
        doorbells: &page,
        profile: &GODWIT_1,
        identity: &identity,
        record: &here,
        block_bytes: 512,
    };
    match check(state, &place, NOW) {
        Ok(checked) => {
            checked.load(1, NOW).expect("what was tried on a scratch region");
            assert_eq!(inspect(&region), Ok(()));
        }
        Err(_) => assert!(ours.save(NOW) == before, "refused, and changed something"),
    }
}

fuzz_target!(|input: Input| {
    let parts = Parts { nvme: input.nvme, vendor: input.vendor };
    match read(&bytes_of(input.from), parts) {
        Err(_) => {}
        Ok(Received::Whole(state)) => {
            let parts = Parts { nvme: Queues::of(&state).is_ok(), vendor: true };
            let bytes = write(&state, true, parts).expect("what was read is written");
            let Ok(Received::Whole(again)) = read(&bytes, parts) else { panic!("not what was written") };
            assert!(again == state);
            load(&state);
        }
        Ok(Received::Queues(queues)) => {
            let state = queues.put_into(good());
            assert!(!has_unanswered(&state));
            let of = Queues::of(&state).expect("they came so");
            assert_eq!((of.sqs.len(), of.cqs.len()), (queues.sqs.len(), queues.cqs.len()));
            load(&state);
        }
    }
});
