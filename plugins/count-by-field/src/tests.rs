//! Counts against what one would count by hand.

use tidemill_plugin::testing::{ConsumerTest, Setup, TestBatch, TestRecord, batch_of};

use super::*;

const MINUTE: i64 = 60_000;
const T0: i64 = 1_700_000_040_000;

fn plugin(config: &[(&str, &str)]) -> ConsumerTest<CountByField> {
    let setup = Setup::new().target("counts").config("field", "song");
    config
        .iter()
        .fold(setup, |setup, (key, value)| setup.config(key, value))
        .consumer()
        .unwrap_or_else(|error| panic!("{error}"))
}

fn play(song: &str, at: i64) -> TestRecord {
    TestRecord::value(format!("{{\"song\":\"{song}\"}}")).timestamp(at)
}

fn values(records: Vec<TestRecord>) -> Vec<String> {
    records.iter().map(TestRecord::value_text).collect()
}

#[test]
fn totals_are_emitted_once_per_batch_and_value() {
    let mut plugin = plugin(&[]);
    plugin.handle(&batch_of([play("b", 1), play("a", 2), play("b", 3)])).unwrap();
    let emitted = plugin.emitted("counts");
    assert_eq!(
        (emitted[1].key_text(), emitted[1].timestamp, emitted[1].ordinal),
        ("b".to_owned(), 3, Some(2))
    );
    assert_eq!(values(emitted), [r#"{"song":"a","count":1}"#, r#"{"song":"b","count":2}"#]);
    plugin.restart();
    plugin.handle(&batch_of([play("b", 4)])).unwrap();
    assert_eq!(values(plugin.emitted("counts")), [r#"{"song":"b","count":3}"#]);
    assert_eq!(plugin.state()["total:\"b\""], "3");
    assert_eq!(plugin.metrics()["counted"], 4);
}

#[test]
fn values_are_counted_by_type_and_meaning() {
    let mut plugin = plugin(&[]);
    let values = ["\"é \\\"x\\\"\"", "\"\\u00e9 \\\"x\\\"\"", "1", "1.0", "\"1\"", "true", "\"\""];
    plugin.handle(&batch_of(values.map(|value| TestRecord::value(format!("{{\"song\":{value}}}"))))).unwrap();
    let state = plugin.state();
    for (key, count) in [("\"é \\\"x\\\"\"", "2"), ("1", "2"), ("\"1\"", "1"), ("true", "1"), ("\"\"", "1")]
    {
        assert_eq!(state[&format!("total:{key}")], count, "{key}");
    }
}

#[test]
fn records_without_the_field_go_by_the_policy() {
    let long = format!("{{\"song\":\"{}\"}}", "x".repeat(600));
    let values = [
        "{}",
        "",
        "nonsense",
        "{\"song\":null}",
        "{\"song\":{}}",
        "{\"song\":[]}",
        &long,
        "{\"song\":\"a\"}",
    ];
    let batch = batch_of(values.into_iter().map(TestRecord::value).chain([TestRecord::null()]));
    let mut skip = plugin(&[]);
    assert!(skip.handle(&batch).unwrap().rejections.is_empty());
    assert_eq!((skip.state().len(), skip.metrics()["missing"]), (1, 8));
    let mut reject = plugin(&[("missing", "reject")]);
    let ordinals: Vec<u32> = reject.handle(&batch).unwrap().rejections.iter().map(|r| r.ordinal).collect();
    assert_eq!(ordinals, [0, 1, 2, 3, 4, 5, 6, 8]);
    let mut count = plugin(&[("missing", "count")]);
    count.handle(&batch).unwrap();
    assert_eq!(count.state()["total:null"], "8");
    let null = count.emitted("counts").into_iter().find(|record| record.key.is_none()).unwrap();
    assert_eq!(null.value_text(), r#"{"song":null,"count":8}"#);
}

#[test]
fn a_window_is_emitted_when_it_is_over() {
    let mut plugin = plugin(&[("window", "1m"), ("grace", "10s")]);
    let batch = |records: Vec<TestRecord>, now| TestBatch::new(records).now(now).build();
    plugin
        .handle(&batch(
            vec![play("a", T0), play("b", T0 + 1), play("a", T0 + MINUTE - 1), play("a", T0 + MINUTE)],
            T0 + MINUTE,
        ))
        .unwrap();
    plugin.advance(T0 + MINUTE + 9_999).unwrap();
    assert!(plugin.emitted("counts").is_empty());
    plugin.advance(T0 + MINUTE + 10_000).unwrap();
    assert_eq!(
        values(plugin.emitted("counts")),
        [
            r#"{"song":"a","count":2,"window_start":1700000040000,"window_end":1700000100000}"#,
            r#"{"song":"b","count":1,"window_start":1700000040000,"window_end":1700000100000}"#,
        ]
    );
    // Late, after the window was emitted: its new count, and only the one that changed.
    plugin.restart();
    plugin.handle(&batch(vec![play("a", T0 + 5)], T0 + MINUTE + 20_000)).unwrap();
    plugin.advance(T0 + MINUTE + 20_001).unwrap();
    assert_eq!(
        values(plugin.emitted("counts")),
        [r#"{"song":"a","count":3,"window_start":1700000040000,"window_end":1700000100000}"#]
    );
    plugin.advance(T0 + 3 * MINUTE).unwrap();
    assert_eq!(
        values(plugin.emitted("counts")),
        [r#"{"song":"a","count":1,"window_start":1700000100000,"window_end":1700000160000}"#]
    );
    assert!(plugin.timers().is_empty());
}

#[test]
fn a_replay_of_old_records_counts_all_of_them() {
    let mut plugin = plugin(&[("window", "1m")]);
    let now = T0 + 1_000 * MINUTE;
    for minute in 0..3 {
        let records = (0..10).map(|i| play("a", T0 + minute * MINUTE + i));
        plugin.handle(&TestBatch::new(records).now(now).build()).unwrap();
    }
    plugin.advance(now).unwrap();
    let counts = values(plugin.emitted("counts"));
    assert_eq!(counts.len(), 3);
    assert!(counts.iter().all(|value| value.contains("\"count\":10")));
}

#[test]
fn a_clock_far_ahead_counts_for_the_present() {
    let mut plugin = plugin(&[("window", "1m")]);
    plugin.handle(&TestBatch::new([play("a", T0 + 365 * 86_400_000)]).now(T0).build()).unwrap();
    plugin.handle(&TestBatch::new([play("old", -5)]).now(T0).build()).unwrap();
    plugin.advance(T0 + 2 * MINUTE).unwrap();
    let counts = values(plugin.emitted("counts"));
    assert!(counts[0].contains("\"old\"") && counts[0].contains("\"window_start\":0"), "{counts:?}");
    assert!(
        counts[1].contains("\"a\"") && counts[1].contains("\"window_start\":1700000040000"),
        "{counts:?}"
    );
}

#[test]
fn a_window_of_many_values_is_emitted_in_parts() {
    let mut plugin = plugin(&[("window", "1h")]);
    let songs = 10_000;
    let records = (0..songs).map(|i| play(&format!("s{i:05}"), T0));
    plugin.handle(&TestBatch::new(records).now(T0).build()).unwrap();
    // Timers go on a millisecond later.
    (0..9).for_each(|ms| plugin.advance(T0 + 120 * MINUTE + ms).unwrap());
    let mut keys: Vec<String> = plugin.emitted("counts").iter().map(TestRecord::key_text).collect();
    assert_eq!(keys.len(), songs);
    keys.dedup();
    assert_eq!(keys.len(), songs);
    assert!(plugin.timers().is_empty());
}

#[test]
fn without_a_target_counts_are_only_kept() {
    let mut plugin = Setup::new().config("field", "song").consumer::<CountByField>().unwrap();
    plugin.handle(&batch_of([play("a", 1)])).unwrap();
    assert_eq!(plugin.state()["total:\"a\""], "1");
    let two = Setup::new().config("field", "song").target("a").target("b");
    assert!(two.clone().consumer::<CountByField>().err().unwrap().contains("--set target="));
    assert!(two.config("target", "b").consumer::<CountByField>().is_ok());
}

#[test]
fn a_bad_configuration_is_refused() {
    let refused = |key: &str, value: &str| {
        Setup::new().config("field", "a").config(key, value).consumer::<CountByField>().err().unwrap()
    };
    assert!(refused("window", "60").contains("30s, 5m"));
    assert!(refused("window", "0s").contains("at least 1ms"));
    assert!(refused("window", "99999999d").contains("century"));
    assert!(Setup::new().config("field", "a.*").consumer::<CountByField>().err().unwrap().contains("no *"));
}

#[test]
fn state_that_is_full_fails_the_batch_and_keeps_nothing() {
    let mut plugin =
        Setup::new().config("field", "song").state_bytes_max(20).consumer::<CountByField>().unwrap();
    plugin.handle(&batch_of([play("a", 1)])).unwrap();
    assert!(matches!(
        plugin.handle(&batch_of([play("a", 2), play("b", 2), play("c", 2)])),
        Err(Failure::Retry(_))
    ));
    assert_eq!(plugin.state(), [("total:\"a\"".to_owned(), "1".to_owned())].into());
}
