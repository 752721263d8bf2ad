use super::plan::{CONFIG_BYTES, MsixTable, Plan, Step, capabilities, identity, plan, table};
use super::{PciState, Vector, row};
use crate::destination::Destination;
use crate::device::{Device, Interface, Server};
use crate::error::Error;
use crate::gdb::Gdb;
use crate::peer::{PATIENCE, qemu};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// Godwit's NVMe device under Linux, as QEMU 11.1.3 gives it.
fn running() -> [u8; CONFIG_BYTES] {
    let mut config = powered_on();
    for (offset, value) in [
        (0x04, 0x0010_0506u32),
        (0x10, 0xfe20_0004),
        (0x14, 0x0000_0001),
        (0x20, 0xfe20_4004),
        (0x3c, 0x0000_010b),
        (0x50, 0x8080_6011),
        (0x68, 0x0000_2817),
    ] {
        set(&mut config, offset, value);
    }
    config
}

/// The same before a guest has touched it.
fn powered_on() -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    for (offset, value) in [
        (0x00, 0x6477_676fu32),
        (0x04, 0x0010_0000),
        (0x08, 0x0108_0201),
        (0x10, 0x0000_0004),
        (0x20, 0x0000_0004),
        (0x2c, 0x0001_676f),
        (0x34, 0x0000_0040),
        (0x3c, 0x0000_0100),
        (0x40, 0x0003_5001),
        (0x44, 0x0000_0008),
        (0x50, 0x0080_6011),
        (0x54, 0x0000_0004),
        (0x58, 0x0000_1004),
        (0x60, 0x0002_0010),
        (0x64, 0x1000_8002),
        (0x68, 0x0000_2810),
        (0x6c, 0x0000_0044),
    ] {
        set(&mut config, offset, value);
    }
    config
}

fn set(config: &mut [u8; CONFIG_BYTES], offset: usize, value: u32) {
    config[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

fn state(config: [u8; CONFIG_BYTES]) -> PciState {
    let rows = table(&config).ok().flatten().map_or(0, |table| table.rows);
    PciState { config, vectors: vec![Vector { address: 0xfee0_0000, data: 1, masked: false }; rows.into()] }
}

/// What keeps a state that is not quite right from being restored.
fn refusal(change: impl FnOnce(&mut PciState)) -> String {
    let mut state = state(running());
    change(&mut state);
    plan(&state).expect_err("it is restored")
}

#[test]
fn a_running_devices_registers_are_written_in_the_order_that_maps_it_first() {
    let step = |offset, width, value| Step { offset, width, value };
    let wanted = Plan {
        first: vec![
            step(0x10, 4, 0xfe20_0004),
            step(0x14, 4, 1),
            step(0x20, 4, 0xfe20_4004),
            step(0x24, 4, 0),
            step(0x0c, 2, 0),
            step(0x3c, 1, 0x0b),
            step(0x04, 2, 0x0506),
        ],
        mapped: vec![(0, 0x1_fe20_0000), (4, 0xfe20_4000)],
        table: Some(MsixTable { base: (4, 0xfe20_4000), address: 0xfe20_4000, rows: 129 }),
        then: vec![
            step(0x44, 2, 0),
            step(0x52, 2, 0x8000),
            step(0x68, 2, 0x2817),
            step(0x70, 2, 0),
            step(0x88, 2, 0),
        ],
    };
    assert_eq!(plan(&state(running())).unwrap(), wanted);
}

#[test]
fn an_expansion_rom_and_an_address_of_32_bits_go_along() {
    let mut there = running();
    set(&mut there, 0x28 - 0x10, 0xfe10_0000);
    set(&mut there, 0x30, 0xfe30_0001);
    let plan = plan(&state(there)).unwrap();
    let at: Vec<_> = plan.first.iter().filter(|step| step.width == 4).map(|step| step.offset).collect();
    assert_eq!(at, [0x30, 0x10, 0x14, 0x18, 0x20, 0x24]);
    assert!(plan.mapped.contains(&(2, 0xfe10_0000)), "{:?}", plan.mapped);
}

#[test]
fn a_device_that_its_guest_never_touched_has_no_table_and_needs_none() {
    let plan = plan(&state(powered_on())).unwrap();
    assert_eq!((plan.table, plan.mapped.len()), (None, 0));
}

#[test]
fn no_write_resets_the_device_or_clears_what_it_says() {
    let mut there = running();
    set(&mut there, 0x68, 0xffff_ffff);
    set(&mut there, 0x44, 0xffff_fffc);
    set(&mut there, 0x04, 0xffff_ffff);
    there[0x3d] = 9;
    let plan = plan(&state(there)).unwrap();
    let all: Vec<&Step> = plan.first.iter().chain(&plan.then).collect();
    let value = |offset| all.iter().find(|step| step.offset == offset).unwrap().value;
    assert_eq!(value(0x68) & 0x8000, 0, "a function level reset");
    assert_eq!(value(0x44) & 0x8000, 0, "the status bit of PME");
    assert_eq!(value(0x04), 0x0547);
    assert!(all.iter().all(|step| step.offset + step.width <= 0x3d || step.offset > 0x3f), "the pin");
}

#[test]
fn a_bridge_is_refused_and_a_device_has_an_identity() {
    assert!(refusal(|state| state.config[0x0e] = 1).contains("no PCI endpoint"));
    assert_eq!(identity(&running()), (0x676f, 0x6477));
}

#[test]
fn a_table_of_another_length_is_refused() {
    let said = refusal(|state| state.vectors.truncate(128));
    assert!(said.contains("128 interrupt vectors came, and 129 are needed"), "{said}");
    assert!(refusal(|state| state.vectors.clear()).contains("0 interrupt vectors"));
    assert!(refusal(|state| state.vectors.resize(4096, state.vectors[0])).contains("4096 interrupt vectors"));
}

#[test]
fn a_table_that_cannot_be_reached_is_refused_if_it_is_used() {
    let off = |state: &mut PciState| state.config[0x04] &= !2;
    let asleep = |state: &mut PciState| state.config[0x44] |= 3;
    let nowhere = |state: &mut PciState| set(&mut state.config, 0x20, 4);
    for change in [off, asleep, nowhere] {
        assert!(refusal(change).contains("out of reach"));
    }
    let said = refusal(|state| {
        set(&mut state.config, 0x20, 0xffff_fff4);
        set(&mut state.config, 0x24, 0xffff_ffff);
    });
    assert!(said.contains("end of all addresses"), "{said}");
    let mut unused = running();
    unused[0x53] &= !0x80;
    unused[0x04] &= !2;
    assert_eq!(plan(&state(unused)).unwrap().table, None);
}

#[test]
fn msi_is_refused_as_it_is_not_restored() {
    let mut there = running();
    there[0x61] = 0xa0;
    there[0xa0] = 0x05;
    assert!(plan(&state(there)).is_ok());
    there[0xa2] = 1;
    assert!(plan(&state(there)).unwrap_err().contains("MSI"));
}

#[test]
fn a_list_of_capabilities_that_turns_in_a_circle_or_leaves_the_space_has_an_end() {
    let mut config = powered_on();
    config[0x41] = 0x40;
    assert_eq!(capabilities(&config).len(), 48);
    config[0x41] = 0xfc;
    config[0xfc] = 0x11;
    assert_eq!(capabilities(&config), [(0x01, 0x40)], "there is no room for MSI-X at the end");
    config[0x34] = 0x3c;
    assert!(capabilities(&config).is_empty());
}

#[test]
fn no_bytes_of_a_state_lead_to_a_write_outside_the_registers() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()[3]
    };
    let mut restored = 0;
    for _ in 0..20_000 {
        let mut there = running();
        for _ in 0..random() % 10 {
            there[usize::from(random())] = random();
        }
        let Ok(plan) = plan(&state(there)) else { continue };
        restored += 1;
        for Step { offset, width, .. } in plan.first.iter().chain(&plan.then) {
            assert!([1, 2, 4].contains(width) && offset % width == 0 && offset + width <= CONFIG_BYTES);
            assert!(![0x00, 0x02, 0x06, 0x08, 0x0a, 0x2c, 0x34, 0x3d].contains(offset), "{offset:#x}");
        }
    }
    assert!(restored > 1000, "only {restored} were restored");
}

#[test]
fn a_row_of_the_table_is_address_data_and_mask() {
    let vector = Vector { address: 0x1_fee0_1000, data: 0x26, masked: true };
    let bytes = row(&vector);
    let wanted = [0x00, 0x10, 0xe0, 0xfe, 1, 0, 0, 0, 0x26, 0, 0, 0, 1, 0, 0, 0];
    assert_eq!(bytes, wanted);
}

fn device() -> Device {
    Device {
        id: Some("a".to_owned()),
        path: "/machine/peripheral/a".to_owned(),
        interface: Interface::VfioUser,
        server: Server::Socket("/a.sock".into()),
        size_bytes: None,
        address: None,
        problem: None,
    }
}

/// What a restoration came to in a QEMU whose guest stands still: a q35 in which device `a` is 00:03.0 and has its base addresses by `regions`. Then the human monitor's lines, and the packets.
fn restored(
    regions: Value,
    devices: &[(&Device, PciState)],
) -> (Result<(), Error>, Vec<String>, Vec<String>) {
    let (send, heard) = std::sync::mpsc::channel();
    let (qmp, peer) = qemu(move |command, arguments| match command {
        "query-status" => Ok(json!({ "running": false, "status": "paused" })),
        "query-pci" => {
            let id = json!({ "vendor": 0x676f, "device": 0x6477 });
            let place =
                json!({ "qdev_id": "a", "bus": 0, "slot": 3, "function": 0, "id": id, "regions": regions });
            Ok(json!([{ "devices": [place] }]))
        }
        "qom-get" => Ok(json!(if arguments["property"] == "MCFG" { 0xb000_0000u64 } else { 256 << 20 })),
        "human-monitor-command" => {
            let line = arguments["command-line"].as_str().unwrap();
            send.send(line.to_owned()).unwrap();
            let rows = if line.starts_with("xp ") { 129 } else { 0 };
            Ok(json!("fe204000: 0xfee00000 0x00000000 0x00000001 0x00000000\r\n".repeat(rows)))
        }
        _ => Err("what?"),
    });
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let debugged = std::thread::spawn(move || {
        let (mut packets, mut bytes) = (String::new(), [0; 4096]);
        while let Ok(count @ 1..) = theirs.read(&mut bytes) {
            let said = std::str::from_utf8(&bytes[..count]).unwrap();
            let answers = b"+$OK#9a".repeat(said.matches('#').count());
            theirs.write_all(&answers).unwrap();
            packets.push_str(said);
        }
        packets
    });
    let mut destination = Destination::over(qmp);
    destination.gdb = Some(Gdb::over(ours, PATIENCE));
    let done = destination.restore_pci(devices);
    drop(destination);
    peer.join().unwrap();
    let packets = debugged.join().unwrap();
    let packets = packets.split('$').skip(1).map(|packet| packet.split('#').next().unwrap().to_owned());
    (done, heard.iter().collect(), packets.collect())
}

fn there() -> Value {
    json!([{ "bar": 0, "address": 0x1_fe20_0000u64 }, { "bar": 4, "address": 0xfe20_4000u64 }])
}

#[test]
fn a_device_is_mapped_then_looked_at_then_its_table_comes_and_then_the_rest() {
    let device = device();
    let (done, lines, packets) = restored(there(), &[(&device, state(running()))]);
    done.unwrap();
    assert_eq!(lines, ["gdbserver none", "xp /516wx 0xfe204000"]);
    let starts: Vec<&str> = packets.iter().map(|packet| packet.split(':').next().unwrap()).collect();
    let mapped = [
        "Mb0018010,4",
        "Mb0018014,4",
        "Mb0018020,4",
        "Mb0018024,4",
        "Mb001800c,2",
        "Mb001803c,1",
        "Mb0018004,2",
    ];
    let table = ["Mfe204000,800", "Mfe204800,10"];
    let then =
        ["Mb0018044,2", "Mb0018052,2", "Mb0018068,2", "Mb0018070,2", "Mb0018088,2", "Qqemu.PhyMemMode"];
    assert_eq!(starts, [&mapped[..], &table, &then].concat());
}

#[test]
fn nothing_is_written_to_where_a_table_should_be_and_is_not() {
    let device = device();
    let (done, lines, packets) = restored(json!([]), &[(&device, state(running()))]);
    let said = done.unwrap_err().to_string();
    assert!(said.contains("its base address 0 is not at 0x1fe200000"), "{said}");
    assert_eq!(lines, ["gdbserver none"]);
    assert_eq!(packets.len(), 8, "{packets:?}");
    assert_eq!(packets[7], "Qqemu.PhyMemMode:0");
}

#[test]
fn a_debuggers_server_that_is_not_needed_is_ended() {
    let stranger = Device { id: Some("b".to_owned()), ..device() };
    // None is to be set up; one that stands where nobody knows.
    for devices in [vec![], vec![(&stranger, state(running()))]] {
        let (done, lines, packets) = restored(there(), &devices);
        assert_eq!(done.is_ok(), devices.is_empty());
        assert_eq!(
            (lines, packets),
            (vec!["gdbserver none".to_owned()], vec!["Qqemu.PhyMemMode:0".to_owned()])
        );
    }
}
