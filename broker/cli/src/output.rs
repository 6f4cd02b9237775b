//! Tables for people, JSON for programs.
//!
//! Everything that a command says goes through [`say`]: `print!` and `println!` are this crate's own. The standard ones
//! panic where nobody reads any more, and `tidemill topic list | head -1` is an everyday thing to say.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde_json::{Value, json};

use crate::error::CliError;

/// As the standard one, through [`say`].
macro_rules! print {
    ($($words:tt)*) => { $crate::output::say(format_args!($($words)*)) };
}

/// As the standard one, through [`say`].
macro_rules! println {
    () => { $crate::output::say(format_args!("\n")) };
    ($($words:tt)*) => { $crate::output::say(format_args!("{}\n", format_args!($($words)*))) };
}

/// As the standard one; where nobody reads errors, nothing is left to be said.
macro_rules! eprintln {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}

/// Writes to standard output. A closed pipe is the reader's way to say that it has enough: the command ends quietly, and
/// well. Where the output can't be written it ends with an error.
pub(crate) fn say(words: Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    let Err(error) = out.write_fmt(words).and_then(|()| out.flush()) else { return };
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    eprintln!("error: the output can't be written: {error}");
    std::process::exit(1);
}

/// Prints a document as JSON where that was asked for; otherwise runs `human`.
pub(crate) fn print(json: bool, document: &Value, human: impl FnOnce()) -> Result<(), CliError> {
    if json {
        println!("{}", serde_json::to_string(document)?);
    } else {
        human();
    }
    Ok(())
}

/// Prints rows under headings; columns named in `right` are aligned to the right.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>], right: &[usize]) {
    if rows.is_empty() {
        println!("(none)");
        return;
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(headings.iter().map(|heading| heading.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("{table}");
}

/// `key  value` lines.
pub(crate) fn facts(facts: &[(&str, String)]) {
    let width = facts.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    for (key, value) in facts {
        println!("{key:width$}  {value}");
    }
}

/// Bytes for people: `1.5 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    bytesize::ByteSize::b(count).display().iec().to_string()
}

/// A millisecond duration for people; -1 is for ever.
pub(crate) fn duration(ms: i64) -> String {
    match ms {
        -1 => "for ever".to_owned(),
        0 => "0 ms".to_owned(),
        ms if ms % 86_400_000 == 0 => format!("{} d", ms / 86_400_000),
        ms if ms % 3_600_000 == 0 => format!("{} h", ms / 3_600_000),
        ms if ms % 1000 == 0 => format!("{} s", ms / 1000),
        ms => format!("{ms} ms"),
    }
}

/// Text as text, null as null, other bytes as `{"base16": ".."}`.
pub(crate) fn readable(bytes: Option<&[u8]>) -> Value {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => Value::Null,
        Some((_, Ok(text))) => Value::String(text.to_owned()),
        Some((bytes, Err(_))) => {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({ "base16": digits })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_well() {
        assert_eq!(bytes(12), "12 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 << 30), "5.0 GiB");
        assert_eq!(duration(-1), "for ever");
        assert_eq!(duration(7 * 86_400_000), "7 d");
        assert_eq!(duration(1500), "1500 ms");
    }
}
