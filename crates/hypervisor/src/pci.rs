//! The PCI side of a vfio-user device, which QEMU's `migrate` leaves behind: at the destination the device is as after a power-on.
//!
//! What is restored is what a guest can write itself: base addresses, command, interrupt line, power state, PCI Express controls, MSI-X and its table. Godwit's server has
//! the same configuration, but decoding addresses and sending interrupts is QEMU's, and so is the table.
//!
//! ```text
//!  configuration   said by the device's server, who has seen all of the guest's writes: to read it through QEMU is a message to the server for each word
//!    writing       q35: the memory window (ECAM)        else: ports cf8h and cfch, whose latch is put back
//!  MSI-X table     memory at the base address; read by `xp` of QEMU's human monitor
//!  writing memory  a debugger's server on a socket pair (crate::gdb); ports: `o`
//! ```
//! The table comes before MSI-X is on: QEMU hands its eventfds over in one message then. Not chosen: DMA_WRITE by the device's server into its own table, which would spare the debugger's
//! server, and tie this to a session of the server's in which the guest's bus master bit is set.
//!
//! All of it is done while a guest stands still. It can do what its guest could, to this one device.

mod config;
mod plan;

use serde_json::{Value, json};

pub use plan::CONFIG_BYTES;
use plan::{Mapped, MsixTable, Plan};

use crate::destination::Destination;
use crate::device::{self, Device, PciAddress};
use crate::error::{Error, Fault};
use crate::gdb::{self, Gdb};
use crate::human;
use crate::qmp::Qmp;
use crate::source::Source;
use config::Config;

/// Bytes of a row of the MSI-X table.
const ROW_BYTES: u64 = 16;
/// 32-bit words of one.
const WORDS_A_ROW: usize = 4;
/// Rows in one packet of the debugger's protocol.
const ROWS_AT_ONCE: usize = 128;

/// An interrupt vector of the MSI-X table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vector {
    /// Where the message is written.
    pub address: u64,
    /// The message.
    pub data: u32,
    /// It is held back.
    pub masked: bool,
}

impl Vector {
    /// As after a reset.
    pub const RESET: Vector = Vector { address: 0, data: 0, masked: true };
}

/// How a guest has set a PCI device up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciState {
    /// Configuration space, by the device's server. What is restored is of a device like that, so it must be one that the server here could have: of a state that came from elsewhere
    /// the server has made sure of that.
    pub config: [u8; CONFIG_BYTES],
    /// The MSI-X table, whole; none if memory space is off, or there is no MSI-X.
    pub vectors: Vec<Vector>,
}

impl Source {
    /// The MSI-X table of a vfio-user device whose configuration space, by its server, is `config`; see [`PciState::vectors`]. The guest must stand still, as it does from
    /// [`crate::SourceWord::PreSwitchover`] on, so that the table is the last one. Changes nothing, and may be asked again.
    pub fn vectors(&mut self, device: &Device, config: &[u8; CONFIG_BYTES]) -> Result<Vec<Vector>, Error> {
        vectors(self.qmp(), device, config)
    }
}

impl Destination {
    /// The same at the destination: what is there now.
    pub fn vectors(&mut self, device: &Device, config: &[u8; CONFIG_BYTES]) -> Result<Vec<Vector>, Error> {
        vectors(&mut self.qmp, device, config)
    }

    /// Does what [`Destination::restore_pci`] needs of QEMU and can be done before the guest has come. May be left out.
    pub fn prepare_pci(&mut self) -> Result<(), Error> {
        if self.gdb.is_none() {
            self.gdb = Some(Gdb::start(&mut self.qmp)?);
        }
        Ok(())
    }

    /// Takes back [`Destination::prepare_pci`], as far as QEMU answers: no device is to be set up.
    pub fn give_up_pci(&mut self) {
        if let Some(gdb) = self.gdb.take() {
            gdb.give_up(&mut self.qmp);
        }
    }

    /// Sets vfio-user devices up as their guest had them. To be called after [`crate::DestinationWord::Completed`] and before [`Destination::run`], with the devices' servers answering. They get all
    /// configuration writes, and an eventfd for each vector that is not masked.
    ///
    /// After an error it may be called again: all is written anew. A state that does not fit its device is refused before anything is written.
    pub fn restore_pci(&mut self, devices: &[(&Device, PciState)]) -> Result<(), Error> {
        let todo = todo(&mut self.qmp, devices).and_then(|todo| {
            if !todo.is_empty() {
                self.prepare_pci()?;
            }
            Ok(todo)
        });
        let Destination { qmp, gdb, .. } = self;
        let Some(mut gdb) = gdb.take() else { return todo.map(drop) };
        let decoded = todo.and_then(|todo| decode(qmp, &mut gdb, &todo).map(|()| todo));
        match decoded {
            Ok(todo) => finish(qmp, gdb, &todo),
            Err(error) => {
                gdb.give_up(qmp);
                Err(error)
            }
        }
    }
}

/// What a device is to become, and how it is reached.
struct Todo<'a> {
    device: &'a Device,
    vectors: &'a [Vector],
    plan: Plan,
    config: Config,
}

fn todo<'a>(qmp: &mut Qmp, devices: &'a [(&Device, PciState)]) -> Result<Vec<Todo<'a>>, Error> {
    let Some((first, _)) = devices.first() else { return Ok(Vec::new()) };
    let [base, bytes] = config::window_questions();
    let [status, told, base, bytes] =
        qmp.execute_all([("query-status", json!({})), ("query-pci", json!({})), base, bytes]);
    stands_still(qmp, first, &status?)?;
    let told = told?;
    let window = config::window([base, bytes])?;
    let todo = |(device, state): &'a (&Device, PciState)| {
        let plan = plan::plan(state).and_then(|plan| Ok((plan, address(&told, device, state)?)));
        let (plan, address) = plan.map_err(|text| unfit(qmp, device, text))?;
        Ok(Todo { device, vectors: &state.vectors, plan, config: Config::of(qmp, window, address)? })
    };
    devices.iter().map(todo).collect()
}

/// Has the devices decoded where they were, and makes sure of it: else what is where a table was is somebody else's.
fn decode(qmp: &mut Qmp, gdb: &mut Gdb, todo: &[Todo<'_>]) -> Result<(), Error> {
    gdb.write(todo.iter().flat_map(|one| one.config.writes(&one.plan.first)))
        .map_err(|fault| qmp.error("write configuration space", fault))?;
    todo.iter().try_for_each(|one| one.config.by_ports(qmp, &one.plan.first))?;
    let told = qmp.execute("query-pci", json!({}))?;
    todo.iter().try_for_each(|one| check_mapped(qmp, &told, one.device, &one.plan.mapped))
}

/// The tables, and what comes after them.
fn finish(qmp: &mut Qmp, gdb: Gdb, todo: &[Todo<'_>]) -> Result<(), Error> {
    let writes = todo.iter().flat_map(|one| {
        let table = one.plan.table.iter().flat_map(|table| table_writes(table, one.vectors));
        table.chain(one.config.writes(&one.plan.then))
    });
    // Of a table only the rows that a guest has set: a look is in words for people.
    let set =
        |vectors: &[Vector]| vectors.iter().rposition(|one| *one != Vector::RESET).map_or(1, |last| last + 1);
    let tables: Vec<_> = todo
        .iter()
        .filter_map(|one| Some((one.device, one.plan.table.as_ref()?, &one.vectors[..set(one.vectors)])))
        .collect();
    let looks: Vec<String> = tables
        .iter()
        .map(|(_, table, wanted)| human::look(table.address, wanted.len() * WORDS_A_ROW))
        .collect();
    let said = gdb.finish(qmp, writes, &looks)?;
    for ((device, table, wanted), said) in tables.iter().zip(&said) {
        if rows(qmp, table, wanted.len(), said)? != **wanted {
            let text = "its MSI-X table does not keep what is written to it".to_owned();
            return Err(unfit(qmp, device, text));
        }
    }
    todo.iter().try_for_each(|one| one.config.by_ports(qmp, &one.plan.then))
}

fn vectors(qmp: &mut Qmp, device: &Device, config: &[u8; CONFIG_BYTES]) -> Result<Vec<Vector>, Error> {
    let table = plan::table(config).map_err(|text| unfit(qmp, device, text))?;
    let [status, told] = qmp.execute_all([("query-status", json!({})), ("query-pci", json!({}))]);
    stands_still(qmp, device, &status?)?;
    let Some(table) = table else { return Ok(Vec::new()) };
    check_mapped(qmp, &told?, device, &[table.base])?;
    let count = usize::from(table.rows);
    let said = qmp.human(&human::look(table.address, count * WORDS_A_ROW))?;
    rows(qmp, &table, count, &said)
}

fn unfit(qmp: &Qmp, device: &Device, text: String) -> Error {
    qmp.error(format!("the PCI state of {}", device.path), Fault::Unfit(text))
}

fn stands_still(qmp: &Qmp, device: &Device, told: &Value) -> Result<(), Error> {
    if crate::migration::told_status(qmp, told)?.running {
        let text = "the guest runs: its devices' PCI state is its own until it stands still".to_owned();
        return Err(unfit(qmp, device, text));
    }
    Ok(())
}

/// Where the device is by what `query-pci` told, if it is one of that kind.
fn address(told: &Value, device: &Device, state: &PciState) -> Result<PciAddress, String> {
    let found = device.id.as_deref().and_then(|id| device::found(told, id));
    let (address, identity) = found.ok_or("it has no id, or its bus no number yet")?;
    if identity != plan::identity(&state.config) {
        return Err("the device here is not the one that the guest had".to_owned());
    }
    Ok(address)
}

/// QEMU decodes these base addresses there, by what `query-pci` told.
fn check_mapped(qmp: &Qmp, told: &Value, device: &Device, mapped: &[Mapped]) -> Result<(), Error> {
    let regions = device::regions(told, device.id.as_deref().unwrap_or_default());
    for (bar, address) in mapped {
        if !regions.contains(&(*bar, *address)) {
            let text = format!("its base address {bar} is not at {address:#x}: is another device there?");
            return Err(unfit(qmp, device, text));
        }
    }
    Ok(())
}

fn table_writes(table: &MsixTable, vectors: &[Vector]) -> impl Iterator<Item = gdb::Write> {
    let chunks = (0u64..).step_by(ROWS_AT_ONCE).zip(vectors.chunks(ROWS_AT_ONCE));
    chunks.map(|(at, rows)| (table.address + at * ROW_BYTES, rows.iter().flat_map(row).collect()))
}

fn row(vector: &Vector) -> [u8; 16] {
    let control = u32::from(vector.masked);
    let row = u128::from(vector.address) | u128::from(vector.data) << 64 | u128::from(control) << 96;
    row.to_le_bytes()
}

/// So many rows, of what was said to a look at them.
fn rows(qmp: &Qmp, table: &MsixTable, count: usize, said: &str) -> Result<Vec<Vector>, Error> {
    let words = human::seen(qmp, table.address, count * WORDS_A_ROW, said)?;
    let vector = |row: &[u32]| Vector {
        address: u64::from(row[0]) | u64::from(row[1]) << 32,
        data: row[2],
        masked: row[3] & 1 == 1,
    };
    Ok(words.chunks_exact(WORDS_A_ROW).map(vector).collect())
}

#[cfg(test)]
mod tests;
