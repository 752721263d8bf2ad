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
use crate::gdb::{Gdb, Line};
use crate::human;
use crate::qmp::Qmp;
use crate::source::Source;
use config::Config;

/// Bytes of a row of the MSI-X table.
const ROW_BYTES: u64 = 16;
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

    /// Does what [`Destination::restore_pci`] needs of QEMU and can be done before the guest stands still. May be left out.
    pub fn prepare_pci(&mut self) -> Result<(), Error> {
        self.line = Some(Line::lay(&mut self.qmp)?);
        Ok(())
    }

    /// Sets vfio-user devices up as their guest had them. To be called after [`crate::DestinationWord::Completed`] and before [`Destination::run`], with the devices' servers answering. They get all
    /// configuration writes, and an eventfd for each vector that is not masked.
    ///
    /// After an error it may be called again: all is written anew. A state that does not fit its device is refused before anything is written.
    pub fn restore_pci(&mut self, devices: &[(&Device, PciState)]) -> Result<(), Error> {
        let Destination { qmp, line } = self;
        let line = line.take();
        let plans = match plans(qmp, devices) {
            Ok(plans) if !plans.is_empty() => plans,
            nothing => {
                let taken_down = line.map_or(Ok(()), |line| line.take_down(qmp));
                return nothing.and(taken_down);
            }
        };
        let line = line.map_or_else(|| Line::lay(qmp), Ok)?;
        let todo = || plans.iter().zip(devices);
        Gdb::with(qmp, line, |qmp, gdb| {
            todo().try_for_each(|((plan, address), (device, state))| {
                let config = Config::of(qmp, *address)?;
                let restored = restore(qmp, gdb, device, &config, plan, &state.vectors);
                let finished = config.finish(qmp);
                restored.and(finished)
            })
        })?;
        todo().try_for_each(|((plan, _), (device, state))| check_table(qmp, device, plan, &state.vectors))
    }
}

/// What is to be done, and where, for each.
fn plans(qmp: &mut Qmp, devices: &[(&Device, PciState)]) -> Result<Vec<(Plan, PciAddress)>, Error> {
    let Some((first, _)) = devices.first() else { return Ok(Vec::new()) };
    stands_still(qmp, first)?;
    let told = qmp.execute("query-pci", json!({}))?;
    let plan = |(device, state): &(&Device, PciState)| {
        let plan = plan::plan(state).and_then(|plan| Ok((plan, address(&told, device, state)?)));
        plan.map_err(|text| unfit(qmp, device, text))
    };
    devices.iter().map(plan).collect()
}

fn restore(
    qmp: &mut Qmp,
    gdb: &mut Gdb,
    device: &Device,
    config: &Config,
    plan: &Plan,
    vectors: &[Vector],
) -> Result<(), Error> {
    config.write(qmp, gdb, &plan.first)?;
    // Else what is where the table was is somebody else's.
    check_mapped(qmp, device, &plan.mapped)?;
    if let Some(table) = &plan.table {
        write_table(gdb, table, vectors).map_err(|fault| qmp.error("write the MSI-X table", fault))?;
    }
    config.write(qmp, gdb, &plan.then)
}

/// Of the table only the rows that a guest has set: each word is one of QEMU's words for people.
fn check_table(qmp: &mut Qmp, device: &Device, plan: &Plan, vectors: &[Vector]) -> Result<(), Error> {
    let Some(table) = &plan.table else { return Ok(()) };
    let set = vectors.iter().rposition(|vector| *vector != Vector::RESET).map_or(1, |last| last + 1);
    let set = set.min(vectors.len());
    if read_table(qmp, table, set)? != vectors[..set] {
        return Err(unfit(qmp, device, "its MSI-X table does not keep what is written to it".to_owned()));
    }
    Ok(())
}

fn vectors(qmp: &mut Qmp, device: &Device, config: &[u8; CONFIG_BYTES]) -> Result<Vec<Vector>, Error> {
    stands_still(qmp, device)?;
    let Some(table) = plan::table(config).map_err(|text| unfit(qmp, device, text))? else {
        return Ok(Vec::new());
    };
    check_mapped(qmp, device, &[table.base])?;
    read_table(qmp, &table, table.rows.into())
}

fn unfit(qmp: &Qmp, device: &Device, text: String) -> Error {
    qmp.error(format!("the PCI state of {}", device.path), Fault::Unfit(text))
}

fn stands_still(qmp: &mut Qmp, device: &Device) -> Result<(), Error> {
    if crate::migration::run_status(qmp)?.running {
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

/// QEMU decodes these base addresses there.
fn check_mapped(qmp: &mut Qmp, device: &Device, mapped: &[Mapped]) -> Result<(), Error> {
    let told = qmp.execute("query-pci", json!({}))?;
    let regions = device::regions(&told, device.id.as_deref().unwrap_or_default());
    for (bar, address) in mapped {
        if !regions.contains(&(*bar, *address)) {
            let text = format!("its base address {bar} is not at {address:#x}: is another device there?");
            return Err(unfit(qmp, device, text));
        }
    }
    Ok(())
}

fn write_table(gdb: &mut Gdb, table: &MsixTable, vectors: &[Vector]) -> Result<(), Fault> {
    let chunks = (0u64..).step_by(ROWS_AT_ONCE).zip(vectors.chunks(ROWS_AT_ONCE));
    let bytes = |rows: &[Vector]| rows.iter().flat_map(row).collect();
    gdb.write(chunks.map(|(at, rows)| (table.address + at * ROW_BYTES, bytes(rows))))
}

fn row(vector: &Vector) -> [u8; 16] {
    let control = u32::from(vector.masked);
    let row = u128::from(vector.address) | u128::from(vector.data) << 64 | u128::from(control) << 96;
    row.to_le_bytes()
}

fn read_table(qmp: &mut Qmp, table: &MsixTable, rows: usize) -> Result<Vec<Vector>, Error> {
    let words = human::memory(qmp, table.address, rows * 4)?;
    let vector = |row: &[u32]| Vector {
        address: u64::from(row[0]) | u64::from(row[1]) << 32,
        data: row[2],
        masked: row[3] & 1 == 1,
    };
    Ok(words.chunks_exact(4).map(vector).collect())
}

#[cfg(test)]
mod tests;
