//! How much memory there is and how much is used.

/// Bytes that could be allocated now without swapping, as the system estimates it; a container's limit
/// counts. `None` when the system does not say.
pub fn available() -> Option<u64> {
    let free = if cfg!(target_os = "macos") { macos_total() } else { meminfo("MemAvailable:") }?;
    Some(cgroup_room().map_or(free, |room| room.min(free)))
}

/// Resident set size of this process in bytes, now and at its highest; Linux only.
pub fn rss() -> Option<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    Some((kib(&status, "VmRSS:")?, kib(&status, "VmHWM:")?))
}

/// MLX's own count: bytes now, and the highest since the start or the last reset.
pub fn mlx() -> (u64, u64) {
    let now = mlx_rs::memory::active_memory().unwrap_or(0);
    let peak = mlx_rs::memory::peak_memory().unwrap_or(0);
    (now as u64, peak as u64)
}

/// Makes the highest count of [`mlx`] what it is now.
pub fn reset_peak() {
    // It only counts: where it fails, an older and higher peak is told.
    let _ = mlx_rs::memory::reset_peak_memory();
}

/// Lets the C library keep what arrays give back, up to half a gibibyte, for the next ones: memory that comes anew
/// from the system is cleared page by page, which costs a training step a tenth of its time.
pub(super) fn reuse() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // malloc.h
        const M_TRIM_THRESHOLD: std::ffi::c_int = -1;
        const M_MMAP_THRESHOLD: std::ffi::c_int = -3;
        unsafe extern "C" {
            fn mallopt(param: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
        }
        // SAFETY: sets two numbers; what it refuses stays as it was. 32 MiB is the largest threshold it takes.
        unsafe {
            mallopt(M_MMAP_THRESHOLD, 32 << 20);
            mallopt(M_TRIM_THRESHOLD, 512 << 20);
        }
    }
}

fn meminfo(field: &str) -> Option<u64> {
    kib(&std::fs::read_to_string("/proc/meminfo").ok()?, field)
}

/// `Field:   123 kB` in bytes.
fn kib(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(field))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|k| k * 1024)
}

/// What a memory limit of this container leaves (cgroup v2, then v1); cached file pages can be given
/// back and do not count as used.
fn cgroup_room() -> Option<u64> {
    let dirs = [
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
    ];
    dirs.iter().find_map(|(dir, limit, used, cached)| {
        let read = |name: &str| std::fs::read_to_string(format!("{dir}/{name}")).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let cached = read("memory.stat")
            .and_then(|s| s.lines().find_map(|l| l.strip_prefix(cached)?.trim().parse::<u64>().ok()));
        Some(number(limit)?.saturating_sub(number(used)?.saturating_sub(cached.unwrap_or(0))))
    })
}

fn macos_total() -> Option<u64> {
    let out = std::process::Command::new("/usr/sbin/sysctl").args(["-n", "hw.memsize"]).output().ok()?;
    String::from_utf8(out.stdout).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn reads_the_units_of_proc() {
        assert_eq!(kib("MemTotal: 1 kB\nMemAvailable:   24 kB\n", "MemAvailable:"), Some(24 * 1024));
        assert_eq!(kib("MemTotal: 1 kB\n", "MemAvailable:"), None);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(available().unwrap() > 1 << 20);
    }
}
