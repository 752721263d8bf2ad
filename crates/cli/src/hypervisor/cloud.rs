//! Cloud Hypervisor's arguments, and those of `ch-remote` for a running guest.

use super::{Device, shell_quote};
use api::config::Door;
use api::size::Size;

/// One argument a line, ready to be pasted into a shell. A comment says how a running guest gets the same.
pub(super) fn arguments(device: &Device, memory: Option<Size>) -> String {
    let memory =
        memory.map_or(String::new(), |size| format!("--memory size={}M,shared=on \\\n", size.bytes >> 20));
    let path = option(&device.path());
    let (argument, verb, value) = match device.door {
        Door::VfioUser => ("--user-device", "add-user-device", format!("id={},socket={path}", device.id)),
        Door::VhostUser => {
            ("--disk", "add-disk", format!("id={},vhost_user=on,socket={path},num_queues=2", device.id))
        }
    };
    let value = shell_quote(&value);
    format!(
        "{memory}{argument} {value}\n# into a running guest: ch-remote --api-socket SOCKET {verb} {value}\n\
         # and out of it: ch-remote --api-socket SOCKET remove-device {}",
        device.id
    )
}

/// A value with a comma is put in double quotes: Cloud Hypervisor's option parser takes nothing else.
fn option(value: &str) -> String {
    if value.contains([',', '[', ']', '"']) { format!("\"{value}\"") } else { value.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::device;
    use super::*;

    #[test]
    fn an_nvme_ssd_is_a_user_device_and_memory_is_shared() {
        let text = arguments(&device(Door::VfioUser, "/run/a, b.sock"), Some(Size { bytes: 1 << 30 }));
        let first =
            "--memory size=1024M,shared=on \\\n--user-device 'id=godwit-a,socket=\"/run/a, b.sock\"'\n";
        assert!(text.starts_with(first), "{text}");
    }

    #[test]
    fn a_disk_is_a_disk_by_vhost_user() {
        let text = arguments(&device(Door::VhostUser, "/run/a.vhost"), None);
        assert!(
            text.starts_with("--disk 'id=godwit-a,vhost_user=on,socket=/run/a.vhost,num_queues=2'\n"),
            "{text}"
        );
        assert!(text.contains("add-disk 'id=godwit-a"));
    }
}
