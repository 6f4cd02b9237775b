//! Emits each word of a text as a record of its own.

use tidemill_plugin::prelude::*;

struct Words {
    shortest: usize,
}

impl Transform for Words {
    fn describe() -> Description {
        Description::new("Emits each word of a text.").with_default("shortest", "letters that a word has at least", "1")
    }

    fn new(ctx: &Context) -> Result<Self, String> {
        Ok(Self { shortest: ctx.parse("shortest")? })
    }

    fn transform(&mut self, record: &Record<'_>, out: &mut Emitter<'_>) -> Result<(), String> {
        let text = record.value_str().ok_or("the value is not text")?;
        for word in text.split_whitespace().filter(|word| word.chars().count() >= self.shortest) {
            out.record(Target(0)).key(word).value("1").push();
        }
        Ok(())
    }
}

tidemill_plugin::export_transform!(Words);

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_plugin::testing::{Setup, TestRecord, batch_of};

    #[test]
    fn each_word_becomes_a_record() {
        let mut words = Setup::new().target("words").config("shortest", "3").transform::<Words>().unwrap();
        words.handle(&batch_of([TestRecord::value("to be or not"), TestRecord::value("only this")])).unwrap();
        let keys: Vec<String> = words.emitted("words").iter().map(TestRecord::key_text).collect();
        assert_eq!(keys, ["not", "only", "this"]);
    }

    #[test]
    fn what_is_not_text_is_refused() {
        let mut words = Setup::new().target("words").transform::<Words>().unwrap();
        let outcome = words.handle(&batch_of([TestRecord::value([0xff])])).unwrap();
        assert_eq!(outcome.rejections[0].reason, "the value is not text");
    }
}
