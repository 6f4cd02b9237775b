//! Lists of byte strings as the contract has them: the bytes end to end, and where each ends.

use crate::bindings::tidemill::plugin::state as guest;

/// An end that says: this one is absent.
const ABSENT: u32 = u32::MAX;

/// A list of byte strings, each of which may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blobs {
    data: Vec<u8>,
    ends: Vec<u32>,
}

impl Blobs {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a byte string, or an absent one. False, and nothing is appended, once the bytes no longer fit a plugin's memory.
    #[must_use]
    pub fn push(&mut self, blob: Option<&[u8]>) -> bool {
        let Some(blob) = blob else {
            self.ends.push(ABSENT);
            return true;
        };
        match u32::try_from(self.data.len() + blob.len()) {
            Ok(end) if end != ABSENT => {
                self.data.extend_from_slice(blob);
                self.ends.push(end);
                true
            }
            _ => false,
        }
    }

    /// How many byte strings there are, the absent ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of all of them together.
    #[must_use]
    pub fn data_bytes(&self) -> usize {
        self.data.len()
    }

    /// The byte strings in order; `None` is absent.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<&[u8]>> + '_ {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            if end == ABSENT {
                return None;
            }
            let blob = self.data.get(start..end as usize);
            start = end as usize;
            Some(blob.unwrap_or_default())
        })
    }

    /// Takes what a plugin handed over, if its ends rise and lie within the data.
    pub(crate) fn from_guest(blobs: guest::Blobs, absent: Absent) -> Result<Self, String> {
        let (ends, rest) = blobs.ends.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(format!("ends are {} bytes, which is not a multiple of 4", blobs.ends.len()));
        }
        let ends: Vec<u32> = ends.iter().map(|end| u32::from_le_bytes(*end)).collect();
        let mut last = 0;
        for (at, &end) in ends.iter().enumerate() {
            if end == ABSENT && absent == Absent::Allowed {
                continue;
            }
            if end == ABSENT {
                return Err(format!("key {at} is absent"));
            }
            if end < last || end as usize > blobs.data.len() {
                return Err(format!("end {at} is {end}, outside {last} to {}", blobs.data.len()));
            }
            last = end;
        }
        Ok(Self { data: blobs.data, ends })
    }

    pub(crate) fn into_guest(self) -> guest::Blobs {
        guest::Blobs { data: self.data, ends: self.ends.iter().flat_map(|end| end.to_le_bytes()).collect() }
    }
}

/// Whether a list from a plugin may have absent members.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    Allowed,
    Refused,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn guest_blobs(data: &[u8], ends: &[u32]) -> guest::Blobs {
        guest::Blobs { data: data.to_vec(), ends: ends.iter().flat_map(|end| end.to_le_bytes()).collect() }
    }

    proptest! {
        #[test]
        fn what_goes_to_a_guest_comes_back(list in proptest::collection::vec(
            proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)), 0..20))
        {
            let mut blobs = Blobs::new();
            for blob in &list {
                prop_assert!(blobs.push(blob.as_deref()));
            }
            let back = Blobs::from_guest(blobs.clone().into_guest(), Absent::Allowed).unwrap();
            prop_assert_eq!(&back, &blobs);
            let parts: Vec<_> = back.iter().map(|blob| blob.map(<[u8]>::to_vec)).collect();
            prop_assert_eq!(parts, list);
        }

        #[test]
        fn no_ends_lead_outside_the_data(data in proptest::collection::vec(any::<u8>(), 0..32),
                                         ends in proptest::collection::vec(0u32..64, 0..8)) {
            if let Ok(blobs) = Blobs::from_guest(guest_blobs(&data, &ends), Absent::Refused) {
                prop_assert!(blobs.iter().flatten().map(<[u8]>::len).sum::<usize>() <= data.len());
            }
        }
    }

    #[test]
    fn bad_lists_are_refused() {
        let refused = |blobs, absent| Blobs::from_guest(blobs, absent).is_err();
        assert!(refused(guest_blobs(b"abc", &[4]), Absent::Allowed));
        assert!(refused(guest_blobs(b"abc", &[2, 1]), Absent::Allowed));
        assert!(refused(guest_blobs(b"abc", &[1, ABSENT, 0]), Absent::Allowed));
        assert!(refused(guest_blobs(b"abc", &[ABSENT]), Absent::Refused));
        assert!(refused(guest::Blobs { data: vec![], ends: vec![0; 5] }, Absent::Allowed));
    }
}
