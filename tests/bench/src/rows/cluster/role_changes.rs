//! Who stood for election and who won, from what brokers log.

use serde::Deserialize;

/// What a broker says when a replica's part in its group changes: broker/raft/src/supervisor.rs.
const MESSAGE: &str = "replica changed its role";
const DAY_SECONDS: f64 = 86_400.0;
/// What lies further behind is from before.
const LATEST_SECONDS: f64 = 3_600.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Stands,
    Leads,
}

#[derive(Deserialize)]
struct Line {
    timestamp: String,
    fields: Fields,
}

#[derive(Deserialize)]
struct Fields {
    message: String,
    shard: Option<String>,
    state: Option<String>,
}

/// The elections of a shard in the lines of a log: what happened, and how many seconds after a time of day.
pub(super) fn turns_after(log: &str, shard: u32, second_of_day: f64) -> Vec<(Turn, f64)> {
    let shard = shard.to_string();
    let turn = |line: &str| {
        let line: Line = serde_json::from_str(line).ok()?;
        if line.fields.message != MESSAGE || line.fields.shard.as_deref() != Some(&*shard) {
            return None;
        }
        let turn = match line.fields.state.as_deref()? {
            "Candidate" => Turn::Stands,
            "Leader" => Turn::Leads,
            _ => return None,
        };
        let after = (time_of_day(&line.timestamp)? - second_of_day).rem_euclid(DAY_SECONDS);
        (after < LATEST_SECONDS).then_some((turn, after))
    };
    // Most lines say other things: they are not worth parsing.
    log.lines().filter(|line| line.contains(MESSAGE)).filter_map(turn).collect()
}

/// Seconds since midnight, UTC.
pub(super) fn second_of_day(time: std::time::SystemTime) -> f64 {
    let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    since.as_secs_f64().rem_euclid(DAY_SECONDS)
}

/// Of `2026-01-31T23:59:59.123456Z`.
fn time_of_day(timestamp: &str) -> Option<f64> {
    let time = timestamp.split_once('T')?.1.strip_suffix('Z')?;
    let mut parts = time.split(':').map(|part| part.parse::<f64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    Some(hours * 3_600.0 + minutes * 60.0 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elections_are_read_from_the_lines_of_their_shard() {
        let line = |at: &str, shard: u32, state: &str| {
            format!(
                r#"{{"timestamp":"2026-11-26T{at}Z","level":"INFO","fields":{{"message":"replica changed its role","shard":"{shard}","state":"{state}","term":"5"}},"target":"tidemill_raft::supervisor"}}"#
            )
        };
        let log = [
            line("12:00:00.500000", 3, "Leader"),
            r#"{"timestamp":"2026-11-26T12:00:02.000000Z","fields":{"message":"serving"}}"#.to_owned(),
            line("12:00:02.250000", 3, "Candidate"),
            line("12:00:02.300000", 4, "Leader"),
            "cut off".to_owned(),
            line("12:00:02.750000", 3, "Leader"),
            line("12:00:02.800000", 3, "Follower"),
        ]
        .join("\n");
        let noon = 12.0 * 3_600.0;
        assert_eq!(turns_after(&log, 3, noon + 1.0), [(Turn::Stands, 1.25), (Turn::Leads, 1.75)]);
        assert!(turns_after(&log, 5, noon).is_empty());
    }

    #[test]
    fn midnight_comes_between() {
        assert_eq!(time_of_day("2026-01-31T23:59:59.500000Z"), Some(86_399.5));
        assert_eq!(time_of_day("yesterday"), None);
        let log = r#"{"timestamp":"2026-02-01T00:00:00.500000Z","fields":{"message":"replica changed its role","shard":"1","state":"Leader"}}"#;
        assert_eq!(turns_after(log, 1, 86_399.5), [(Turn::Leads, 1.0)]);
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(3 * 86_400 + 7);
        assert_eq!(second_of_day(time), 7.0);
    }
}
