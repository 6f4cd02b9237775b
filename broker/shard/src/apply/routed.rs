//! Batches that the broker partitioned: each shard gets one sub-unit per batch, empty or not, so that each
//! deduplicates a gapless sequence per (producer, topic).

use std::collections::BTreeSet;

use tidemill_partition::{AppendRequest, PRODUCER_EXPIRY_MS, PRODUCER_IDLE_MIN_MS};
use tidemill_protocol::{ProducerId, Timestamp, TopicId, TopicPartition};

use super::{Context, Effects};
use crate::batch::BatchHead;
use crate::result::{UnitError, UnitResult};
use crate::state::{Placements, RoutedAnswer, RoutedProducer, State};
use crate::unit::RoutedAppend;

/// Bytes of routed producers' answers that one shard remembers. Beyond it those are forgotten that were unused for
/// [`PRODUCER_IDLE_MIN_MS`], the longest unused first; without such no new producer is taken: who is forgotten can send a batch twice.
const ROUTED_BYTES_MAX: usize = 32 << 20;

/// Up to which it may grow with what known producers have in flight.
const KNOWN_ROUTED_BYTES_MAX: usize = 4 * ROUTED_BYTES_MAX;

type RoutedKey = (TopicId, ProducerId);

enum RoutedCheck {
    New,
    Duplicate(Placements),
}

impl State {
    pub(super) fn routed_append(
        &mut self,
        routed: &RoutedAppend,
        context: Context,
        effects: &mut Effects,
    ) -> Result<UnitResult, UnitError> {
        let topic = self.topics.get(&routed.topic).ok_or(UnitError::NotAdopted(routed.topic))?;
        if topic.deleted_at.is_some() {
            return Err(UnitError::TopicDeleted(routed.topic));
        }
        let config = topic.config;
        match self.check_routed(routed, context.now)? {
            RoutedCheck::Duplicate(placements) => {
                Ok(UnitResult::RoutedAppended { placements, duplicate: true })
            }
            RoutedCheck::New => {
                let requests = self.check_parts(routed, context)?;
                let parts = routed.batches.iter().zip(requests);
                let placements: Placements = parts
                    .map(|((partition, batch), (id, request))| {
                        let base = self.put_batch(id, &config, &request, batch, context, effects);
                        (*partition, base, request.offset_count)
                    })
                    .collect();
                if routed.producer != ProducerId::NONE {
                    let answer = RoutedAnswer { placements: placements.clone(), filtered: routed.filtered };
                    self.remember_routed(routed, answer, context.now);
                }
                Ok(UnitResult::RoutedAppended { placements, duplicate: false })
            }
        }
    }

    fn check_routed(&self, routed: &RoutedAppend, now: Timestamp) -> Result<RoutedCheck, UnitError> {
        if routed.producer == ProducerId::NONE {
            return Ok(RoutedCheck::New);
        }
        if routed.producer.get() < 0 || routed.epoch.get() < 0 {
            return Err(UnitError::Invalid("a producer's id and epoch are 0 or more".into()));
        }
        let got = routed.topic_sequence;
        let known = self.routed.get(&(routed.topic, routed.producer)).filter(|known| !known.expired(now));
        let expected = match known {
            None if got == 0 => 0,
            None => return Err(UnitError::UnknownProducer(routed.producer)),
            Some(known) if routed.epoch < known.epoch => {
                return Err(UnitError::ProducerFenced { producer: routed.producer, current: known.epoch });
            }
            Some(known) if routed.epoch > known.epoch => 0,
            Some(known) => match known.answer(got) {
                Some(answer) if answer.filtered != routed.filtered => return Err(UnitError::OtherFilterPass),
                Some(answer) => return Ok(RoutedCheck::Duplicate(answer.placements.clone())),
                None => known.next,
            },
        };
        if got != expected {
            return Err(UnitError::OutOfOrderTopicSequence { expected, got });
        }
        let limit = if known.is_some() { KNOWN_ROUTED_BYTES_MAX } else { ROUTED_BYTES_MAX };
        let key = (routed.topic, routed.producer);
        if self.routed_bytes <= limit || self.longest_idle_routed(key, now).is_some() {
            return Ok(RoutedCheck::New);
        }
        Err(UnitError::TooManyProducers { place: "the shard".into(), bytes: self.routed_bytes })
    }

    fn check_parts(
        &self,
        routed: &RoutedAppend,
        context: Context,
    ) -> Result<Vec<(TopicPartition, AppendRequest)>, UnitError> {
        let mut seen = BTreeSet::new();
        let check = |(number, batch): &(_, bytes::Bytes)| {
            let id = TopicPartition::new(routed.topic, *number);
            if !seen.insert(*number) {
                return Err(UnitError::Invalid(format!("partition {number} is named twice")));
            }
            let (_, partition) = self.target(id)?;
            // The parts' own sequences do not count: the topic sequence stands for them. Nor does the topic's limit of bytes,
            // which whoever split the batch kept: where it is lowered meanwhile one shard hears of it before another, and
            // must not refuse its part alone.
            let request = BatchHead::parse(batch)?.request(false);
            let checked = partition.check_append(&request, context.now);
            checked.map_err(|error| UnitError::from_append(error, id))?;
            Ok((id, request))
        };
        routed.batches.iter().map(check).collect()
    }

    fn remember_routed(&mut self, routed: &RoutedAppend, answer: RoutedAnswer, now: Timestamp) {
        let key = (routed.topic, routed.producer);
        if let Some(before) = self.routed.get(&key) {
            self.routed_bytes -= before.bytes();
            self.routed_by_use.remove(&(before.last_used, key));
        }
        let producer = self.routed.get_or_insert_with(key, || RoutedProducer::new(routed.epoch));
        if producer.epoch != routed.epoch || (producer.next > 0 && producer.expired(now)) {
            *producer = RoutedProducer::new(routed.epoch);
        }
        producer.remember(answer, now);
        self.routed_bytes += producer.bytes();
        self.routed_by_use.insert((now, key));
        while self.routed_bytes > ROUTED_BYTES_MAX
            && let Some(idle) = self.longest_idle_routed(key, now)
        {
            self.forget_routed(idle);
        }
    }

    /// Who may be forgotten, the one unused for longest; never `keep`.
    fn longest_idle_routed(&self, keep: RoutedKey, now: Timestamp) -> Option<RoutedKey> {
        let (used, key) = self.routed_by_use.iter().find(|(_, key)| *key != keep)?;
        (used.plus_ms(PRODUCER_IDLE_MIN_MS) < now).then_some(*key)
    }

    pub(super) fn forget_routed(&mut self, key: RoutedKey) {
        if let Some(producer) = self.routed.get(&key) {
            self.routed_bytes -= producer.bytes();
            self.routed_by_use.remove(&(producer.last_used, key));
            self.routed.remove(&key);
        }
    }
}

impl RoutedProducer {
    pub(crate) fn expired(&self, now: Timestamp) -> bool {
        self.last_used.plus_ms(PRODUCER_EXPIRY_MS) < now
    }
}
