//! Each kind of bad answer, and the good ones beside it.

use super::*;
use crate::answer::Part;
use proptest::prelude::*;

fn limits() -> PluginLimits {
    PluginLimits {
        reason_bytes_max: 8,
        answer_bytes_max: 1000,
        emitted_bytes_per_call_max: 1000,
        ..PluginLimits::task()
    }
}

fn reject(ordinal: u32, reason: &str) -> types::Rejection {
    types::Rejection { ordinal, reason: reason.to_owned() }
}

struct Entry([u32; 10]);

impl Entry {
    /// Key `data[0..2]`, value null, headers as in the input, of this input record.
    fn of(ordinal: u32) -> Self {
        Self([0, 2, 0, LENGTH_NULL, 0, LENGTH_ABSENT, ordinal, u32::MAX, u32::MAX, u32::MAX])
    }

    fn with(mut self, at: usize, word: u32) -> Self {
        self.0[at] = word;
        self
    }
}

fn made(data: &[u8], entries: &[Entry]) -> output::Records {
    let index = entries.iter().flat_map(|entry| entry.0).flat_map(u32::to_le_bytes).collect();
    output::Records { data: data.to_vec(), index }
}

fn replaced(data: &[u8], entries: &[Entry]) -> Result<Records, String> {
    replacement(made(data, entries), 4, &limits()).map_err(|bad| bad.0)
}

fn emitted_of(data: &[u8], entries: &[Entry]) -> Result<Records, String> {
    emitted(made(data, entries), 4, &limits()).map_err(|bad| bad.0)
}

#[test]
fn a_placement_has_a_partition_in_range_for_each_record() {
    let check = |partitions: &[u32]| {
        let answer = partitioner::Placement { partitions: partitions.to_vec(), rejections: vec![] };
        placement(answer, 3, 4, &limits()).map_err(|bad| bad.0)
    };
    assert!(check(&[0, 3, ANY_PARTITION]).is_ok());
    assert_eq!(check(&[0, 4, 0]).unwrap_err(), "record 1 is placed in partition 4, of 4");
    assert_eq!(check(&[0, 3]).unwrap_err(), "the placement names 2 partitions for 3 records");
    assert!(check(&[0, 1, 2, 3]).is_err());
    assert!(check(&[0, 1, u32::MAX - 1]).is_err());
}

#[test]
fn rejections_rise_and_stay_within_the_batch() {
    let check = |list: Vec<types::Rejection>| {
        let answer = filter::Verdict { selection: filter::Selection::KeepAll, rejections: list };
        verdict(answer, 3, &limits()).map(|verdict| verdict.rejections).map_err(|bad| bad.0)
    };
    let kept = check(vec![reject(0, "no"), reject(2, "a long reason")]).unwrap();
    assert_eq!(kept[1], Rejection { ordinal: 2, reason: "a long r".to_owned() });
    assert_eq!(check(vec![reject(3, "no")]).unwrap_err(), "record 3 is rejected, of 3 records in the batch");
    assert!(check(vec![reject(1, "no"), reject(1, "no")]).unwrap_err().contains("do not rise"));
    assert!(check(vec![reject(1, "no"), reject(0, "no")]).is_err());
    assert!(check(vec![reject(u32::MAX, "no")]).is_err());
}

#[test]
fn an_outcome_processes_no_more_than_there_is() {
    let check = |processed, rejections| outcome(consumer::Outcome { processed, rejections }, 3, &limits());
    assert!(check(3, vec![reject(2, "no")]).is_ok());
    assert!(check(0, vec![]).is_ok());
    assert!(check(4, vec![]).is_err());
    assert!(check(2, vec![reject(2, "no")]).is_err(), "what was not processed is not rejected");
}

#[test]
fn a_bitmap_has_exactly_the_batchs_size() {
    let check = |bytes: &[u8], records| bitmap(bytes.to_vec(), records);
    assert_eq!(check(&[0xff, 0xff], 10).unwrap().count(), 10, "bits past the last record mean nothing");
    assert_eq!(check(&[], 0).unwrap().count(), 0);
    assert_eq!(check(&[0xff], 8).unwrap().count(), 8);
    assert!(check(&[0xff], 10).is_err());
    assert!(check(&[0xff; 3], 10).is_err());
    assert!(check(&[0], 0).is_err());
}

#[test]
fn replaced_records_keep_the_inputs_order() {
    let records = replaced(b"ab", &[Entry::of(0), Entry::of(3).with(1, 0)]).unwrap();
    let list: Vec<_> = records.iter().collect();
    assert_eq!(list[0].key, Part::Bytes(b"ab"));
    assert_eq!(list[0].value, Part::Null);
    assert_eq!(list[0].headers, Part::AsInput);
    assert_eq!((list[0].ordinal, list[0].timestamp, list[0].partition), (Some(0), None, None));
    assert_eq!(list[1].key, Part::Bytes(b""));
    assert_eq!(records.referenced_bytes(), 2);

    assert!(replaced(b"ab", &[Entry::of(1), Entry::of(1)]).unwrap_err().contains("do not rise"));
    assert!(replaced(b"ab", &[Entry::of(2), Entry::of(1)]).is_err());
    assert!(replaced(b"ab", &[Entry::of(4)]).is_err());
    assert!(replaced(b"ab", &[Entry::of(u32::MAX)]).is_err(), "no ordinal");
    assert!(replaced(b"ab", &[Entry::of(0).with(9, 1)]).is_err(), "a partition");
}

#[test]
fn parts_lie_within_the_data() {
    for part in [0, 2, 4] {
        let at =
            |offset, length| replaced(b"\0\0", &[Entry::of(0).with(part, offset).with(part + 1, length)]);
        assert!(at(0, 1).is_ok());
        assert!(at(1, 2).is_err());
        assert!(at(3, 0).is_err());
        assert!(at(u32::MAX, 1).is_err());
        assert!(at(1, u32::MAX - 2).is_err());
    }
    let index = vec![0; 39];
    let answer = output::Records { data: vec![], index };
    assert!(replacement(answer, 4, &limits()).is_err(), "an index of no whole entries");
}

#[test]
fn shared_bytes_are_counted_for_each_record() {
    let data = [7; 300];
    let large = |ordinal| Entry::of(ordinal).with(1, 300);
    assert!(replaced(&data, &[large(0), large(1), large(2)]).is_ok());
    assert!(replaced(&data, &[large(0), large(1), large(2), large(3)]).unwrap_err().contains("add up"));
}

#[test]
fn emitted_records_have_all_their_parts() {
    let whole = |ordinal| Entry::of(ordinal).with(5, LENGTH_NULL);
    assert!(emitted_of(b"ab", &[whole(3), whole(0), whole(u32::MAX).with(9, 17)]).is_ok());
    assert!(emitted_of(b"ab", &[Entry::of(0)]).is_err(), "nothing to take the headers from");
    assert!(emitted_of(b"ab", &[whole(4)]).is_err());
    assert!(emitted_of(b"ab", &[whole(0).with(4, 0).with(5, 2)]).unwrap_err().contains("bad headers"));
    assert!(emitted_of(b"ab", &[whole(0).with(8, 0x8000_0000)]).unwrap_err().contains("timestamp"));
}

proptest! {
    #[test]
    fn no_answer_leads_outside_its_data(
        data in proptest::collection::vec(any::<u8>(), 0..32),
        words in proptest::collection::vec(prop_oneof![0u32..40, Just(LENGTH_NULL), Just(LENGTH_ABSENT)], 0..40))
    {
        let index: Vec<u8> = words.iter().copied().flat_map(u32::to_le_bytes).collect();
        let answer = output::Records { data, index };
        for records in [replacement(answer.clone(), 40, &limits()), emitted(answer, 40, &limits())].into_iter().flatten() {
            let bytes: usize = records
                .iter()
                .flat_map(|record| [record.key, record.value, record.headers])
                .map(|part| if let Part::Bytes(bytes) = part { bytes.len() } else { 0 })
                .sum();
            prop_assert_eq!(bytes, records.referenced_bytes());
        }
    }
}
