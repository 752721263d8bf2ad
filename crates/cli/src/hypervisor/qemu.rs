//! QEMU's arguments.

use super::{Device, shell_quote};
use api::config::Door;
use api::size::Size;
use serde_json::{Value, json};

/// Of an NVMe controller (Base 2.1, Identify Controller).
const SERIAL_CHARS_MAX: usize = 20;

/// One argument a line, ready to be pasted into a shell.
pub(super) fn arguments(device: &Device, memory: Option<Size>, bus: Option<&str>) -> String {
    let memory = of_memory(memory);
    let mut properties = match device.door {
        Door::VfioUser => json!({
            "driver": "vfio-user-pci",
            "id": device.id,
            "socket": { "type": "unix", "path": device.path() },
        }),
        Door::VhostUser => json!({ "driver": "vhost-user-blk-pci", "id": device.id, "chardev": device.id }),
    };
    let plugged = plugged(&mut properties, bus);
    match device.door {
        Door::VfioUser => format!("{memory}{plugged}"),
        Door::VhostUser => format!("{memory}-chardev {} \\\n{plugged}", shell_quote(&chardev(device))),
    }
}

/// The same for QEMU's own controller over its block driver. The node's name says whose it is (`docs/decisions/0037-guests.md`).
pub(super) fn emulated(device: &Device, memory: Option<Size>, bus: Option<&str>) -> String {
    let node = json!({
        "driver": "virtio-blk-vhost-user",
        "node-name": device.id,
        "path": device.path(),
        "cache": { "direct": true },
        "discard": "unmap",
    });
    let mut properties = json!({
        "driver": "nvme",
        "id": device.id,
        "serial": device.name().chars().take(SERIAL_CHARS_MAX).collect::<String>(),
        "drive": device.id,
    });
    let (memory, node) = (of_memory(memory), shell_quote(&node.to_string()));
    format!("{memory}-blockdev {node} \\\n{}", plugged(&mut properties, bus))
}

fn of_memory(memory: Option<Size>) -> String {
    memory.map_or(String::new(), |size| {
        format!(
            "-object memory-backend-memfd,id=godwit-ram,size={},share=on \\\n-machine memory-backend=godwit-ram \\\n-m {}M \\\n",
            size.bytes,
            size.bytes >> 20
        )
    })
}

fn plugged(properties: &mut Value, bus: Option<&str>) -> String {
    if let Some(bus) = bus {
        properties["bus"] = json!(bus);
    }
    format!("-device {}", shell_quote(&properties.to_string()))
}

/// `-chardev` has no JSON: in its options a comma is two. The id needs no care.
fn chardev(device: &Device) -> String {
    format!("socket,id={},path={}", device.id, device.path().replace(',', ",,"))
}

#[cfg(test)]
mod tests {
    use super::super::device;
    use super::*;

    #[test]
    fn the_arguments_are_those_the_test_bed_uses() {
        let text =
            arguments(&device(Door::VfioUser, "/run/a.sock"), Some(Size { bytes: 1 << 30 }), Some("port1"));
        assert_eq!(
            text,
            "-object memory-backend-memfd,id=godwit-ram,size=1073741824,share=on \\\n\
             -machine memory-backend=godwit-ram \\\n-m 1024M \\\n\
             -device '{\"bus\":\"port1\",\"driver\":\"vfio-user-pci\",\"id\":\"godwit-a\",\
             \"socket\":{\"path\":\"/run/a.sock\",\"type\":\"unix\"}}'"
        );
    }

    #[test]
    fn a_virtio_disk_has_a_character_device_and_the_same_memory() {
        let text = arguments(&device(Door::VhostUser, "/run/a.vhost"), Some(Size { bytes: 1 << 30 }), None);
        assert_eq!(
            text,
            "-object memory-backend-memfd,id=godwit-ram,size=1073741824,share=on \\\n\
             -machine memory-backend=godwit-ram \\\n-m 1024M \\\n\
             -chardev 'socket,id=godwit-a,path=/run/a.vhost' \\\n\
             -device '{\"chardev\":\"godwit-a\",\"driver\":\"vhost-user-blk-pci\",\"id\":\"godwit-a\"}'"
        );
    }

    #[test]
    fn qemus_own_controller_stands_over_a_node_that_has_the_disks_name() {
        let device = device(Door::VhostUser, "/run/it's a.vhost");
        let text = emulated(&device, None, Some("port1"));
        assert_eq!(
            text,
            "-blockdev '{\"cache\":{\"direct\":true},\"discard\":\"unmap\",\"driver\":\"virtio-blk-vhost-user\",\
             \"node-name\":\"godwit-a\",\"path\":\"/run/it'\\''s a.vhost\"}' \\\n\
             -device '{\"bus\":\"port1\",\"drive\":\"godwit-a\",\"driver\":\"nvme\",\"id\":\"godwit-a\",\"serial\":\"a\"}'"
        );
        assert!(
            emulated(&device, Some(Size { bytes: 1 << 30 }), None)
                .starts_with("-object memory-backend-memfd")
        );
    }

    #[test]
    fn odd_paths_survive_the_shell_and_json_and_lists_of_options() {
        let path = "/run/it's \"x\", y.sock";
        assert_eq!(
            arguments(&device(Door::VfioUser, path), None, None),
            "-device '{\"driver\":\"vfio-user-pci\",\"id\":\"godwit-a\",\
             \"socket\":{\"path\":\"/run/it'\\''s \\\"x\\\", y.sock\",\"type\":\"unix\"}}'"
        );
        assert_eq!(
            arguments(&device(Door::VhostUser, path), None, None).lines().next(),
            Some("-chardev 'socket,id=godwit-a,path=/run/it'\\''s \"x\",, y.sock' \\")
        );
    }
}
