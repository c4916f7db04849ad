//! Texts from repos and devices, made safe to print.

/// `text` on one line, with control characters spelled out.
///
/// Names of commits, facts and error messages come from devices and repos; none of them may move the
/// cursor, hide a row or set the terminal's title.
pub fn printable(text: &str) -> String {
    escape(text, false)
}

/// Like [`printable`], but line breaks stay.
pub fn printable_lines(text: &str) -> String {
    escape(text, true)
}

/// The first `most` characters of `text`; where that is not all, the last of them is `…`.
pub fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept = text.chars().take(most.saturating_sub(1));
    kept.chain(['…']).collect()
}

/// The message of a parser's error without the values that it may quote: those are in double quotes, and names in
/// others. A value may be a password, and an error is read by more people than the file.
pub fn without_values(message: &str) -> String {
    let message = message.trim_end();
    match (message.split_once('"'), message.rsplit_once('"')) {
        (Some((before, _)), Some((_, after))) => format!("{before}\"…\"{after}"),
        _ => message.to_owned(),
    }
}

fn escape(text: &str, lines: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if is_harmless(character) || (lines && character == '\n') {
            escaped.push(character);
        } else {
            escaped.extend(character.escape_default());
        }
    }
    escaped
}

/// Neither a control character nor one that turns the direction of writing.
fn is_harmless(character: char) -> bool {
    !character.is_control()
        && !matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_texts_are_spelled_out() {
        assert_eq!(
            printable("a\u{1b}]0;x\u{7}b\nc\u{202e}"),
            "a\\u{1b}]0;x\\u{7}b\\nc\\u{202e}"
        );
        assert_eq!(printable_lines("a\nb\r"), "a\nb\\r");
        assert_eq!(printable("Grüße, 世界"), "Grüße, 世界");
    }

    #[test]
    fn what_is_cut_says_so() {
        assert_eq!(cut("Grüße", 5), "Grüße");
        assert_eq!(cut("Grüße", 4), "Grü…");
    }
}
