//! `tidemill plugin test`: what it prints, and how it ends.

#[allow(unreachable_pub, reason = "a library shares it")]
#[path = "../../../tests/fixtures/skips.rs"]
mod skips;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;
use tidemill_hostile as hostile;
use tidemill_hostile::{Misdeed, World};

/// A directory with a component and a file of records.
struct Bench {
    directory: TempDir,
}

/// How a command ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Three records, the second without a key.
const RECORDS: &str = r#"{"key":"a","value":"first","timestamp":1000}
{"value":"second","timestamp":2000}
{"key":"ccc","value":{"n":3},"timestamp":3000,"headers":{"h":"1"}}
"#;

impl Bench {
    fn new(component: &[u8], records: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("tested.wasm"), component).expect("it can be written");
        std::fs::write(directory.path().join("records.txt"), records).expect("it can be written");
        Self { directory }
    }

    fn test(&self, arguments: &[&str]) -> Ended {
        let fixed = ["plugin", "test", "tested.wasm", "--input", "records.txt"];
        ended(tidemill(self.directory.path()).args(fixed).args(arguments).output())
    }

    /// Of `RECORDS`, all of it as JSON.
    fn json(&self, arguments: &[&str]) -> (Ended, Vec<Value>) {
        let ended = self.test(&[&["--format", "json", "--json"], arguments].concat());
        let lines =
            ended.out.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
        (ended, lines)
    }
}

fn tidemill(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemill"));
    command.current_dir(directory).env("HOME", directory).env_remove("TIDEMILL_ADDRESS");
    command
}

fn ended(output: std::io::Result<Output>) -> Ended {
    let output = output.expect("the binary runs");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

fn tested(component: &[u8], arguments: &[&str]) -> Ended {
    Bench::new(component, RECORDS).test(&[&["--format", "json"], arguments].concat())
}

/// The lines that have this field.
fn with<'l>(lines: &'l [Value], field: &str) -> Vec<&'l Value> {
    lines.iter().filter(|line| line.get(field).is_some()).collect()
}

#[test]
fn a_filters_verdicts_are_a_table_and_a_summary() {
    let ended = tested(&hostile::keep_with_key(), &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let line = |start: &str| {
        let found = ended.out.lines().find(|line| line.trim_start().starts_with(start));
        found.unwrap_or_else(|| panic!("no line begins with '{start}':\n{}", ended.out)).to_owned()
    };
    assert!(ended.out.starts_with("tested.wasm: a filter of "), "{}", ended.out);
    let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(cells(&line("0 "))[..4], ["0", "a", "first", "keep"]);
    assert_eq!(cells(&line("1 "))[..4], ["1", "-", "second", "drop"]);
    assert_eq!(cells(&line("2 "))[..4], ["2", "ccc", "{\"n\":3}", "keep"]);
    assert_eq!(cells(&line("kept")), ["kept", "2"]);
    assert_eq!(cells(&line("dropped")), ["dropped", "1"]);
    assert!(line("bytes").contains(" in, ") && line("bytes").ends_with(" out"), "{}", line("bytes"));
    assert!(line("time per record").contains(" cpu"), "{}", ended.out);
    assert!(line("memory").contains("of 64.0 MiB"), "{}", ended.out);
    assert!(line("second run").contains("2 calls") && line("second run").contains("the same answers"));
}

#[test]
fn no_more_is_shown_than_was_asked_for() {
    let ended = tested(&hostile::keep_with_key(), &["--show", "1"]);
    assert!(ended.out.contains("1 of 3 records are shown; --show 3 shows all"), "{}", ended.out);
    assert!(!ended.out.contains("ccc"), "{}", ended.out);
    let none = tested(&hostile::keep_with_key(), &["--show", "0"]);
    assert!(!none.out.contains("RECORD") && none.out.contains("kept"), "{}", none.out);
}

#[test]
fn every_record_is_a_line_of_json_and_the_summary_the_last() {
    let bench = Bench::new(&hostile::keep_with_key(), RECORDS);
    let (ended, lines) = bench.json(&["--show", "1"]);
    assert_eq!((ended.code, lines.len()), (Some(0), 4), "{ended:?}");
    let answers: Vec<_> = lines[..3].iter().map(|line| line["answer"].as_str().expect("text")).collect();
    assert_eq!(answers, ["kept", "dropped", "kept"]);
    assert_eq!(
        (&lines[1]["record"], &lines[1]["key"], &lines[1]["timestamp"]),
        (&1.into(), &Value::Null, &2000.into())
    );
    for field in ["wall_ns", "cpu_ns", "memory_bytes"] {
        assert!(lines[0][field].as_u64().is_some_and(|value| value > 0), "{field}: {}", lines[0]);
    }
    let summary = &lines[3]["summary"];
    assert_eq!((&summary["outcome"], &summary["kind"]), (&"ok".into(), &"filter".into()));
    assert_eq!((&summary["answers"]["kept"], &summary["answers"]["dropped"]), (&2.into(), &1.into()));
    assert!(summary["bytes_out"].as_u64() < summary["bytes_in"].as_u64(), "{summary}");
    assert_eq!((&summary["calls"], &summary["second_run_calls"]), (&1.into(), &2.into()));
}

#[test]
fn replaced_and_rejected_records_are_shown_with_what_became_of_them() {
    let one = r#"{"key":"k","value":"v","timestamp":5}"#;
    let (ended, lines) = Bench::new(&hostile::redact_first(), one).json(&[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(lines[0]["answer"], "replaced");
    assert_eq!((&lines[0]["contents"]["key"], &lines[0]["contents"]["value"]), (&"k".into(), &Value::Null));
    let (_, lines) = Bench::new(&hostile::reject_one(0), one).json(&[]);
    assert_eq!((&lines[0]["answer"], &lines[0]["reason"]), (&"rejected".into(), &"not this one".into()));
}

#[test]
fn a_partitioners_answers_and_how_they_are_spread() {
    let bench = Bench::new(&hostile::by_key_length(), RECORDS);
    let (ended, lines) = bench.json(&["--partitions", "2"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let partitions: Vec<_> = lines[..3].iter().map(|line| line["partition"].clone()).collect();
    assert_eq!(partitions, [Value::from(1), Value::Null, Value::from(1)]);
    let summary = &lines[3]["summary"];
    assert_eq!((&summary["distribution"]["1"], &summary["distribution"]["any"]), (&2.into(), &1.into()));
    let human = bench.test(&["--format", "json", "--partitions", "2"]);
    assert!(human.out.contains("distribution     0: 0, 1: 2, any: 1"), "{}", human.out);
}

#[test]
fn a_consumers_outputs_state_and_timers() {
    let bench = Bench::new(&hostile::does_everything(), RECORDS);
    // Each record a second after the one before: the timer that each sets again fires in between.
    let arguments = ["--target", "copies:1", "--run-timers-for", "5s", "--outputs", "all"];
    let (ended, lines) = bench.json(&[&["--batch", "1"], &arguments[..]].concat());
    // In other calls the timer is set by other records.
    assert_eq!(ended.code, Some(6), "{ended:?}");
    let emitted = with(&lines, "emitted");
    let values: Vec<_> =
        emitted.iter().map(|line| line["emitted"]["value"].as_str().expect("text")).collect();
    assert_eq!(values, ["first", "tick", "second", "tick", "{\"n\":3}", "tick"]);
    assert_eq!((&emitted[1]["topic"], &emitted[1]["after_record"]), (&"copies".into(), &0.into()));
    let fired: Vec<_> =
        with(&lines, "fired").iter().map(|line| line["at"].as_i64().expect("a time")).collect();
    assert_eq!(fired, [2000, 3000, 4000]);
    assert!(with(&lines, "timer").is_empty(), "all have fired");
    assert_eq!(with(&lines, "state")[0]["state"], "n");
    let summary = &lines.last().expect("lines")["summary"];
    assert_eq!(
        (&summary["emitted"], &summary["timers_fired"], &summary["state_keys"]),
        (&6.into(), &3.into(), &1.into())
    );
}

#[test]
fn a_consumer_that_keeps_its_promises_passes() {
    let bench = Bench::new(&hostile::rejects_null_keys(), RECORDS);
    let (ended, lines) = bench.json(&[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!((&lines[0]["answer"], &lines[1]["answer"]), (&"handled".into(), &"rejected".into()));
    assert_eq!(lines[1]["reason"], "not this one");
    let counting = tested(&hostile::count_in_state(), &["--batch", "2"]);
    assert_eq!(counting.code, Some(0), "{counting:?}");
    assert!(counting.out.contains("state            1 key at the end"), "{}", counting.out);
}

#[test]
fn an_answer_that_depends_on_the_cuts_fails_and_names_the_first_record() {
    for (component, first, second) in [
        (hostile::keeps_the_first_of_each_call(), "first run:  drop", "second run: keep"),
        (hostile::places_in_turn(), "first run:  partition 1", "second run: partition 0"),
    ] {
        let ended = tested(&component, &[]);
        assert_eq!(ended.code, Some(6), "{ended:?}");
        assert!(ended.err.contains("how records are cut into calls"), "{}", ended.err);
        assert!(ended.err.contains("record 1 (key null, value \"second\")"), "{}", ended.err);
        assert!(ended.err.contains(first) && ended.err.contains(second), "{}", ended.err);
        assert!(ended.err.contains("(in a call of records 0 to 2)"), "{}", ended.err);
    }
    let (_, lines) = Bench::new(&hostile::keeps_the_first_of_each_call(), RECORDS).json(&[]);
    let summary = &lines.last().expect("lines")["summary"];
    assert_eq!(summary["outcome"], "differs");
    assert!(summary["difference"].as_str().is_some_and(|text| text.contains("record 1")), "{summary}");
}

#[test]
fn an_answer_that_depends_on_an_instances_memory_fails() {
    let filter = tested(&hostile::keeps_its_first_call(), &["--batch", "2"]);
    assert_eq!(filter.code, Some(6), "{filter:?}");
    assert!(filter.err.contains("what its instance remembers"), "{}", filter.err);
    assert!(filter.err.contains("record 2 (key \"ccc\""), "{}", filter.err);
    let consumer = tested(&hostile::counts_in_memory(), &["--batch", "2"]);
    assert_eq!(consumer.code, Some(6), "{consumer:?}");
    assert!(consumer.err.contains("state at the end, key \"n\""), "{}", consumer.err);
}

#[test]
fn outputs_that_come_once_per_call_pass_where_only_the_last_counts() {
    let lines = "a=1\na=2\na=3\n";
    let bench = Bench::new(&hostile::emits_the_last_of_each_call(), lines);
    let arguments = ["--key-separator", "=", "--target", "results"];
    let strict = bench.test(&arguments);
    assert_eq!(strict.code, Some(6), "{strict:?}");
    assert!(strict.err.contains("test with --outputs last"), "{}", strict.err);
    let last = bench.test(&[&arguments[..], &["--outputs", "last"]].concat());
    assert_eq!(last.code, Some(0), "{last:?}");
}

#[test]
fn what_goes_wrong_in_a_call_names_the_record() {
    let quick = ["--call-time", "50ms", "--target", "t"];
    for (component, arguments, reason) in [
        (hostile::misbehaves_at_a_null_key(Misdeed::Trap), &quick[..], "trapped"),
        (hostile::misbehaves_at_a_null_key(Misdeed::Loop), &quick, "longer than 50 ms"),
        (hostile::misbehaves_at_a_null_key(Misdeed::Grow), &quick, "of memory"),
        (hostile::misbehaves_at_a_null_key(Misdeed::Retry), &quick, "failed for now: not this one"),
        (hostile::misbehaves_at_a_null_key(Misdeed::Reject), &quick, "refused the batch: not this one"),
    ] {
        let ended = tested(&component, arguments);
        assert_eq!(ended.code, Some(5), "{ended:?}");
        assert!(ended.err.contains("record 1 (key null, value \"second\")"), "{}", ended.err);
        assert!(ended.err.contains(reason), "{reason}: {}", ended.err);
        assert!(ended.out.contains("handled          1\n"), "what is before it is shown: {}", ended.out);
    }
    for (component, reason) in [
        (hostile::traps(World::Partitioner), "trapped"),
        (hostile::places_in(3), "partition 3, of 3"),
        (hostile::loops(World::Filter), "longer than 50 ms"),
        (hostile::bitmap_of(9), "the bitmap has 9 bytes"),
        (hostile::processes_too_many(), "1000000 records were processed, of 1"),
    ] {
        let ended = tested(&component, &["--call-time", "50ms"]);
        assert_eq!(ended.code, Some(5), "{ended:?}");
        assert!(ended.err.contains("record 0 (key \"a\", value \"first\")"), "{}", ended.err);
        assert!(ended.err.contains(reason), "{reason}: {}", ended.err);
    }
    let timers =
        tested(&hostile::misbehaves_in_timers(Misdeed::Trap), &["--target", "t", "--run-timers-for", "5s"]);
    assert_eq!(timers.code, Some(5), "{timers:?}");
    assert!(timers.err.contains("timer \"i\"") && timers.err.contains("trapped"), "{}", timers.err);
}

#[test]
fn what_can_not_begin_says_what_to_change() {
    for (component, arguments, reason) in [
        (hostile::refuses_its_config(World::Filter), &[][..], "not this one"),
        (hostile::wrong_world(), &[], "must export one of"),
        (hostile::core_module_only(), &[], "tidemill plugin build"),
        (hostile::forbidden_import(World::Filter), &[], "imports"),
        (hostile::does_not_validate(), &[], "does not compile"),
        (hostile::keep_all(), &["--target", "t"], "--target is for consumers, and tested.wasm is a filter"),
        (hostile::keep_all(), &["--partitions", "3"], "--partitions is for partitioners"),
        (hostile::keep_all(), &["--outputs", "last"], "--outputs is for consumers"),
    ] {
        let ended = tested(&component, arguments);
        assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{ended:?}");
        assert!(ended.err.contains(reason), "{reason}: {}", ended.err);
    }
    let start = tested(&hostile::traps_in_start(World::Filter), &[]);
    assert_eq!(start.code, Some(5), "{start:?}");
    for (records, reason) in [("", "no record in it"), ("{\"key\":\"a\"}\nnonsense\n", "line 2: ")] {
        let ended = Bench::new(&hostile::keep_all(), records).test(&["--format", "json"]);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.err.contains(reason), "{reason}: {}", ended.err);
    }
    let bench = Bench::new(&hostile::keep_all(), RECORDS);
    let missing = ["plugin", "test", "tested.wasm", "--input", "nowhere.txt"];
    let missing = ended(tidemill(bench.directory.path()).args(missing).output());
    assert_eq!(missing.code, Some(2), "{missing:?}");
    assert!(missing.err.contains("nowhere.txt"), "{}", missing.err);
}

/// The shown lines of a document, as a person types them into a shell; `tidemill` is the one under test.
fn typed(directory: &Path, script: &str) -> Ended {
    let binary = Path::new(env!("CARGO_BIN_EXE_tidemill")).parent().expect("its directory");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let paths = [binary.to_owned()].into_iter().chain(std::env::split_paths(&path));
    let path = std::env::join_paths(paths).expect("paths");
    ended(Command::new("sh").args(["-e", "-c", script]).current_dir(directory).env("PATH", path).output())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("it is there")
}

/// Needs the shipped plugins' components: runs where `TIDEMILL_COMPONENTS` says where they are.
#[test]
fn what_the_guide_shows_works_word_for_word() {
    let Some(components) = std::env::var_os("TIDEMILL_COMPONENTS") else {
        skips::skipped("needs the shipped plugins' components, which TIDEMILL_COMPONENTS names");
        return;
    };
    let guide = std::fs::read_to_string(root().join("docs/plugin-guide.md")).expect("the guide");
    let (_, section) = guide.split_once("## Trying it on records").expect("the section");
    let (_, rest) = section.split_once("```sh\n").expect("a block");
    let (script, _) = rest.split_once("```").expect("its end");
    assert_eq!(script.matches("tidemill plugin test").count(), 3, "{script}");
    let directory = tempfile::tempdir().expect("a directory");
    let there = directory.path().join("target/plugins");
    std::fs::create_dir_all(&there).expect("a directory");
    std::os::unix::fs::symlink(root().join(components), there.join("components")).expect("a link");
    let ended = typed(directory.path(), script);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.out.matches("the same answers").count(), 3, "{}", ended.out);
}

/// Needs a toolchain for WebAssembly, and some minutes the first time: runs where `TIDEMILL_TEST_COMPONENTS=1` asks for it.
#[test]
fn what_a_new_crates_readme_shows_works_word_for_word() {
    if !std::env::var("TIDEMILL_TEST_COMPONENTS").is_ok_and(|value| value == "1") {
        skips::skipped("takes minutes; `cargo xtask test --all` runs it (TIDEMILL_TEST_COMPONENTS=1)");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    // One for all of them, so that the SDK is compiled once.
    let target = directory.path().join("target");
    std::fs::create_dir(&target).expect("a directory");
    for (kind, shown) in [
        ("filter", "kept             2\n"),
        ("partitioner", "placed           3\n"),
        ("consumer", "rejected         1\n"),
        ("transform", "emitted          6 records"),
    ] {
        let name = format!("my-{kind}");
        let made = typed(directory.path(), &format!("tidemill plugin new {name} --kind {kind}"));
        assert_eq!(made.code, Some(0), "{made:?}");
        let crate_directory = directory.path().join(&name);
        std::os::unix::fs::symlink(&target, crate_directory.join("target")).expect("a link");
        let readme = std::fs::read_to_string(crate_directory.join("README.md")).expect("a README");
        let commands: Vec<&str> = readme
            .lines()
            .filter(|line| {
                line.starts_with("    tidemill plugin build") || line.starts_with("    tidemill plugin test")
            })
            .collect();
        assert_eq!(commands.len(), 2, "{readme}");
        let ended = typed(&crate_directory, &commands.join("\n"));
        assert_eq!(ended.code, Some(0), "{kind}: {ended:?}");
        assert!(ended.out.contains(shown), "{kind}: {}", ended.out);
    }
}
