//! Keeps the greatest value seen for each key, and emits each new one.

use tidemill_plugin::prelude::*;
use tidemill_plugin::state::{self, Writes};

struct Records {
    target: Target,
}

impl Consumer for Records {
    fn describe() -> Description {
        Description::new("Keeps the greatest number seen for each key, and emits each new one.")
    }

    fn new(ctx: &Context) -> Result<Self, String> {
        match ctx.targets() {
            [_] => Ok(Self { target: Target(0) }),
            targets => Err(format!("needs one target topic, not {}", targets.len())),
        }
    }

    fn handle(&mut self, batch: &Batch) -> Result<Outcome, Failure> {
        let mut outcome = Outcome::all(batch);
        // One read and one write for the whole batch, however many records it has.
        let before = state::get_many(batch.iter().map(|record| record.key().unwrap_or_default()));
        let mut best = std::collections::BTreeMap::new();
        let mut output = Output::new();
        for (record, before) in batch.iter().zip(before.iter()) {
            let key = record.key().unwrap_or_default();
            let Some(number) = record.value_str().and_then(number) else {
                outcome.reject(record.ordinal(), "the value is not a number");
                continue;
            };
            let before = best.get(key).copied().or(before.and_then(|text| number_of(text)));
            if before.is_none_or(|before| number > before) {
                best.insert(key, number);
                output.record_of(&record).key(key).value(number.to_string()).push();
            }
        }
        let mut writes = Writes::new();
        best.iter().for_each(|(key, number)| writes.put(key, number.to_string()));
        writes.write()?;
        tidemill_plugin::emit::send(self.target, &output)?;
        Ok(outcome)
    }
}

fn number(text: &str) -> Option<i64> {
    text.trim().parse().ok()
}

fn number_of(text: &[u8]) -> Option<i64> {
    number(std::str::from_utf8(text).ok()?)
}

tidemill_plugin::export_consumer!(Records);

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_plugin::testing::{Setup, TestRecord, batch_of};

    #[test]
    fn emits_each_new_record_once() {
        let mut records = Setup::new().target("records").consumer::<Records>().unwrap();
        records.handle(&batch_of([("ann", "7"), ("bob", "3"), ("ann", "5"), ("ann", "9")])).unwrap();
        // A new instance knows what the last one kept.
        records.restart();
        records.handle(&batch_of([("ann", "8"), ("bob", "4")])).unwrap();
        let emitted: Vec<String> = records.emitted("records").iter().map(TestRecord::value_text).collect();
        assert_eq!(emitted, ["7", "3", "9", "4"]);
        assert_eq!(records.state()["ann"], "9");
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let mut records = Setup::new().target("records").consumer::<Records>().unwrap();
        let outcome = records.handle(&batch_of([("ann", "many")])).unwrap();
        assert_eq!(outcome.rejections[0].reason, "the value is not a number");
    }
}
