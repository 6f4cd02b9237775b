//! One thing put wrong in a history that is right.

use crate::world::passes;

use tidemill_checker::{Damaged, Event, Kind, RecordId, Run, Span, TopicPartition};

/// A record that was acknowledged, and is not trimmed: its event, and where it lies.
#[derive(Clone)]
struct Acknowledged {
    event: usize,
    id: RecordId,
    partition: TopicPartition,
    offset: u64,
}

/// The history with something of this kind in it, if there is something to put wrong.
pub(crate) fn mutate(kind: Kind, events: &[Event], pick: u64) -> Option<Vec<Event>> {
    let mut wrong = events.to_vec();
    let all = acknowledged(events);
    let one = (!all.is_empty()).then(|| all[pick as usize % all.len()].clone());
    match kind {
        Kind::LostWrite => forget(&mut wrong, one?.id),
        Kind::OffsetGap => {
            let one = one?;
            wrong[one.event] = Event::Unknown { records: Span::one(one.id) };
            forget(&mut wrong, one.id);
        }
        Kind::Duplicate => {
            let id = one?.id;
            reads(&mut wrong, |who, partition, records| {
                if who.starts_with("broker")
                    && partition.topic == "t"
                    && records.iter().any(|(_, known)| *known == id)
                {
                    records.push((1_000_000, id));
                }
            });
        }
        Kind::InconsistentOffsets => {
            let (stranger, place) = (RecordId::new(0, 1_000_000), one?);
            wrong.insert(6, Event::Send { records: Span::one(stranger), partition: None, transaction: None });
            reads(&mut wrong, |who, _, records| {
                for (_, id) in records.iter_mut().filter(|(_, id)| *id == place.id && who == "broker 2") {
                    *id = stranger;
                }
            });
        }
        Kind::AbortedRead => {
            let one = one?;
            wrong[one.event] = Event::Failed { records: Span::one(one.id) };
        }
        Kind::PrecommittedRead => read_early(&mut wrong, pick)?,
        Kind::NonmonotonicSend => {
            let (first, second) = pair(&all, pick, |a, b| a.id.producer == b.id.producer)?;
            acknowledge_at(&mut wrong, &first, Some(second.offset));
            acknowledge_at(&mut wrong, &second, Some(first.offset));
        }
        Kind::Reordered => {
            let (first, second) = pair(&all, pick, |a, b| a.id.producer == b.id.producer)?;
            acknowledge_at(&mut wrong, &first, None);
            acknowledge_at(&mut wrong, &second, None);
            exchange(&mut wrong, first.id, second.id);
        }
        Kind::RealTimeReversed => {
            let begun = |of: &Acknowledged| events.iter().position(|event| is_send(event, of.id));
            let (first, second) = pair(&all, pick, |a, b| {
                a.id.producer != b.id.producer && begun(b).is_some_and(|begun| a.event < begun)
            })?;
            acknowledge_at(&mut wrong, &first, Some(second.offset));
            acknowledge_at(&mut wrong, &second, Some(first.offset));
            exchange(&mut wrong, first.id, second.id);
        }
        Kind::Misplaced => {
            let one = one?;
            acknowledge_at(&mut wrong, &one, Some(one.offset + 1_000_000));
        }
        Kind::NonmonotonicPoll => {
            let poll = audits(&wrong, 1).next()?;
            let again = wrong[poll].clone();
            wrong.insert(poll + 1, again);
        }
        Kind::InternalNonmonotonicPoll => of_audit(&mut wrong, 2, |records| records.reverse())?,
        Kind::InternalPollSkip => of_audit(&mut wrong, 3, |records| _ = records.remove(1))?,
        Kind::PollSkip => of_audit(&mut wrong, 7, |records| _ = records.remove(0))?,
        Kind::UnwantedRead => {
            let polls = wrong.iter_mut().filter_map(|event| match event {
                Event::Poll { process, runs, .. } if process == "plain" => Some((process, flat(runs))),
                _ => None,
            });
            let mut unwanted = polls.filter(|(_, records)| records.iter().any(|(_, id)| !passes(*id)));
            let (process, _) = unwanted.next()?;
            "filtered".clone_into(process);
        }
        Kind::Unseen => {
            let last = events.iter().position(|event| matches!(event, Event::Drained { .. }))?;
            let poll = audits(&wrong, 1).take_while(|poll| *poll < last).last()?;
            let Event::Poll { runs, .. } = &mut wrong[poll] else { return None };
            let mut records = flat(runs);
            let (_, id) = records.pop()?;
            all.iter().find(|one| one.id == id)?;
            *runs = Run::gather(records);
        }
        Kind::MissingOnReplica => {
            let id = one?.id;
            reads(&mut wrong, |who, _, records| {
                records.retain(|(_, known)| who != "broker 3" || *known != id)
            });
        }
        Kind::SegmentsDiffer => {
            let segments = wrong.iter_mut().filter_map(|event| match event {
                Event::Replica { broker: 2, segments, .. } if !segments.is_empty() => Some(segments),
                _ => None,
            });
            segments.last()?.first_mut()?.digest.push('!');
        }
        Kind::NeverSent => {
            let id = one?.id;
            wrong.retain(|event| !is_send(event, id));
        }
        Kind::Altered => damage(&mut wrong)?,
        Kind::LogStartBack => {
            let place = wrong.iter().rposition(
                |event| matches!(event, Event::LogStart { partition, offset, .. } if partition.topic == "t" && *offset > 0),
            )?;
            let mut again = wrong[place].clone();
            if let Event::LogStart { offset, .. } = &mut again {
                *offset -= 1;
            }
            wrong.insert(place + 1, again);
        }
        Kind::GroupPosition => wrong.iter_mut().for_each(|event| {
            if let Event::Position { offset, .. } = event {
                *offset = Some(777_777);
            }
        }),
        Kind::TaskOutput => {
            let output = wrong.iter().position(|event| matches!(event, Event::Output { .. }))?;
            let again = wrong[output].clone();
            wrong.insert(output, again);
        }
        Kind::TaskState => wrong.iter_mut().for_each(|event| {
            if let Event::State { value, .. } = event {
                value.push('0');
            }
        }),
        Kind::TaskPosition => wrong.iter_mut().for_each(|event| {
            if let Event::Task { inputs, .. } = event {
                inputs[0].next += 1;
            }
        }),
    }
    Some(wrong)
}

/// Records of topic `t` that were acknowledged with a place, once, and that are still there.
fn acknowledged(events: &[Event]) -> Vec<Acknowledged> {
    let start_of = |place: &TopicPartition| {
        let mut starts = events.iter().filter_map(|event| match event {
            Event::Replica { partition, log_start, .. } if partition == place => Some(*log_start),
            _ => None,
        });
        starts.next().unwrap_or(0)
    };
    let starts = [start_of(&TopicPartition::new("t", 0)), start_of(&TopicPartition::new("t", 1))];
    let all = events.iter().enumerate().filter_map(|(event, what)| match what {
        Event::Sent { records, partition: Some(partition), offset: Some(offset), .. }
            if records.first.producer < 2 && *offset >= starts[*partition as usize] =>
        {
            let partition = TopicPartition::new("t", *partition);
            Some(Acknowledged { event, id: records.first, partition, offset: *offset })
        }
        _ => None,
    });
    all.collect()
}

/// Two of one partition, the one that lies first first.
fn pair(
    all: &[Acknowledged],
    pick: u64,
    fits: impl Fn(&Acknowledged, &Acknowledged) -> bool,
) -> Option<(Acknowledged, Acknowledged)> {
    let is_pair =
        |a: &Acknowledged, b: &Acknowledged| a.partition == b.partition && a.offset < b.offset && fits(a, b);
    let from = pick as usize % all.len().max(1);
    let first = all[from..].iter().chain(&all[..from]);
    first
        .flat_map(|a| all.iter().map(move |b| (a, b)))
        .find(|(a, b)| is_pair(a, b))
        .map(|(a, b)| (a.clone(), b.clone()))
}

fn is_send(event: &Event, id: RecordId) -> bool {
    matches!(event, Event::Send { records, .. } if records.first == id)
}

fn acknowledge_at(events: &mut [Event], one: &Acknowledged, at: Option<u64>) {
    if let Event::Sent { offset, partition, .. } = &mut events[one.event] {
        *offset = at;
        *partition = partition.filter(|_| at.is_some());
    }
}

fn flat(runs: &[Run]) -> Vec<(u64, RecordId)> {
    runs.iter().flat_map(|run| run.records()).collect()
}

/// Changes what is read: by whom, where, and what.
fn reads(events: &mut [Event], change: impl Fn(&str, &TopicPartition, &mut Vec<(u64, RecordId)>)) {
    for event in events {
        let (who, partition, runs) = match event {
            Event::Poll { process, partition, runs, .. } => (process.clone(), partition, runs),
            Event::Stored { broker, partition, runs, .. } => (format!("broker {broker}"), partition, runs),
            _ => continue,
        };
        let mut records = flat(runs);
        change(&who, partition, &mut records);
        *runs = Run::gather(records);
    }
}

fn forget(events: &mut [Event], id: RecordId) {
    reads(events, |_, _, records| records.retain(|(_, known)| *known != id));
}

fn exchange(events: &mut [Event], first: RecordId, second: RecordId) {
    reads(events, |_, _, records| {
        for (_, id) in records {
            *id = if *id == first {
                second
            } else if *id == second {
                first
            } else {
                *id
            };
        }
    });
}

/// Polls of the one who reads everything in the end, of topic `t`, that gave so many records.
fn audits(events: &[Event], records_min: usize) -> impl Iterator<Item = usize> {
    let is_one = move |event: &Event| {
        matches!(event, Event::Poll { process, partition, runs, .. }
            if process == "audit" && partition.topic == "t" && flat(runs).len() >= records_min)
    };
    (0..events.len()).filter(move |place| is_one(&events[*place]))
}

fn of_audit(
    events: &mut [Event],
    records_min: usize,
    change: impl FnOnce(&mut Vec<(u64, RecordId)>),
) -> Option<()> {
    let poll = audits(events, records_min).next()?;
    let Event::Poll { runs, .. } = &mut events[poll] else { return None };
    let mut records = flat(runs);
    change(&mut records);
    *runs = Run::gather(records);
    Some(())
}

fn damage(events: &mut [Event]) -> Option<()> {
    let poll = audits(events, 1).next()?;
    let Event::Poll { runs, damaged, .. } = &mut events[poll] else { return None };
    let mut records = flat(runs);
    let (offset, id) = records.pop()?;
    *runs = Run::gather(records);
    damaged.push(Damaged { offset, claims: Some(id), what: "other bytes".to_owned() });
    Some(())
}

/// A reader of committed records is given one before anybody asks to commit.
fn read_early(events: &mut Vec<Event>, pick: u64) -> Option<()> {
    let sent: Vec<usize> = (0..events.len())
        .filter(|place| matches!(&events[*place], Event::Sent { records, .. } if records.first.producer == 2))
        .collect();
    let place = *sent.get(pick as usize % sent.len().max(1))?;
    let Event::Sent { records, offset: Some(offset), .. } = &events[place] else { return None };
    let runs = vec![Run::one(*offset, records.first)];
    let (process, partition) = ("early".to_owned(), TopicPartition::new("x", 0));
    let poll = Event::Poll { process: process.clone(), partition, runs, damaged: Vec::new(), next: None };
    events.splice(place + 1..place + 1, [Event::Consumer { process, gaps: false, committed: true }, poll]);
    Some(())
}
