//! What a guest sees of a released profile never changes: rows of all that it can read of a device just enabled, beside what they were.
//! A test that fails here asks for another profile, not for another golden file (docs/decisions/0041-profiles.md).

use std::collections::BTreeSet;
use std::fmt::Write;

use nvme::controller::Bar;
use nvme::profile::{GODWIT_1, GODWIT_2, Profile};
use state::SsdV1;

use crate::world::{World, command};

/// Rows of sixteen bytes that are not all zeros.
fn rows(shown: &mut String, what: &str, bytes: &[u8]) {
    for (at, row) in bytes.chunks(16).enumerate().filter(|(_, row)| row.iter().any(|byte| *byte != 0)) {
        let hex: String = row.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(shown, "{what} {:03x} {hex}", at * 16).expect("a string");
    }
}

/// All that the device says of itself.
fn face(profile: &'static Profile) -> String {
    let mut world = World::of(profile, &SsdV1::default());
    world.enable();
    let mut shown = String::new();
    rows(&mut shown, "registers", &world.read(0, 0x40));
    let mut bytes = vec![0; 4096];
    world.controller.config_read(0, &mut bytes);
    rows(&mut shown, "configuration", &bytes);
    bytes.truncate(32);
    world.controller.bar_read(Bar::Msix, 0, &mut bytes);
    rows(&mut shown, "vectors", &bytes);
    let asked = [
        (0x00, 1),
        (0x00, u32::MAX),
        (0x01, 0),
        (0x02, 0),
        (0x03, 1),
        (0x05, 1),
        (0x05, u32::MAX),
        (0x06, 0),
        (0x07, 0),
        (0x08, 1),
        (0x10, 0),
        (0x11, 1),
        (0x13, 0),
        (0x1b, 1),
        (0x1c, 0),
    ];
    for (cns, nsid) in asked {
        world.set_data(&[0; 4096]);
        let status = world.admin(command(0x06, nsid, [cns, 0])).status;
        writeln!(shown, "identify {cns:02x} of {nsid:x}: {:x}", status.bare().into_bits()).expect("a string");
        rows(&mut shown, &format!("identify {cns:02x} of {nsid:x}"), &world.data(4096));
    }
    // Logs of what is there, not of what happened: pages, commands, features.
    for lid in [0x00, 0x05, 0x12] {
        world.set_data(&[0; 4096]);
        let status = world.admin(command(0x02, 0, [1023 << 16 | lid, 0])).status;
        writeln!(shown, "log {lid:02x}: {:x}", status.bare().into_bits()).expect("a string");
        rows(&mut shown, &format!("log {lid:02x}"), &world.data(4096));
    }
    for fid in 1..=0xff_u32 {
        let answer = world.admin(command(0x0a, 0, [fid, 0]));
        if answer.status.is_success() {
            writeln!(shown, "feature {fid:02x}: 0 {:08x}", answer.dw0).expect("a string");
        }
    }
    shown
}

fn lines(shown: &str) -> BTreeSet<&str> {
    shown.lines().collect()
}

/// Ours: docs/decisions/0041-profiles.md.
#[test]
fn a_guest_with_profile_1_sees_the_device_that_it_always_saw() {
    let (was, is) = (include_str!("../golden/godwit-1.txt"), face(&GODWIT_1));
    assert!(was.lines().count() > 100, "all of it is there");
    let changed: Vec<_> = lines(was).symmetric_difference(&lines(&is)).copied().collect();
    assert!(was == is, "a released profile has changed: {changed:#?}");
}

/// NVM 1.1, 4.1.5.4 (AOCS.RALBAS), and the firmware revision, by which a guest can tell.
#[test]
fn profile_2_is_profile_1_which_tells_what_is_allocated() {
    let (one, two) = (face(&GODWIT_1), face(&GODWIT_2));
    let (one, two) = (lines(&one), lines(&two));
    let added: Vec<_> = two.difference(&one).copied().collect();
    assert_eq!(
        added,
        [
            // Bytes 64 to 71.
            "identify 01 of 0 040 322e3020202020200057470600080000",
            // Bytes 18 and 19.
            "identify 06 of 0 010 00000100000101000000000000000000",
        ]
    );
    assert_eq!(one.difference(&two).count(), added.len(), "nothing else is gone");
}
