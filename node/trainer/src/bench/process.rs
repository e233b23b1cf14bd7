//! What the system counts about this process.

/// Ticks of processor time in a second: the same on every Linux a program sees.
const TICKS: f64 = 100.0;

/// Most memory this process has had, MiB; none where the system does not tell.
pub(super) fn peak_rss_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

/// Processor time of all threads so far, ms in steps of 10; NaN where the system does not tell.
pub(super) fn cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name, which may hold anything: state is field 3, user and system time 14 and 15.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().skip(11);
    let ticks: Vec<f64> = fields.take(2).filter_map(|field| field.parse().ok()).collect();
    match ticks.as_slice() {
        [user, system] => (user + system) * 1e3 / TICKS,
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_and_memory_grow_with_work() {
        let before = cpu_ms();
        let mut sum = 0_u64;
        let block: Vec<u64> = (0..16 << 20).collect();
        while cpu_ms() < before + 30.0 {
            sum = std::hint::black_box(sum.wrapping_add(block.iter().sum::<u64>()));
        }
        assert!(before >= 0.0);
        assert!(peak_rss_mib().is_some_and(|mib| mib >= 128));
    }
}
