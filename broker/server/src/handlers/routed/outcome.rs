//! What becomes of a routed batch: the shards' answers as one acknowledgement.

use tidemill_protocol::ErrorCode;
use tidemill_protocol::messages::{Error, RoutedAck, RoutedPlacement};
use tidemill_raft::ProposeError;
use tidemill_shard::UnitResult;

use crate::errors;

/// What was said of a batch before it was proposed.
#[derive(Default)]
pub(super) enum Said {
    /// Its records have their places.
    Placed,
    /// The filter left none.
    #[default]
    LeftOut,
    /// It is not to be stored.
    Refused(Error),
}

/// What the shards say of a batch together.
pub(super) fn acknowledgement(
    request_id: u64,
    outcomes: Vec<Result<UnitResult, ProposeError>>,
    said: Said,
) -> RoutedAck {
    let mut placements = Vec::new();
    let mut duplicate = true;
    let mut is_new_somewhere = false;
    let (mut refusal, mut silence) = (None, None);
    for outcome in outcomes {
        match outcome {
            Ok(UnitResult::RoutedAppended { placements: placed, duplicate: again }) => {
                duplicate &= again;
                is_new_somewhere |= !again;
                placements.extend(placed.into_iter().map(|(partition, base, count)| RoutedPlacement {
                    partition: partition.get(),
                    base_offset: base.get(),
                    record_count: count,
                }));
            }
            Ok(other) => refusal = refusal.or_else(|| Some(errors::unit(&other))),
            // This attempt may have come to it.
            Err(ProposeError::OutcomeUnknown) => {
                silence = Some(errors::propose(&ProposeError::OutcomeUnknown))
            }
            Err(error) => silence = silence.or_else(|| Some(errors::propose(&error))),
        }
    }
    // A shard that did not answer may have the batch by an earlier attempt, whatever another one says of it: only a retry of the very same
    // batch finds out. Who refuses it now refuses it then, too.
    let failure = silence.or(refusal);
    placements.sort_by_key(|placement| placement.partition);
    match failure {
        // A retry may still store the rest. Else what is stored stays alone, and the batch must not come again as another. Only the
        // client knows which of these it is where a batch before it is missing: that one may be on its way by another path.
        Some(error) if !placements.is_empty() && (!error.retriable || is_early(&error)) => {
            let error = Some(errors::partly_stored(&error));
            RoutedAck { request_id, placements, duplicate: false, error }
        }
        Some(error) => refused(request_id, error),
        // An earlier attempt came to some shards, and this one, of which nothing is to be stored, is new to another: what would
        // have lain there is gone.
        None if is_new_somewhere && !placements.is_empty() && !matches!(said, Said::Placed) => {
            let error = match said {
                Said::Refused(error) => errors::partly_stored(&error),
                Said::Placed | Said::LeftOut => errors::partly_stored(&errors::left_out_now()),
            };
            RoutedAck { request_id, placements, duplicate: false, error: Some(error) }
        }
        // What an earlier attempt stored stands, whatever the filter and the topic's settings say now.
        None if placements.is_empty() => match said {
            Said::Refused(error) => refused(request_id, error),
            Said::Placed => refused(request_id, errors::refused_before()),
            Said::LeftOut => RoutedAck { request_id, placements, duplicate, error: None },
        },
        None => RoutedAck { request_id, placements, duplicate, error: None },
    }
}

/// Whether a shard has not had what comes before a batch.
fn is_early(error: &Error) -> bool {
    error.error_code() == Some(ErrorCode::OutOfOrderSequence)
}

pub(super) fn refused(request_id: u64, error: Error) -> RoutedAck {
    RoutedAck { request_id, error: Some(error), ..RoutedAck::default() }
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::{Offset, PartitionId, ProducerId};
    use tidemill_shard::UnitError;

    use super::*;

    fn stored(partition: u32, count: u32) -> Result<UnitResult, ProposeError> {
        let placements = match count {
            0 => Vec::new(),
            _ => vec![(PartitionId::new(partition), Offset::new(40), count)],
        };
        Ok(UnitResult::RoutedAppended { placements, duplicate: false })
    }

    /// By an earlier attempt.
    fn known(partition: u32, count: u32) -> Result<UnitResult, ProposeError> {
        stored(partition, count).map(|result| match result {
            UnitResult::RoutedAppended { placements, .. } => {
                UnitResult::RoutedAppended { placements, duplicate: true }
            }
            other => other,
        })
    }

    fn forgotten() -> Result<UnitResult, ProposeError> {
        Ok(UnitResult::Refused(UnitError::UnknownProducer(ProducerId::new(7))))
    }

    fn out_of_order(expected: u64, got: u64) -> Result<UnitResult, ProposeError> {
        Ok(UnitResult::Refused(UnitError::OutOfOrderTopicSequence { expected, got }))
    }

    fn code(ack: &RoutedAck) -> Option<ErrorCode> {
        ack.error.as_ref().and_then(Error::error_code)
    }

    /// Units that go to a shard by two paths may overtake each other: the batch is whole once the client has sent it again.
    #[test]
    fn a_batch_that_came_too_early_to_a_shard_may_come_again() {
        let retriable = |ack: &RoutedAck| ack.error.as_ref().is_some_and(|error| error.retriable);
        let early = acknowledgement(5, vec![stored(0, 3), out_of_order(7, 9)], Said::Placed);
        assert_eq!((code(&early), early.placements.len()), (Some(ErrorCode::PartlyStored), 1));
        assert!(retriable(&early));
        let early = acknowledgement(5, vec![stored(0, 0), out_of_order(7, 9)], Said::Placed);
        assert_eq!((code(&early), retriable(&early)), (Some(ErrorCode::OutOfOrderSequence), true));
        let late = acknowledgement(5, vec![stored(0, 3), out_of_order(7, 2)], Said::Placed);
        assert_eq!((code(&late), retriable(&late)), (Some(ErrorCode::PartlyStored), false));
    }

    #[test]
    fn a_batch_that_is_stored_in_some_shards_alone_is_not_called_unstored() {
        for outcomes in
            [vec![stored(3, 2), forgotten(), stored(1, 1)], vec![forgotten(), stored(1, 1), stored(3, 2)]]
        {
            let ack = acknowledgement(5, outcomes, Said::Placed);
            assert_eq!((ack.request_id, code(&ack)), (5, Some(ErrorCode::PartlyStored)));
            let places: Vec<_> =
                ack.placements.iter().map(|p| (p.partition, p.base_offset, p.record_count)).collect();
            assert_eq!(places, [(1, 40, 1), (3, 40, 2)]);
        }
        // Nothing of it is anywhere.
        for outcomes in [vec![forgotten(), forgotten()], vec![stored(0, 0), forgotten()]] {
            let ack = acknowledgement(5, outcomes, Said::Placed);
            assert_eq!(code(&ack), Some(ErrorCode::UnknownProducer));
            assert!(ack.placements.is_empty());
        }
        // The same batch again stores the rest.
        let retried = acknowledgement(5, vec![stored(1, 1), Err(ProposeError::Overloaded)], Said::Placed);
        assert_eq!(code(&retried), Some(ErrorCode::Overloaded));
        let unknown = acknowledgement(
            5,
            vec![stored(1, 1), forgotten(), Err(ProposeError::OutcomeUnknown)],
            Said::Placed,
        );
        assert_eq!(code(&unknown), Some(ErrorCode::OutcomeUnknown));
    }

    /// It may have stored its part when the batch came before: a refusal without placements would have the client send the records under
    /// other numbers, and they would be there twice.
    #[test]
    fn a_shard_that_does_not_answer_may_have_what_another_refuses() {
        let led_elsewhere = || Err(ProposeError::NotLeader { leader: None });
        for refusal in [out_of_order(1, 2), out_of_order(7, 2), forgotten()] {
            for outcomes in [vec![refusal.clone(), led_elsewhere()], vec![led_elsewhere(), refusal.clone()]] {
                let ack = acknowledgement(5, outcomes, Said::Placed);
                assert_eq!((code(&ack), ack.placements.len()), (Some(ErrorCode::NotLeader), 0));
                assert!(ack.error.is_some_and(|error| error.retriable));
            }
            let ack = acknowledgement(5, vec![stored(0, 3), refusal, led_elsewhere()], Said::Placed);
            assert_eq!(code(&ack), Some(ErrorCode::NotLeader), "not yet stored in part for good");
        }
    }

    #[test]
    fn what_is_refused_now_stands_where_an_earlier_attempt_stored_it() {
        let too_large = || Said::Refused(Error::new(ErrorCode::BatchTooLarge, "a part is too large"));
        let refused = acknowledgement(0, vec![stored(0, 0), stored(0, 0)], too_large());
        assert_eq!(code(&refused), Some(ErrorCode::BatchTooLarge));
        let again = acknowledgement(0, vec![known(0, 2), known(0, 0)], too_large());
        assert_eq!((code(&again), again.placements.len()), (None, 1));
        // It did not come to every shard then, and now it does not either.
        for said in [too_large(), Said::LeftOut] {
            let halved = acknowledgement(0, vec![known(0, 2), stored(0, 0)], said);
            assert_eq!((code(&halved), halved.placements.len()), (Some(ErrorCode::PartlyStored), 1));
        }
        let left_out = acknowledgement(0, vec![stored(0, 0)], Said::LeftOut);
        assert_eq!((code(&left_out), left_out.placements.len()), (None, 0));
        let refused_before = acknowledgement(0, vec![stored(0, 0)], Said::Placed);
        assert_eq!(code(&refused_before), Some(ErrorCode::RecordsRejected));
    }
}
