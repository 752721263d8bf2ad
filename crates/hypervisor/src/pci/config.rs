//! One function's configuration space, through QEMU's monitor.

use serde_json::json;

use super::plan::Step;
use crate::device::PciAddress;
use crate::error::{Error, Fault};
use crate::gdb::Gdb;
use crate::human;
use crate::qmp::Qmp;

/// The ports of configuration mechanism 1 (PCI Local Bus 3.0, 3.2.2.3.2).
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// The way to a function's configuration space.
#[derive(Debug)]
pub(super) enum Config {
    /// q35's window in memory: the function's bytes are at this address.
    Memory(u64),
    /// Two ports. What the guest had chosen is put back: it may have been stopped between its two accesses.
    Ports { function: u32, chosen: u32 },
}

impl Config {
    pub(super) fn of(qmp: &mut Qmp, address: PciAddress) -> Result<Config, Error> {
        let PciAddress { bus, slot, function } = address;
        let function = u32::from(bus) << 8 | u32::from(slot) << 3 | u32::from(function);
        if let Some(window) = window(qmp, bus)? {
            return Ok(Config::Memory(window + (u64::from(function) << 12)));
        }
        let chosen = human::port(qmp, CONFIG_ADDRESS)?;
        Ok(Config::Ports { function: 1 << 31 | function << 8, chosen })
    }

    pub(super) fn write(&self, qmp: &mut Qmp, gdb: &mut Gdb, steps: &[Step]) -> Result<(), Error> {
        match self {
            Config::Memory(base) => {
                let write = |step: &Step| {
                    (base + step.offset as u64, step.value.to_le_bytes()[..step.width].to_vec())
                };
                gdb.write(steps.iter().map(write))
                    .map_err(|fault| qmp.error("write configuration space", fault))
            }
            Config::Ports { .. } => steps.iter().try_for_each(|step| {
                self.choose(qmp, step.offset)?;
                let within = u16::try_from(step.offset % 4).unwrap_or(0);
                human::set_port(qmp, CONFIG_DATA + within, step.width, step.value)
            }),
        }
    }

    /// Leaves all as it was found. To be called when no more is written.
    pub(super) fn finish(&self, qmp: &mut Qmp) -> Result<(), Error> {
        match self {
            Config::Memory(_) => Ok(()),
            Config::Ports { chosen, .. } => human::set_port(qmp, CONFIG_ADDRESS, 4, *chosen),
        }
    }

    fn choose(&self, qmp: &mut Qmp, offset: usize) -> Result<(), Error> {
        let Config::Ports { function, .. } = self else { return Ok(()) };
        let register = u32::try_from(offset & !3).unwrap_or(0);
        human::set_port(qmp, CONFIG_ADDRESS, 4, function | register)
    }
}

/// Where q35's window is, if this machine has one and it reaches to the bus.
fn window(qmp: &mut Qmp, bus: u8) -> Result<Option<u64>, Error> {
    let mut property =
        |name: &str| match qmp.execute("qom-get", json!({ "path": "/machine/q35", "property": name })) {
            Ok(value) => Ok(value.as_u64()),
            Err(Error { fault: Fault::Refused { .. }, .. }) => Ok(None),
            Err(error) => Err(error),
        };
    let (base, bytes) = (property("MCFG")?, property("mcfg_size")?);
    let fits = |base: &u64| {
        base.checked_add(bytes.unwrap_or(0)).is_some() && (u64::from(bus) + 1) << 20 <= bytes.unwrap_or(0)
    };
    Ok(base.filter(fits))
}
