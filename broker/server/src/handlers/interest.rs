//! Topics that a client names: as many as may be, and by names that a topic can have.
//!
//! What is pushed of them is made anew with every version of the metadata, and the names are kept for as long as the connection lives: so
//! their bytes are bounded, and a name that no topic will ever have is refused once and forgotten.

use std::collections::BTreeSet;

use tidemill_controller::Name;
use tidemill_protocol::ErrorCode;
use tidemill_protocol::messages::Error;

use crate::errors::ECHOED_CHARACTERS_MAX;

/// Topics that a connection is told of, or a request may name; a name that is repeated counts once.
const NAMES_MAX: usize = 10_000;
/// The bytes of their names together.
const NAME_BYTES_MAX: usize = 512 << 10;
/// Names that no topic can have are refused one by one up to so many; nobody needs to be told of more.
const REFUSED_MAX: usize = 100;

/// The topics whose metadata a connection is pushed.
#[derive(Debug, Default)]
pub(super) struct Interest(BTreeSet<String>);

impl Interest {
    /// What of a client's list is kept, and the names of it that are to be refused, the beginning of each.
    pub(super) fn of(topics: Vec<String>) -> (Self, Vec<String>) {
        let (mut names, mut refused) = (BTreeSet::new(), Vec::new());
        let mut bytes_left = NAME_BYTES_MAX;
        for topic in topics {
            if Name::parse(&topic).is_err() {
                if refused.len() < REFUSED_MAX {
                    refused.push(echo(&topic));
                }
                continue;
            }
            if names.contains(&topic) {
                continue;
            }
            if names.len() == NAMES_MAX || topic.len() > bytes_left {
                break;
            }
            bytes_left -= topic.len();
            names.insert(topic);
        }
        (Self(names), refused)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// The names in a request, each once.
///
/// # Errors
/// There are more of them than one request may name, or they are too long together.
pub(super) fn asked(topics: &[String]) -> Result<BTreeSet<&str>, Error> {
    let names: BTreeSet<&str> = topics.iter().map(String::as_str).collect();
    let bytes: usize = names.iter().map(|name| name.len()).sum();
    if names.len() > NAMES_MAX || bytes > NAME_BYTES_MAX {
        let reason = format!(
            "a request names at most {NAMES_MAX} topics, in {NAME_BYTES_MAX} bytes; ask for all of them, or in parts"
        );
        return Err(Error::new(ErrorCode::BadMessage, reason));
    }
    Ok(names)
}

/// So much of a name that no topic can have as an answer repeats. A name that is cut by it is too long still.
pub(super) fn echo(name: &str) -> String {
    name.chars().take(ECHOED_CHARACTERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As long as a topic's name may be.
    fn long(number: usize) -> String {
        format!("{number:0>249}")
    }

    #[test]
    fn names_that_no_topic_can_have_are_not_kept() {
        let endless = "x".repeat(1 << 20);
        let topics = ["plays", "a/b", "", "plays", &endless, "..", "z"].map(str::to_owned).to_vec();
        let (interest, refused) = Interest::of(topics);
        assert_eq!(interest.names().collect::<Vec<_>>(), ["plays", "z"]);
        assert_eq!(refused, ["a/b", "", &"x".repeat(ECHOED_CHARACTERS_MAX), ".."]);
        assert!(refused.iter().all(|name| Name::parse(name).is_err()), "what is left of them is refused too");
        let (interest, refused) = Interest::of(vec!["a b".to_owned(); 5_000]);
        assert!(interest.is_empty());
        assert_eq!(refused.len(), REFUSED_MAX);
    }

    #[test]
    fn a_connection_keeps_so_many_names_and_so_many_bytes_of_them() {
        let many = (0..NAMES_MAX + 10).map(|number| number.to_string());
        let twice: Vec<String> = many.clone().chain(many).collect();
        assert_eq!(Interest::of(twice).0.names().count(), NAMES_MAX);
        let (interest, _) = Interest::of((0..NAMES_MAX).map(long).collect());
        let bytes: usize = interest.names().map(str::len).sum();
        assert!(bytes <= NAME_BYTES_MAX && bytes + long(0).len() > NAME_BYTES_MAX, "{bytes}");
    }

    #[test]
    fn a_request_names_as_many_and_each_counts_once() {
        let same = vec![long(0); NAMES_MAX + 1];
        assert_eq!(asked(&same).expect("it is one").len(), 1);
        let many: Vec<String> = (0..=NAMES_MAX).map(|number| number.to_string()).collect();
        assert!(asked(&many).is_err() && asked(&many[1..]).is_ok());
        let long: Vec<String> = (0..=NAME_BYTES_MAX / 249).map(long).collect();
        let error = asked(&long).expect_err("too long together");
        assert_eq!(error.error_code(), Some(ErrorCode::BadMessage));
        assert!(asked(&long[1..]).is_ok());
    }
}
