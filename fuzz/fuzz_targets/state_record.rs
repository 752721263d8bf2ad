//! Any bytes as the state file of an ssd: refused or read, and what is read is written and read again alike.
#![no_main]

use arbitrary::Arbitrary;
use godwit_fuzz::edge::Edge;
use godwit_fuzz::rig::Rig;
use libfuzzer_sys::fuzz_target;
use state::ssd::{MarkV1, NamespaceV1, RangeV1, SanitizeV1, SelfTestV1};
use state::{SsdV1, envelope};

#[derive(Arbitrary, Debug)]
enum Input {
    Bytes { sealed: bool, bytes: Vec<u8> },
    Fields(Fields),
}

#[derive(Arbitrary, Debug)]
struct Fields {
    capacity: Edge,
    flags: u8,
    namespaces: Vec<(u8, Edge, Edge, Edge, u8, Vec<(Edge, Edge)>)>,
    to_wipe: Vec<(Edge, Edge)>,
    sanitize: (u8, Edge, Edge, u8, Edge),
    self_tests: Vec<(u8, u8, Edge)>,
    created: Edge,
}

fn record(fields: Fields) -> SsdV1 {
    let namespace =
        |(nsid, start, reserved, blocks, flags, marks): (u8, Edge, Edge, Edge, u8, Vec<(Edge, Edge)>)| {
            NamespaceV1 {
                nsid: u32::from(nsid) % 36,
                start_bytes: start.0,
                reserved_bytes: reserved.0,
                blocks: blocks.0,
                lba_shift: if flags < 0xf0 { 9 + 3 * (flags & 1) } else { flags },
                attached: flags & 2 != 0,
                shared: flags & 4 != 0,
                marks: marks
                    .into_iter()
                    .map(|(at, blocks)| MarkV1 { start_block: at.0, blocks: blocks.0 })
                    .collect(),
                ..NamespaceV1::default()
            }
        };
    let (status, cdw10, pattern, passes_done, done) = fields.sanitize;
    let test = |(code, result, edge): (u8, u8, Edge)| SelfTestV1 {
        code,
        result,
        nsid: edge.u32(),
        failing_lba: Some(edge.0),
        ..SelfTestV1::default()
    };
    SsdV1 {
        capacity_bytes: fields.capacity.0,
        laid_out: fields.flags & 1 != 0,
        clean: fields.flags & 2 != 0,
        namespaces: fields.namespaces.into_iter().map(namespace).collect(),
        to_wipe: fields
            .to_wipe
            .into_iter()
            .map(|(at, len)| RangeV1 { start_bytes: at.0, len_bytes: len.0 })
            .collect(),
        sanitize: SanitizeV1 {
            status,
            cdw10: cdw10.u32(),
            pattern: pattern.u32(),
            passes_done,
            done_bytes: done.0,
            erased: fields.flags & 4 != 0,
            ..SanitizeV1::default()
        },
        self_tests: fields.self_tests.into_iter().map(test).collect(),
        created: fields.created.0,
        ..SsdV1::default()
    }
}

/// A controller over it comes up, and goes on with whatever was under way.
fn power_on(record: &SsdV1) {
    let mut rig = Rig::new(record, 0);
    rig.enable();
    rig.end();
}

fuzz_target!(|input: Input| {
    let (sealed, bytes) = match input {
        Input::Bytes { sealed, bytes } => (sealed, bytes),
        Input::Fields(fields) => (false, record(fields).to_bytes().expect("short")),
    };
    let bytes = if sealed {
        // A damaged checksum hides the body from the search: give it a good one.
        envelope::seal(state::ssd::MAGIC, state::ssd::VERSION, &bytes).expect("short")
    } else {
        bytes
    };
    if let Ok(record) = SsdV1::from_bytes(&bytes) {
        let again =
            SsdV1::from_bytes(&record.to_bytes().expect("it was short enough")).expect("our own bytes");
        assert_eq!(record, again);
        power_on(&record);
    }
});
