//! The key of one ssd.

use crate::xts;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A key's length: two AES-256 keys, of the data and of the tweak.
pub const KEY_BYTES: usize = 64;
/// Its length as text.
const HEX_BYTES: usize = 2 * KEY_BYTES;
/// No drive has so many: its data lies nowhere, so that what it looks like says nothing.
const CHECK_SECTOR: u64 = 1 << 63;
/// What is read at most: a key as text, and an end of line.
const READ_MAX: u64 = 1024;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file cannot be read.
    #[error("{}: the key cannot be read: {error}; check the path and who may read it", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The command cannot be run, or failed.
    #[error("{}: the key's command failed: {what}; run it by hand to see why", program.display())]
    Command {
        /// Which.
        program: PathBuf,
        /// Why.
        what: String,
    },
    /// Something else than a key.
    #[error("{what}; write 64 random bytes (head -c 64 /dev/urandom), or the same as 128 hexadecimal digits")]
    Form {
        /// What is wrong.
        what: String,
    },
}

/// 64 secret bytes. Never printed; overwritten when dropped.
#[derive(Clone)]
pub struct Key([u8; KEY_BYTES]);

impl Key {
    /// From the bytes themselves.
    ///
    /// # Errors
    /// The two halves are the same: XTS with one key for both is broken, and the sign of a key that nobody rolled.
    pub fn new(bytes: [u8; KEY_BYTES]) -> Result<Key, KeyError> {
        let (data, tweak) = bytes.split_at(KEY_BYTES / 2);
        if data == tweak {
            return Err(KeyError::Form { what: "the halves of the key are the same".to_owned() });
        }
        Ok(Key(bytes))
    }

    /// From a file: 64 bytes, or 128 hexadecimal digits and an end of line.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_file(path: &Path) -> Result<Key, KeyError> {
        let failed = |error| KeyError::File { path: path.to_owned(), error };
        let mut text = Vec::new();
        File::open(path).map_err(failed)?.take(READ_MAX).read_to_end(&mut text).map_err(failed)?;
        let key = Key::parse(&text);
        wipe(&mut text);
        key
    }

    /// From what a program prints, in the same forms. It runs without an input, and must end.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_command(program: &Path, arguments: &[String]) -> Result<Key, KeyError> {
        let failed = |what: String| KeyError::Command { program: program.to_owned(), what };
        let output = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| failed(error.to_string()))?;
        let mut text = output.stdout;
        let key =
            if output.status.success() { Key::parse(&text) } else { Err(failed(output.status.to_string())) };
        wipe(&mut text);
        key
    }

    fn parse(text: &[u8]) -> Result<Key, KeyError> {
        if let Ok(bytes) = <[u8; KEY_BYTES]>::try_from(text) {
            return Key::new(bytes);
        }
        let digits = text.trim_ascii_end();
        let form = |what: String| Err(KeyError::Form { what });
        if digits.len() != HEX_BYTES {
            return form(format!("a key has {} bytes and not {KEY_BYTES}", text.len()));
        }
        let mut bytes = [0; KEY_BYTES];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let [Some(high), Some(low)] = [pair[0], pair[1]].map(|digit| char::from(digit).to_digit(16))
            else {
                return form("a key of 128 characters is not hexadecimal".to_owned());
            };
            *byte = u8::try_from(high << 4 | low).unwrap_or(0);
        }
        Key::new(bytes)
    }

    /// The secret itself, for memory in which it is kept.
    #[must_use]
    pub fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// What tells this key from any other and says nothing about it: the beginning of a sector of zeros at a place where no data can lie.
    ///
    /// # Panics
    /// The library has no memory for a context.
    #[must_use]
    pub fn check(&self) -> [u8; 16] {
        let mut sector = [0; xts::SECTOR_BYTES];
        let Some(mut xts) = xts::Xts::new(self) else { panic!("no memory for a cipher") };
        xts.encrypt(CHECK_SECTOR, &mut sector);
        let mut check = [0; 16];
        check.copy_from_slice(&sector[..16]);
        check
    }
}

fn wipe(bytes: &mut [u8]) {
    xts::cleanse(bytes);
}

impl Drop for Key {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Key(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> String {
        (0..KEY_BYTES).map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_key_is_64_bytes_or_their_digits_and_nothing_else() {
        let raw: Vec<u8> = (0..64).collect();
        assert_eq!(Key::parse(&raw).unwrap().bytes(), raw.as_slice());
        for form in [text(), text() + "\n", text().to_uppercase() + "\r\n"] {
            assert_eq!(Key::parse(form.as_bytes()).unwrap().bytes(), raw.as_slice());
        }
        let broken: [&[u8]; 4] =
            [b"", &raw[..63], &text().as_bytes()[..127], text().replace('0', "g").as_bytes()]
                .map(|b| &*b.to_vec().leak());
        for form in broken {
            assert!(matches!(Key::parse(form), Err(KeyError::Form { .. })), "{form:?}");
        }
    }

    #[test]
    fn a_key_whose_halves_are_the_same_is_refused() {
        assert!(matches!(Key::new([7; KEY_BYTES]), Err(KeyError::Form { .. })));
        assert!(Key::parse("0".repeat(128).as_bytes()).is_err());
    }

    #[test]
    fn a_key_comes_from_a_command_that_succeeds() {
        let run = |script: String| Key::from_command(Path::new("/bin/sh"), &["-c".into(), script]);
        assert_eq!(run(format!("echo {}", text())).unwrap().bytes()[..3], [0, 1, 2]);
        let error = run("exit 3".to_owned()).unwrap_err().to_string();
        assert!(error.contains("/bin/sh") && error.contains('3'), "{error}");
        assert!(Key::from_command(Path::new("/nowhere"), &[]).is_err());
    }

    #[test]
    fn a_key_is_not_printed() {
        assert_eq!(format!("{:?}", Key::parse(text().as_bytes()).unwrap()), "Key(..)");
    }
}
