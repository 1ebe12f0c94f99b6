//! Texts of plugins end up on terminals and in journals: no control characters, no endless lines.

/// The first `limit` bytes at most, cut between characters.
pub(super) fn head(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let mut end = limit;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The text without control characters (line breaks and tabs stay), at most `limit` bytes of it.
pub(super) fn clean(text: &str, limit: usize) -> String {
    let cut = head(text, limit);
    let mut out: String = cut
        .chars()
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { char::REPLACEMENT_CHARACTER } else { c })
        .collect();
    if cut.len() < text.len() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_length_are_tamed() {
        assert_eq!(clean("a\x1b[31mred\n\tb", 100), "a\u{fffd}[31mred\n\tb");
        assert_eq!(clean("äöü", 3), "ä…");
        assert_eq!(head("äöü", 4), "äö");
        assert_eq!(head("abc", 3), "abc");
    }
}
