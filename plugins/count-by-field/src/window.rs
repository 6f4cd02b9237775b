//! Tumbling windows: kept in the state, closed by timers.
//!
//! A window's timer is called by its prefix, `window:START:`. Where a window has more values than one call should emit, the timer goes
//! on with the last key that was done appended to it.

use tidemill_plugin::prelude::*;
use tidemill_plugin::state::{self, Writes};
use tidemill_plugin::timers;

use crate::counting::{Counts, emit_count, number};

const WINDOW: &str = "window:";
/// As many digits as the greatest start has, so that keys are ordered by time.
const START_DIGITS: usize = 20;
const PREFIX_BYTES: usize = WINDOW.len() + START_DIGITS + 1;

/// How many values one call emits at most.
const EMITTED_PER_CALL_MAX: u32 = 4_096;
/// How many entries are read at a time.
const PAGE_ENTRIES: u32 = 512;

/// Windows of one length.
#[derive(Debug)]
pub(crate) struct Windows {
    length_ms: i64,
    grace_ms: i64,
    retain_ms: u64,
}

impl Windows {
    /// As configured; none where there are no windows.
    pub(crate) fn new(ctx: &Context) -> Result<Option<Self>, String> {
        if ctx.get("window").is_none() {
            return Ok(None);
        }
        let length = ctx.duration_ms("window")?;
        // A century bounds every sum of times below.
        const MS_MAX: u64 = 100 * 366 * 86_400_000;
        for (key, least) in [("window", 1), ("grace", 0), ("retain", 1)] {
            if !(least..=MS_MAX).contains(&ctx.duration_ms(key)?) {
                return Err(ctx.invalid(key, "it is at least 1ms (grace: 0ms) and at most a century").into());
            }
        }
        Ok(Some(Self {
            length_ms: length as i64,
            grace_ms: ctx.duration_ms("grace")? as i64,
            retain_ms: ctx.duration_ms("retain")?,
        }))
    }

    /// Appends the beginning of the keys of the window that a timestamp lies in.
    pub(crate) fn write_prefix(&self, timestamp: i64, now: i64, out: &mut Vec<u8>) {
        // A clock that is far ahead would otherwise open windows that close after their state is gone.
        let ahead = timestamp > now.saturating_add(self.length_ms);
        let at = if ahead { now } else { timestamp }.max(0);
        let start = at - at % self.length_ms;
        out.extend_from_slice(format!("{WINDOW}{start:0START_DIGITS$}:").as_bytes());
    }

    /// Adds to the windows, and sets the timers that close them.
    pub(crate) fn add(&self, counts: Counts, now: i64) -> Result<(), Failure> {
        let before = state::get_many(counts.by_key.keys());
        let mut writes = Writes::new();
        let mut timer_set = Vec::new();
        for ((key, added), before) in counts.by_key.iter().zip(before.iter()) {
            let (counted, emitted) = before.map_or(Ok((0, 0)), |text| two_numbers(key, text))?;
            writes.put(key, format!("{} {emitted}", counted + added.count));
            let prefix = &key[..added.value_from];
            if timer_set != prefix {
                // Keys are ordered, so each window's come together. One that was closed before closes again at once.
                let Some(start) = start_of(prefix) else { continue };
                timers::set(prefix, (start + self.length_ms + self.grace_ms).max(now));
                timer_set = prefix.to_vec();
            }
        }
        // Longer than until the window closes, so that no count is gone before it is emitted.
        let until_closed = (2 * self.length_ms + self.grace_ms) as u64;
        writes.write_for(until_closed + self.retain_ms)?;
        Ok(())
    }

    /// Emits what the windows of these timers counted since they were last emitted.
    pub(crate) fn close(&self, due: &[Timer], now: i64, name: &str) -> Result<Output, Failure> {
        let (mut output, mut writes) = (Output::new(), Writes::new());
        let mut left = EMITTED_PER_CALL_MAX;
        for timer in due {
            if left == 0 {
                // Not yet begun: later, and at another time than the one that has just fired.
                timers::set(&timer.key, now + 1);
                continue;
            }
            if let Some(last) = self.close_one(&timer.key, &mut left, name, &mut output, &mut writes)? {
                timers::set(last, now + 1);
            }
        }
        writes.write_for(self.retain_ms)?;
        Ok(output)
    }

    /// Answers the key of the timer to go on with, where there is more.
    fn close_one(
        &self,
        timer: &[u8],
        left: &mut u32,
        name: &str,
        output: &mut Output,
        writes: &mut Writes,
    ) -> Result<Option<Vec<u8>>, Failure> {
        let Some((prefix, start)) =
            timer.get(..PREFIX_BYTES).and_then(|prefix| Some((prefix, start_of(prefix)?)))
        else {
            // Not one of ours: of another version, say.
            return Ok(None);
        };
        let end = state::after_prefix(prefix);
        let mut from = timer.to_vec();
        loop {
            let page = state::scan(&from, end.as_deref(), PAGE_ENTRIES.min(*left));
            for (key, value) in page.iter().filter(|(key, _)| *key != timer) {
                from = key.to_vec();
                let (counted, emitted) = two_numbers(key, value)?;
                if counted > emitted {
                    let window = (start, start + self.length_ms);
                    emit_count(output.record(), name, &key[PREFIX_BYTES..], counted, Some(window));
                    writes.put(key, format!("{counted} {counted}"));
                }
            }
            if !page.more {
                return Ok(None);
            }
            *left = left.saturating_sub(page.keys.len() as u32);
            if *left == 0 {
                return Ok(Some(from));
            }
            from.push(0);
        }
    }
}

fn start_of(prefix: &[u8]) -> Option<i64> {
    let digits = prefix.strip_prefix(WINDOW.as_bytes())?.strip_suffix(b":")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn two_numbers(key: &[u8], text: &[u8]) -> Result<(u64, u64), Failure> {
    let space = text.iter().position(|byte| *byte == b' ').unwrap_or(text.len());
    let (counted, emitted) = text.split_at(space);
    Ok((number(key, counted)?, number(key, emitted.trim_ascii())?))
}
