//! Plugins that make any number of records of each one.

use crate::batch::{Batch, Record};
use crate::consumer::{Consumer, Outcome};
use crate::context::{Context, Target};
use crate::description::Description;
use crate::emit::{self, EmitError};
use crate::failure::{Failure, Rejection};
use crate::fields::Fields;
use crate::output::{Draft, Output};

/// Makes any number of records of each one, for any of the deployment's targets.
///
/// ```
/// use tidemill_plugin::prelude::*;
///
/// struct Words;
///
/// impl Transform for Words {
///     fn describe() -> Description { Description::new("Emits each word of a text.") }
///     fn new(_: &Context) -> Result<Self, String> { Ok(Self) }
///     fn transform(&mut self, record: &Record<'_>, out: &mut Emitter<'_>) -> Result<(), String> {
///         let text = record.value_str().ok_or("the value is not text")?;
///         text.split_whitespace().for_each(|word| out.record(Target(0)).value(word).push());
///         Ok(())
///     }
/// }
/// tidemill_plugin::export_transform!(Words);
/// ```
pub trait Transform: Sized + 'static {
    /// What the plugin is and how it is configured.
    fn describe() -> Description;

    /// A new instance; an error refuses the deployment.
    fn new(ctx: &Context) -> Result<Self, String>;

    /// What it reads of each record: keys and values, unless said otherwise.
    fn fields(&self) -> Fields {
        Fields::KEY | Fields::VALUE
    }

    /// Emits what becomes of a record. An error refuses the record; nothing that was emitted for it is kept.
    fn transform(&mut self, record: &Record<'_>, out: &mut Emitter<'_>) -> Result<(), String>;
}

/// What is emitted for one input record.
#[derive(Debug)]
pub struct Emitter<'e> {
    outputs: &'e mut Vec<Output>,
    input: Record<'e>,
}

impl Emitter<'_> {
    /// Starts a record for a target: null key, null value, no headers, the input record's timestamp.
    pub fn record(&mut self, target: Target) -> Draft<'_> {
        let input = self.input;
        self.output(target).record_of(&input)
    }

    /// Emits a copy of the input record: the plugin must have asked for [`Fields::ALL`].
    pub fn forward(&mut self, target: Target) {
        let input = self.input;
        self.output(target).copy(&input);
    }

    fn output(&mut self, target: Target) -> &mut Output {
        let target = target.0 as usize;
        if self.outputs.len() <= target {
            self.outputs.resize_with(target + 1, Output::new);
        }
        &mut self.outputs[target]
    }
}

/// When a call has made so much, it leaves the rest of the batch to the next one.
const OUTPUT_BYTES_ENOUGH: usize = 4 << 20;

/// A [`Transform`] as the [`Consumer`] that the broker runs.
#[derive(Debug)]
pub struct Transforming<T> {
    transform: T,
    targets: usize,
}

impl<T: Transform> Consumer for Transforming<T> {
    fn describe() -> Description {
        T::describe()
    }

    fn new(ctx: &Context) -> Result<Self, String> {
        Ok(Self { transform: T::new(ctx)?, targets: ctx.targets().len() })
    }

    fn fields(&self) -> Fields {
        self.transform.fields()
    }

    fn handle(&mut self, batch: &Batch) -> Result<Outcome, Failure> {
        let mut outputs = vec![Output::new(); self.targets];
        let mut rejections = Vec::new();
        let mut marks = Vec::with_capacity(self.targets);
        let mut processed = 0;
        for input in batch {
            marks.clear();
            marks.extend(outputs.iter().map(|output| (output.data.len(), output.index.len())));
            if let Err(reason) =
                self.transform.transform(&input, &mut Emitter { outputs: &mut outputs, input })
            {
                undo(&mut outputs, &marks);
                rejections.push(Rejection { ordinal: input.ordinal(), reason });
            }
            processed = input.ordinal() + 1;
            // The rest of the batch comes again: better than a call that outgrows its memory or its budget.
            if outputs.iter().map(Output::bytes).sum::<usize>() > OUTPUT_BYTES_ENOUGH {
                break;
            }
        }
        send_what_fits(&outputs, processed, rejections)
    }
}

/// Takes back what a refused record emitted.
fn undo(outputs: &mut [Output], marks: &[(usize, usize)]) {
    for (output, (data, index)) in outputs.iter_mut().zip(marks.iter().chain(std::iter::repeat(&(0, 0)))) {
        output.data.truncate(*data);
        output.index.truncate(*index);
    }
}

/// Sends the outputs of as many records from the batch's start as the call's budget allows; the rest of the batch comes again.
fn send_what_fits(
    outputs: &[Output],
    records: u32,
    mut rejections: Vec<Rejection>,
) -> Result<Outcome, Failure> {
    let mut processed = records;
    let mut sent_any = false;
    for (target, output) in outputs.iter().enumerate().filter(|(_, output)| !output.is_empty()) {
        loop {
            let prefix = if processed == records { None } else { Some(output.prefix(processed)) };
            let output = prefix.as_ref().unwrap_or(output);
            if output.is_empty() {
                break;
            }
            match emit::send(Target(target as u32), output) {
                Ok(()) => {
                    sent_any = true;
                    break;
                }
                // What an earlier target has taken can't be taken back, except with the whole call: the broker then splits the batch.
                Err(EmitError::OverBudget) if sent_any => {
                    return Err(Failure::retry("the outputs of this batch are over the budget of one call"));
                }
                Err(EmitError::OverBudget) if processed > 1 => processed = processed.div_ceil(2),
                Err(EmitError::OverBudget) => {
                    let reason =
                        "what was made of this record alone is over the budget of one call".to_owned();
                    return Ok(Outcome { processed: 1, rejections: vec![Rejection { ordinal: 0, reason }] });
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    rejections.retain(|rejection| rejection.ordinal < processed);
    Ok(Outcome { processed, rejections })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Setup, TestRecord, batch_of};

    /// Emits each value to both targets, twice to the second; refuses `no` after emitting it.
    struct Copies;

    impl Transform for Copies {
        fn describe() -> Description {
            Description::new("test")
        }

        fn new(_: &Context) -> Result<Self, String> {
            Ok(Self)
        }

        fn fields(&self) -> Fields {
            Fields::ALL
        }

        fn transform(&mut self, record: &Record<'_>, out: &mut Emitter<'_>) -> Result<(), String> {
            out.forward(Target(0));
            out.forward(Target(1));
            out.record(Target(1)).value("again").push();
            if record.value() == Some(b"no") { Err("it says no".to_owned()) } else { Ok(()) }
        }
    }

    fn values(records: &[TestRecord]) -> Vec<String> {
        records.iter().map(TestRecord::value_text).collect()
    }

    #[test]
    fn a_refused_record_leaves_nothing() {
        let mut copies = Setup::new().target("a").target("b").transform::<Copies>().unwrap();
        let outcome = copies.handle(&batch_of([("k", "1"), ("k", "no"), ("k", "2")])).unwrap();
        assert_eq!((outcome.processed, outcome.rejections.len(), outcome.rejections[0].ordinal), (3, 1, 1));
        assert_eq!(values(&copies.emitted("a")), ["1", "2"]);
        assert_eq!(values(&copies.emitted("b")), ["1", "again", "2", "again"]);
    }

    #[test]
    fn what_is_over_the_budget_comes_again() {
        struct One;
        impl Transform for One {
            fn describe() -> Description {
                Description::new("test")
            }
            fn new(_: &Context) -> Result<Self, String> {
                Ok(Self)
            }
            fn transform(&mut self, record: &Record<'_>, out: &mut Emitter<'_>) -> Result<(), String> {
                out.record(Target(0)).value_of(record).push();
                Ok(())
            }
        }
        let mut one = Setup::new().target("a").emit_bytes_max(100).transform::<One>().unwrap();
        let records: Vec<TestRecord> = (0..7).map(|i| TestRecord::value(format!("{i:010}"))).collect();
        let mut handled = 0;
        while handled < records.len() {
            handled += one.handle(&batch_of(records[handled..].iter().cloned())).unwrap().processed as usize;
        }
        assert_eq!(values(&one.emitted("a")), values(&records));
        let outcome =
            one.handle(&batch_of([TestRecord::value("x".repeat(99)), TestRecord::value("y")])).unwrap();
        assert_eq!((outcome.processed, outcome.rejections[0].ordinal), (1, 0));
    }

    #[test]
    fn a_batch_is_split_where_a_later_target_is_over_the_budget() {
        let mut copies =
            Setup::new().target("a").target("b").emit_bytes_max(150).transform::<Copies>().unwrap();
        assert!(matches!(copies.handle(&batch_of([("k", "1"), ("k", "2")])), Err(Failure::Retry(_))));
        assert!(copies.emitted("a").is_empty());
        assert_eq!(copies.handle(&batch_of([("k", "1")])).unwrap().processed, 1);
    }

    #[test]
    fn a_call_that_made_much_leaves_the_rest() {
        let mut copies = Setup::new().target("a").target("b").transform::<Copies>().unwrap();
        let large = "x".repeat(OUTPUT_BYTES_ENOUGH / 4);
        let outcome = copies.handle(&batch_of([("k", large.as_str()); 5])).unwrap();
        assert_eq!(outcome.processed, 2);
    }
}
