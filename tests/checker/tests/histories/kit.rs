//! Histories in few words. Unless said otherwise, records are producer 0's, and lie in partition 0 of topic `t`.

use tidemill_checker::{
    Checker, Damaged, Event, Kind, RecordId, Report, Run, SealedSegment, Span, TopicPartition, check_events,
};

#[derive(Clone)]
pub(crate) struct Story {
    pub(crate) events: Vec<Event>,
}

pub(crate) fn of(text: &str) -> String {
    text.to_owned()
}

pub(crate) fn t(partition: u32) -> TopicPartition {
    TopicPartition::new("t", partition)
}

pub(crate) fn id(sequence: u64) -> RecordId {
    RecordId::new(0, sequence)
}

/// Two idempotent producers.
pub(crate) fn story() -> Story {
    let producer = |producer, process: &str| Event::Producer {
        producer,
        process: of(process),
        topic: of("t"),
        idempotent: true,
    };
    Story { events: vec![producer(0, "p0"), producer(1, "p1")] }
}

impl Story {
    pub(crate) fn and(mut self, event: Event) -> Self {
        self.events.push(event);
        self
    }

    pub(crate) fn topic(self, partitions: u32, dense: bool, compacted: bool) -> Self {
        self.and(Event::Topic { topic: of("t"), partitions, dense, compacted })
    }

    pub(crate) fn send(self, id: RecordId) -> Self {
        self.and(Event::Send { records: Span::one(id), partition: Some(0), transaction: None })
    }

    pub(crate) fn send_to(self, id: RecordId, partition: Option<u32>) -> Self {
        self.and(Event::Send { records: Span::one(id), partition, transaction: None })
    }

    pub(crate) fn sent(self, id: RecordId, offset: u64) -> Self {
        self.sent_at(id, Some(0), Some(offset))
    }

    pub(crate) fn sent_at(self, id: RecordId, partition: Option<u32>, offset: Option<u64>) -> Self {
        self.and(Event::Sent { records: Span::one(id), partition, offset, duplicate: false })
    }

    pub(crate) fn duplicate(self, id: RecordId, offset: Option<u64>) -> Self {
        self.and(Event::Sent { records: Span::one(id), partition: Some(0), offset, duplicate: true })
    }

    pub(crate) fn fail(self, id: RecordId) -> Self {
        self.and(Event::Failed { records: Span::one(id) })
    }

    pub(crate) fn unknown(self, id: RecordId) -> Self {
        self.and(Event::Unknown { records: Span::one(id) })
    }

    /// Records `from..to`, each acknowledged at the offset that is its sequence.
    pub(crate) fn put(self, from: u64, to: u64) -> Self {
        let records = Span { first: id(from), count: (to - from) as u32 };
        self.and(Event::Send { records, partition: Some(0), transaction: None }).and(Event::Sent {
            records,
            partition: Some(0),
            offset: Some(from),
            duplicate: false,
        })
    }

    pub(crate) fn consumer(self, process: &str, gaps: bool, committed: bool) -> Self {
        self.and(Event::Consumer { process: of(process), gaps, committed })
    }

    pub(crate) fn seek(self, process: &str, next: Option<u64>) -> Self {
        self.and(Event::Seek { process: of(process), partition: t(0), next })
    }

    /// A poll that gives these sequences at these offsets.
    pub(crate) fn poll(self, process: &str, records: &[(u64, u64)]) -> Self {
        let ids: Vec<_> = records.iter().map(|(offset, sequence)| (*offset, id(*sequence))).collect();
        self.poll_ids(process, &ids)
    }

    pub(crate) fn poll_ids(self, process: &str, records: &[(u64, RecordId)]) -> Self {
        let runs = Run::gather(records.iter().copied());
        self.and(Event::Poll { process: of(process), partition: t(0), runs, damaged: Vec::new(), next: None })
    }

    /// A poll that gives records `from..to`, each at the offset that is its sequence.
    pub(crate) fn polls(self, process: &str, from: u64, to: u64) -> Self {
        let records: Vec<_> = (from..to).map(|offset| (offset, offset)).collect();
        self.poll(process, &records)
    }

    pub(crate) fn drained(self, process: &str) -> Self {
        self.and(Event::Drained { process: of(process), partition: t(0) })
    }

    pub(crate) fn log_start(self, process: &str, offset: u64) -> Self {
        self.and(Event::LogStart { process: of(process), partition: t(0), offset })
    }

    /// A replica that starts and ends there and has these sequences at these offsets.
    pub(crate) fn replica(self, broker: u32, (log_start, end): (u64, u64), records: &[(u64, u64)]) -> Self {
        self.segmented(broker, (log_start, end), &[]).stored(broker, 0, records)
    }

    pub(crate) fn segmented(self, broker: u32, ends: (u64, u64), segments: &[(u64, u64, &str)]) -> Self {
        let segments = segments
            .iter()
            .map(|(base, end, digest)| SealedSegment { base: *base, end: *end, digest: of(digest) })
            .collect();
        let (log_start, end) = ends;
        self.and(Event::Replica { broker, partition: t(0), log_start, end, segments })
    }

    pub(crate) fn stored(self, broker: u32, partition: u32, records: &[(u64, u64)]) -> Self {
        let runs = Run::gather(records.iter().map(|(offset, sequence)| (*offset, id(*sequence))));
        self.and(Event::Stored { broker, partition: t(partition), runs, damaged: Vec::new() })
    }

    pub(crate) fn damaged(self, process: &str, offset: u64, claims: Option<RecordId>) -> Self {
        let damaged = vec![Damaged { offset, claims, what: of("other bytes") }];
        self.and(Event::Poll { process: of(process), partition: t(0), runs: Vec::new(), damaged, next: None })
    }

    pub(crate) fn report(&self) -> Report {
        check_events(&self.events, Checker::new()).unwrap()
    }

    #[track_caller]
    pub(crate) fn is_good(&self) {
        let report = self.report();
        assert!(report.is_good(), "{report}");
        assert!(report.checks > 0, "nothing was checked");
    }

    /// One kind is found, and the events that show it.
    #[track_caller]
    pub(crate) fn is(&self, kind: Kind) -> Report {
        let report = self.report();
        assert_eq!(report.kinds(), [kind], "{report}");
        assert!(report.findings.iter().all(|finding| !finding.evidence.is_empty()), "{report}");
        report
    }
}
