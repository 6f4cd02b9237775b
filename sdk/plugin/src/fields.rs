//! Which parts of a record a plugin asks for.

use std::ops::BitOr;

/// The parts of a record that a plugin reads. The broker copies no others into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields(u8);

impl Fields {
    /// No part: offsets and timestamps alone.
    pub const NONE: Self = Self(0);
    /// The record's key.
    pub const KEY: Self = Self(1);
    /// The record's value.
    pub const VALUE: Self = Self(2);
    /// The record's headers.
    pub const HEADERS: Self = Self(4);
    /// Everything.
    pub const ALL: Self = Self(7);

    /// Whether all of `other` is asked for.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Fields {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
