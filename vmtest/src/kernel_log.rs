//! What a guest's kernel says about its drives.

const BAD_NEWS: [&str; 6] = ["error", "timeout", "abort", "reset", "invalid", "failed"];

/// The lines of a kernel log that an NVMe drive in good health never causes, but for those that contain one of `expected`.
pub fn nvme_complaints<'a>(log: &'a str, expected: &[&str]) -> Vec<&'a str> {
    log.lines().filter(|line| complains(line) && !expected.iter().any(|text| line.contains(text))).collect()
}

fn complains(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    let about_nvme = line.find("nvme").map_or("", |at| &line[at..]);
    BAD_NEWS.iter().any(|word| about_nvme.contains(word))
        || line.contains("i/o error")
        || line.contains("blk_update")
        || line.contains("kernel bug")
        || line.contains("call trace")
}

#[cfg(test)]
mod tests {
    use super::nvme_complaints;

    #[test]
    fn a_healthy_boot_has_no_complaint() {
        let log = "[1.0] nvme nvme0: pci function 0000:00:04.0\n[1.1] nvme nvme0: 2/0/0 default/read/poll queues\n\
                   [1.2] ACPI: PM: error in another part";
        assert!(nvme_complaints(log, &[]).is_empty());
    }

    #[test]
    fn errors_timeouts_and_resets_are_complaints_unless_expected() {
        let log = "[9.0] nvme nvme0: I/O tag 3 (1003) QID 1 timeout, aborting\n[9.1] nvme nvme0: resetting controller\n\
                   [9.2] I/O error, dev nvme0n1, sector 8";
        assert_eq!(nvme_complaints(log, &[]).len(), 3);
        assert_eq!(nvme_complaints(log, &["resetting controller"]).len(), 2);
    }
}
