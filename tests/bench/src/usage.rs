//! What a process uses, from /proc.

use crate::Outcome;

/// Seconds of CPU time that a process has used, in user and kernel mode, all threads.
pub(crate) fn cpu_seconds(process: u32) -> Outcome<f64> {
    let stat = read(process, "stat")?;
    let ticks = cpu_ticks(&stat).ok_or_else(|| format!("/proc/{process}/stat does not read: {stat:?}"))?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Memory of a process that is resident.
pub(crate) fn resident_bytes(process: u32) -> Outcome<u64> {
    let status = read(process, "status")?;
    resident_kib(&status)
        .map(|kib| kib << 10)
        .ok_or_else(|| format!("/proc/{process}/status has no VmRSS").into())
}

fn read(process: u32, file: &str) -> Outcome<String> {
    let path = format!("/proc/{process}/{file}");
    std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}").into())
}

/// Fields 14 and 15 of proc(5), counted behind the program's name, which may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_ascii_whitespace().skip(11);
    let (user, system) = (fields.next()?.parse::<u64>().ok()?, fields.next()?.parse::<u64>().ok()?);
    Some(user + system)
}

fn resident_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Cores that two processes used between two looks.
pub(crate) struct Meter {
    broker: u32,
    begun: std::time::Instant,
    before: (f64, f64),
}

impl Meter {
    /// Of a broker and of this process.
    pub(crate) fn start(broker: u32) -> Outcome<Self> {
        let before = (cpu_seconds(broker)?, cpu_seconds(std::process::id())?);
        Ok(Self { broker, begun: std::time::Instant::now(), before })
    }

    /// Cores of the broker, and of this process.
    pub(crate) fn cores(&self) -> Outcome<(f64, f64)> {
        let seconds = self.begun.elapsed().as_secs_f64();
        let broker = (cpu_seconds(self.broker)? - self.before.0) / seconds;
        Ok((broker, (cpu_seconds(std::process::id())? - self.before.1) / seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_brackets_moves_no_field() {
        let stat = "42 (a ) b (c) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 7 8 20 0 3 0 12345 1000 200 18446744073709551615";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("42 (cut"), None);
    }

    #[test]
    fn resident_memory_is_in_kib() {
        assert_eq!(resident_kib("Name:\tx\nVmRSS:\t    1234 kB\nVmSwap: 0 kB\n"), Some(1234));
        assert_eq!(resident_kib("Name:\tx\n"), None);
    }

    #[test]
    fn this_process_is_there() {
        let before = cpu_seconds(std::process::id()).expect("read");
        assert!(resident_bytes(std::process::id()).expect("read") > 1 << 20);
        let mut sum = 0_u64;
        while cpu_seconds(std::process::id()).expect("read") <= before {
            sum = (0..100_000).fold(sum, |sum, number| std::hint::black_box(sum ^ number));
        }
        cpu_seconds(u32::MAX).expect_err("no such process");
    }
}
