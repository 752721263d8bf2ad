//! Parts of a libvirt domain. libvirt has no element for a vfio-user device: an NVMe ssd goes through its pass-through of QEMU's
//! command line. A virtio-blk disk is a disk of type `vhostuser` (libvirt 7.1).

use super::Device;
use api::config::Door;
use api::size::Size;
use serde_json::json;

/// Elements of `<domain>`, for `virsh edit`.
pub(super) fn xml(device: &Device, memory: Option<Size>) -> String {
    let memory = memory.map_or(String::new(), |size| {
        let lines = [
            "<!-- in place of the domain's memory elements -->",
            &format!("<memory unit='b'>{}</memory>", size.bytes),
            "<memoryBacking>",
            "  <source type='memfd'/>",
            "  <access mode='shared'/>",
            "</memoryBacking>",
        ];
        lines.join("\n") + "\n"
    });
    memory
        + &match device.door {
            Door::VfioUser => nvme(device),
            Door::VhostUser => disk(device),
        }
}

fn nvme(device: &Device) -> String {
    let socket = json!({ "type": "unix", "path": device.path() });
    let properties = json!({ "driver": "vfio-user-pci", "id": device.id, "socket": socket }).to_string();
    let lines = [
        "<!-- the last element of the domain. Some libvirts drop it unless the first line of the domain declares its namespace:",
        "     <domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'> -->",
        "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>",
        "  <qemu:arg value='-device'/>",
        &format!("  <qemu:arg value='{}'/>", escape(&properties)),
        "</qemu:commandline>",
    ];
    lines.join("\n")
}

fn disk(device: &Device) -> String {
    let lines = [
        "<!-- in the domain's devices; dev is free to choose. `virsh attach-device DOMAIN FILE` plugs just this element -->",
        "<disk type='vhostuser' device='disk'>",
        "  <driver name='qemu' type='raw'/>",
        &format!("  <source type='unix' path='{}'/>", escape(&device.path())),
        "  <target dev='vdb' bus='virtio'/>",
        "</disk>",
    ];
    lines.join("\n")
}

/// For an attribute in single quotes.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use super::super::device;
    use super::*;

    #[test]
    fn an_nvme_ssd_goes_through_the_command_line_with_its_json_whole() {
        let text = xml(&device(Door::VfioUser, "/run/it's <a>.sock"), None);
        let value = "{\"driver\":\"vfio-user-pci\",\"id\":\"godwit-a\",\
                     \"socket\":{\"path\":\"/run/it&apos;s &lt;a&gt;.sock\",\"type\":\"unix\"}}";
        assert!(text.contains(&format!("  <qemu:arg value='{value}'/>\n")), "{text}");
        assert!(!text.contains("memoryBacking"));
    }

    #[test]
    fn a_disk_is_a_disk_of_libvirts_own_kind_and_memory_is_shared() {
        let text = xml(&device(Door::VhostUser, "/run/a.vhost"), Some(Size { bytes: 1 << 30 }));
        for part in [
            "<memory unit='b'>1073741824</memory>",
            "<access mode='shared'/>",
            "<disk type='vhostuser'",
            "path='/run/a.vhost'",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
