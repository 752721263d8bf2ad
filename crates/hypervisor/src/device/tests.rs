use std::path::Path;

use serde_json::{Value, json};

use super::{Interface, PciAddress, Server, devices, region_socket, unix_socket};
use crate::peer::qemu;

fn child(name: &str, kind: &str) -> Value {
    json!({ "name": name, "type": format!("child<{kind}>") })
}

/// QEMU 11.1.3's answers, shortened.
fn answer(command: &str, arguments: &Value) -> Result<Value, &'static str> {
    match (command, arguments["path"].as_str().unwrap_or_default()) {
        ("qom-list", "/machine/peripheral") => Ok(json!([
            { "name": "type", "type": "string" },
            child("a", "vfio-user-pci"),
            child("port1", "pcie-root-port"),
            child("b", "vhost-user-blk-pci-non-transitional"),
        ])),
        ("qom-list", "/machine/peripheral-anon") => {
            Ok(json!([child("device[0]", "virtio-serial-pci"), child("device[1]", "vfio-user-pci")]))
        }
        ("qom-list", path @ ("/machine/peripheral/a" | "/machine/peripheral-anon/device[1]")) => {
            let socket = if path.ends_with('a') { "a b" } else { "c" };
            Ok(json!([
                { "name": "socket", "type": "SocketAddress" },
                child("msix-table[0]", "memory-region"),
                child(&format!("vfio-user:\\x2frun\\x2f{socket}.sock base BAR 0[0]"), "memory-region"),
            ]))
        }
        ("qom-get", "/machine/peripheral/b") => Ok(json!("b-socket")),
        ("query-chardev", _) => Ok(json!([
            { "label": "serial0", "filename": "file" },
            { "label": "b-socket", "filename": "unix:/run/b.sock" },
        ])),
        ("query-pci", _) => Ok(json!([{ "bus": 0, "devices": [
            { "bus": 0, "slot": 1, "function": 0, "qdev_id": "" },
            { "bus": 0, "slot": 3, "function": 0, "qdev_id": "port1", "pci_bridge": { "devices": [
                { "bus": 5, "slot": 31, "function": 7, "qdev_id": "a" },
            ] } },
        ] }])),
        ("query-named-block-nodes", _) => Ok(json!([
            { "node-name": "godwit-e", "drv": "virtio-blk-vhost-user", "file": "json:{\"driver\": \"virtio-blk-vhost-user\"}" },
            { "node-name": "#block1", "drv": "raw" },
            { "node-name": "godwit-d", "drv": "virtio-blk-vhost-user", "image": { "virtual-size": 4096 } },
        ])),
        _ => Err("what?"),
    }
}

#[test]
fn each_device_is_found_with_its_server_and_its_place() {
    let (mut qmp, _) = qemu(answer);
    let found = devices(&mut qmp).unwrap();
    let told: Vec<_> =
        found.iter().map(|one| (one.id.as_deref(), one.interface, one.server.clone(), one.address)).collect();
    let address = PciAddress { bus: 5, slot: 31, function: 7 };
    let socket = |path: &str| Server::Socket(path.into());
    let node = |name: &str| Server::Node(name.to_owned());
    let wanted = [
        (Some("a"), Interface::VfioUser, socket("/run/a b.sock"), Some(address)),
        (Some("b"), Interface::VhostUserBlk, socket("/run/b.sock"), None),
        (None, Interface::VfioUser, socket("/run/c.sock"), None),
        (Some("godwit-d"), Interface::BlockNode, node("godwit-d"), None),
        (Some("godwit-e"), Interface::BlockNode, node("godwit-e"), None),
    ];
    assert_eq!(told, wanted);
    assert_eq!(address.to_string(), "05:1f.7");
    assert_eq!(found[0].server.to_string(), "/run/a b.sock");
    assert_eq!(found[3].server.to_string(), "block node godwit-d");
    assert_eq!(
        found.iter().map(|one| one.size_bytes).collect::<Vec<_>>(),
        [None, None, None, Some(4096), None]
    );
    assert!(found[0].problem.is_none() && found[1].problem.is_none());
    assert!(found[2].problem.as_ref().unwrap().contains("without an id"));
    assert_eq!(found[2].path, "/machine/peripheral-anon/device[1]");
}

#[test]
fn a_device_that_cannot_be_told_whose_it_is_is_an_error() {
    let (mut qmp, _) = qemu(|command, arguments| match answer(command, arguments) {
        Ok(Value::Array(mut rows)) if arguments["path"] == "/machine/peripheral/a" => {
            rows.pop();
            Ok(Value::Array(rows))
        }
        other => other,
    });
    let said = devices(&mut qmp).unwrap_err().to_string();
    assert!(said.contains("/machine/peripheral/a") && said.contains("unplug it"), "{said}");
}

#[test]
fn a_chardevs_words_are_a_path_and_whether_it_is_connected() {
    let told =
        |file| unix_socket(file).map(|(path, connected)| (path.to_str().unwrap().to_owned(), connected));
    assert_eq!(told("unix:/run/a,b.sock"), Some(("/run/a,b.sock".to_owned(), true)));
    assert_eq!(told("unix:/run/a,server=on"), Some(("/run/a".to_owned(), true)));
    assert_eq!(told("disconnected:unix:/run/a"), Some(("/run/a".to_owned(), false)));
    for other in ["", "unix:", "tcp:127.0.0.1:1", "file", "disconnected:", "unix:,server=on"] {
        assert_eq!(told(other), None, "{other}");
    }
}

#[test]
fn a_regions_name_is_the_sockets_path_escaped() {
    let path = |name| region_socket(name);
    assert_eq!(path(r"vfio-user:\x2fa\x5b1\x5d base BAR 0[0]").as_deref(), Some(Path::new("/a[1]")));
    assert_eq!(
        path(r"vfio-user:\x2fa base BAR 1 base BAR 4[0]").as_deref(),
        Some(Path::new("/a base BAR 1"))
    );
    assert_eq!(path(r"vfio-user:\x2fé base BAR 4[0]").as_deref(), Some(Path::new("/é")));
    for other in [
        "msix-table[0]",
        "vfio-user: base BAR 0[0]",
        r"vfio-user:\x2",
        r"vfio-user:\x2 base BAR 0[0]",
        r"vfio-user:\xé base BAR 0[0]",
        r"vfio-user:\xzz base BAR 0[0]",
    ] {
        assert_eq!(path(other), None, "{other}");
    }
}
