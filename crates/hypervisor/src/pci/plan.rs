//! What is written to a device so that it is as its guest had it (PCI Express Base 6.0, 7.5; MSI-X 7.7.2). Pure.

use super::{PciState, ROW_BYTES};

/// Bytes of configuration space that are looked at: PCI's own. The extended ones are the server's alone.
pub const CONFIG_BYTES: usize = 256;
/// As many have room; a list that is longer turns in a circle.
const CAPABILITIES_MAX: usize = (CONFIG_BYTES - HEADER_BYTES) / 4;
/// The header, common to all devices.
const HEADER_BYTES: usize = 0x40;

const COMMAND: usize = 0x04;
const CACHE_LINE: usize = 0x0c;
const HEADER_TYPE: usize = 0x0e;
const BASE_ADDRESSES: usize = 0x10;
const ROM_ADDRESS: usize = 0x30;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// I/O space, memory space, bus master, parity error, SERR#, interrupt disable.
const COMMAND_WRITABLE: u16 = 0x0547;
const COMMAND_MEMORY: u16 = 1 << 1;

const POWER_MANAGEMENT: u8 = 0x01;
const MSI: u8 = 0x05;
const PCI_EXPRESS: u8 = 0x10;
const MSIX: u8 = 0x11;
/// Power state and PME enable; the status bit is cleared by writing it.
const PMCSR_WRITABLE: u16 = 0x0103;
/// All but a function level reset.
const DEVICE_CONTROL_WRITABLE: u16 = 0x7fff;
/// Device types: endpoint, legacy endpoint.
const ENDPOINTS: [u16; 2] = [0, 1];
/// ASPM, read completion boundary, common clock, extended sync, clock power management: an endpoint's.
const LINK_CONTROL_WRITABLE: u16 = 0x01cb;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_WRITABLE: u16 = 0xc000;
const MSIX_ROWS_Z: u16 = 0x07ff;

/// One write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) offset: usize,
    /// 1, 2 or 4.
    pub(super) width: usize,
    pub(super) value: u32,
}

/// Number of a base address, and where it is.
pub(super) type Mapped = (u64, u64);

/// The MSI-X table in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MsixTable {
    pub(super) base: Mapped,
    pub(super) address: u64,
    pub(super) rows: u16,
}

/// All that is to be written, in order: `first`, then the table, then `then`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Base addresses and the command register: the device is decoded.
    pub(super) first: Vec<Step>,
    /// Where it must be then.
    pub(super) mapped: Vec<Mapped>,
    pub(super) table: Option<MsixTable>,
    /// MSI-X with its table in place, so that QEMU hands over all vectors at once; and the rest.
    pub(super) then: Vec<Step>,
}

/// What makes a device that is as after a power-on as `state` is; or why it cannot be made so.
pub(super) fn plan(state: &PciState) -> Result<Plan, String> {
    let config = &state.config;
    check(config)?;
    let mut plan = Plan { table: table(config)?, ..Plan::default() };
    let rows = plan.table.as_ref().map_or(0, |table| usize::from(table.rows));
    if rows != state.vectors.len() {
        return Err(format!("{} interrupt vectors came, and {rows} are needed", state.vectors.len()));
    }
    let command = word(config, COMMAND) & COMMAND_WRITABLE;
    let mut base = |offset: usize| {
        plan.first.push(Step { offset, width: 4, value: long(config, offset) });
    };
    if long(config, ROM_ADDRESS) != 0 {
        base(ROM_ADDRESS);
    }
    for bar in base_addresses(config) {
        base(bar.offset);
        if bar.wide {
            base(bar.offset + 4);
        }
        let address = bar.address(config);
        if bar.memory && command & COMMAND_MEMORY != 0 && address != 0 {
            plan.mapped.push((bar.number, address));
        }
    }
    plan.first.push(Step { offset: CACHE_LINE, width: 2, value: word(config, CACHE_LINE).into() });
    plan.first.push(Step { offset: INTERRUPT_LINE, width: 1, value: config[INTERRUPT_LINE].into() });
    plan.first.push(Step { offset: COMMAND, width: 2, value: command.into() });
    for (id, at) in capabilities(config) {
        let mut then = |offset: usize, writable: u16| {
            let value = u32::from(word(config, at + offset) & writable);
            plan.then.push(Step { offset: at + offset, width: 2, value });
        };
        match id {
            POWER_MANAGEMENT => then(4, PMCSR_WRITABLE),
            PCI_EXPRESS => {
                let about = word(config, at + 2);
                then(8, DEVICE_CONTROL_WRITABLE);
                // One that is part of the root complex has no link.
                if ENDPOINTS.contains(&(about >> 4 & 0xf)) {
                    then(0x10, LINK_CONTROL_WRITABLE);
                }
                // The second registers came with version 2 of the capability.
                if about & 0xf >= 2 {
                    then(0x28, 0xffff);
                }
            }
            MSIX => then(2, MSIX_WRITABLE),
            _ => {}
        }
    }
    Ok(plan)
}

/// Where the MSI-X table is for a guest with this configuration. None if there is none, or memory space is off.
pub(super) fn table(config: &[u8; CONFIG_BYTES]) -> Result<Option<MsixTable>, String> {
    let Some((_, at)) = capabilities(config).into_iter().find(|(id, _)| *id == MSIX) else { return Ok(None) };
    let place = long(config, at + 4);
    let number = u64::from(place & 7);
    let bar = base_addresses(config).into_iter().find(|bar| bar.number == number && bar.memory);
    let base = bar.map_or(0, |bar| bar.address(config));
    let asleep =
        capabilities(config).iter().any(|(id, at)| *id == POWER_MANAGEMENT && word(config, at + 4) & 3 != 0);
    let decoded = word(config, COMMAND) & COMMAND_MEMORY != 0 && base != 0 && !asleep;
    let enabled = word(config, at + 2) & MSIX_ENABLE != 0;
    match (decoded, enabled) {
        (true, _) => {
            let rows = (word(config, at + 2) & MSIX_ROWS_Z) + 1;
            let address = base.checked_add(u64::from(place & !7));
            let end = address.and_then(|address| address.checked_add(u64::from(rows) * ROW_BYTES));
            let address = address.filter(|_| end.is_some()).ok_or("its MSI-X table is at the end of all addresses")?;
            Ok(Some(MsixTable { base: (number, base), address, rows }))
        }
        (false, true) => Err("MSI-X is on, and its table is out of reach: the guest has put the device to sleep, or turned its memory \
                              space off. Wait until it uses the device, and migrate then"
            .to_owned()),
        (false, false) => Ok(None),
    }
}

/// Its capabilities, each with its offset, but those that would reach past the end.
pub(super) fn capabilities(config: &[u8; CONFIG_BYTES]) -> Vec<(u8, usize)> {
    std::iter::successors(capabilities_at(config), |at| next_capability(config, *at))
        .take(CAPABILITIES_MAX)
        .map(|at| (config[at], at))
        .filter(|(id, at)| at + capability_bytes(*id) <= CONFIG_BYTES)
        .collect()
}

fn capabilities_at(config: &[u8; CONFIG_BYTES]) -> Option<usize> {
    entry(config[CAPABILITIES])
}

fn next_capability(config: &[u8; CONFIG_BYTES], at: usize) -> Option<usize> {
    entry(config[at + 1])
}

fn entry(pointer: u8) -> Option<usize> {
    let at = usize::from(pointer & !3);
    (at >= HEADER_BYTES).then_some(at)
}

/// So much of a capability is looked at.
fn capability_bytes(id: u8) -> usize {
    match id {
        POWER_MANAGEMENT => 8,
        MSIX => 12,
        PCI_EXPRESS => 0x2c,
        _ => 4,
    }
}

/// # Errors
/// No device has this that could be set up.
fn check(config: &[u8; CONFIG_BYTES]) -> Result<(), String> {
    if config[HEADER_TYPE] & 0x7f != 0 {
        return Err("it is no PCI endpoint".to_owned());
    }
    if capabilities(config).into_iter().any(|(id, at)| id == MSI && word(config, at + 2) & 1 != 0) {
        return Err("the guest uses MSI, which is not restored".to_owned());
    }
    Ok(())
}

/// Vendor and device.
pub(super) fn identity(config: &[u8; CONFIG_BYTES]) -> (u64, u64) {
    (word(config, 0).into(), word(config, 2).into())
}

struct BaseAddress {
    number: u64,
    offset: usize,
    /// Not I/O ports.
    memory: bool,
    /// 64 bits, and the next one's place.
    wide: bool,
}

impl BaseAddress {
    fn address(&self, config: &[u8; CONFIG_BYTES]) -> u64 {
        let low = u64::from(long(config, self.offset) & !0xf);
        let high = if self.wide { long(config, self.offset + 4) } else { 0 };
        low | u64::from(high) << 32
    }
}

/// Those that the device has, but second halves: one of 32 bits is taken for missing while it is zero.
fn base_addresses(config: &[u8; CONFIG_BYTES]) -> Vec<BaseAddress> {
    let mut found = Vec::new();
    let mut number = 0;
    while number < 6 {
        let offset = BASE_ADDRESSES + 4 * number;
        let low = long(config, offset);
        let memory = low & 1 == 0;
        let wide = memory && low & 0b110 == 0b100 && number < 5;
        if low != 0 {
            found.push(BaseAddress { number: number as u64, offset, memory, wide });
        }
        number += if wide { 2 } else { 1 };
    }
    found
}

fn word(config: &[u8; CONFIG_BYTES], offset: usize) -> u16 {
    u16::from_le_bytes([config[offset], config[offset + 1]])
}

fn long(config: &[u8; CONFIG_BYTES], offset: usize) -> u32 {
    u32::from(word(config, offset)) | u32::from(word(config, offset + 2)) << 16
}
