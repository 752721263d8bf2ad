//! BAR0 and BAR4 (Base 2.1, 3.1.4; PCIe Transport 1.1, 3.1), configuration space, interrupts by line.

use std::sync::atomic::Ordering;

use block::Now;
use spec::nvme::registers::{self as reg, CAP_CSS_IOCSS, CAP_CSS_NONE, CAP_CSS_NVM, Cap, Cc, Crto, Csts};

use super::life::ResetKind;
use super::{Bar, Controller, Host};
use crate::pci;
use crate::profile::Role;
use crate::sink::DoorbellError;
use crate::store::{change32, publish32, publish64, put_doorbell};

/// CAP.TO and CRTO.CRWMT in 500 ms units: 30 seconds, far beyond any reset that waits for the drive's I/O.
const READY_TIMEOUT: u8 = 60;

impl Controller {
    /// Reads configuration space, any size and alignment.
    pub fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        pci::config_read(&self.region.pci, self.intx_level(), offset, data);
    }

    /// Writes configuration space, any size and alignment.
    pub fn config_write(&mut self, offset: u16, data: &[u8], now: Now, host: &mut impl Host) {
        self.now = now;
        let effect = pci::config_write(&self.region.pci, offset, data);
        if effect.function_level_reset {
            self.start_reset(ResetKind::Function, host);
        }
        if effect.interrupts {
            host.interrupt(0);
        }
        self.ring(host);
    }

    /// Reads a BAR, any size and alignment. What is reserved, or past the end, reads as zeros.
    pub fn bar_read(&mut self, bar: Bar, offset: u64, data: &mut [u8]) {
        data.fill(if pci::is_asleep(&self.region.pci) { 0xff } else { 0 });
        let end = offset.checked_add(data.len() as u64);
        if pci::is_asleep(&self.region.pci) || end.is_none_or(|end| end > u64::from(pci::BAR0_BYTES)) {
            return;
        }
        match bar {
            Bar::Msix => pci::msix_read(&self.region.pci, offset, data),
            Bar::Registers => {
                for (at, byte) in (offset..).zip(data) {
                    let lane = usize::try_from(at % 4).unwrap_or(0);
                    *byte = self.register(at & !3).to_le_bytes()[lane];
                }
            }
        }
    }

    /// Writes a BAR, any size and alignment. A write narrower than a register keeps its other bytes.
    pub fn bar_write(&mut self, bar: Bar, offset: u64, data: &[u8], now: Now, host: &mut impl Host) {
        self.now = now;
        let end = offset.checked_add(data.len() as u64);
        if pci::is_asleep(&self.region.pci) || end.is_none_or(|end| end > u64::from(pci::BAR0_BYTES)) {
            return;
        }
        if bar == Bar::Msix {
            if pci::msix_write(&self.region.pci, offset, data) {
                host.interrupt(0);
            }
            return;
        }
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let lane = usize::try_from(at % 4).unwrap_or(0);
            let (bytes, tail) = rest.split_at(rest.len().min(4 - lane));
            let (mut value, mut mask) = ([0; 4], [0; 4]);
            value[lane..lane + bytes.len()].copy_from_slice(bytes);
            mask[lane..lane + bytes.len()].fill(0xff);
            self.write_register(at & !3, u32::from_le_bytes(value), u32::from_le_bytes(mask), host);
            at += bytes.len() as u64;
            rest = tail;
        }
        self.ring(host);
    }

    /// The 32 bits at an aligned offset.
    fn register(&self, offset: u64) -> u32 {
        let registers = &self.region.registers;
        let half =
            |value: u64, at: u64| u32::try_from(value >> ((offset - at) * 8) & 0xffff_ffff).unwrap_or(0);
        match offset {
            reg::CAP | 0x04 => half(self.cap().into_bits(), reg::CAP),
            reg::VS => self.profile.version.into_bits(),
            reg::INTMS | reg::INTMC => registers.interrupt_mask.load(Ordering::Acquire),
            reg::CC => registers.cc.load(Ordering::Acquire),
            reg::CSTS => registers.csts.load(Ordering::Acquire),
            reg::AQA => registers.aqa.load(Ordering::Acquire),
            reg::ASQ | 0x2c => half(registers.asq.load(Ordering::Acquire), reg::ASQ),
            reg::ACQ | 0x34 => half(registers.acq.load(Ordering::Acquire), reg::ACQ),
            reg::CRTO => Crto::new().with_crwmt(u16::from(READY_TIMEOUT)).into_bits(),
            reg::DOORBELLS..0x2000 => {
                self.doorbells.load(usize::try_from((offset - reg::DOORBELLS) / 4).unwrap_or(0))
            }
            _ => 0,
        }
    }

    fn cap(&self) -> Cap {
        Cap::new()
            .with_mqes_z(self.profile.mqes_z)
            .with_cqr(true)
            .with_to(READY_TIMEOUT)
            .with_nssrs(true)
            .with_css(match self.profile.role {
                Role::Io => CAP_CSS_NVM | CAP_CSS_IOCSS,
                Role::Management => CAP_CSS_NONE,
            })
            .with_crwms(true)
    }

    /// A write of the bits in `mask`.
    fn write_register(&mut self, offset: u64, value: u32, mask: u32, host: &mut impl Host) {
        let merged = (self.register(offset) & !mask) | (value & mask);
        let registers = &self.region.registers;
        let enabled = self.cc().en();
        match offset {
            reg::INTMS if !self.msix_enabled() => {
                change32(&registers.interrupt_mask, |masked| masked | value & mask);
                host.interrupt(0);
            }
            reg::INTMC if !self.msix_enabled() => {
                change32(&registers.interrupt_mask, |masked| masked & !(value & mask));
                host.interrupt(0);
            }
            reg::CC => self.write_cc(Cc::from_bits(merged), host),
            reg::CSTS => {
                let cleared = Csts::from_bits(value & mask).nssro();
                if cleared {
                    self.update_csts(|csts| csts.with_nssro(false));
                }
            }
            reg::NSSR if merged == reg::NSSR_RESET => self.start_reset(ResetKind::Subsystem, host),
            // Written while enabled they have no meaning (Base 2.1, 3.1.4.8 to 3.1.4.10): kept as they are.
            reg::AQA if !enabled => publish32(&registers.aqa, merged & 0x0fff_0fff),
            reg::ASQ | 0x2c if !enabled => put_half(&registers.asq, offset - reg::ASQ, merged),
            reg::ACQ | 0x34 if !enabled => put_half(&registers.acq, offset - reg::ACQ, merged),
            reg::DOORBELLS..0x2000 if mask == u32::MAX => self.write_doorbell(offset, value),
            _ => {}
        }
    }

    /// A doorbell write that was trapped. Narrower or unaligned ones never get here: they are ignored.
    fn write_doorbell(&mut self, offset: u64, value: u32) {
        if !self.is_ready() {
            return;
        }
        let index = usize::try_from((offset - reg::DOORBELLS) / 4).unwrap_or(usize::MAX);
        let qid = index / 2;
        let exists = if index.is_multiple_of(2) {
            self.region.sqs.get(qid).is_some_and(|sq| sq.size.load(Ordering::Acquire) != 0)
        } else {
            self.region.cqs.get(qid).is_some_and(|cq| cq.size.load(Ordering::Acquire) != 0)
        };
        if exists {
            put_doorbell(&self.doorbells, index, value);
        } else {
            self.doorbell_error(u16::try_from(qid).unwrap_or(u16::MAX), DoorbellError::Register);
        }
    }

    /// Whether the INTx line is asserted.
    #[must_use]
    pub fn intx_pending(&self) -> bool {
        pci::intx_enabled(&self.region.pci) && self.intx_level()
    }

    /// MSI-X is enabled.
    #[must_use]
    pub fn msix_enabled(&self) -> bool {
        pci::msix_enabled(&self.region.pci)
    }

    /// A completion queue with interrupts enabled and not masked holds entries the host has not taken (PCIe Transport 1.1,
    /// 3.5.1.1). With a pin every vector is vector 0's line; the mask has a bit a vector.
    fn intx_level(&self) -> bool {
        if self.msix_enabled() || !self.is_ready() {
            return false;
        }
        let mask = self.region.registers.interrupt_mask.load(Ordering::Acquire);
        self.region.cqs.iter().zip(0_u16..).any(|(cq, cqid)| {
            let size = cq.size.load(Ordering::Acquire);
            let interrupt = cq.interrupt.load(Ordering::Relaxed);
            let vector = interrupt >> 16;
            let masked = vector < 32 && mask >> vector & 1 == 1;
            if size == 0 || interrupt & 1 == 0 || masked {
                return false;
            }
            let tail = cq.tail_phase.load(Ordering::Acquire) & 0xffff;
            let bell = self.head_doorbell(cqid);
            let head = if bell < size { bell } else { cq.head.load(Ordering::Relaxed) };
            tail != head
        })
    }

    /// Where the host rings a completion queue: the register, or its shadow (never used for the admin queue).
    fn head_doorbell(&self, cqid: u16) -> u32 {
        let shadow = self.region.admin.shadow_doorbells.load(Ordering::Acquire);
        let register = self.doorbells.cq_head(cqid);
        if shadow == 0 || cqid == 0 {
            return register;
        }
        let at = shadow.checked_add(8 * u64::from(cqid) + 4);
        at.and_then(|at| self.map.load_u32(memory::Iova(at)).ok()).unwrap_or(register)
    }

    pub(crate) fn cc(&self) -> Cc {
        Cc::from_bits(self.region.registers.cc.load(Ordering::Acquire))
    }

    pub(crate) fn csts(&self) -> Csts {
        Csts::from_bits(self.region.registers.csts.load(Ordering::Acquire))
    }

    pub(crate) fn update_csts(&self, change: impl FnOnce(Csts) -> Csts) {
        publish32(&self.region.registers.csts, change(self.csts()).into_bits());
    }
}

/// Stores the low or the high half of a 64-bit register.
fn put_half(register: &std::sync::atomic::AtomicU64, at: u64, value: u32) {
    let old = register.load(Ordering::Acquire);
    let shift = at * 8;
    publish64(register, (old & !(0xffff_ffff << shift)) | u64::from(value) << shift);
}
