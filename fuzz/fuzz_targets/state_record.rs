//! Any bytes as the state file of an ssd: refused or read, and what is read is written and read again alike.
#![no_main]

use libfuzzer_sys::fuzz_target;
use state::{SsdV1, envelope};

fuzz_target!(|input: (bool, Vec<u8>)| {
    let (sealed, bytes) = input;
    let bytes = if sealed {
        // A damaged checksum hides the body from the search: give it a good one.
        envelope::seal(state::ssd::MAGIC, state::ssd::VERSION, &bytes).expect("short")
    } else {
        bytes
    };
    if let Ok(record) = SsdV1::from_bytes(&bytes) {
        let again = SsdV1::from_bytes(&record.to_bytes().expect("it was short enough")).expect("our own bytes");
        assert_eq!(record, again);
    }
});
