//! QEMU's arguments for an ssd.

use api::config::{Door, Ssd};
use api::size::Size;
use std::path::Path;

/// One argument a line, ready to be pasted into a shell. With `memory`, the guest's RAM is defined too, as memory that the
/// daemon can map: without `share=on` every transfer of an NVMe ssd would have to cross the socket, and a virtio-blk disk would
/// not work at all.
pub(crate) fn arguments(ssd: &Ssd, socket: &Path, memory: Option<Size>) -> String {
    let memory = memory.map_or(String::new(), |size| {
        format!(
            "-object memory-backend-memfd,id=godwit-ram,size={},share=on \\\n-machine memory-backend=godwit-ram \\\n-m {}M \\\n",
            size.bytes,
            size.bytes >> 20
        )
    });
    let path = socket.display().to_string();
    let device = match ssd.door {
        Door::VfioUser => vfio_user(&path),
        Door::VhostUser => vhost_user(&ssd.name, &path),
    };
    format!("{memory}{device}")
}

fn vfio_user(path: &str) -> String {
    let path = json_escape(path);
    let device = format!(r#"{{"driver":"vfio-user-pci","socket":{{"type":"unix","path":"{path}"}}}}"#);
    format!("-device {}", shell_quote(&device))
}

/// `-chardev` has no JSON: in its options a comma is two. The name of an ssd needs no care.
fn vhost_user(name: &str, path: &str) -> String {
    let chardev = format!("socket,id=godwit-{name},path={}", path.replace(',', ",,"));
    let device = format!(r#"{{"driver":"vhost-user-blk-pci","chardev":"godwit-{name}"}}"#);
    format!("-chardev {} \\\n-device {}", shell_quote(&chardev), shell_quote(&device))
}

fn json_escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

fn shell_quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::config::Config;

    fn ssd(door: &str) -> Ssd {
        let text = format!(
            "[[ssd]]\nname = \"a\"\nsize = \"1MiB\"\n{door} = \"/a\"\nbackend = {{ type = \"ram\" }}"
        );
        Config::parse(Path::new("test.toml"), &text).unwrap().ssds.remove(0)
    }

    #[test]
    fn the_arguments_are_those_the_test_bed_uses() {
        let text = arguments(&ssd("socket"), Path::new("/run/a.sock"), Some(Size { bytes: 1 << 30 }));
        assert_eq!(
            text,
            "-object memory-backend-memfd,id=godwit-ram,size=1073741824,share=on \\\n\
             -machine memory-backend=godwit-ram \\\n-m 1024M \\\n\
             -device '{\"driver\":\"vfio-user-pci\",\"socket\":{\"type\":\"unix\",\"path\":\"/run/a.sock\"}}'"
        );
    }

    #[test]
    fn a_virtio_disk_has_a_character_device_and_the_same_memory() {
        let text = arguments(&ssd("vhost_socket"), Path::new("/run/a.vhost"), Some(Size { bytes: 1 << 30 }));
        assert_eq!(
            text,
            "-object memory-backend-memfd,id=godwit-ram,size=1073741824,share=on \\\n\
             -machine memory-backend=godwit-ram \\\n-m 1024M \\\n\
             -chardev 'socket,id=godwit-a,path=/run/a.vhost' \\\n\
             -device '{\"driver\":\"vhost-user-blk-pci\",\"chardev\":\"godwit-a\"}'"
        );
    }

    #[test]
    fn odd_paths_survive_the_shell_and_json_and_lists_of_options() {
        let path = Path::new("/run/it's \"x\", y.sock");
        assert_eq!(
            arguments(&ssd("socket"), path, None),
            "-device '{\"driver\":\"vfio-user-pci\",\"socket\":{\"type\":\"unix\",\"path\":\"/run/it'\\''s \\\"x\\\", y.sock\"}}'"
        );
        assert_eq!(
            arguments(&ssd("vhost_socket"), path, None).lines().next(),
            Some("-chardev 'socket,id=godwit-a,path=/run/it'\\''s \"x\",, y.sock' \\")
        );
    }
}
