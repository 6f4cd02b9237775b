//! What the tests say in one word.

use std::time::Duration;

use tidemill_client::messages::Error;
use tidemill_client::{
    BatchBuilder, BuilderOptions, Client, ConsumerRecord, DeliveryError, ErrorCode, Header, NewTopic,
    PartitionId, RecordBatch, RequestError, Timestamp, TopicPartition,
};
use tidemill_cluster_tests::fixtures::Fixture;
use tidemill_cluster_tests::{BrokerOptions, Outcome, TestBroker};
use tidemill_protocol::record_batch::ProducerFields;
use tidemill_protocol::{ProducerEpoch, ProducerId, Sequence};

pub(crate) use tidemill_cluster_tests::metrics::metric;

/// For whatever the broker does in its own time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn broker() -> Outcome<(TestBroker, Client)> {
    broker_with(BrokerOptions::default()).await
}

pub(crate) async fn broker_with(options: BrokerOptions) -> Outcome<(TestBroker, Client)> {
    let broker = TestBroker::start(options).await?;
    let client = broker.client().await?;
    Ok((broker, client))
}

pub(crate) async fn create(client: &Client, topic: &str, partitions: u32) -> Outcome<()> {
    client.topics().create(NewTopic::new(topic, partitions)).await?;
    Ok(())
}

pub(crate) async fn partition_of(client: &Client, topic: &str, partition: u32) -> Outcome<TopicPartition> {
    Ok(TopicPartition::new(client.topic_metadata(topic).await?.id, PartitionId::new(partition)))
}

/// The code of a request that must be refused.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(outcome: Result<T, RequestError>) -> ErrorCode {
    let error = outcome.expect_err("it must be refused");
    let code = error.code().and_then(ErrorCode::from_code);
    code.unwrap_or_else(|| panic!("it must be refused by the broker, and failed otherwise: {error}"))
}

/// The code of a record that must not be stored.
#[track_caller]
pub(crate) fn not_stored<T: std::fmt::Debug>(outcome: Result<T, DeliveryError>) -> ErrorCode {
    let error = outcome.expect_err("it must not be stored");
    let code = error.code().and_then(ErrorCode::from_code);
    code.unwrap_or_else(|| panic!("it must be refused by the broker, and failed otherwise: {error}"))
}

/// The code of an error that a message carries, if it does.
pub(crate) fn code(error: Option<Error>) -> Option<ErrorCode> {
    error.and_then(|error| ErrorCode::from_code(error.code))
}

/// A batch of these values, in this order.
pub(crate) fn batch_of(values: &[&str]) -> RecordBatch {
    let mut builder = BatchBuilder::new(BuilderOptions::default());
    for value in values {
        builder.append(Timestamp::new(1_000), None, Some(value.as_bytes()), []).expect("it fits");
    }
    builder.build_batch().expect("a batch")
}

/// A batch of one record, of a producer in its first epoch.
pub(crate) fn numbered(producer: i64, sequence: i32) -> RecordBatch {
    numbered_in(0, producer, sequence)
}

/// The same in any epoch.
pub(crate) fn numbered_in(epoch: i16, producer: i64, sequence: i32) -> RecordBatch {
    batch_of(&["a record"]).with_producer(ProducerFields {
        id: ProducerId::new(producer),
        epoch: ProducerEpoch::new(epoch),
        base_sequence: Sequence::new(sequence),
    })
}

pub(crate) fn header_views(fixture: &Fixture) -> Vec<Header<'_>> {
    fixture
        .headers
        .iter()
        .map(|(name, value)| match value {
            Some(value) => Header::new(name, value),
            None => Header { key: name, value: None },
        })
        .collect()
}

/// A record that was read, as the fixture that it was sent as.
pub(crate) fn as_fixture(record: &ConsumerRecord) -> Fixture {
    let headers =
        record.headers().iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)));
    Fixture {
        key: record.key.as_deref().map(<[u8]>::to_vec),
        value: record.value.as_deref().map(<[u8]>::to_vec),
        headers: headers.collect(),
        timestamp: record.timestamp.get(),
    }
}

/// Values as text.
pub(crate) fn values(records: &[ConsumerRecord]) -> Vec<String> {
    let text = |record: &ConsumerRecord| {
        String::from_utf8_lossy(record.value.as_deref().unwrap_or(b"null")).into_owned()
    };
    records.iter().map(text).collect()
}

pub(crate) fn offsets(records: &[ConsumerRecord]) -> Vec<i64> {
    records.iter().map(|record| record.offset.get()).collect()
}
