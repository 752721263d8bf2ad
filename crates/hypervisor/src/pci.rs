//! The PCI side of a vfio-user device, which QEMU's `migrate` leaves behind: at the destination the device is as after a power-on.
//!
//! What is restored is what a guest can write itself: base addresses, command, interrupt line, power state, PCI Express controls, MSI-X and its table. Godwit's server has
//! the same configuration, but decoding addresses and sending interrupts is QEMU's, and so is the table.
//!
//! ```text
//!  configuration   q35: the memory window (ECAM), 4 bytes a word    else: ports cf8h and cfch, whose latch is put back
//!  MSI-X table     memory at the base address
//!  reading         `xp`, `i`: QEMU's human monitor
//!  writing         a debugger's server on a socket pair (crate::gdb); ports: `o`
//! ```
//! The table comes before MSI-X is on: QEMU hands its eventfds over in one message then. Not chosen: DMA_WRITE by the device's server into its own table, which would spare the debugger's
//! server, and tie this to a session of the server's in which the guest's bus master bit is set.
//!
//! Of a state from elsewhere only values are taken: which registers there are, and where, is read off the device here. It can do what its guest could, to this one device.

mod config;
mod plan;

use serde_json::json;

pub use plan::CONFIG_BYTES;
use plan::MsixTable;

use crate::destination::Destination;
use crate::device::{self, Device, PciAddress};
use crate::error::{Error, Fault};
use crate::gdb::Gdb;
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

/// What QEMU knows of a PCI device that a guest has set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciState {
    /// Configuration space: the header, and of each capability what matters; the rest is zero.
    pub config: [u8; CONFIG_BYTES],
    /// The MSI-X table, whole; none if memory space is off, or there is no MSI-X.
    pub vectors: Vec<Vector>,
}

impl Source {
    /// The PCI state of a vfio-user device, to be restored at the destination. The guest must stand still, as it does from [`crate::SourceWord::PreSwitchover`] on, so that the state
    /// is the last one. Changes nothing, and may be asked again.
    pub fn pci_state(&mut self, device: &Device) -> Result<PciState, Error> {
        state(self.qmp(), device)
    }
}

impl Destination {
    /// The same at the destination: what is there now.
    pub fn pci_state(&mut self, device: &Device) -> Result<PciState, Error> {
        state(self.qmp(), device)
    }

    /// Sets a vfio-user device up as its guest had it. To be called after [`crate::DestinationWord::Completed`] and before [`Destination::run`], with the device's server answering. It gets all
    /// configuration writes, and an eventfd for each vector that is not masked.
    ///
    /// After an error it may be called again: all is written anew. A state that does not fit the device is refused before anything is written.
    pub fn restore_pci(&mut self, device: &Device, state: &PciState) -> Result<(), Error> {
        let qmp = &mut self.qmp;
        stands_still(qmp, device)?;
        let address = address(qmp, device)?;
        let config = Config::of(qmp, address)?;
        let restored = restore(qmp, device, &config, state);
        let finished = config.finish(qmp);
        restored.and(finished)
    }
}

fn restore(qmp: &mut Qmp, device: &Device, config: &Config, state: &PciState) -> Result<(), Error> {
    let here = config.read_all(qmp)?;
    let plan = plan::plan(&here, state).map_err(|text| unfit(qmp, device, text))?;
    Gdb::with(qmp, |qmp, gdb| {
        for step in &plan.first {
            config.write(qmp, gdb, step)?;
        }
        // Else what is where the table was is somebody else's.
        check_mapped(qmp, device, &plan)?;
        if let Some(table) = &plan.table {
            write_table(gdb, table, &state.vectors)
                .map_err(|fault| qmp.error("write the MSI-X table", fault))?;
        }
        for step in &plan.then {
            config.write(qmp, gdb, step)?;
        }
        Ok(())
    })?;
    match &plan.table {
        Some(table) if read_table(qmp, table)? != state.vectors => {
            Err(unfit(qmp, device, "its MSI-X table does not keep what is written to it".to_owned()))
        }
        _ => Ok(()),
    }
}

fn unfit(qmp: &Qmp, device: &Device, text: String) -> Error {
    qmp.error(format!("the PCI state of {}", device.path), Fault::Unfit(text))
}

fn state(qmp: &mut Qmp, device: &Device) -> Result<PciState, Error> {
    stands_still(qmp, device)?;
    let address = address(qmp, device)?;
    let config = Config::of(qmp, address)?;
    let read = config.read_all(qmp);
    config.finish(qmp)?;
    let config = read?;
    let table = plan::table(&config).map_err(|text| unfit(qmp, device, text))?;
    let vectors = table.map_or(Ok(Vec::new()), |table| read_table(qmp, &table))?;
    Ok(PciState { config, vectors })
}

fn stands_still(qmp: &mut Qmp, device: &Device) -> Result<(), Error> {
    if crate::migration::run_status(qmp)?.running {
        let text = "the guest runs: its devices' PCI state is its own until it stands still".to_owned();
        return Err(unfit(qmp, device, text));
    }
    Ok(())
}

fn address(qmp: &mut Qmp, device: &Device) -> Result<PciAddress, Error> {
    let found = device::addresses(qmp)?;
    let address = device.id.as_ref().and_then(|id| found.get(id)).copied();
    address.ok_or_else(|| unfit(qmp, device, "it has no id, or its bus no number yet".to_owned()))
}

/// QEMU decodes the base addresses as the state says.
fn check_mapped(qmp: &mut Qmp, device: &Device, plan: &plan::Plan) -> Result<(), Error> {
    let told = qmp.execute("query-pci", json!({}))?;
    let id = device.id.as_deref().unwrap_or_default();
    let regions = device::regions(&told, id);
    for (bar, address) in &plan.mapped {
        if !regions.contains(&(*bar, *address)) {
            let text = format!("its base address {bar} is not at {address:#x}: is another device there?");
            return Err(unfit(qmp, device, text));
        }
    }
    Ok(())
}

fn write_table(gdb: &mut Gdb, table: &MsixTable, vectors: &[Vector]) -> Result<(), Fault> {
    for (at, rows) in (0u64..).step_by(ROWS_AT_ONCE).zip(vectors.chunks(ROWS_AT_ONCE)) {
        let bytes: Vec<u8> = rows.iter().flat_map(row).collect();
        gdb.write(table.address + at * ROW_BYTES, &bytes)?;
    }
    Ok(())
}

fn row(vector: &Vector) -> [u8; 16] {
    let control = u32::from(vector.masked);
    let row = u128::from(vector.address) | u128::from(vector.data) << 64 | u128::from(control) << 96;
    row.to_le_bytes()
}

fn read_table(qmp: &mut Qmp, table: &MsixTable) -> Result<Vec<Vector>, Error> {
    let words = human::memory(qmp, table.address, usize::from(table.rows) * 4)?;
    let vector = |row: &[u32]| Vector {
        address: u64::from(row[0]) | u64::from(row[1]) << 32,
        data: row[2],
        masked: row[3] & 1 == 1,
    };
    Ok(words.chunks_exact(4).map(vector).collect())
}

#[cfg(test)]
mod tests;
