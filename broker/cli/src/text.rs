//! What people type, parsed: sizes, durations, times, `KEY=VALUE`.

use std::fmt::Display;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidemill_client::{Offset, Position, Timestamp};

/// `10`, `64KiB`, `128MiB`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    text.trim()
        .parse::<bytesize::ByteSize>()
        .map(|size| size.as_u64())
        .map_err(|_| format!("'{text}' is not a size such as 4096, 64KiB or 1GiB"))
}

/// `500ms`, `10s`, `5m`, `2h`, `7d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text.trim())
        .map_err(|_| format!("'{text}' is not a duration such as 500ms, 10s, 5m, 2h or 7d"))
}

/// A duration, or `forever` as -1.
pub(crate) fn retention(text: &str) -> Result<i64, String> {
    if matches!(text, "forever" | "-1") {
        return Ok(-1);
    }
    i64::try_from(duration(text)?.as_millis()).map_err(|_| format!("'{text}' is too long"))
}

/// A size, or `unlimited` as -1.
pub(crate) fn size_or_unlimited(text: &str) -> Result<i64, String> {
    if matches!(text, "unlimited" | "-1") {
        return Ok(-1);
    }
    i64::try_from(size(text)?).map_err(|_| format!("'{text}' is too large"))
}

/// `earliest`, `latest`, an offset, `@MILLISECONDS`, `-5m` (ago), or a date such as 2026-03-01T12:00:00Z.
pub(crate) fn position(text: &str) -> Result<Position, String> {
    match text {
        "earliest" => return Ok(Position::Earliest),
        "latest" => return Ok(Position::Latest),
        _ => {}
    }
    if let Ok(offset) = text.parse::<i64>()
        && offset >= 0
    {
        return Ok(Position::Offset(Offset::new(offset)));
    }
    if let Some(ms) = text.strip_prefix('@') {
        let ms = ms.parse().map_err(|_| format!("'{text}': after @ come milliseconds since 1970"))?;
        return Ok(Position::Time(Timestamp::new(ms)));
    }
    if let Some(ago) = text.strip_prefix('-') {
        let ago = duration(ago)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        return Ok(Position::Time(timestamp(now.saturating_sub(ago))));
    }
    let at = humantime::parse_rfc3339_weak(&with_time(text)).map_err(|_| {
        format!(
            "'{text}' is not a position: earliest, latest, an offset, -5m (ago), @MILLISECONDS \
             or a UTC time such as 2026-03-01T12:00:00Z"
        )
    })?;
    Ok(Position::Time(timestamp(at.duration_since(UNIX_EPOCH).unwrap_or_default())))
}

/// A date alone means its midnight.
fn with_time(text: &str) -> String {
    if text.len() == "2026-03-01".len() { format!("{text}T00:00:00Z") } else { text.to_owned() }
}

fn timestamp(since_epoch: Duration) -> Timestamp {
    Timestamp::new(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

/// `2026-03-01T12:00:00.123Z`; `-` where there is no time.
pub(crate) fn time(at: i64) -> String {
    match u64::try_from(at) {
        // Beyond the year 9999 there is nothing to format.
        Ok(ms) if ms < 253_402_300_800_000 => {
            humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(ms)).to_string()
        }
        _ => "-".to_owned(),
    }
}

/// `1 replica`, `3 replicas`.
pub(crate) fn counted<N: Display + PartialEq + From<u8>>(count: N, what: &str) -> String {
    let plural = if count == N::from(1) { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// `KEY=VALUE`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    pair(text, "KEY")
}

/// `NAME=VALUE`.
pub(crate) fn name_value(text: &str) -> Result<(String, String), String> {
    pair(text, "NAME")
}

/// Two texts around the first `=`; the help calls the first one so.
fn pair(text: &str, first: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("'{text}' is not {first}=VALUE"))?;
    if key.is_empty() {
        return Err(format!("'{text}' has no {first} before the '='"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// `NAME` or `NAME@VERSION`.
pub(crate) fn name_version(text: &str) -> (String, String) {
    match text.split_once('@') {
        Some((name, version)) => (name.to_owned(), version.to_owned()),
        None => (text.to_owned(), String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_durations_and_pairs() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("64KiB"), Ok(64 << 10));
        assert_eq!(size("1GiB"), Ok(1 << 30));
        assert!(size("lots").is_err() && size("5 apples").is_err());
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(retention("forever"), Ok(-1));
        assert_eq!(retention("7d"), Ok(7 * 86_400_000));
        assert_eq!(key_value("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(key_value("=b").is_err());
        assert!(key_value("y").is_err_and(|reason| reason.contains("KEY=VALUE")));
        assert_eq!(name_value("a="), Ok(("a".into(), String::new())));
        assert!(name_value("y").is_err_and(|reason| reason.contains("NAME=VALUE")));
        assert_eq!(name_version("f@2"), ("f".into(), "2".into()));
        assert_eq!([counted(1, "shard"), counted(0, "shard")], ["1 shard", "0 shards"]);
    }

    #[test]
    fn positions_and_dates() {
        assert_eq!(position("earliest"), Ok(Position::Earliest));
        assert_eq!(position("17"), Ok(Position::Offset(Offset::new(17))));
        assert_eq!(position("@5"), Ok(Position::Time(Timestamp::new(5))));
        let at = |text| match position(text) {
            Ok(Position::Time(at)) => at.get(),
            other => panic!("{other:?}"),
        };
        assert_eq!(at("1970-01-02"), 86_400_000);
        assert_eq!(at("2026-03-01T12:00:00Z"), 1_772_366_400_000);
        assert_eq!(time(1_772_366_400_123), "2026-03-01T12:00:00.123Z");
        assert_eq!(time(at("2024-02-29T23:59:59Z")), "2024-02-29T23:59:59.000Z");
        assert!(position("yesterday").is_err() && position("2026-13-01").is_err());
    }
}
