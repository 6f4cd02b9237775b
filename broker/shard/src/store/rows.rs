//! Rows in three layers: what the current generation changed, what a checkpoint is writing, what the file holds.
//!
//! ```text
//!     apply writes --> current   BTreeMap in memory                   generation N+1
//!                      frozen    BTreeMap, shared with the checkpoint generation N
//!     reads merge all  base      redb, pinned version                 generation N-1
//! ```
//! A row that is made and deleted within one generation never reaches the file: that is what keeps the outbox cheap.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::iter::Peekable;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;

use super::state_file::{BaseRange, BaseRows, StoreError};

/// What became of a row in a generation.
#[derive(Debug, Clone)]
pub(crate) enum RowChange {
    Put {
        value: Bytes,
        /// No layer below has the row: deleting it again leaves nothing to say.
        fresh: bool,
    },
    Delete,
}

impl RowChange {
    pub(crate) fn value(&self) -> Option<&Bytes> {
        match self {
            Self::Put { value, .. } => Some(value),
            Self::Delete => None,
        }
    }
}

pub(crate) type Layer = BTreeMap<Bytes, RowChange>;
pub(crate) type FrozenRows = Arc<Layer>;

/// The rows as apply and readers see them.
pub(crate) struct Rows {
    current: Layer,
    frozen: Option<FrozenRows>,
    base: Option<BaseRows>,
}

impl Rows {
    pub(crate) fn new(base: Option<BaseRows>) -> Self {
        Self { current: Layer::new(), frozen: None, base }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let layers = [Some(&self.current), self.frozen.as_deref()];
        if let Some(change) = layers.into_iter().flatten().find_map(|layer| layer.get(key)) {
            return Ok(change.value().cloned());
        }
        self.base.as_ref().map_or(Ok(None), |base| base.get(key))
    }

    /// Sets a row. `absent` where the caller knows that there is none now.
    pub(crate) fn put(&mut self, key: impl Into<Bytes>, value: Bytes, absent: bool) {
        match self.current.entry(key.into()) {
            btree_map::Entry::Vacant(entry) => {
                entry.insert(RowChange::Put { value, fresh: absent });
            }
            btree_map::Entry::Occupied(mut entry) => {
                let fresh = matches!(entry.get(), RowChange::Put { fresh: true, .. });
                entry.insert(RowChange::Put { value, fresh });
            }
        }
    }

    pub(crate) fn delete(&mut self, key: impl Into<Bytes>) {
        match self.current.entry(key.into()) {
            btree_map::Entry::Occupied(entry)
                if matches!(entry.get(), RowChange::Put { fresh: true, .. }) =>
            {
                entry.remove();
            }
            btree_map::Entry::Occupied(mut entry) => {
                entry.insert(RowChange::Delete);
            }
            btree_map::Entry::Vacant(entry) => {
                entry.insert(RowChange::Delete);
            }
        }
    }

    /// Visits the rows in a range, in the order of their keys, until the visitor breaks.
    pub(crate) fn scan(
        &self,
        start: Bound<&[u8]>,
        end: Bound<&[u8]>,
        mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        if is_empty(start, end) {
            return Ok(());
        }
        let mut current = self.current.range::<[u8], _>((start, end)).peekable();
        let mut frozen = self.frozen.as_deref().map(|layer| layer.range::<[u8], _>((start, end)).peekable());
        let mut base = BaseCursor::new(self.base.as_ref(), start, end)?;
        loop {
            let keys = [peek(Some(&mut current)), peek(frozen.as_mut()), base.key()];
            let Some(key) = keys.into_iter().flatten().min().map(Bytes::copy_from_slice) else {
                return Ok(());
            };
            // The newest layer that has the row decides; all layers step over it.
            let newest = take(Some(&mut current), &key);
            let older = take(frozen.as_mut(), &key);
            let below = base.take(&key)?;
            let value = match newest.or(older) {
                Some(change) => change.value().cloned(),
                None => below,
            };
            if let Some(value) = value
                && visit(&key, &value).is_break()
            {
                return Ok(());
            }
        }
    }

    /// What memory knows of a row: `None` where only the file can tell.
    pub(crate) fn in_memory(&self, key: &[u8]) -> Option<Option<Bytes>> {
        let layers = [Some(&self.current), self.frozen.as_deref()];
        layers.into_iter().flatten().find_map(|layer| layer.get(key)).map(|change| change.value().cloned())
    }

    /// The pinned version of the file.
    pub(crate) fn base(&self) -> Option<BaseRows> {
        self.base.clone()
    }

    /// A copy of what memory knows of a range, over the pinned version of the file: for a scan without the state's lock.
    /// It ends after `limit` rows that are there; where that cuts it short, the key it does not go beyond is answered.
    pub(crate) fn excerpt(&self, start: &[u8], end: &[u8], limit: usize) -> (Self, Option<Bytes>) {
        let bounds = (Bound::Included(start), Bound::Excluded(end));
        let mut excerpt = Self::new(self.base.clone());
        if is_empty(bounds.0, bounds.1) {
            return (excerpt, None);
        }
        let mut current = self.current.range::<[u8], _>(bounds).peekable();
        let mut frozen = self.frozen.as_deref().map(|layer| layer.range::<[u8], _>(bounds).peekable());
        let mut there = 0;
        loop {
            let key = [peek(Some(&mut current)), peek(frozen.as_mut())].into_iter().flatten().min();
            let Some(key) = key else { return (excerpt, None) };
            if there >= limit {
                return (excerpt, Some(Bytes::copy_from_slice(key)));
            }
            let newest = take(Some(&mut current), key);
            let older = take(frozen.as_mut(), key);
            if let Some(change) = newest.or(older) {
                there += usize::from(change.value().is_some());
                excerpt.current.insert(Bytes::copy_from_slice(key), change.clone());
            }
        }
    }

    /// Whether the last generation is not in the file yet: no other can end.
    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// Begins a new generation; what the old one changed stays readable.
    pub(crate) fn freeze(&mut self) -> FrozenRows {
        debug_assert!(self.frozen.is_none(), "one checkpoint at a time");
        let frozen = Arc::new(std::mem::take(&mut self.current));
        self.frozen = Some(Arc::clone(&frozen));
        frozen
    }

    /// The frozen generation is in the file.
    pub(crate) fn thaw(&mut self, base: Option<BaseRows>) {
        self.frozen = None;
        self.base = base;
    }
}

fn is_empty(start: Bound<&[u8]>, end: Bound<&[u8]>) -> bool {
    match (start, end) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (Bound::Included(start) | Bound::Excluded(start), Bound::Included(end) | Bound::Excluded(end)) => {
            start >= end
        }
    }
}

type LayerRange<'a> = Peekable<btree_map::Range<'a, Bytes, RowChange>>;

fn peek<'a>(range: Option<&mut LayerRange<'a>>) -> Option<&'a [u8]> {
    range?.peek().map(|(key, _)| &key[..])
}

fn take<'a>(range: Option<&mut LayerRange<'a>>, key: &[u8]) -> Option<&'a RowChange> {
    range?.next_if(|(next, _)| &next[..] == key).map(|(_, change)| change)
}

/// The file's rows, one ahead.
struct BaseCursor {
    range: Option<BaseRange>,
    next: Option<(Bytes, Bytes)>,
}

impl BaseCursor {
    fn new(base: Option<&BaseRows>, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Result<Self, StoreError> {
        let range = base.map(|base| base.range(start, end)).transpose()?;
        let mut cursor = Self { range, next: None };
        cursor.step()?;
        Ok(cursor)
    }

    fn step(&mut self) -> Result<(), StoreError> {
        let next = self.range.as_mut().and_then(Iterator::next).transpose();
        let next = next.map_err(|error| StoreError::new("can't be read", error))?;
        self.next = next
            .map(|(key, value)| (Bytes::copy_from_slice(key.value()), Bytes::copy_from_slice(value.value())));
        Ok(())
    }

    fn key(&self) -> Option<&[u8]> {
        self.next.as_ref().map(|(key, _)| &key[..])
    }

    fn take(&mut self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        if self.key() != Some(key) {
            return Ok(None);
        }
        let value = self.next.take().map(|(_, value)| value);
        self.step()?;
        Ok(value)
    }
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
