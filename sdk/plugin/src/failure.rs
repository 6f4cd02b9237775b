//! What a plugin answers when it cannot go on, and what it will not accept.

use std::fmt;

/// The whole call failed; nothing that it did is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The same batch may succeed later: the broker tries again, then splits the batch.
    Retry(String),
    /// The same batch will never succeed: the broker splits it until the record that fails stands alone.
    Reject(String),
}

impl Failure {
    /// A failure that may pass.
    pub fn retry(reason: impl Into<String>) -> Self {
        Self::Retry(reason.into())
    }

    /// A failure that will not pass.
    pub fn reject(reason: impl Into<String>) -> Self {
        Self::Reject(reason.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Retry(reason) => write!(f, "{reason} (may succeed later)"),
            Self::Reject(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for Failure {}

/// A record that the plugin will not accept. The deployment's failure policy decides what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Which record of the batch, from 0.
    pub ordinal: u32,
    /// Why, for people.
    pub reason: String,
}

/// Rejections as the broker wants them: by rising ordinal, the first reason for each.
pub(crate) fn in_order(rejections: Vec<Rejection>) -> Vec<Rejection> {
    if rejections.is_sorted_by(|a, b| a.ordinal < b.ordinal) {
        return rejections;
    }
    // Rare, so that the few bytes of a binary search do, where a sort would add kilobytes to every component.
    let mut ordered: Vec<Rejection> = Vec::with_capacity(rejections.len());
    for rejection in rejections {
        if let Err(at) = ordered.binary_search_by_key(&rejection.ordinal, |other| other.ordinal) {
            ordered.insert(at, rejection);
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejections_are_put_in_order() {
        let list = |list: &[(u32, &str)]| -> Vec<Rejection> {
            list.iter()
                .map(|(ordinal, reason)| Rejection { ordinal: *ordinal, reason: (*reason).to_owned() })
                .collect()
        };
        assert_eq!(in_order(list(&[(1, "a"), (2, "b")])), list(&[(1, "a"), (2, "b")]));
        assert_eq!(
            in_order(list(&[(2, "a"), (0, "b"), (2, "c"), (1, "d")])),
            list(&[(0, "b"), (1, "d"), (2, "a")])
        );
        assert_eq!(in_order(Vec::new()), Vec::new());
    }
}
