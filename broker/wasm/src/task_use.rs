//! What a task's call has used of what it may emit, write and read. Everything is charged before it is kept or looked for, and for
//! what it costs the host: bytes that no record points to are held like others, and an empty write is a row all the same.

use crate::limits::PluginLimits;

/// What the host keeps beside each emission.
const SEND_BYTES: usize = 128;
/// What the host keeps beside each key that is written and each timer that is set.
const WRITE_BYTES: usize = 128;
/// What a read costs before it finds anything: about a page.
const READ_BYTES: usize = 4096;
/// What looking for one key costs.
const READ_KEY_BYTES: usize = 64;

#[derive(Default)]
pub(crate) struct TaskUse {
    sends: u32,
    emitted_bytes: usize,
    written_bytes: usize,
    read_bytes: usize,
    timers: u32,
}

/// More than the call may.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OverBudget;

impl TaskUse {
    /// An emission whose data and index are as long, and whose records add up to `referenced_bytes`.
    pub(crate) fn send(
        &mut self,
        data_bytes: usize,
        index_bytes: usize,
        referenced_bytes: usize,
        limits: &PluginLimits,
    ) -> Result<(), OverBudget> {
        if self.sends >= limits.sends_per_call_max {
            return Err(OverBudget);
        }
        let bytes = data_bytes.max(referenced_bytes).saturating_add(index_bytes).saturating_add(SEND_BYTES);
        charge(&mut self.emitted_bytes, bytes, limits.emitted_bytes_per_call_max)?;
        self.sends += 1;
        Ok(())
    }

    /// A write of as many keys, with as many bytes of keys and values.
    pub(crate) fn write(
        &mut self,
        keys: usize,
        bytes: usize,
        limits: &PluginLimits,
    ) -> Result<(), OverBudget> {
        let bytes = keys.saturating_mul(WRITE_BYTES).saturating_add(bytes);
        charge(&mut self.written_bytes, bytes, limits.written_bytes_per_call_max)
    }

    /// A timer with a key of as many bytes is set or cancelled.
    pub(crate) fn timer(&mut self, key_bytes: usize, limits: &PluginLimits) -> Result<(), String> {
        let most = limits.timers_per_call_max;
        if self.timers >= most {
            return Err(format!("more than {most} timers in one call"));
        }
        self.write(1, key_bytes, limits).map_err(|OverBudget| {
            let most = limits.written_bytes_per_call_max;
            format!("more than {most} bytes of state and timers written in one call")
        })?;
        self.timers += 1;
        Ok(())
    }

    /// A read of as many keys begins. Gives how many bytes the call may still read.
    pub(crate) fn begin_read(&mut self, keys: usize, limits: &PluginLimits) -> Result<usize, String> {
        self.found(keys.saturating_mul(READ_KEY_BYTES).saturating_add(READ_BYTES), limits)?;
        Ok(limits.read_bytes_per_call_max - self.read_bytes)
    }

    /// A read found as much.
    pub(crate) fn found(&mut self, bytes: usize, limits: &PluginLimits) -> Result<(), String> {
        let most = limits.read_bytes_per_call_max;
        charge(&mut self.read_bytes, bytes, most).map_err(|OverBudget| read_too_much(limits))
    }

    /// Entries of a page, beside their bytes.
    pub(crate) fn entries(count: usize) -> usize {
        count.saturating_mul(READ_KEY_BYTES)
    }
}

pub(crate) fn read_too_much(limits: &PluginLimits) -> String {
    format!("more than {} bytes of state read in one call", limits.read_bytes_per_call_max)
}

fn charge(used: &mut usize, bytes: usize, most: usize) -> Result<(), OverBudget> {
    let after = used.saturating_add(bytes);
    if after > most {
        return Err(OverBudget);
    }
    *used = after;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_record_points_to_is_charged() {
        let limits = PluginLimits { emitted_bytes_per_call_max: 1000, ..PluginLimits::task() };
        let mut used = TaskUse::default();
        assert_eq!(used.send(1000, 40, 0, &limits), Err(OverBudget));
        assert_eq!(used.send(0, 40, 1000, &limits), Err(OverBudget));
        assert_eq!(used.send(700, 40, 600, &limits), Ok(()));
        assert_eq!(used.send(0, 40, 0, &limits), Err(OverBudget), "868 and 168");
    }

    #[test]
    fn sends_are_counted() {
        let limits = PluginLimits { sends_per_call_max: 2, ..PluginLimits::task() };
        let mut used = TaskUse::default();
        let sends: Vec<_> = (0..3).map(|_| used.send(1, 40, 1, &limits).is_ok()).collect();
        assert_eq!(sends, [true, true, false]);
    }

    #[test]
    fn empty_writes_and_reads_cost_something() {
        let limits = PluginLimits {
            written_bytes_per_call_max: 10 * WRITE_BYTES,
            read_bytes_per_call_max: 3 * READ_BYTES,
            ..PluginLimits::task()
        };
        let mut used = TaskUse::default();
        assert_eq!(used.write(11, 0, &limits), Err(OverBudget));
        assert_eq!(used.write(9, 0, &limits), Ok(()));
        assert!(used.timer(WRITE_BYTES, &limits).unwrap_err().contains("1280 bytes"));
        assert_eq!(used.begin_read(0, &limits), Ok(2 * READ_BYTES));
        assert_eq!(used.begin_read(0, &limits), Ok(READ_BYTES));
        assert!(used.begin_read(1, &limits).is_err());
        assert!(used.found(READ_BYTES + 1, &limits).is_err());
    }
}
