//! Sizes as people write them: `4GiB`, `500GB`, `1048576`.

use std::fmt;

/// A size in bytes, read from text with an optional unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size {
    /// The number of bytes.
    pub bytes: u64,
}

const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = || {
            format!("`{text}` is not a size; write a whole number and a unit, such as \"4GiB\" or \"500GB\"")
        };
        let text_trimmed = text.trim();
        let digits = text_trimmed.len() - text_trimmed.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text_trimmed.split_at(digits);
        let number: u64 = number.parse().map_err(|_| hint())?;
        let scale = match unit.trim() {
            "" => 1,
            unit => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(hint)?.1,
        };
        let bytes = number.checked_mul(scale).ok_or_else(|| format!("`{text}` is more than 16 EiB"))?;
        Ok(Self { bytes })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS[..4]
            .iter()
            .rev()
            .find(|(_, scale)| self.bytes >= *scale && self.bytes.is_multiple_of(*scale));
        match unit {
            Some((name, scale)) => write!(f, "{}{name}", self.bytes / scale),
            None => write!(f, "{}B", self.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_and_decimal_units_are_told_apart() {
        assert_eq!("4GiB".parse::<Size>().unwrap().bytes, 4 << 30);
        assert_eq!("4GB".parse::<Size>().unwrap().bytes, 4_000_000_000);
        assert_eq!("512".parse::<Size>().unwrap().bytes, 512);
        assert_eq!("1 TiB".parse::<Size>().unwrap().bytes, 1 << 40);
    }

    #[test]
    fn nonsense_is_refused_with_a_hint() {
        for text in ["", "GiB", "-1GiB", "4 potatoes", "1.5GiB", "99999999999TiB", "18446744073709551616"] {
            let error = text.parse::<Size>().unwrap_err();
            assert!(error.contains("size") || error.contains("EiB"), "{error}");
        }
    }

    #[test]
    fn a_size_prints_as_it_is_read() {
        for text in ["4GiB", "1TiB", "513B", "3KiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
    }
}
