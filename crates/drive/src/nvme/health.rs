//! SMART: how a drive is, and how much of it is used up.

use super::{Admin, AdminError, log_page};
use serde::Serialize;
use spec::nvme::log::{Lid, SmartHealth};

/// Kelvins at 0 degrees.
const ZERO_CELSIUS_K: i32 = 273;

/// The verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing is wrong.
    Good,
    /// It works, and somebody should look: worn out, hot, or with media errors.
    Warning,
    /// It lost data or will: spare used up, read only, unreliable.
    Failing,
}

/// What log page 02h says, in units for people. Counters beyond 64 bits saturate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// All in all.
    pub verdict: Verdict,
    /// Why it is not good.
    pub warnings: Vec<String>,
    /// Of the rated life; may be above 100.
    pub used_percent: u8,
    /// Spare blocks left.
    pub spare_percent: u8,
    /// The spare below which the drive warns.
    pub spare_threshold_percent: u8,
    /// Composite temperature; `None`: not reported.
    pub temperature_c: Option<i32>,
    /// Powered, in all.
    pub power_on_hours: u64,
    /// Powered on, how often.
    pub power_cycles: u64,
    /// Powered off without notice, how often.
    pub unsafe_shutdowns: u64,
    /// Media and data integrity errors.
    pub media_errors: u64,
    /// Written by hosts.
    pub written_bytes: u64,
    /// Read by hosts.
    pub read_bytes: u64,
}

impl Health {
    /// Reads log page 02h.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn read(admin: &mut (impl Admin + ?Sized)) -> Result<Health, AdminError> {
        Ok(Health::from_log(&*log_page::<SmartHealth>(admin, Lid::SmartHealth)?))
    }

    /// In units for people.
    #[must_use]
    pub fn from_log(log: &SmartHealth) -> Health {
        let count = |number: zerocopy::little_endian::U128| u64::try_from(number.get()).unwrap_or(u64::MAX);
        // Thousands of 512 bytes.
        let units = |number: zerocopy::little_endian::U128| count(number).saturating_mul(512_000);
        let kelvins = i32::from(u16::from_le_bytes(log.temperature));
        let mut health = Health {
            verdict: Verdict::Good,
            warnings: Vec::new(),
            used_percent: log.percentage_used,
            spare_percent: log.available_spare.min(100),
            spare_threshold_percent: log.available_spare_threshold.min(100),
            temperature_c: (kelvins > 0).then(|| kelvins - ZERO_CELSIUS_K),
            power_on_hours: count(log.power_on_hours),
            power_cycles: count(log.power_cycles),
            unsafe_shutdowns: count(log.unsafe_shutdowns),
            media_errors: count(log.media_errors),
            written_bytes: units(log.data_units_written),
            read_bytes: units(log.data_units_read),
        };
        health.judge(log);
        health
    }

    fn judge(&mut self, log: &SmartHealth) {
        let critical = log.critical_warning;
        let failing = [
            (critical.spare(), "its spare blocks are used up"),
            (critical.degraded(), "it reports itself as unreliable"),
            (critical.read_only(), "it is read only"),
            (critical.backup_failed(), "the backup of its volatile memory failed"),
            (critical.pmr(), "its persistent memory region is unreliable"),
        ];
        for (_, reason) in failing.into_iter().filter(|(is_so, _)| *is_so) {
            self.verdict = Verdict::Failing;
            self.warnings.push(reason.to_owned());
        }
        let mut warn = |reason: String| {
            if self.verdict == Verdict::Good {
                self.verdict = Verdict::Warning;
            }
            self.warnings.push(reason);
        };
        if critical.temperature() {
            warn("a temperature is beyond its threshold".to_owned());
        }
        if self.used_percent >= 100 {
            warn(format!("{} % of its rated life is used", self.used_percent));
        }
        if self.media_errors > 0 {
            warn(format!("{} media errors", self.media_errors));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn log() -> SmartHealth {
        let mut log = SmartHealth::new_zeroed();
        log.available_spare = 100;
        log.available_spare_threshold = 10;
        log.temperature = 310_u16.to_le_bytes();
        log.data_units_written = 2.into();
        log
    }

    #[test]
    fn a_young_drive_is_good() {
        let health = Health::from_log(&log());
        assert_eq!((health.verdict, health.temperature_c), (Verdict::Good, Some(37)));
        assert_eq!(health.written_bytes, 1_024_000);
    }

    #[test]
    fn wear_warns_and_lost_reliability_fails() {
        let mut worn = log();
        worn.percentage_used = 134;
        assert_eq!(Health::from_log(&worn).verdict, Verdict::Warning);
        worn.critical_warning = worn.critical_warning.with_read_only(true);
        let health = Health::from_log(&worn);
        assert_eq!((health.verdict, health.warnings.len()), (Verdict::Failing, 2));
    }

    #[test]
    fn numbers_beyond_all_sense_saturate() {
        let mut mad = log();
        mad.data_units_read = u128::MAX.into();
        mad.media_errors = u128::MAX.into();
        mad.available_spare = 255;
        mad.temperature = [0, 0];
        let health = Health::from_log(&mad);
        assert_eq!((health.read_bytes, health.media_errors, health.spare_percent), (u64::MAX, u64::MAX, 100));
        assert_eq!(health.temperature_c, None);
    }
}
