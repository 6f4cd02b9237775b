//! What the broker's code warns of goes into the trace.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::trace::Trace;

/// Notes warnings and errors of the thread that it is set for.
pub(crate) struct Notes(pub(crate) Trace);

impl Subscriber for Notes {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN && metadata.is_event()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.note(format_args!(
            "{}:{}",
            event.metadata().level(),
            without_times(&text.0.replace('\n', " "))
        ));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// openraft tells the time by the clock on the wall, which is another in each run: `06:13:37.935495`.
fn without_times(text: &str) -> String {
    const TIME_BYTES: usize = 15;
    let is_time = |time: &&str| matches!(time.as_bytes(), [_, _, b':', _, _, b':', _, _, b'.', ..]);
    let mut kept = String::new();
    for word in text.split_inclusive(' ') {
        let time = word.get(..TIME_BYTES).filter(is_time);
        kept.push_str(time.map_or(word, |_| &word[TIME_BYTES..]));
    }
    kept
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _written = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
