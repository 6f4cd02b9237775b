//! Text from a plugin, cut to a bound.

/// Cuts to at most `bytes_max` bytes, between characters.
pub(crate) fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max));
        text.shrink_to_fit();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn cuts_between_characters() {
        assert_eq!(cut("häuser".to_owned(), 2), "h");
        assert_eq!(cut("häuser".to_owned(), 3), "hä");
        assert_eq!(cut("häuser".to_owned(), 100), "häuser");
        assert_eq!(cut("ä".to_owned(), 1), "");
    }
}
