//! Fields of JSON values by path, read without a document tree.
//!
//! ```
//! use tidemill_plugin::json::{Reach, Selector, Value};
//!
//! let selector = Selector::parse(["user.id", "tags.0"]).unwrap();
//! let mut found = [None, None];
//! selector.find(br#"{"user":{"id":7},"tags":["new","sale"]}"#, Reach::UntilFound, &mut found).unwrap();
//! assert_eq!(found[0].unwrap().bytes(), b"7");
//! assert!(found[1].unwrap() == "new");
//! ```
//!
//! A document is read once, from its start, for all paths together; nothing is allocated unless a string holds escapes. Where a
//! name occurs twice in an object, its first occurrence counts.

mod number;
mod path;
mod plain;
mod scan;
mod selector;
mod text;
mod value;

pub use number::{InvalidNumber, Number, NumberBuf};
pub use path::{InvalidPath, Path};
pub use scan::{DEPTH_MAX, Malformed};
pub use selector::{Match, Reach, SEGMENTS_MAX, Selector};
pub use text::{Text, write_text};
pub use value::{Raw, Value, entries};

use crate::batch::Record;

impl<'a> Record<'a> {
    /// A field of the value, by path. None where it is absent, or the value is null or not JSON as far as it was read.
    ///
    /// For several fields of each record, or a path with `*`, keep a [`Selector`]: it is read once, and looks for all in one pass.
    pub fn json_field(&self, path: &str) -> Option<Raw<'a>> {
        let value = self.value()?;
        if let Some(plain) = plain::PlainPath::of(path) {
            return plain.find(value);
        }
        let mut found = [None];
        Selector::parse([path]).ok()?.find(value, Reach::UntilFound, &mut found).ok()?;
        found[0]
    }
}
