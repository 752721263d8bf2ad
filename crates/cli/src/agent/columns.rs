//! What tables show.

use crate::output::{self, Output, size};
use api::rest::{
    Attachment, Certificate, Flavor, Interface, Limits, Operation, Pool, Snapshot, Ssd, WipedKind,
};
use serde::Serialize;
use std::fmt::Write as _;

/// A column of a table. The first one is the name.
pub(crate) struct Column<T> {
    pub(crate) head: &'static str,
    /// Only in wide tables.
    pub(crate) wide: bool,
    pub(crate) cell: fn(&T) -> String,
}

/// Many things.
pub(crate) fn list<T: Serialize>(
    items: &[T],
    columns: &[Column<T>],
    output: Output,
) -> anyhow::Result<String> {
    Ok(match output {
        Output::Table => rows(items, columns, false),
        Output::Wide => rows(items, columns, true),
        Output::Json => serde_json::to_string_pretty(items)? + "\n",
        Output::Yaml => output::yaml(&serde_json::to_value(items)?),
        Output::Name => names(items, columns),
    })
}

/// One thing: a list of one, but an object for programs, and line by line for people.
pub(crate) fn one<T: Serialize>(item: &T, columns: &[Column<T>], output: Output) -> anyhow::Result<String> {
    Ok(match output {
        Output::Table | Output::Wide => {
            let width = columns.iter().map(|column| column.head.len()).max().unwrap_or(0);
            columns.iter().fold(String::new(), |mut text, column| {
                let _infallible = writeln!(text, "{:width$}  {}", column.head, (column.cell)(item));
                text
            })
        }
        Output::Json => serde_json::to_string_pretty(item)? + "\n",
        Output::Yaml => output::yaml(&serde_json::to_value(item)?),
        Output::Name => names(std::slice::from_ref(item), columns),
    })
}

fn names<T>(items: &[T], columns: &[Column<T>]) -> String {
    let Some(name) = columns.first() else { return String::new() };
    items.iter().map(|item| (name.cell)(item) + "\n").collect()
}

fn rows<T>(items: &[T], columns: &[Column<T>], wide: bool) -> String {
    let columns: Vec<&Column<T>> = columns.iter().filter(|column| wide || !column.wide).collect();
    let heads: Vec<String> = columns.iter().map(|column| column.head.to_uppercase()).collect();
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    let cells = |item| columns.iter().map(|column| (column.cell)(item)).collect();
    output::table(&heads, &items.iter().map(cells).collect::<Vec<_>>())
}

fn or_dash(text: Option<&String>) -> String {
    text.map_or_else(|| "-".to_owned(), Clone::clone)
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "-" }.to_owned()
}

fn key(certificate: &Certificate) -> String {
    match certificate.key {
        None => "-".to_owned(),
        Some(fate) if certificate.key_users.is_empty() => fate.word().to_owned(),
        Some(fate) => format!("{} for {}", fate.word(), certificate.key_users.join(", ")),
    }
}

fn limits(limits: &Limits) -> String {
    let rate = |name: &str, value: Option<u64>| value.map(|value| format!("{name} {value}"));
    let bytes = |name: &str, value: Option<u64>| value.map(|value| format!("{name} {}/s", size(value)));
    let parts: Vec<String> = [
        rate("iops", limits.iops),
        rate("read-iops", limits.read_iops),
        rate("write-iops", limits.write_iops),
        bytes("bandwidth", limits.bandwidth),
        bytes("read-bandwidth", limits.read_bandwidth),
        bytes("write-bandwidth", limits.write_bandwidth),
        rate("weight", limits.weight.map(u64::from)),
    ]
    .into_iter()
    .flatten()
    .collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}

pub(super) const SSD: [Column<Ssd>; 15] = [
    Column { head: "name", wide: false, cell: |ssd| ssd.name.clone() },
    Column { head: "size", wide: false, cell: |ssd| size(ssd.size_bytes) },
    Column { head: "phase", wide: false, cell: |ssd| ssd.phase.word().to_owned() },
    Column { head: "serving", wide: false, cell: |ssd| ssd.serving.state.clone() },
    Column {
        head: "client",
        wide: false,
        cell: |ssd| if ssd.serving.client { "connected" } else { "-" }.to_owned(),
    },
    Column {
        head: "interface",
        wide: false,
        cell: |ssd| match ssd.interface {
            Interface::Nvme => "nvme".to_owned(),
            Interface::VirtioBlk => "virtio-blk".to_owned(),
        },
    },
    Column { head: "place", wide: false, cell: |ssd| ssd.pool.clone().unwrap_or_else(|| "file".to_owned()) },
    Column { head: "encrypted", wide: false, cell: |ssd| yes(ssd.encrypted) },
    Column { head: "limits", wide: false, cell: |ssd| limits(&ssd.limits) },
    Column { head: "profile", wide: true, cell: |ssd| or_dash(ssd.profile.as_ref()) },
    Column { head: "generation", wide: true, cell: |ssd| ssd.generation.to_string() },
    Column { head: "operation", wide: true, cell: |ssd| or_dash(ssd.operation.as_ref()) },
    Column { head: "uuid", wide: true, cell: |ssd| ssd.uuid.clone() },
    Column { head: "socket", wide: true, cell: |ssd| ssd.socket.clone() },
    Column {
        head: "reason",
        wide: true,
        cell: |ssd| or_dash(ssd.reason.as_ref().or(ssd.serving.reason.as_ref())),
    },
];

pub(super) const FLAVOR: [Column<Flavor>; 3] = [
    Column { head: "name", wide: false, cell: |flavor| flavor.name.clone() },
    Column { head: "size", wide: false, cell: |flavor| size(flavor.size_bytes) },
    Column { head: "limits", wide: false, cell: |flavor| limits(&flavor.limits) },
];

pub(super) const OPERATION: [Column<Operation>; 6] = [
    Column { head: "id", wide: false, cell: |operation| operation.id.clone() },
    Column { head: "kind", wide: false, cell: |operation| operation.kind.clone() },
    Column { head: "target", wide: false, cell: |operation| operation.target.clone() },
    Column { head: "state", wide: false, cell: |operation| operation.state.word().to_owned() },
    Column { head: "step", wide: false, cell: |operation| operation.step.clone() },
    Column { head: "message", wide: false, cell: |operation| or_dash(operation.message.as_ref()) },
];

pub(super) const POOL: [Column<Pool>; 13] = [
    Column { head: "name", wide: false, cell: |pool| pool.name.clone() },
    Column { head: "phase", wide: false, cell: |pool| pool.phase.word().to_owned() },
    Column { head: "serving", wide: false, cell: |pool| pool.serving.state.clone() },
    Column { head: "size", wide: false, cell: |pool| size(pool.serving.size_bytes) },
    Column { head: "free", wide: false, cell: |pool| size(pool.serving.free_bytes) },
    Column { head: "promised", wide: false, cell: |pool| size(pool.promised_bytes) },
    Column { head: "ssds", wide: false, cell: |pool| pool.ssds.to_string() },
    Column { head: "path", wide: false, cell: |pool| pool.path.clone() },
    Column { head: "wiping", wide: true, cell: |pool| size(pool.serving.wiping_bytes) },
    Column { head: "quarantined", wide: true, cell: |pool| size(pool.serving.quarantined_bytes) },
    Column { head: "waiting", wide: true, cell: |pool| pool.serving.waiting.to_string() },
    Column { head: "extent", wide: true, cell: |pool| size(pool.serving.extent_bytes) },
    Column { head: "operation", wide: true, cell: |pool| or_dash(pool.operation.as_ref()) },
];

pub(super) const SNAPSHOT: [Column<Snapshot>; 8] = [
    Column { head: "name", wide: false, cell: |snapshot| snapshot.name.clone() },
    Column { head: "ssd", wide: false, cell: |snapshot| snapshot.ssd.clone() },
    Column { head: "pool", wide: false, cell: |snapshot| snapshot.pool.clone() },
    Column { head: "size", wide: false, cell: |snapshot| size(snapshot.size_bytes) },
    Column { head: "phase", wide: false, cell: |snapshot| snapshot.phase.word().to_owned() },
    Column { head: "encrypted", wide: true, cell: |snapshot| yes(snapshot.encrypted) },
    Column { head: "volume", wide: true, cell: |snapshot| snapshot.volume.clone() },
    Column { head: "reason", wide: true, cell: |snapshot| or_dash(snapshot.reason.as_ref()) },
];

pub(super) const CERTIFICATE: [Column<Certificate>; 15] = [
    Column { head: "id", wide: false, cell: |one| one.id.clone() },
    Column {
        head: "kind",
        wide: false,
        cell: |one| match one.kind {
            WipedKind::Ssd => "ssd".to_owned(),
            WipedKind::Snapshot => "snapshot".to_owned(),
        },
    },
    Column { head: "name", wide: false, cell: |one| one.name.clone() },
    Column { head: "pool", wide: false, cell: |one| one.pool.clone() },
    Column { head: "size", wide: false, cell: |one| size(one.size_bytes) },
    Column { head: "verdict", wide: false, cell: |one| one.verdict.word().to_owned() },
    Column { head: "key", wide: false, cell: key },
    Column { head: "ended", wide: false, cell: |one| one.ended_ms.map_or("-".to_owned(), output::time) },
    Column { head: "started", wide: true, cell: |one| output::time(one.started_ms) },
    Column { head: "mapped", wide: true, cell: |one| size(one.mapped_bytes) },
    Column { head: "uuid", wide: true, cell: |one| one.uuid.clone() },
    Column { head: "serial", wide: true, cell: |one| or_dash(one.serial.as_ref()) },
    Column { head: "drive", wide: true, cell: |one| one.drive.clone() },
    Column { head: "snapshots", wide: true, cell: |one| one.snapshots.join(", ") },
    Column { head: "method", wide: true, cell: |one| one.method.clone() },
];

pub(super) const ATTACHMENT: [Column<Attachment>; 5] = [
    Column { head: "ssd", wide: false, cell: |one| one.ssd.clone() },
    Column { head: "guest", wide: false, cell: |one| one.guest.clone() },
    Column {
        head: "client",
        wide: false,
        cell: |one| if one.connected { "connected" } else { "-" }.to_owned(),
    },
    Column { head: "socket", wide: false, cell: |one| one.socket.clone() },
    Column { head: "created", wide: true, cell: |one| output::time(one.created_ms) },
];

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column<(&str, u32)>; 2] = [
        Column { head: "name", wide: false, cell: |item| item.0.to_owned() },
        Column { head: "number", wide: true, cell: |item| item.1.to_string() },
    ];

    #[test]
    fn wide_columns_are_shown_only_when_asked_for_and_names_alone_for_scripts() {
        let items = [("a", 1), ("longer", 22)];
        assert_eq!(list(&items, &COLUMNS, Output::Table).unwrap(), "NAME\na\nlonger\n");
        assert_eq!(list(&items, &COLUMNS, Output::Wide).unwrap(), "NAME    NUMBER\na       1\nlonger  22\n");
        assert_eq!(list(&items, &COLUMNS, Output::Name).unwrap(), "a\nlonger\n");
        assert_eq!(one(&items[0], &COLUMNS, Output::Table).unwrap(), "name    a\nnumber  1\n");
    }
}
