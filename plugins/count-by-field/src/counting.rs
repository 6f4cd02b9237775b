//! What a batch adds, and totals.

use std::collections::BTreeMap;

use tidemill_plugin::json::{Raw, Reach, Value, write_text};
use tidemill_plugin::metrics;
use tidemill_plugin::prelude::*;
use tidemill_plugin::state::{self, Writes};

use crate::window::Windows;
use crate::{Field, Missing};

/// The longest value that is counted: it becomes a key of the state.
const VALUE_BYTES_MAX: usize = 512;

const TOTAL: &str = "total:";

/// What a batch adds to each key of the state, in the order of the keys: the same on every replay.
pub(crate) struct Counts {
    pub(crate) by_key: BTreeMap<Vec<u8>, Added>,
}

pub(crate) struct Added {
    pub(crate) count: u64,
    /// The last record that was counted.
    pub(crate) ordinal: u32,
    /// Where the counted value begins in the key.
    pub(crate) value_from: usize,
}

impl Counts {
    pub(crate) fn of(batch: &Batch, field: &Field, windows: Option<&Windows>, outcome: &mut Outcome) -> Self {
        let mut by_key: BTreeMap<Vec<u8>, Added> = BTreeMap::new();
        let (mut counted, mut missing) = (0, 0);
        // One buffer for all records: a key is copied only when it is new.
        let mut key = Vec::new();
        for record in batch {
            key.clear();
            match windows {
                Some(windows) => windows.write_prefix(record.timestamp(), batch.now(), &mut key),
                None => key.extend_from_slice(TOTAL.as_bytes()),
            }
            let value_from = key.len();
            if let Err(why) = field.write_value(&record, &mut key) {
                missing += 1;
                match field.missing {
                    Missing::Skip => continue,
                    Missing::Reject => {
                        outcome.reject(record.ordinal(), why);
                        continue;
                    }
                    Missing::Count => key.extend_from_slice(b"null"),
                }
            }
            counted += 1;
            match by_key.get_mut(&key) {
                Some(added) => {
                    added.count += 1;
                    added.ordinal = record.ordinal();
                }
                None => {
                    _ = by_key.insert(key.clone(), Added { count: 1, ordinal: record.ordinal(), value_from })
                }
            }
        }
        for (name, value) in [("counted", counted), ("missing", missing)] {
            if value > 0 {
                metrics::add(name, value);
            }
        }
        Self { by_key }
    }
}

impl Field {
    /// Appends the field of a record, as JSON in its one canonical form; appends nothing where there is none.
    fn write_value(&self, record: &Record<'_>, out: &mut Vec<u8>) -> Result<(), String> {
        let value = record.value().ok_or("the value is null")?;
        let mut found: [Option<Raw<'_>>; 1] = [None];
        self.selector
            .find(value, Reach::UntilFound, &mut found)
            .map_err(|malformed| malformed.to_string())?;
        let field = found[0].ok_or_else(|| format!("the value has no field {}", self.name))?;
        if field.bytes().len() > VALUE_BYTES_MAX {
            return Err(format!("the field {} is longer than {VALUE_BYTES_MAX} bytes", self.name));
        }
        match field.value() {
            Value::Text(text) => write_text(out, &text.bytes()),
            Value::Number(number) => number.write_canonical(out),
            Value::Bool(_) => out.extend_from_slice(field.bytes()),
            Value::Null | Value::Array(_) | Value::Object(_) => {
                return Err(format!("the field {} is neither text nor a number, true or false", self.name));
            }
        }
        Ok(())
    }
}

/// Adds to the totals, and emits the new ones.
pub(crate) fn add_totals(counts: Counts, batch: &Batch, name: &str) -> Result<Output, Failure> {
    let before = state::get_many(counts.by_key.keys());
    let (mut writes, mut output) = (Writes::new(), Output::new());
    for ((key, added), before) in counts.by_key.iter().zip(before.iter()) {
        let total = before.map_or(Ok(0), |text| number(key, text))? + added.count;
        writes.put(key, total.to_string());
        let Some(record) = batch.get(added.ordinal) else { continue };
        emit_count(output.record_of(&record), name, &key[added.value_from..], total, None);
    }
    writes.write()?;
    Ok(output)
}

/// A number in the state.
pub(crate) fn number(key: &[u8], text: &[u8]) -> Result<u64, Failure> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    // Only another plugin, or another version of this one, can have written it.
    number.ok_or_else(|| {
        Failure::reject(format!("the state has no count at {:?}", String::from_utf8_lossy(key)))
    })
}

/// Finishes a record of a count.
pub(crate) fn emit_count(
    draft: tidemill_plugin::Draft<'_>,
    name: &str,
    value: &[u8],
    count: u64,
    window: Option<(i64, i64)>,
) {
    let mut key = Vec::new();
    let has_key = Raw::parse(value).is_ok_and(|value| value.write_key(&mut key));
    let draft = if has_key { draft.key(&key) } else { draft.null_key() };
    draft
        .value_with(|out| {
            out.push(b'{');
            write_text(out, name.as_bytes());
            out.push(b':');
            out.extend_from_slice(value);
            out.extend_from_slice(format!(",\"count\":{count}").as_bytes());
            if let Some((start, end)) = window {
                out.extend_from_slice(format!(",\"window_start\":{start},\"window_end\":{end}").as_bytes());
            }
            out.push(b'}');
        })
        .push();
}
