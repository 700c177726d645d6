//! How much memory the process has held.

/// The largest resident size of this process so far, in MiB; `None` where the system does not say.
pub fn peak_resident_mib() -> Option<f64> {
    Some(status("VmHWM:")? as f64 / 1024.0)
}

/// The bytes of this process that are resident now; `None` where the system does not say.
pub fn resident_bytes() -> Option<u64> {
    Some(status("VmRSS:")? * 1024)
}

/// A line of the process's status, in KiB.
fn status(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Bytes that a new allocation could get without swapping; `None` where the system does not say.
pub fn available_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_grows_with_what_is_touched() {
        let before = peak_resident_mib().unwrap();
        let touched = vec![1u8; 256 << 20];
        assert!(touched.iter().step_by(4096).all(|&b| b == 1));
        let peak = peak_resident_mib().unwrap();
        assert!(peak > before.max(200.0));
        let now = resident_bytes().unwrap() as f64 / 1024.0 / 1024.0;
        assert!(now > 200.0 && now <= peak + 1.0, "{now} of {peak}");
        drop(touched);
    }
}
