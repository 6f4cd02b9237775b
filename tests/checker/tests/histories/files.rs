//! Histories in files, and the recorder that writes them.

use std::io::{self, Write};
use std::process::Command;
use std::sync::{Arc, Mutex};

use tidemill_checker::{
    Checker, Event, EventError, Header, History, HistoryError, Kind, RecordId, Recorder, Span, check_events,
    check_file,
};

use crate::kit::{id, of, story};

fn file(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("tidemill-checker-{}-{name}", std::process::id()))
}

#[test]
fn what_was_recorded_is_read_back_and_checked() {
    let path = file("good");
    let story = story().put(0, 5).poll("c", &[(0, 0), (1, 1), (3, 3)]).polls("d", 0, 5);
    let recorder = Recorder::create(&path, &Header::new("by hand", 7)).unwrap();
    story.events.iter().for_each(|event| recorder.record(event));
    let recorded = recorder.finish().unwrap();
    assert_eq!(
        (recorded.events, recorded.bytes),
        (story.events.len() as u64, path.metadata().unwrap().len())
    );

    let mut history = History::open(&path).unwrap();
    assert_eq!(history.header(), &Header::new("by hand", 7));
    for event in &story.events {
        assert_eq!(history.next().unwrap().unwrap().1, *event);
    }
    assert!(history.next().is_none());
    let report = check_file(&path, Checker::new()).unwrap();
    assert_eq!(report.kinds(), [Kind::InternalPollSkip]);
    assert_eq!(report.to_string(), story.report().to_string());
    assert_eq!(report.findings[0].evidence[0].line, 4, "{report}");

    let output = Command::new(env!("CARGO_BIN_EXE_checker")).arg(&path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!((output.status.code(), text.trim_end()), (Some(1), report.to_string().as_str()));
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn the_program_says_how_it_ended() {
    let path = file("ends");
    let run = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_checker")).arg(&path).arg("--json").output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let header = r#"{"tidemill_history":1,"name":"x"}"#;
    assert_eq!(run(&format!("{header}\n")), (Some(0), String::new()));
    let (code, said) = run("");
    assert!(code == Some(2) && said.contains("is empty"), "{said}");
    let (code, said) = run(&header.replace('1', "2"));
    assert!(code == Some(2) && said.contains("of version 2"), "{said}");
    let (code, said) = run(&format!("{header}\n{{\"note\":{{\"text\":\"kill 1\"}}}}\n{{\"nope\":1}}\n"));
    assert!(code == Some(2) && said.contains("line 3"), "{said}");
    // Cut off in the middle of a line, as by a kill.
    assert_eq!(run(&format!("{header}\n{{\"nope\"")).0, Some(0));
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn events_that_cannot_be_are_refused_with_their_line() {
    let refused = |event: Event| match check_events(&[event], Checker::new()) {
        Err(HistoryError::Event { line: 2, error }) => error,
        other => panic!("{other:?}"),
    };
    let far = Span { first: RecordId::new(0, u64::MAX - 1), count: 1 };
    let many = Span { first: id(0), count: u32::MAX };
    let stranger = RecordId::new(9, 0);
    assert_eq!(refused(Event::Unknown { records: far }), EventError::TooLarge);
    assert_eq!(refused(Event::Unknown { records: many }), EventError::TooLarge);
    assert_eq!(
        refused(Event::Unknown { records: Span::one(stranger) }),
        EventError::UnknownProducer { producer: 9 }
    );
    let stored = story().stored(3, 0, &[(0, 0)]).events.pop().unwrap();
    assert_eq!(refused(stored), EventError::UnknownReplica { broker: 3 });
}

/// Takes some bytes, then fails.
struct Full(Arc<Mutex<usize>>);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut room = self.0.lock().unwrap();
        let taken = bytes.len().min(*room);
        *room -= taken;
        if taken == 0 { Err(io::Error::new(io::ErrorKind::StorageFull, "full")) } else { Ok(taken) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_recorder_that_can_not_write_says_so() {
    let recorder =
        Recorder::new(Box::new(Full(Arc::new(Mutex::new(3 << 20)))), &Header::new("full", 0)).unwrap();
    for _ in 0..40_000 {
        recorder.record(&Event::Note { text: of(&"x".repeat(100)) });
    }
    assert_eq!(recorder.finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
}

#[test]
fn many_threads_record_whole_lines_each_in_its_order() {
    let path = file("threads");
    let recorder = Recorder::create(&path, &Header::new("threads", 0)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let recorder = recorder.clone();
            scope.spawn(move || {
                for sequence in 0..5_000 {
                    let records = Span::one(RecordId::new(thread, sequence));
                    recorder.record(&Event::Unknown { records });
                }
            });
        }
    });
    assert_eq!(recorder.finish().unwrap().events, 20_000);
    let mut next = [0u64; 4];
    for event in History::open(&path).unwrap() {
        let (_, event) = event.unwrap();
        let Event::Unknown { records } = event else { panic!("{event:?}") };
        let next = &mut next[records.first.producer as usize];
        assert_eq!(records.first.sequence, *next);
        *next += 1;
    }
    assert_eq!(next, [5_000; 4]);
    std::fs::remove_file(&path).unwrap();
}
