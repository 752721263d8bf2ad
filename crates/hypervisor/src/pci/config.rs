//! One function's configuration space, through QEMU's monitor.

use serde_json::{Value, json};

use super::plan::Step;
use crate::device::PciAddress;
use crate::error::{Error, Fault};
use crate::gdb;
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

/// Where q35's window is, as QEMU is asked it.
pub(super) fn window_questions() -> [(&'static str, Value); 2] {
    ["MCFG", "mcfg_size"].map(|name| ("qom-get", json!({ "path": "/machine/q35", "property": name })))
}

/// What it answers: a machine may have none.
pub(super) fn window([base, bytes]: [Result<Value, Error>; 2]) -> Result<Option<(u64, u64)>, Error> {
    let number = |answer: Result<Value, Error>| match answer {
        Ok(value) => Ok(value.as_u64()),
        Err(Error { fault: Fault::Refused { .. }, .. }) => Ok(None),
        Err(error) => Err(error),
    };
    Ok(number(base)?.zip(number(bytes)?))
}

impl Config {
    pub(super) fn of(
        qmp: &mut Qmp,
        window: Option<(u64, u64)>,
        address: PciAddress,
    ) -> Result<Config, Error> {
        let PciAddress { bus, slot, function } = address;
        let function = u32::from(bus) << 8 | u32::from(slot) << 3 | u32::from(function);
        let reaches = |(base, bytes): &(u64, u64)| {
            base.checked_add(*bytes).is_some() && (u64::from(bus) + 1) << 20 <= *bytes
        };
        if let Some((base, _)) = window.filter(reaches) {
            return Ok(Config::Memory(base + (u64::from(function) << 12)));
        }
        let chosen = human::port(qmp, CONFIG_ADDRESS)?;
        Ok(Config::Ports { function: 1 << 31 | function << 8, chosen })
    }

    /// The steps as writes to memory; none if there is no window.
    pub(super) fn writes(&self, steps: &[Step]) -> Vec<gdb::Write> {
        let Config::Memory(base) = self else { return Vec::new() };
        let write =
            |step: &Step| (base + step.offset as u64, step.value.to_le_bytes()[..step.width].to_vec());
        steps.iter().map(write).collect()
    }

    /// The steps by ports, if there is no window.
    pub(super) fn by_ports(&self, qmp: &mut Qmp, steps: &[Step]) -> Result<(), Error> {
        let Config::Ports { function, chosen } = self else { return Ok(()) };
        let done = steps.iter().try_for_each(|step| {
            let register = u32::try_from(step.offset & !3).unwrap_or(0);
            human::set_port(qmp, CONFIG_ADDRESS, 4, function | register)?;
            let within = u16::try_from(step.offset % 4).unwrap_or(0);
            human::set_port(qmp, CONFIG_DATA + within, step.width, step.value)
        });
        let put_back = human::set_port(qmp, CONFIG_ADDRESS, 4, *chosen);
        done.and(put_back)
    }
}
