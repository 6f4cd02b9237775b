//! Prints the tests' records, one JSON object per line.

use std::io::Write;

use clap::Parser;
use tidemill_cluster_tests::fixtures;

/// Prints the tests' records, one JSON object per line; what is no text is in hexadecimal.
#[derive(Parser)]
struct Arguments {
    /// The records follow from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many.
    #[arg(long, default_value_t = 3000)]
    count: usize,
}

fn main() -> std::io::Result<()> {
    let arguments = Arguments::parse();
    let mut out = std::io::stdout().lock();
    for record in fixtures::records(arguments.seed, arguments.count) {
        let headers: Vec<_> =
            record.headers.iter().map(|(name, value)| (name, text(value.as_deref()))).collect();
        let line = serde_json::json!({
            "timestamp": record.timestamp,
            "key": text(record.key.as_deref()),
            "value": text(record.value.as_deref()),
            "headers": headers,
        });
        writeln!(out, "{line}")?;
    }
    Ok(())
}

fn text(bytes: Option<&[u8]>) -> serde_json::Value {
    match bytes.map(std::str::from_utf8) {
        None => serde_json::Value::Null,
        Some(Ok(text)) => text.into(),
        Some(Err(_)) => {
            let hex: String = bytes.unwrap_or_default().iter().map(|byte| format!("{byte:02x}")).collect();
            serde_json::json!({ "hex": hex })
        }
    }
}
