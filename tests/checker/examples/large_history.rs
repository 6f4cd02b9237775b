//! Writes a large history in which nothing is wrong, from four threads, to see what recording and checking cost:
//!
//! ```sh
//! cargo run --release -p tidemill-checker --example large_history -- 10000000 large.jsonl
//! command time -v cargo run --release -p tidemill-checker --bin checker -- large.jsonl
//! ```

use std::error::Error;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tidemill_checker::{Event, Header, RecordId, Recorder, Run, Span, TopicPartition};

const PARTITIONS: u32 = 12;
const PRODUCERS: u32 = 4;
const BROKERS: u32 = 3;
/// Records of a poll, and of an event of a replica's records.
const READ_RECORDS: usize = 200;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, records, path] = &arguments[..] else { return Err("usage: large_history RECORDS FILE".into()) };
    let each = records.parse::<u64>()? / u64::from(PRODUCERS);
    let recorder = Recorder::create(Path::new(path), &Header::new("large", 0))?;
    let topic = "t".to_owned();
    recorder.record(&Event::Topic { topic, partitions: PARTITIONS, dense: true, compacted: false });
    let logs: Vec<Mutex<Vec<RecordId>>> = (0..PARTITIONS).map(|_| Mutex::default()).collect();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for producer in 0..PRODUCERS {
            let (recorder, logs) = (recorder.clone(), &logs);
            scope.spawn(move || produce(&recorder, producer, each, logs));
        }
    });
    let recorded = recorder.finish()?;
    let seconds = begun.elapsed().as_secs_f64();
    println!("{} events of producers recorded in {seconds:.1} s", recorded.events);
    for (partition, log) in (0..).zip(&logs) {
        let log = log.lock().unwrap_or_else(PoisonError::into_inner);
        read(&recorder, &TopicPartition::new("t", partition), &log);
    }
    let recorded = recorder.finish()?;
    println!("{} events, {} MB", recorded.events, recorded.bytes / 1_000_000);
    Ok(())
}

fn produce(recorder: &Recorder, producer: u32, records: u64, logs: &[Mutex<Vec<RecordId>>]) {
    let process = format!("p{producer}");
    recorder.record(&Event::Producer { producer, process, topic: "t".to_owned(), idempotent: true });
    for sequence in 0..records {
        let (id, partition) =
            (RecordId::new(producer, sequence), (sequence * 7 % u64::from(PARTITIONS)) as u32);
        let records = Span::one(id);
        recorder.record(&Event::Send { records, partition: Some(partition), transaction: None });
        let offset = {
            let mut log = logs[partition as usize].lock().unwrap_or_else(PoisonError::into_inner);
            log.push(id);
            log.len() as u64 - 1
        };
        let (partition, offset) = (Some(partition), Some(offset));
        recorder.record(&Event::Sent { records, partition, offset, duplicate: false });
    }
}

/// One consumer and three replicas.
fn read(recorder: &Recorder, partition: &TopicPartition, log: &[RecordId]) {
    let end = log.len() as u64;
    let chunks = || {
        (0u64..).step_by(READ_RECORDS).zip(log.chunks(READ_RECORDS)).map(|(first, ids)| {
            (partition.clone(), Run::gather((first..).zip(ids.iter().copied())), Vec::new())
        })
    };
    for (partition, runs, damaged) in chunks() {
        recorder.record(&Event::Poll { process: "c".to_owned(), partition, runs, damaged, next: None });
    }
    recorder.record(&Event::Drained { process: "c".to_owned(), partition: partition.clone() });
    for broker in 0..BROKERS {
        let (partition, segments) = (partition.clone(), Vec::new());
        recorder.record(&Event::Replica { broker, partition, log_start: 0, end, segments });
        for (partition, runs, damaged) in chunks() {
            recorder.record(&Event::Stored { broker, partition, runs, damaged });
        }
    }
}
