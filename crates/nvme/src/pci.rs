//! PCI configuration space and MSI-X structures of one function (PCI Express Base 6.0, 7.5; MSI-X 7.7.2).
//!
//! ```text
//!  000h type 0 header: BAR0 64-bit 16 KiB (registers, doorbells), BAR4 64-bit 8 KiB (MSI-X table, pending bits)
//!  040h power management   050h MSI-X   060h PCI Express endpoint (function level reset)
//!  100h no extended capability
//! ```
//! All bytes live in the region's words; a write goes through two masks, "read-write" and "write 1 to clear", which depend on
//! nothing but the offset. The interrupt status bit is the one that is computed.
//!
//! Memory space and bus master enable are stored, not enforced: what reaches the device came through the client, which
//! owns the address decoding; a client that never sets them (a user-space driver) is served all the same.

use std::sync::atomic::{AtomicU32, Ordering};

use state::controller::{VectorV1, WordV1};
use state::region::Pci;

use crate::profile::Profile;
use crate::store::{publish32, put32};

/// Bytes of configuration space.
pub const CONFIG_BYTES: usize = 4096;
/// Bytes of BAR0.
pub const BAR0_BYTES: u32 = 0x4000;
/// Bytes of BAR4.
pub const BAR4_BYTES: u32 = 0x2000;
/// Where the pending bits stand in BAR4.
pub const PBA_OFFSET: u32 = 0x1000;

/// Power management capability.
pub const PM_CAP: usize = 0x40;
/// MSI-X capability.
pub const MSIX_CAP: usize = 0x50;
/// PCI Express capability.
pub const PCIE_CAP: usize = 0x60;

const COMMAND_INTX_DISABLE: u32 = 1 << 10;
const STATUS_INTERRUPT: u32 = 1 << 19;
const MSIX_ENABLE: u32 = 1 << 31;
const MSIX_FUNCTION_MASK: u32 = 1 << 30;
const DEVCTL_FLR: u32 = 1 << 15;
const PMCSR: usize = PM_CAP + 4;
const DEVCTL: usize = PCIE_CAP + 8;

/// What a configuration write means beyond the bytes it changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfigEffect {
    /// Initiate Function Level Reset was set (7.5.3.4).
    pub function_level_reset: bool,
    /// INTx or MSI-X settings changed: interrupts must be looked at again.
    pub interrupts: bool,
}

/// The configuration space as it is at power-on: every word that is not zero.
fn initial(profile: &Profile) -> Vec<(usize, u32)> {
    let vectors_z = u32::from(profile.vectors.clamp(1, 2048)) - 1;
    let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
    vec![
        (0x00, pair(profile.vendor_id, profile.device_id)),
        // Status: capabilities list.
        (0x04, 1 << 20),
        // Class 010802h: mass storage, NVM, NVM Express I/O controller.
        (0x08, 0x0108_0200 | u32::from(profile.revision)),
        // 64-bit, not prefetchable memory.
        (0x10, 0b100),
        (0x20, 0b100),
        (0x2c, pair(profile.subsystem_vendor_id, profile.subsystem_id)),
        (0x34, 0x40),
        // INTA#.
        (0x3c, 1 << 8),
        // Power management: version 3, no PME. No soft reset: D3hot keeps the state.
        (PM_CAP, 0x0003_0000 | 0x5000 | 0x01),
        (PMCSR, 1 << 3),
        // MSI-X: table at BAR4 + 0, pending bits at BAR4 + 1000h.
        (MSIX_CAP, vectors_z << 16 | 0x6000 | 0x11),
        (MSIX_CAP + 4, 4),
        (MSIX_CAP + 8, PBA_OFFSET | 4),
        // PCI Express: version 2 endpoint; 512-byte payload, role-based errors, function level reset.
        (PCIE_CAP, 0x0002_0000 | 0x10),
        (PCIE_CAP + 0x04, 1 << 28 | 1 << 15 | 0b010),
        // Device control: relaxed ordering, no snoop, 512-byte read requests.
        (DEVCTL, 1 << 4 | 1 << 11 | 2 << 12),
        // Link: 16 GT/s, four lanes, no ASPM.
        (PCIE_CAP + 0x0c, 4 << 4 | 4),
        (PCIE_CAP + 0x10, (4 << 4 | 4) << 16),
        // Device capabilities 2: completion timeout disable.
        (PCIE_CAP + 0x24, 1 << 4),
        // Link capabilities 2: 2.5 to 16 GT/s; link control 2: target 16 GT/s.
        (PCIE_CAP + 0x2c, 0b1111 << 1),
        (PCIE_CAP + 0x30, 4),
    ]
}

/// Read-write and write-1-to-clear bits of a word.
const fn masks(offset: usize) -> (u32, u32) {
    match offset {
        // Command: memory, bus master, parity, SERR#, INTx disable. Status: the error bits.
        0x04 => (1 << 1 | 1 << 2 | 1 << 6 | 1 << 8 | COMMAND_INTX_DISABLE, 0xf900_0000),
        // Cache line size.
        0x0c => (0xff, 0),
        0x10 => (!(BAR0_BYTES - 1), 0),
        0x20 => (!(BAR4_BYTES - 1), 0),
        0x14 | 0x24 => (0xffff_ffff, 0),
        // Interrupt line.
        0x3c => (0xff, 0),
        // Power state; it is checked before it is stored.
        PMCSR => (0b11, 0),
        MSIX_CAP => (MSIX_ENABLE | MSIX_FUNCTION_MASK, 0),
        // Device control without the reset bit; the error bits of device status.
        DEVCTL => (0x7fff, 0x000f_0000),
        // Link control: ASPM (stored), common clock, extended synch.
        0x70 => (0b1100_0011, 0),
        // Device control 2: completion timeout value and disable.
        0x88 => (0b1_1111, 0),
        // Link control 2: target speed and compliance are stored.
        0x90 => (0xffff, 0),
        _ => (0, 0),
    }
}

const _: () = assert!(PCIE_CAP + 0x10 == 0x70 && PCIE_CAP + 0x28 == 0x88 && PCIE_CAP + 0x30 == 0x90);

/// Brings configuration space and MSI-X table to their power-on values.
pub fn reset(pci: &Pci, profile: &Profile) {
    set(pci, profile, &[]);
}

/// As [`reset`], but keeps what a function level reset does not touch for a function behind a client: the BARs and the interrupt
/// line are the client's to restore, as after any reset; link control is the port's (6.6.2).
pub fn function_level_reset(pci: &Pci, profile: &Profile) {
    set(pci, profile, &[0x70, 0x90]);
}

/// Every word gets its value in one store, and the words at `kept` none: a successor that finds the half of it does it again.
fn set(pci: &Pci, profile: &Profile, kept: &[usize]) {
    let words = initial_words(profile);
    for (at, (word, value)) in pci.config.iter().zip(words).enumerate() {
        if !kept.contains(&(at * 4)) {
            put32(word, value);
        }
    }
    for entry in &pci.msix_table {
        entry.iter().zip([0, 0, 0, 1]).for_each(|(word, value)| put32(word, value));
    }
    pci.msix_pending.iter().for_each(|word| put32(word, 0));
}

/// The words of configuration space that are not zero.
pub(crate) fn saved_config(pci: &Pci) -> Vec<WordV1> {
    let word = |(at, word): (u16, &AtomicU32)| WordV1 { offset: at * 4, value: word.load(Ordering::Acquire) };
    (0..).zip(&pci.config).map(word).filter(|word| word.value != 0).collect()
}

/// The rows of the MSI-X table that are not as after a reset.
pub(crate) fn saved_vectors(pci: &Pci) -> Vec<VectorV1> {
    let row = |(vector, row): (u16, &[AtomicU32; 4])| {
        let [low, high, data, control] = row.each_ref().map(|word| word.load(Ordering::Acquire));
        let address = u64::from(low) | u64::from(high) << 32;
        VectorV1 { vector, address, data, masked: control & 1 == 1 }
    };
    let is_used = |row: &VectorV1| !row.masked || row.address != 0 || row.data != 0;
    (0..).zip(&pci.msix_table).map(row).filter(is_used).collect()
}

/// Whether a device of this profile can have such a configuration space: it differs from that at power-on only where it can be written.
pub(crate) fn is_config_of(profile: &Profile, saved: &[WordV1]) -> bool {
    let ascending = saved.windows(2).all(|two| two[0].offset < two[1].offset);
    let Some(words) = config_words(saved) else { return false };
    let fits = |(at, (word, first)): (usize, (&u32, &u32))| {
        let state_is_known = at * 4 != PMCSR || matches!(word & 0b11, 0b00 | 0b11);
        (word ^ first) & !masks(at * 4).0 == 0 && state_is_known
    };
    ascending && words.iter().zip(&initial_words(profile)).enumerate().all(fits)
}

fn config_words(saved: &[WordV1]) -> Option<[u32; CONFIG_BYTES / 4]> {
    let mut words = [0; CONFIG_BYTES / 4];
    for word in saved {
        let aligned = word.offset.is_multiple_of(4).then_some(usize::from(word.offset) / 4)?;
        *words.get_mut(aligned)? = word.value;
    }
    Some(words)
}

/// Brings configuration space and MSI-X table to what was saved, which is of this profile.
pub(crate) fn restore(pci: &Pci, profile: &Profile, config: &[WordV1], vectors: &[VectorV1]) {
    let words = config_words(config).unwrap_or_else(|| initial_words(profile));
    for (word, value) in pci.config.iter().zip(words) {
        put32(word, value);
    }
    for (vector, row) in (0..).zip(&pci.msix_table) {
        let saved = vectors.iter().find(|saved| saved.vector == vector);
        let VectorV1 { address, data, masked, .. } =
            saved.copied().unwrap_or(VectorV1 { masked: true, ..VectorV1::default() });
        let [low, high]: [u32; 2] = zerocopy::transmute!(address);
        let words = [low, high, data, u32::from(masked)];
        row.iter().zip(words).for_each(|(word, value)| put32(word, value));
    }
    pci.msix_pending.iter().for_each(|word| put32(word, 0));
}

fn initial_words(profile: &Profile) -> [u32; CONFIG_BYTES / 4] {
    let mut words = [0; CONFIG_BYTES / 4];
    for (offset, value) in initial(profile) {
        if let Some(word) = words.get_mut(offset / 4) {
            *word = value;
        }
    }
    words
}

/// Reads any run of bytes. Beyond the space everything reads as ones.
pub fn config_read(pci: &Pci, intx_pending: bool, offset: u16, data: &mut [u8]) {
    for (at, byte) in (usize::from(offset)..).zip(data) {
        *byte = match pci.config.get(at / 4) {
            None => 0xff,
            Some(word) => {
                let mut value = word.load(Ordering::Acquire);
                if at / 4 == 1 && intx_pending {
                    value |= STATUS_INTERRUPT;
                }
                value.to_le_bytes()[at % 4]
            }
        };
    }
}

/// Writes any run of bytes.
pub fn config_write(pci: &Pci, offset: u16, data: &[u8]) -> ConfigEffect {
    let mut effect = ConfigEffect::default();
    for (word, bytes, enabled) in words_of(usize::from(offset), data) {
        if word < CONFIG_BYTES / 4 {
            write_word(pci, word * 4, bytes, enabled, &mut effect);
        }
    }
    effect
}

fn write_word(pci: &Pci, offset: usize, value: u32, enabled: u32, effect: &mut ConfigEffect) {
    let (mut writable, clears) = masks(offset);
    if offset == PMCSR && !matches!(value & 0b11, 0b00 | 0b11) {
        // D1 and D2 are not supported: the write of the state is dropped (7.5.2.2).
        writable &= !0b11;
    }
    let old = load(&pci.config, offset / 4);
    let writable = writable & enabled;
    let new = ((old & !writable) | (value & writable)) & !(value & clears & enabled);
    store(&pci.config, offset / 4, new);
    effect.function_level_reset |= offset == DEVCTL && value & enabled & DEVCTL_FLR != 0;
    effect.interrupts |= matches!(offset, 0x04 | MSIX_CAP) && old != new;
}

/// MSI-X is enabled.
#[must_use]
pub fn msix_enabled(pci: &Pci) -> bool {
    load(&pci.config, MSIX_CAP / 4) & MSIX_ENABLE != 0
}

/// INTx may be raised: neither disabled nor replaced by MSI-X.
#[must_use]
pub fn intx_enabled(pci: &Pci) -> bool {
    !msix_enabled(pci) && load(&pci.config, 1) & COMMAND_INTX_DISABLE == 0
}

/// The function is in D3hot: its memory does not answer (5.3.1.4.1).
#[must_use]
pub fn is_asleep(pci: &Pci) -> bool {
    load(&pci.config, PMCSR / 4) & 0b11 == 0b11
}

/// Reads the MSI-X BAR.
pub fn msix_read(pci: &Pci, offset: u64, data: &mut [u8]) {
    for (ahead, byte) in (0_u64..).zip(data) {
        let at = offset.saturating_add(ahead);
        let lane = usize::try_from(at % 4).unwrap_or(0);
        *byte = msix_word(pci, at / 4).map_or(0, |word| word.load(Ordering::Acquire).to_le_bytes()[lane]);
    }
}

/// Writes the MSI-X BAR. The pending bits are read-only.
pub fn msix_write(pci: &Pci, offset: u64, data: &[u8]) -> bool {
    let mut changed = false;
    let Ok(offset) = usize::try_from(offset) else { return false };
    for (word, value, enabled) in words_of(offset, data) {
        let writable = match word % 4 {
            // Message address is dword aligned.
            0 => 0xffff_fffc,
            1 | 2 => 0xffff_ffff,
            _ => 1,
        } & enabled;
        if let Some(place) = pci.msix_table.get(word / 4) {
            let old = place[word % 4].load(Ordering::Acquire);
            let new = (old & !writable) | (value & writable);
            publish32(&place[word % 4], new);
            changed |= old != new && word % 4 == 3;
        }
    }
    changed
}

fn msix_word(pci: &Pci, word: u64) -> Option<&AtomicU32> {
    let word = usize::try_from(word).ok()?;
    let pba = PBA_OFFSET as usize / 4;
    if word >= pba {
        return pci.msix_pending.get(word - pba);
    }
    Some(&pci.msix_table.get(word / 4)?[word % 4])
}

/// Splits a write into words: index, value, and the bits that were really written.
fn words_of(offset: usize, data: &[u8]) -> impl Iterator<Item = (usize, u32, u32)> + '_ {
    let first = offset / 4;
    let last = if data.is_empty() { first } else { offset.saturating_add(data.len() - 1) / 4 + 1 };
    (first..last).map(move |word| {
        let (mut value, mut enabled) = ([0; 4], [0; 4]);
        for lane in 0..4 {
            let byte = (word * 4 + lane).checked_sub(offset).and_then(|at| data.get(at));
            if let Some(byte) = byte {
                (value[lane], enabled[lane]) = (*byte, 0xff);
            }
        }
        (word, u32::from_le_bytes(value), u32::from_le_bytes(enabled))
    })
}

fn load(words: &[AtomicU32], index: usize) -> u32 {
    words.get(index).map_or(0, |word| word.load(Ordering::Acquire))
}

fn store(words: &[AtomicU32], index: usize, value: u32) {
    if let Some(word) = words.get(index) {
        publish32(word, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::GODWIT_1;
    use memory::SharedRegion;
    use state::region::ControllerRegion;

    fn fresh() -> SharedRegion<ControllerRegion> {
        let region = SharedRegion::<ControllerRegion>::private();
        reset(&region.pci, &GODWIT_1);
        region
    }

    fn dword(pci: &Pci, offset: u16) -> u32 {
        let mut data = [0; 4];
        config_read(pci, false, offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// PCI Express Base, "Base Address Registers" (7.5.1.2.1).
    #[test]
    fn bars_report_their_size_to_a_write_of_ones() {
        let region = fresh();
        for (bar, size) in [(0x10, BAR0_BYTES), (0x20, BAR4_BYTES)] {
            config_write(&region.pci, bar, &[0xff; 8]);
            assert_eq!(dword(&region.pci, bar), !(size - 1) | 0b100);
            assert_eq!(dword(&region.pci, bar + 4), 0xffff_ffff);
        }
        for none in [0x18, 0x1c, 0x30] {
            config_write(&region.pci, none, &[0xff; 4]);
            assert_eq!(dword(&region.pci, none), 0);
        }
    }

    /// PCI Express Base, "Capabilities Pointer Register".
    #[test]
    fn the_capability_list_is_whole_and_ends() {
        let region = fresh();
        let mut at = (dword(&region.pci, 0x34) & 0xff) as u16;
        let mut ids = vec![];
        while at != 0 {
            let header = dword(&region.pci, at);
            ids.push(header & 0xff);
            at = (header >> 8 & 0xff) as u16;
            assert!(ids.len() < 10);
        }
        assert_eq!(ids, [0x01, 0x11, 0x10]);
        assert_eq!(dword(&region.pci, 0x08), 0x0108_0201);
        assert_eq!(dword(&region.pci, 0x100), 0);
        assert_eq!(dword(&region.pci, 0x50) >> 16 & 0x7ff, 128, "129 vectors");
    }

    /// PCI Express Base, 7.4: read-only bits, and bits that a 1 clears.
    #[test]
    fn writes_of_ones_change_only_writable_bits_at_any_size() {
        for size in 1..=8 {
            let region = fresh();
            let before: Vec<u32> = (0..64).map(|w| dword(&region.pci, w * 4)).collect();
            for offset in 0..256 {
                config_write(&region.pci, offset, &vec![0xff; size]);
            }
            for word in 0..64_u16 {
                let (writable, clears) = masks(usize::from(word) * 4);
                let after = dword(&region.pci, word * 4);
                let old = before[usize::from(word)];
                assert_eq!((after ^ old) & !(writable | clears), 0, "word {word} size {size}");
            }
        }
    }

    /// PCI Express Base, "Device Control Register" and 6.6.2.
    #[test]
    fn a_single_byte_starts_a_function_level_reset_and_reads_back_as_zero() {
        let region = fresh();
        assert!(!config_write(&region.pci, 0x68, &[0xff]).function_level_reset);
        assert!(config_write(&region.pci, 0x69, &[0x80]).function_level_reset);
        assert_eq!(dword(&region.pci, 0x68) & DEVCTL_FLR, 0);
    }

    /// PCI Express Base, 7.5.2.2.
    #[test]
    fn only_the_power_states_d0_and_d3hot_are_taken() {
        let region = fresh();
        config_write(&region.pci, 0x44, &[1]);
        assert!(!is_asleep(&region.pci));
        config_write(&region.pci, 0x44, &[3]);
        assert!(is_asleep(&region.pci));
        config_write(&region.pci, 0x44, &[2]);
        assert!(is_asleep(&region.pci));
        config_write(&region.pci, 0x44, &[0]);
        assert!(!is_asleep(&region.pci));
    }

    /// Ours: hostile inputs, row 14.
    #[test]
    fn reads_and_writes_past_the_end_are_harmless() {
        let region = fresh();
        let mut data = [0; 8];
        config_read(&region.pci, false, 4094, &mut data);
        assert_eq!(data[2..], [0xff; 6]);
        config_write(&region.pci, 4094, &[0xff; 8]);
        config_write(&region.pci, u16::MAX, &[0xff; 8]);
        for offset in [0, 1, 0x80f, 0xffe, 0x1000, 0x1013, 0x1fff, u64::MAX - 4] {
            msix_write(&region.pci, offset, &[0xff; 8]);
            msix_read(&region.pci, offset, &mut data[..4]);
        }
    }

    /// PCI Express Base, "MSI-X Table Structure" and "MSI-X PBA Structure".
    #[test]
    fn an_msix_entry_starts_masked_and_pending_bits_are_read_only() {
        let region = fresh();
        let mut word = [0; 4];
        msix_read(&region.pci, 128 * 16 + 12, &mut word);
        assert_eq!(u32::from_le_bytes(word), 1);
        assert!(msix_write(&region.pci, 128 * 16 + 12, &[0]));
        msix_write(&region.pci, 0x1000, &[0xff; 4]);
        msix_read(&region.pci, 0x1000, &mut word);
        assert_eq!(word, [0; 4]);
        msix_write(&region.pci, 0, &[0xff; 4]);
        msix_read(&region.pci, 0, &mut word);
        assert_eq!(u32::from_le_bytes(word), 0xffff_fffc);
    }

    /// PCI Express Base, "Status Register": Interrupt Status.
    #[test]
    fn the_interrupt_status_bit_follows_the_line() {
        let region = fresh();
        let mut data = [0; 2];
        config_read(&region.pci, true, 6, &mut data);
        assert_eq!(data[0] & 0x08, 0x08);
        config_read(&region.pci, false, 6, &mut data);
        assert_eq!(data[0] & 0x08, 0);
    }
}
