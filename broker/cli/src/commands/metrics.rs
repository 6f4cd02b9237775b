//! `tidemill metrics`.

use serde_json::{Value, json};
use tidemill_client::Client;

use crate::error::CliError;
use crate::output;

pub(crate) async fn run(client: Client, json: bool) -> Result<(), CliError> {
    let text = client.metrics().await?;
    let samples: Vec<Value> = text.lines().filter_map(sample).collect();
    output::print(json, &json!(samples), || print!("{text}"))
}

/// `name{labels} value` as a document; nothing of comments.
fn sample(line: &str) -> Option<Value> {
    let (series, value) = line.rsplit_once(' ').filter(|_| !line.starts_with('#'))?;
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}')?),
        None => (series, ""),
    };
    let labels: serde_json::Map<String, Value> = labels
        .split("\",")
        .filter_map(|label| label.split_once("=\""))
        .map(|(name, value)| (name.to_owned(), json!(value.trim_end_matches('"'))))
        .collect();
    // Not every float is a number of JSON's.
    let value =
        value.parse::<f64>().ok().filter(|value| value.is_finite()).map_or(json!(value), |n| json!(n));
    Some(json!({ "name": name, "labels": labels, "value": value }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_names_labels_and_values() {
        assert_eq!(sample("# TYPE a counter"), None);
        assert_eq!(sample("").map(|_| ()), None);
        assert_eq!(sample("a_total 7"), Some(json!({ "name": "a_total", "labels": {}, "value": 7.0 })));
        let expected = json!({ "name": "b", "labels": { "code": "X, Y", "shard": "3" }, "value": "+Inf" });
        assert_eq!(sample(r#"b{code="X, Y",shard="3"} +Inf"#), Some(expected));
    }
}
