//! What the kernel says about a process: its CPU time and its memory.

use anyhow::Context;

/// The kernel counts CPU time for user space in ticks of 10 ms on every architecture
/// (`USER_HZ`), whatever its own clock.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time of all threads of a process, in user space and in the kernel, in seconds.
///
/// # Errors
/// Where `/proc` does not have the process.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    ticks(&text)
        .map(|ticks| f64::from(ticks) / TICKS_PER_SECOND)
        .with_context(|| format!("{path} has an unknown form"))
}

/// Memory of a process that is in RAM, in bytes.
///
/// # Errors
/// Where `/proc` does not have the process.
pub fn rss_bytes(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    rss(&text).with_context(|| format!("{path} has an unknown form"))
}

/// Descriptors that a process has open.
///
/// # Errors
/// Where `/proc` does not have the process.
pub fn descriptors(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/fd");
    let open = std::fs::read_dir(&path).with_context(|| path.clone())?;
    Ok(open.count() as u64)
}

/// How many files this process, and a child of it, may have open.
#[must_use]
pub fn open_files_limit() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// How many connections to one address this machine can have.
#[must_use]
pub fn local_ports() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ends = text.split_whitespace().map(str::parse::<u64>);
    let (first, last) = (ends.next()?.ok()?, ends.next()?.ok()?);
    Some(last.saturating_sub(first) + 1)
}

fn ticks(stat: &str) -> Option<u32> {
    // The second field is the program's name in parentheses, which may itself hold parentheses and
    // spaces. `utime` and `stime` are fields 14 and 15.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let utime: u32 = fields.next()?.parse().ok()?;
    let stime: u32 = fields.next()?.parse().ok()?;
    utime.checked_add(stime)
}

fn rss(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let stat = "42 (row) cast 1) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 7 8 20 0 3 0 99";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("nonsense"), None);
    }

    #[test]
    fn resident_memory_is_in_kibibytes() {
        assert_eq!(
            rss("Name:\tx\nVmRSS:\t    1234 kB\nRssAnon: 1 kB\n"),
            Some(1234 * 1024)
        );
        assert_eq!(rss("Name:\tx\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_figures() {
        let pid = std::process::id();
        assert!(cpu_seconds(pid).unwrap() >= 0.0);
        assert!(rss_bytes(pid).unwrap() > 100_000);
        assert!(descriptors(pid).unwrap() >= 3);
        assert!(open_files_limit().unwrap() > 0);
        assert!(local_ports().unwrap() > 0);
    }
}
