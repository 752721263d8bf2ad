//! Text from a drive or the kernel, made fit for a terminal.

/// Without control characters and blanks at the ends; `None` if nothing is left. A label must not be able to move the cursor
/// or to colour the line of another drive.
#[must_use]
pub(crate) fn clean(raw: &str) -> Option<String> {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let text: String = raw.chars().map(|c| if hidden(c) { '?' } else { c }).collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn a_label_cannot_write_to_the_terminal() {
        assert_eq!(clean(" a\u{1b}[2Jb\u{202e} ").as_deref(), Some("a?[2Jb?"));
        assert_eq!(clean(" \u{0} ").as_deref(), Some("?"));
        assert_eq!(clean("  "), None);
    }
}
