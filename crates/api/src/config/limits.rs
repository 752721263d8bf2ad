//! `[ssd.limits]`: how much an ssd may do, and its share of what it shares.

use super::{Wrong, wrong};
use crate::size::Size;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use toml::Spanned;

/// A second's I/Os at least: fewer, and a guest's own time-outs end its commands.
const IOPS_MIN: u64 = 10;
const IOPS_MAX: u64 = 100_000_000;
/// A second's bytes at least, for the same reason: the largest command has as many.
const BANDWIDTH_MIN: u64 = 1 << 20;
const BANDWIDTH_MAX: u64 = 1 << 40;
const BURST_MAX: u64 = 1 << 50;
const WEIGHT_MAX: u16 = 10_000;
/// The weight of an ssd whose configuration does not say.
pub const WEIGHT_DEFAULT: u16 = 100;

/// So much a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rate {
    /// I/Os, or bytes.
    pub per_second: u64,
    /// What may come at once after a pause. `None`: what the rate gives in 10 ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}

/// How much an ssd may do. `None`: not limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// I/Os of all kinds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops: Option<Rate>,
    /// Reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_iops: Option<Rate>,
    /// Writes, write zeroes and discards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_iops: Option<Rate>,
    /// Bytes read and written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Rate>,
    /// Bytes read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_bandwidth: Option<Rate>,
    /// Bytes written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_bandwidth: Option<Rate>,
    /// Its share of a drive and a reactor, relative to the others': 1 to 10,000.
    pub weight: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            iops: None,
            read_iops: None,
            write_iops: None,
            bandwidth: None,
            read_bandwidth: None,
            write_bandwidth: None,
            weight: WEIGHT_DEFAULT,
        }
    }
}

impl Limits {
    /// The nearest that a configuration could say: of limits that another host says.
    #[must_use]
    pub fn within_bounds(self) -> Self {
        let rate = |rate: Option<Rate>, least: u64, most: u64| {
            rate.map(|Rate { per_second, burst }| Rate {
                per_second: per_second.clamp(least, most),
                burst: burst.map(|burst| burst.clamp(1, BURST_MAX)),
            })
        };
        let iops = |it| rate(it, IOPS_MIN, IOPS_MAX);
        let bandwidth = |it| rate(it, BANDWIDTH_MIN, BANDWIDTH_MAX);
        Self {
            iops: iops(self.iops),
            read_iops: iops(self.read_iops),
            write_iops: iops(self.write_iops),
            bandwidth: bandwidth(self.bandwidth),
            read_bandwidth: bandwidth(self.read_bandwidth),
            write_bandwidth: bandwidth(self.write_bandwidth),
            weight: self.weight.clamp(1, WEIGHT_MAX),
        }
    }
}

impl fmt::Display for Limits {
    /// `iops 1500 (burst 30000), bandwidth 90MiB, weight 200`, or `no limits, weight 100`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |number: u64| number.to_string();
        let size = |bytes: u64| Size { bytes }.to_string();
        let told = |name: &str, rate: Option<Rate>, number: &dyn Fn(u64) -> String| {
            rate.map(|Rate { per_second, burst }| {
                let burst = burst.map(|burst| format!(" (burst {})", number(burst))).unwrap_or_default();
                format!("{name} {}{burst}", number(per_second))
            })
        };
        let rates = [
            told("iops", self.iops, &count),
            told("read_iops", self.read_iops, &count),
            told("write_iops", self.write_iops, &count),
            told("bandwidth", self.bandwidth, &size),
            told("read_bandwidth", self.read_bandwidth, &size),
            told("write_bandwidth", self.write_bandwidth, &size),
        ];
        let rates: Vec<String> = rates.into_iter().flatten().collect();
        let rates = if rates.is_empty() { "no limits".to_owned() } else { rates.join(", ") };
        write!(f, "{rates}, weight {}", self.weight)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    iops: Option<Spanned<u64>>,
    iops_burst: Option<Spanned<u64>>,
    read_iops: Option<Spanned<u64>>,
    read_iops_burst: Option<Spanned<u64>>,
    write_iops: Option<Spanned<u64>>,
    write_iops_burst: Option<Spanned<u64>>,
    bandwidth: Option<Spanned<String>>,
    bandwidth_burst: Option<Spanned<String>>,
    read_bandwidth: Option<Spanned<String>>,
    read_bandwidth_burst: Option<Spanned<String>>,
    write_bandwidth: Option<Spanned<String>>,
    write_bandwidth_burst: Option<Spanned<String>>,
    weight: Option<Spanned<u16>>,
}

pub(super) fn check(raw: Option<&RawLimits>) -> Result<Limits, Wrong> {
    let Some(raw) = raw else { return Ok(Limits::default()) };
    let weight = raw.weight.as_ref().map_or(WEIGHT_DEFAULT, |weight| *weight.get_ref());
    if let Some(at) = raw.weight.as_ref().filter(|_| !(1..=WEIGHT_MAX).contains(&weight)) {
        return Err(wrong(at, format!("weight must be 1 to {WEIGHT_MAX}; {WEIGHT_DEFAULT} is usual")));
    }
    Ok(Limits {
        iops: iops("iops", raw.iops.as_ref(), raw.iops_burst.as_ref())?,
        read_iops: iops("read_iops", raw.read_iops.as_ref(), raw.read_iops_burst.as_ref())?,
        write_iops: iops("write_iops", raw.write_iops.as_ref(), raw.write_iops_burst.as_ref())?,
        bandwidth: bandwidth("bandwidth", raw.bandwidth.as_ref(), raw.bandwidth_burst.as_ref())?,
        read_bandwidth: bandwidth(
            "read_bandwidth",
            raw.read_bandwidth.as_ref(),
            raw.read_bandwidth_burst.as_ref(),
        )?,
        write_bandwidth: bandwidth(
            "write_bandwidth",
            raw.write_bandwidth.as_ref(),
            raw.write_bandwidth_burst.as_ref(),
        )?,
        weight,
    })
}

fn iops(
    name: &str,
    rate: Option<&Spanned<u64>>,
    burst: Option<&Spanned<u64>>,
) -> Result<Option<Rate>, Wrong> {
    let Some(rate) = rate else { return without_rate(name, burst) };
    if !(IOPS_MIN..=IOPS_MAX).contains(rate.get_ref()) {
        return Err(wrong(
            rate,
            format!("{name} must be {IOPS_MIN} to {IOPS_MAX}; leave it out for no limit"),
        ));
    }
    if let Some(burst) = burst.filter(|burst| !(1..=BURST_MAX).contains(burst.get_ref())) {
        return Err(wrong(burst, format!("{name}_burst must be 1 to {BURST_MAX} I/Os")));
    }
    Ok(Some(Rate { per_second: *rate.get_ref(), burst: burst.map(|burst| *burst.get_ref()) }))
}

fn bandwidth(
    name: &str,
    rate: Option<&Spanned<String>>,
    burst: Option<&Spanned<String>>,
) -> Result<Option<Rate>, Wrong> {
    let Some(rate) = rate else { return without_rate(name, burst) };
    let bytes = |text: &Spanned<String>| {
        Size::from_str(text.get_ref()).map(|size| size.bytes).map_err(|reason| wrong(text, reason))
    };
    let per_second = bytes(rate)?;
    if !(BANDWIDTH_MIN..=BANDWIDTH_MAX).contains(&per_second) {
        let reason = format!("{name} must be 1MiB to 1TiB (a second); leave it out for no limit");
        return Err(wrong(rate, reason));
    }
    let burst_bytes = burst.map(bytes).transpose()?;
    if let Some(burst) = burst.filter(|_| burst_bytes.is_some_and(|it| !(1..=BURST_MAX).contains(&it))) {
        return Err(wrong(burst, format!("{name}_burst must be 1B to 1024TiB")));
    }
    Ok(Some(Rate { per_second, burst: burst_bytes }))
}

fn without_rate<T>(name: &str, burst: Option<&Spanned<T>>) -> Result<Option<Rate>, Wrong> {
    match burst {
        Some(burst) => Err(wrong(burst, format!("{name}_burst goes with {name}; add it, or leave both out"))),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;
    use std::path::Path;

    fn parse(limits: &str) -> Result<Limits, String> {
        let text = format!(
            "[[ssd]]\nname = \"a\"\nsize = \"1GiB\"\nsocket = \"/run/a\"\nbackend = {{ type = \"ram\" }}\n{limits}"
        );
        let config = Config::parse(Path::new("godwit.toml"), &text).map_err(|error| error.to_string())?;
        Ok(config.ssds[0].limits)
    }

    #[test]
    fn limits_are_read_with_their_bursts_and_units() {
        let limits = parse(
            "[ssd.limits]\niops = 1500\niops_burst = 3000\nbandwidth = \"90MiB\"\nwrite_bandwidth = \"10MB\"\n\
             write_bandwidth_burst = \"1GiB\"\nweight = 400\n",
        );
        let expected = Limits {
            iops: Some(Rate { per_second: 1500, burst: Some(3000) }),
            bandwidth: Some(Rate { per_second: 90 << 20, burst: None }),
            write_bandwidth: Some(Rate { per_second: 10_000_000, burst: Some(1 << 30) }),
            weight: 400,
            ..Limits::default()
        };
        assert_eq!(limits, Ok(expected));
        assert_eq!(parse(""), Ok(Limits::default()));
        assert_eq!(parse("limits = { read_iops = 10 }\n").unwrap().read_iops.unwrap().per_second, 10);
    }

    #[test]
    fn limits_that_another_host_says_are_brought_to_what_could_be_written_and_told_in_its_words() {
        let rate = |per_second, burst| Some(Rate { per_second, burst });
        let said = Limits {
            iops: rate(0, Some(0)),
            read_iops: rate(1500, Some(30_000)),
            write_iops: rate(u64::MAX, Some(u64::MAX)),
            bandwidth: rate(1, None),
            read_bandwidth: rate(90 << 20, Some(1 << 30)),
            write_bandwidth: rate(u64::MAX, None),
            weight: 0,
        };
        let near = said.within_bounds();
        assert_eq!((near.iops, near.write_iops), (rate(10, Some(1)), rate(100_000_000, Some(1 << 50))));
        assert_eq!((near.bandwidth, near.write_bandwidth), (rate(1 << 20, None), rate(1 << 40, None)));
        assert_eq!((near.read_iops, near.read_bandwidth), (said.read_iops, said.read_bandwidth));
        assert_eq!(Limits { weight: u16::MAX, ..near }.within_bounds().weight, 10_000);
        assert_eq!(near.within_bounds(), near);
        let told = Limits { read_iops: near.read_iops, bandwidth: rate(90 << 20, None), ..Limits::default() };
        assert_eq!(told.to_string(), "read_iops 1500 (burst 30000), bandwidth 90MiB, weight 100");
        assert_eq!(Limits::default().to_string(), "no limits, weight 100");
    }

    #[test]
    fn every_wrong_limit_is_refused_with_what_to_write() {
        let cases = [
            ("iops = 9", "iops must be 10 to"),
            ("iops = 100000001", "iops must be 10 to"),
            ("read_iops = -1", ""),
            ("iops_burst = 5", "iops_burst goes with iops"),
            ("iops = 10\niops_burst = 0", "iops_burst must be 1 to"),
            ("bandwidth = \"1KiB\"", "bandwidth must be 1MiB to 1TiB"),
            ("bandwidth = \"2TiB\"", "bandwidth must be 1MiB to 1TiB"),
            ("bandwidth = \"fast\"", "is not a size"),
            ("bandwidth = \"1GiB\"\nbandwidth_burst = \"0\"", "bandwidth_burst must be"),
            ("read_bandwidth_burst = \"1GiB\"", "read_bandwidth_burst goes with read_bandwidth"),
            ("weight = 0", "weight must be 1 to 10000"),
            ("weight = 10001", "weight must be 1 to 10000"),
            ("speed = 5", "unknown field"),
        ];
        for (line, expected) in cases {
            let error = parse(&format!("[ssd.limits]\n{line}\n")).expect_err(line);
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
