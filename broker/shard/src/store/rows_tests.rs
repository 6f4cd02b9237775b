//! The three layers against a plain map.

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use tidemill_log::fs::MemoryStorage;

use super::super::state_file::StateFile;
use super::*;

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    Freeze,
    Commit,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..12_u8, any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        4 => (0..12_u8).prop_map(Step::Delete),
        1 => Just(Step::Freeze),
        2 => Just(Step::Commit),
    ];
    vec(step, 1..60)
}

fn all(rows: &Rows, from: u8, to: u8) -> Vec<(u8, u8)> {
    let mut found = Vec::new();
    rows.scan(Bound::Included(&[from]), Bound::Excluded(&[to]), |key, value| {
        found.push((key[0], value[0]));
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

fn commit(file: &StateFile, frozen: &FrozenRows) -> Option<BaseRows> {
    file.commit(|put| {
        frozen.iter().try_for_each(|(key, change)| put(key, change.value().map(|value| &value[..])))
    })
    .unwrap();
    file.rows().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn layers_read_as_one_map(steps in steps(), from in 0..12_u8, to in 0..13_u8) {
        let storage = MemoryStorage::new();
        let file = StateFile::open(&storage, Path::new("state"), 1 << 20).unwrap();
        let mut rows = Rows::new(file.rows().unwrap());
        let mut model = BTreeMap::new();
        let mut frozen = None;
        for step in steps {
            match step {
                Step::Put(key, value) => {
                    let absent = rows.get(&[key]).unwrap().is_none();
                    rows.put(vec![key], Bytes::from(vec![value]), absent);
                    model.insert(key, value);
                }
                Step::Delete(key) => {
                    rows.delete(vec![key]);
                    model.remove(&key);
                }
                Step::Freeze if frozen.is_none() => frozen = Some(rows.freeze()),
                Step::Freeze => {}
                Step::Commit => {
                    if let Some(frozen) = frozen.take() {
                        rows.thaw(commit(&file, &frozen));
                    }
                }
            }
            for key in 0..12 {
                prop_assert_eq!(rows.get(&[key]).unwrap().map(|value| value[0]), model.get(&key).copied());
            }
            let expected: Vec<_> =
                model.iter().filter(|(key, _)| (from..to).contains(key)).map(|(k, v)| (*k, *v)).collect();
            prop_assert_eq!(all(&rows, from, to), expected);
        }
    }
}

#[test]
fn what_comes_and_goes_within_a_generation_leaves_no_trace() {
    let mut rows = Rows::new(None);
    for number in 0..100_u8 {
        rows.put(vec![number], Bytes::new(), true);
        rows.delete(vec![number]);
    }
    assert!(rows.freeze().is_empty());
}
