//! `count-by-field`: counts records by a field of their JSON value, in the task's keyed state, and emits the counts.
//!
//! Without a window the counts are totals: each batch emits the new total of each value that it held, one record per value. With a window
//! they are per stretch of time: records count for the window that their timestamp lies in, and when a window is over (by the log's time)
//! its counts are emitted.
//!
//! ```text
//! {"song_id":"s-17","count":42}
//! {"song_id":"s-17","count":7,"window_start":1700000000000,"window_end":1700000060000}
//! ```
//!
//! An emitted record's key is the counted value as text, so that a target keeps the counts of one value in order, and a compacted one keeps
//! the last. Counts are of one task: where records of a value lie in several partitions, place the source by that field (`field-hash`).
//!
//! | key | what it does | default |
//! | --- | --- | --- |
//! | `field` | the path of the field, such as `song_id` or `user.country` | required |
//! | `window` | the length of a window: `1m`, `1h`; totals where it is absent | none |
//! | `grace` | how long after its end a window waits for records that come late | `5s` |
//! | `retain` | how long after it was emitted a window is remembered: a later record emits its new count again | `1d` |
//! | `target` | which of the deployment's targets, where it has several; without any target, the counts are only kept | the only one |
//! | `missing` | a record without the field (absent, null, an array or object, or the value is not JSON): `skip`, `reject`, or `count` it as null | `skip` |
//!
//! Counted by type: the text `"1"` and the number `1` are two values; 1 and 1.0 are one. A value longer than 512 bytes is treated as missing. A record
//! whose timestamp is ahead of the log's time by more than a window counts for the present one.
//!
//! # State
//!
//! ```text
//! total:"s-17"                          42          readable with: tidemill state get DEPLOYMENT 'total:"s-17"'
//! window:00000001700000000000:"s-17"    7 5         counted, and how many of them were emitted
//! ```
//!
//! Counters: `counted`, `missing`, `emitted`.

mod counting;
mod window;

use tidemill_plugin::json::{Path, Selector};
use tidemill_plugin::prelude::*;
use tidemill_plugin::{emit, metrics};

use counting::Counts;
use window::Windows;

/// Counts records by a field.
#[derive(Debug)]
pub struct CountByField {
    field: Field,
    windows: Option<Windows>,
    target: Option<Target>,
}

/// The field that is counted.
#[derive(Debug)]
struct Field {
    /// As it is called in what is emitted.
    name: String,
    selector: Selector,
    missing: Missing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    Skip,
    Reject,
    Count,
}

impl Consumer for CountByField {
    fn describe() -> Description {
        Description::new("Counts records by a field of their JSON value, over all time or in windows.")
            .required("field", "the path of the field, such as song_id or user.country")
            .optional("window", "the length of a window, such as 1m; totals where it is absent")
            .with_default("grace", "how long after its end a window waits for records that come late", "5s")
            .with_default(
                "retain",
                "how long after it was emitted a window is remembered for later records",
                "1d",
            )
            .optional("target", "which of the deployment's targets, where it has several")
            .with_default("missing", "a record without the field: skip, reject, or count (as null)", "skip")
    }

    fn new(ctx: &Context) -> Result<Self, String> {
        let path: Path = ctx.parse("field")?;
        if !path.is_exact() {
            return Err(ctx.invalid("field", "it names one place: no *").into());
        }
        let selector =
            Selector::new(std::slice::from_ref(&path)).map_err(|error| ctx.invalid("field", error))?;
        let missing = [("skip", Missing::Skip), ("reject", Missing::Reject), ("count", Missing::Count)];
        let field = Field { name: path.to_string(), selector, missing: ctx.choice("missing", &missing)? };
        let target = match (ctx.get("target"), ctx.targets()) {
            (Some(name), _) => Some(ctx.target(name)?),
            (None, []) => None,
            (None, [_]) => Some(Target(0)),
            (None, several) => {
                return Err(format!(
                    "the deployment has {} targets: say which with --set target=...",
                    several.len()
                ));
            }
        };
        Ok(Self { field, windows: Windows::new(ctx)?, target })
    }

    fn fields(&self) -> Fields {
        Fields::VALUE
    }

    fn handle(&mut self, batch: &Batch) -> Result<Outcome, Failure> {
        let mut outcome = Outcome::all(batch);
        let counts = Counts::of(batch, &self.field, self.windows.as_ref(), &mut outcome);
        let emitted = match &self.windows {
            Some(windows) => {
                windows.add(counts, batch.now())?;
                Output::new()
            }
            None => counting::add_totals(counts, batch, &self.field.name)?,
        };
        self.emit(&emitted)?;
        Ok(outcome)
    }

    fn on_timers(&mut self, due: &[Timer], now: i64) -> Result<(), Failure> {
        // Timers of an earlier configuration that had a window fire for nothing.
        let Some(windows) = &self.windows else { return Ok(()) };
        let emitted = windows.close(due, now, &self.field.name)?;
        self.emit(&emitted)
    }
}

impl CountByField {
    fn emit(&self, output: &Output) -> Result<(), Failure> {
        if let Some(target) = self.target
            && !output.is_empty()
        {
            metrics::add("emitted", output.len() as u64);
            emit::send(target, output)?;
        }
        Ok(())
    }
}

tidemill_plugin::export_consumer!(CountByField);

#[cfg(test)]
mod tests;
