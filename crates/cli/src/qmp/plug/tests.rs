//! Against a model of QEMU: its devices, ports, memory and character devices, as it answers for them (recorded from 11.1).

use super::super::scripted::{GREETING, monitor};
use super::*;
use crate::hypervisor::device;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// What the model knows; the test looks at it afterwards.
struct Model {
    machine: &'static str,
    shared: bool,
    memory_kind: &'static str,
    /// Name to driver and bus.
    devices: BTreeMap<String, (String, String)>,
    chardevs: Vec<String>,
    /// The guest's answer to an unplug: an event, or silence.
    guest: Option<&'static str>,
    refuses_add: bool,
    busy: u32,
}

impl Model {
    fn new() -> Self {
        let port =
            |name: &str| (name.to_owned(), ("pcie-root-port".to_owned(), "/machine/q35/pcie.0".to_owned()));
        Self {
            machine: "pc-q35-11.1-machine",
            shared: true,
            memory_kind: "memory-backend-memfd",
            devices: BTreeMap::from([port("p1"), port("p2")]),
            chardevs: vec!["qmp".to_owned()],
            guest: Some("DEVICE_DELETED"),
            refuses_add: false,
            busy: 0,
        }
    }

    fn with(mut self, name: &str, driver: &str, port: &str) -> Self {
        self.devices.insert(name.to_owned(), (driver.to_owned(), format!("{NAMED}/{port}/{port}")));
        self
    }

    fn answer(&mut self, command: &str, arguments: &Value) -> Vec<Value> {
        let text = |name: &str| arguments[name].as_str().unwrap_or_default().to_owned();
        let done = |value: Value| vec![json!({ "return": value })];
        match command {
            "query-memdev" => done(json!([{ "id": "ram", "share": self.shared, "size": 512 << 20 }])),
            "query-chardev" => done(self.chardevs.iter().map(|label| json!({ "label": label })).collect()),
            "qom-list" if text("path") == NAMED => {
                let entry = |(name, (driver, _)): (&String, &(String, String))| json!({ "name": name, "type": format!("child<{driver}>") });
                done(
                    self.devices
                        .iter()
                        .map(entry)
                        .chain([json!({ "name": "type", "type": "string" })])
                        .collect(),
                )
            }
            "qom-list" => done(json!([])),
            "qom-get" => self.property(&text("path"), &text("property")),
            "chardev-add" => {
                self.chardevs.push(text("id"));
                done(json!({}))
            }
            "chardev-remove" if self.busy > 0 => {
                self.busy -= 1;
                refused("Chardev 'x' is busy")
            }
            "chardev-remove" => {
                self.chardevs.retain(|label| *label != text("id"));
                done(json!({}))
            }
            "device_add" if self.refuses_add => refused("it does not answer"),
            "device_add" => {
                let bus = format!("{NAMED}/{0}/{0}", text("bus"));
                self.devices.insert(text("id"), (text("driver"), bus));
                done(json!({}))
            }
            "device_del" => self.unplug(&text("id")),
            _ => done(json!({})),
        }
    }

    fn property(&self, path: &str, name: &str) -> Vec<Value> {
        let value = match (path, name) {
            ("/machine", "type") => Some(self.machine.to_owned()),
            ("/objects/ram", "type") => Some(self.memory_kind.to_owned()),
            (_, "parent_bus") => {
                let name = path.rsplit('/').next().unwrap_or_default();
                self.devices.get(name).map(|(_, bus)| bus.clone())
            }
            _ => None,
        };
        value.map_or_else(|| refused("no such property"), |value| vec![json!({ "return": value })])
    }

    fn unplug(&mut self, id: &str) -> Vec<Value> {
        let Some(event) = self.guest else { return vec![json!({ "return": {} })] };
        if event == "DEVICE_DELETED" {
            self.devices.remove(id);
        }
        // Another device's end is not this one's.
        let other = json!({ "event": "DEVICE_DELETED", "data": { "device": "other" } });
        vec![json!({ "return": {} }), other, json!({ "event": event, "data": { "device": id } })]
    }
}

fn refused(text: &str) -> Vec<Value> {
    vec![json!({ "error": { "class": "GenericError", "desc": text } })]
}

fn at(greeting: &str, model: Model) -> (Monitor, Arc<Mutex<Model>>) {
    let model = Arc::new(Mutex::new(model));
    let inside = Arc::clone(&model);
    let answer = move |command: &str, arguments: &Value| inside.lock().unwrap().answer(command, arguments);
    (monitor(greeting, answer), model)
}

fn refusal(result: anyhow::Result<String>) -> String {
    format!("{:#}", result.unwrap_err())
}

/// For who never lets go.
const SHORT: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_device_goes_into_the_first_port_with_nothing_in_it() {
    let (mut monitor, model) = at(GREETING, Model::new().with("net", "virtio-net-pci", "p1"));
    let text = attach(&mut monitor, &device(Door::VfioUser, "/a.sock"), None).unwrap();
    assert_eq!(text, "plugged in as godwit-a at p2");
    assert_eq!(model.lock().unwrap().devices["godwit-a"].0, "vfio-user-pci");
    assert!(refusal(attach(&mut monitor, &device(Door::VfioUser, "/a.sock"), None)).contains("already"));
}

#[test]
fn a_guest_without_a_free_port_is_told_how_to_have_one_and_an_old_machine_needs_none() {
    let full = || Model::new().with("x", "nvme", "p1").with("y", "nvme", "p2");
    let text = refusal(attach(&mut at(GREETING, full()).0, &device(Door::VfioUser, "/a.sock"), None));
    assert!(
        text.contains("each of its 2 PCI Express ports") && text.contains("-device pcie-root-port"),
        "{text}"
    );
    let old = Model { machine: "pc-i440fx-11.1", ..full() };
    let text = attach(&mut at(GREETING, old).0, &device(Door::VfioUser, "/a.sock"), None).unwrap();
    assert_eq!(text, "plugged in as godwit-a");
    let (mut monitor, _) = at(GREETING, full());
    let text = attach(&mut monitor, &device(Door::VfioUser, "/a.sock"), Some("p9")).unwrap();
    assert!(text.ends_with("at p9"));
}

#[test]
fn memory_that_the_daemon_cannot_map_is_refused_before_anything_is_plugged() {
    let private = Model { shared: false, ..Model::new() };
    let (mut monitor, model) = at(GREETING, private);
    let text = refusal(attach(&mut monitor, &device(Door::VhostUser, "/a.sock"), None));
    assert!(text.contains("\"ram\" (512 MiB): it is private") && text.contains("share=on"), "{text}");
    assert_eq!(model.lock().unwrap().chardevs, ["qmp"]);
    let old = GREETING.replace("\"major\":11", "\"major\":9");
    let plain = Model { memory_kind: "memory-backend-ram", ..Model::new() };
    let text = refusal(attach(&mut at(&old, plain).0, &device(Door::VhostUser, "/a.sock"), None));
    assert!(text.contains("no descriptor"), "{text}");
}

#[test]
fn an_old_qemu_is_told_what_it_lacks() {
    let old = GREETING.replace("\"major\":11", "\"major\":9");
    let text = refusal(attach(&mut at(&old, Model::new()).0, &device(Door::VfioUser, "/a.sock"), None));
    assert!(text.contains("QEMU 9.1.3") && text.contains("10.1.0"), "{text}");
    attach(&mut at(&old, Model::new()).0, &device(Door::VhostUser, "/a.sock"), None).unwrap();
}

#[test]
fn a_disk_that_qemu_refuses_leaves_no_socket_behind() {
    let (mut monitor, model) = at(GREETING, Model { refuses_add: true, ..Model::new() });
    let text = refusal(attach(&mut monitor, &device(Door::VhostUser, "/a.sock"), None));
    assert_eq!(text, "QEMU refuses to plug godwit-a: it does not answer");
    assert_eq!(model.lock().unwrap().chardevs, ["qmp"]);
}

#[test]
fn a_disk_is_out_when_the_guest_has_let_go_and_its_socket_is_closed() {
    let (mut monitor, model) = at(GREETING, Model { busy: 2, ..Model::new() });
    attach(&mut monitor, &device(Door::VhostUser, "/a.sock"), None).unwrap();
    detach(&mut monitor, "godwit-a", PATIENCE, false).unwrap();
    let model = model.lock().unwrap();
    assert_eq!(model.chardevs, ["qmp"]);
    assert!(!model.devices.contains_key("godwit-a"));
}

#[test]
fn a_guest_that_holds_on_or_is_silent_is_told_apart() {
    let holds_on = Some("DEVICE_UNPLUG_GUEST_ERROR");
    for (guest, patience, says) in [(holds_on, PATIENCE, "does not let"), (None, SHORT, "has not let")] {
        let model = Model { guest, ..Model::new() }.with("godwit-a", "vhost-user-blk-pci", "p1");
        let text = refusal(detach(&mut at(GREETING, model).0, "godwit-a", patience, false));
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn an_nvme_ssd_is_not_unplugged_from_a_qemu_that_would_abort_unless_one_insists() {
    let model = || Model::new().with("godwit-a", "vfio-user-pci", "p1");
    let (mut monitor, left) = at(GREETING, model());
    let text = refusal(detach(&mut monitor, "godwit-a", PATIENCE, false));
    assert!(text.contains("QEMU 11.1.3: QEMU aborts"), "{text}");
    assert!(left.lock().unwrap().devices.contains_key("godwit-a"));
    detach(&mut monitor, "godwit-a", PATIENCE, true).unwrap();
}

#[test]
fn what_is_not_there_is_told_with_what_is_and_a_socket_left_alone_is_closed() {
    let text = refusal(detach(&mut at(GREETING, Model::new()).0, "godwit-a", PATIENCE, false));
    assert_eq!(text, "the guest has no device godwit-a; it has: p1, p2");
    let (mut monitor, model) = at(GREETING, Model { chardevs: vec!["godwit-a".to_owned()], ..Model::new() });
    detach(&mut monitor, "godwit-a", PATIENCE, false).unwrap();
    assert!(model.lock().unwrap().chardevs.is_empty());
}
