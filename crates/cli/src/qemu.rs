//! QEMU's arguments for an ssd.

use api::size::Size;
use std::path::Path;

/// One argument a line, ready to be pasted into a shell. With `memory`, the guest's RAM is defined too, as memory that the
/// daemon can map: without `share=on` every transfer would have to cross the socket.
pub(crate) fn arguments(socket: &Path, memory: Option<Size>) -> String {
    let memory = memory.map_or(String::new(), |size| {
        format!(
            "-object memory-backend-memfd,id=godwit-ram,size={},share=on \\\n-machine memory-backend=godwit-ram \\\n-m {}M \\\n",
            size.bytes,
            size.bytes >> 20
        )
    });
    let path = json_escape(&socket.display().to_string());
    let device = format!(r#"{{"driver":"vfio-user-pci","socket":{{"type":"unix","path":"{path}"}}}}"#);
    format!("{memory}-device {}", shell_quote(&device))
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

    #[test]
    fn the_arguments_are_those_the_test_bed_uses() {
        let text = arguments(Path::new("/run/a.sock"), Some(Size { bytes: 1 << 30 }));
        assert_eq!(
            text,
            "-object memory-backend-memfd,id=godwit-ram,size=1073741824,share=on \\\n\
             -machine memory-backend=godwit-ram \\\n-m 1024M \\\n\
             -device '{\"driver\":\"vfio-user-pci\",\"socket\":{\"type\":\"unix\",\"path\":\"/run/a.sock\"}}'"
        );
    }

    #[test]
    fn odd_paths_survive_the_shell_and_json() {
        let text = arguments(Path::new("/run/it's \"x\".sock"), None);
        assert_eq!(
            text,
            "-device '{\"driver\":\"vfio-user-pci\",\"socket\":{\"type\":\"unix\",\"path\":\"/run/it'\\''s \\\"x\\\".sock\"}}'"
        );
    }
}
