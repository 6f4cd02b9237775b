//! A map of shared objects that knows what changed.
//!
//! A checkpoint takes the changed objects by reference count; apply copies an object only when it changes one that a
//! checkpoint still holds.

use std::collections::BTreeMap;
use std::ops::RangeBounds;
use std::sync::Arc;

/// What changed since the last checkpoint: each key once, ascending, with its object or `None` where it is gone.
pub(crate) type Changes<K, V> = Vec<(K, Option<Arc<V>>)>;

struct Slot<V> {
    value: Arc<V>,
    changed: bool,
}

pub(crate) struct Tracked<K, V> {
    slots: BTreeMap<K, Slot<V>>,
    changed: Vec<K>,
}

impl<K, V> Default for Tracked<K, V> {
    fn default() -> Self {
        Self { slots: BTreeMap::new(), changed: Vec::new() }
    }
}

impl<K: Ord + Copy, V: Clone> Tracked<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.slots.get(key).map(|slot| &*slot.value)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let slot = self.slots.get_mut(key)?;
        if !slot.changed {
            slot.changed = true;
            self.changed.push(*key);
        }
        Some(Arc::make_mut(&mut slot.value))
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        let slot = Slot { value: Arc::new(value), changed: true };
        if self.slots.insert(key, slot).is_none_or(|old| !old.changed) {
            self.changed.push(key);
        }
    }

    /// The object, made by `make` where there is none.
    pub(crate) fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        let changed = &mut self.changed;
        let slot = self.slots.entry(key).or_insert_with(|| Slot { value: Arc::new(make()), changed: false });
        if !slot.changed {
            slot.changed = true;
            changed.push(key);
        }
        Arc::make_mut(&mut slot.value)
    }

    pub(crate) fn remove(&mut self, key: &K) -> bool {
        match self.slots.remove(key) {
            Some(slot) => {
                if !slot.changed {
                    self.changed.push(*key);
                }
                true
            }
            None => false,
        }
    }

    /// Puts back what was stored: no change.
    pub(crate) fn restore(&mut self, key: K, value: V) {
        self.slots.insert(key, Slot { value: Arc::new(value), changed: false });
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.slots.iter().map(|(key, slot)| (key, &*slot.value))
    }

    pub(crate) fn range(&self, range: impl RangeBounds<K>) -> impl Iterator<Item = (&K, &V)> {
        self.slots.range(range).map(|(key, slot)| (key, &*slot.value))
    }

    pub(crate) fn take_changes(&mut self) -> Changes<K, V> {
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        let take = |key| {
            let value = self.slots.get_mut(&key).map(|slot| {
                slot.changed = false;
                Arc::clone(&slot.value)
            });
            (key, value)
        };
        changed.into_iter().map(take).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(changes: Changes<u8, u32>) -> Vec<(u8, Option<u32>)> {
        changes.into_iter().map(|(key, value)| (key, value.map(|value| *value))).collect()
    }

    #[test]
    fn each_change_is_handed_out_once_as_it_was() {
        let mut map = Tracked::default();
        map.restore(1, 10);
        map.insert(2, 20);
        *map.get_mut(&2).unwrap() += 1;
        *map.get_or_insert_with(3, || 30) += 1;
        map.insert(4, 40);
        assert!(map.remove(&4));
        assert!(map.remove(&1));
        assert!(!map.remove(&9));
        let changes = map.take_changes();
        *map.get_mut(&2).unwrap() = 99;
        assert_eq!(plain(changes), [(1, None), (2, Some(21)), (3, Some(31)), (4, None)]);
        assert_eq!(plain(map.take_changes()), [(2, Some(99))]);
        assert!(map.take_changes().is_empty());
        assert_eq!(map.iter().map(|(key, value)| (*key, *value)).collect::<Vec<_>>(), [(2, 99), (3, 31)]);
    }
}
