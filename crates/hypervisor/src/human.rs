//! QEMU's human monitor, where it is the only way: ports and memory. Its answers are for people; what is not understood is an error.

use crate::error::{Error, Fault, quote};
use crate::qmp::Qmp;

/// Asks for 32-bit words of the guest's physical memory. A register that is read changes as it does when the guest reads it.
pub(crate) fn look(address: u64, count: usize) -> String {
    format!("xp /{count}wx {address:#x}")
}

/// What was said to [`look`].
pub(crate) fn seen(qmp: &Qmp, address: u64, count: usize, said: &str) -> Result<Vec<u32>, Error> {
    let words = memory_words(said).filter(|words| words.len() == count);
    words.ok_or_else(|| qmp.error(look(address, count), Fault::NotUnderstood(quote(said.trim()))))
}

/// A 32-bit read of a port.
pub(crate) fn port(qmp: &mut Qmp, port: u16) -> Result<u32, Error> {
    let line = format!("i /w {port:#x}");
    let said = qmp.human(&line)?;
    let value = said.trim().strip_prefix(&format!("portl[0x{port:04x}] = "));
    let value = value.map(|digits| digits.strip_prefix("0x").unwrap_or(digits));
    let value = value.and_then(|digits| u32::from_str_radix(digits, 16).ok());
    value.ok_or_else(|| qmp.error(line, Fault::NotUnderstood(quote(said.trim()))))
}

/// A write of 1, 2 or 4 bytes to a port.
pub(crate) fn set_port(qmp: &mut Qmp, port: u16, width: usize, value: u32) -> Result<(), Error> {
    let size = match width {
        1 => 'b',
        2 => 'h',
        _ => 'w',
    };
    let line = format!("o /{size} {port:#x} {value:#x}");
    let said = qmp.human(&line)?;
    if said.trim().is_empty() {
        return Ok(());
    }
    Err(qmp.error(line, Fault::NotUnderstood(quote(said.trim()))))
}

/// Lines of `ADDRESS: 0xWORD 0xWORD 0xWORD 0xWORD`.
fn memory_words(said: &str) -> Option<Vec<u32>> {
    let mut words = Vec::new();
    for line in said.lines().filter(|line| !line.trim().is_empty()) {
        let (_, row) = line.split_once(": ")?;
        for word in row.split_whitespace() {
            words.push(u32::from_str_radix(word.strip_prefix("0x")?, 16).ok()?);
        }
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::memory_words;

    #[test]
    fn a_dump_of_memory_is_words_and_anything_else_is_nothing() {
        let dump = "fe204000: 0xfee00000 0x00000000 0x00000026 0x00000000\r\nfe204010: 0x1\r\n\r\n";
        assert_eq!(memory_words(dump), Some(vec![0xfee0_0000, 0, 0x26, 0, 1]));
        for other in
            ["ffffff000000: Cannot access memory\r\n", "unknown command: 'xp'\r\n", "1: 0x123456789", "1: 12"]
        {
            assert_eq!(memory_words(other), None, "{other}");
        }
    }
}
