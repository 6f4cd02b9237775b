//! What is known of a history so far: what became of each record, and what lies where.

mod log;
mod producers;
mod topics;

pub(crate) use log::{Entry, Log, Passed, Replica, Skip};
pub(crate) use producers::{Producer, Record};
pub(crate) use topics::{Topic, Topics};

use std::collections::{BTreeMap, HashMap};

use crate::error::EventError;
use crate::finding::Findings;
use crate::ids::{RecordId, TopicPartition};

/// A place in a log: a partition's slot and an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) slot: u16,
    pub(crate) offset: u64,
}

/// A record that was acknowledged in one place and read in another, or read in two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Moved {
    pub(crate) id: RecordId,
    pub(crate) first: Place,
    pub(crate) then: Place,
}

/// Two records that claim a place: one was acknowledged there, the other read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Conflict {
    pub(crate) place: Place,
    pub(crate) acknowledged: RecordId,
    pub(crate) read: RecordId,
}

/// See above.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) topics: Topics,
    pub(crate) producers: BTreeMap<u32, Producer>,
    /// By slot.
    pub(crate) logs: Vec<Log>,
    pub(crate) transactions: HashMap<u64, Transaction>,
    /// What remains to be judged at the end.
    pub(crate) moved: Vec<Moved>,
    pub(crate) conflicts: Vec<Conflict>,
    pub(crate) findings: Findings,
}

/// Where a transaction stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transaction {
    pub(crate) state: TransactionState,
    /// Records of it were read as committed.
    pub(crate) is_seen: bool,
}

/// See [`Transaction`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TransactionState {
    Open,
    /// To be committed, with what outcome nobody knows yet.
    Committing,
    Aborting,
    Committed,
    Aborted,
}

impl Facts {
    /// The slot of a partition, which it has from now on.
    pub(crate) fn slot(&mut self, partition: &TopicPartition) -> Result<u16, EventError> {
        self.slot_of(&partition.topic, partition.partition)
    }

    pub(crate) fn slot_of(&mut self, topic: &str, partition: u32) -> Result<u16, EventError> {
        let slot = self.topics.slot(topic, partition)?;
        while self.logs.len() <= usize::from(slot) {
            self.logs.push(Log::default());
        }
        Ok(slot)
    }

    /// The slot of a partition of the topic that a producer sends to.
    pub(crate) fn slot_for(&mut self, producer: u32, partition: u32) -> Result<u16, EventError> {
        let producer = self.producers.get(&producer).ok_or(EventError::UnknownProducer { producer })?;
        if let Some(slot) = self.topics.find(&producer.topic, partition) {
            return Ok(slot);
        }
        let topic = producer.topic.clone();
        self.slot_of(&topic, partition)
    }

    pub(crate) fn log(&mut self, slot: u16) -> &mut Log {
        &mut self.logs[usize::from(slot)]
    }

    pub(crate) fn producer(&mut self, producer: u32) -> Result<&mut Producer, EventError> {
        self.producers.get_mut(&producer).ok_or(EventError::UnknownProducer { producer })
    }

    pub(crate) fn record(&self, id: RecordId) -> Record {
        self.producers.get(&id.producer).map_or_else(Record::default, |producer| producer.record(id.sequence))
    }

    /// Whether its producer's retries leave it there once.
    pub(crate) fn is_idempotent(&self, id: RecordId) -> bool {
        self.producers.get(&id.producer).is_some_and(|producer| producer.is_idempotent)
    }

    pub(crate) fn transaction_of(&self, id: RecordId) -> Option<u64> {
        self.producers.get(&id.producer)?.transaction_of(id.sequence)
    }

    /// Whether readers of committed records must see it once it is stored.
    pub(crate) fn is_committed(&self, id: RecordId) -> bool {
        let Some(transaction) = self.transaction_of(id) else { return true };
        self.transactions
            .get(&transaction)
            .is_some_and(|known| known.state == TransactionState::Committed || known.is_seen)
    }

    /// Whether it surely was stored at some time: acknowledged, or read.
    pub(crate) fn surely_was_stored(&self, id: RecordId) -> bool {
        let record = self.record(id);
        !record.is(Record::FAILED) && (record.is(Record::ACKNOWLEDGED) || record.is(Record::READ))
    }
}
