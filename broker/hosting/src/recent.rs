//! Values by key, up to a number of them: one too many pushes out the one that was not used for the longest.

use std::collections::HashMap;
use std::hash::Hash;

/// What is in use is held by its users: forgetting it here costs making it again at the most.
pub(crate) struct Recent<K, T> {
    /// With the number of its last use.
    entries: HashMap<K, (u64, T)>,
    uses: u64,
    most: usize,
}

impl<K: Clone + Eq + Hash, T: Clone> Recent<K, T> {
    pub(crate) fn new(most: usize) -> Self {
        Self { entries: HashMap::new(), uses: 0, most }
    }

    pub(crate) fn get(&mut self, key: &K) -> Option<T> {
        self.uses += 1;
        let (last, found) = self.entries.get_mut(key)?;
        *last = self.uses;
        Some(found.clone())
    }

    pub(crate) fn insert(&mut self, key: K, value: T) {
        if self.entries.len() >= self.most && !self.entries.contains_key(&key) {
            let oldest = self.entries.iter().min_by_key(|(_, (last, _))| *last).map(|(key, _)| key.clone());
            oldest.map(|oldest| self.entries.remove(&oldest));
        }
        self.uses += 1;
        self.entries.insert(key, (self.uses, value));
    }

    pub(crate) fn remove(&mut self, key: &K) {
        self.entries.remove(key);
    }

    pub(crate) fn retain(&mut self, mut stays: impl FnMut(&K) -> bool) {
        self.entries.retain(|key, _| stays(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 64;

    #[test]
    fn what_is_used_stays() {
        let mut recent = Recent::new(MOST);
        for number in 0..2 * MOST {
            recent.insert(number, number);
            assert_eq!(recent.get(&0), Some(0), "after {number} others");
        }
        assert_eq!(recent.entries.len(), MOST);
        assert_eq!(recent.get(&1), None);
        recent.retain(|number| *number != 0);
        assert_eq!((recent.get(&0), recent.entries.len()), (None, MOST - 1));
    }

    #[test]
    fn one_too_many_pushes_out_one() {
        let mut recent = Recent::new(MOST);
        (0..=MOST).for_each(|number| recent.insert(number, number));
        assert_eq!(recent.get(&0), None);
        assert!((1..=MOST).all(|number| recent.get(&number) == Some(number)));
        recent.insert(1, 7);
        assert_eq!((recent.get(&1), recent.entries.len()), (Some(7), MOST), "the same key is no one more");
    }
}
