//! What was probably meant by a name that nothing has.

use tidemill_protocol::ErrorCode;
use tidemill_protocol::messages::Error;

use crate::errors::ECHOED_CHARACTERS_MAX;
use crate::view::ClusterView;

/// So many letters more, less or other are a typing error.
const LETTERS_MAX: usize = 2;
/// And a name has one error for so many letters, no more.
const LETTERS_PER_ERROR: usize = 3;
/// A longer name is compared with none: a request may bring one of some MiB, and whoever asks for it by hand reads what he typed.
const COMPARED_BYTES_MAX: usize = 64;
/// So many versions of a plugin are named, the newest of them.
const VERSIONS_NAMED_MAX: usize = 10;

/// Why there is no such plugin: the versions that there are, or a name that is nearly this one.
pub(crate) fn unknown_plugin(view: &ClusterView, name: &str, version: Option<&str>) -> Error {
    let records = || view.controller().plugins();
    let mut of_name: Vec<_> = records().filter(|record| record.name.as_str() == name).collect();
    let message = match version.filter(|_| !of_name.is_empty()) {
        Some(version) => {
            of_name.sort_by_key(|record| std::cmp::Reverse(record.number));
            let newest: Vec<&str> =
                of_name.iter().take(VERSIONS_NAMED_MAX).map(|record| record.version.as_str()).collect();
            let more = if of_name.len() > newest.len() { " and older ones" } else { "" };
            let newest = newest.join(", ");
            format!(
                "plugin '{name}' has no version '{version:.ECHOED_CHARACTERS_MAX$}'; it has {newest}{more}"
            )
        }
        None => {
            let meant = meant(records().map(|record| record.name.as_str()), name);
            format!(
                "there is no plugin '{name:.ECHOED_CHARACTERS_MAX$}'; {meant}`tidemill plugin list` shows what was uploaded"
            )
        }
    };
    Error::new(ErrorCode::UnknownPlugin, message)
}

/// Why there is no such filter for a subscription: it may be a deployment's name or a plugin's.
pub(crate) fn unknown_filter(view: &ClusterView, name: &str, version: Option<&str>) -> Error {
    let message = if view.controller().plugins().any(|record| record.name.as_str() == name) {
        return unknown_plugin(view, name, version);
    } else if view.deployment_by_name(name).is_some() {
        format!(
            "filter '{name}' is a deployment, which has its version and configuration already: name it alone, or a plugin \
             with them (`tidemill plugin list`)"
        )
    } else {
        let plugins = view.controller().plugins().map(|record| record.name.as_str());
        let deployments = view
            .controller()
            .deployments()
            .filter(|record| !record.deleted)
            .map(|record| record.spec.name.as_str());
        let meant = meant(plugins.chain(deployments), name);
        format!(
            "there is no filter '{name:.ECHOED_CHARACTERS_MAX$}'; {meant}`tidemill plugin list` and `tidemill deployment list` \
             show what is there"
        )
    };
    Error::new(ErrorCode::UnknownPlugin, message)
}

/// A question, where one of the names is nearly this one.
fn meant<'a>(names: impl Iterator<Item = &'a str>, asked: &str) -> String {
    nearest(names, asked).map_or_else(String::new, |near| format!("is '{near}' meant? "))
}

/// The name that is nearly `asked`.
pub(crate) fn nearest<'a>(names: impl Iterator<Item = &'a str>, asked: &str) -> Option<&'a str> {
    if asked.len() > COMPARED_BYTES_MAX {
        return None;
    }
    let letters = asked.chars().count();
    // Of a short name two letters less are nearly all of it.
    let most = LETTERS_MAX.min(letters / LETTERS_PER_ERROR).max(1);
    let near = names
        .filter(|name| name.chars().count().abs_diff(letters) <= most)
        .map(|name| (distance(name, asked), name))
        .min();
    near.filter(|(distance, _)| *distance <= most).map(|(_, name)| name)
}

/// How many letters must be added, removed or changed (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (i, left) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, right) in other.chars().enumerate() {
            let changed = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.chars().count()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_is_near_and_another_word_is_not() {
        let names = || ["json-filter", "redact", "field-hash"].into_iter();
        assert_eq!(nearest(names(), "json_filter"), Some("json-filter"));
        assert_eq!(nearest(names(), "redcat"), Some("redact"));
        assert_eq!(nearest(names(), "count-by-field"), None);
        assert_eq!(nearest(std::iter::empty(), "redact"), None);
    }

    #[test]
    fn a_name_that_nobody_typed_is_compared_with_none() {
        let asked = "x".repeat(4 << 20);
        assert_eq!(nearest(std::iter::repeat_n("x", 20_000), &asked), None);
        let longest = "x".repeat(COMPARED_BYTES_MAX);
        assert_eq!(nearest(std::iter::once(&longest[1..]), &longest), Some(&longest[1..]));
        assert_eq!(nearest(std::iter::once(longest.as_str()), &format!("{longest}x")), None);
    }
}
