//! What others say, as it may be shown on a terminal: with its colors, and without anything else that steers one.

/// How long the numbers of a color may be, in bytes.
const LONGEST_COLOR: usize = 32;

/// Passes text and colors, and leaves out all other control characters and sequences, wherever chunks are cut.
#[derive(Debug, Default)]
pub(crate) struct Harmless(State);

#[derive(Debug, Default)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// After `ESC [`: what came since.
    Sequence(Vec<u8>),
    /// In a sequence that is no color.
    Skipped,
    /// After the first byte of what may be a control character of two bytes (U+0080 to U+009F).
    Latin,
}

impl Harmless {
    pub(crate) fn pass(&mut self, data: &[u8]) -> Vec<u8> {
        let mut passed = Vec::with_capacity(data.len());
        for byte in data {
            self.byte(*byte, &mut passed);
        }
        passed
    }

    fn byte(&mut self, byte: u8, passed: &mut Vec<u8>) {
        let state = std::mem::take(&mut self.0);
        self.0 = match (state, byte) {
            (_, 0x1b) => State::Escape,
            (State::Text, 0xc2) => State::Latin,
            // Nothing goes on beyond a line's end.
            (_, b'\n') | (State::Text, b'\t' | 0x20..=0x7e | 0x80..) => {
                passed.push(byte);
                State::Text
            }
            (State::Escape, b'[') => State::Sequence(Vec::new()),
            (State::Latin, 0xa0..=0xbf) => {
                passed.extend([0xc2, byte]);
                State::Text
            }
            (State::Sequence(mut numbers), b'0'..=b'9' | b';' | b':')
                if numbers.len() < LONGEST_COLOR =>
            {
                numbers.push(byte);
                State::Sequence(numbers)
            }
            (State::Sequence(numbers), b'm') => {
                passed.extend([&b"\x1b["[..], &numbers, b"m"].concat());
                State::Text
            }
            // Other sequences go on until a byte of this range ends them (ECMA-48, section 5.4).
            (State::Sequence(_) | State::Skipped, 0x20..=0x3f) => State::Skipped,
            _ => State::Text,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_colors_pass_and_nothing_else() {
        let cases = [
            ("plain\ttext\n", "plain\ttext\n"),
            ("\u{1b}[1;31mred\u{1b}[0m", "\u{1b}[1;31mred\u{1b}[0m"),
            ("über 日本 \u{a9}", "über 日本 \u{a9}"),
            ("a\u{1b}[2Jb\u{1b}[10;10Hc", "abc"),
            ("a\u{1b}[?25lb\u{1b}[?1;2mc", "abc"),
            ("a\rb\u{8}c\u{7}\u{7f}", "abc"),
            ("a\u{9b}2Jb", "a2Jb"),
            ("a\u{1b}]0;title\u{7}b", "a0;titleb"),
            ("a\u{1b}cb", "ab"),
            ("a\u{1b}[\nb", "a\nb"),
        ];
        for (said, shown) in cases {
            let whole = Harmless::default().pass(said.as_bytes());
            assert_eq!(String::from_utf8(whole).unwrap(), shown, "{said:?}");
            let mut filter = Harmless::default();
            let cut = said.bytes().flat_map(|byte| filter.pass(&[byte]));
            assert_eq!(String::from_utf8(cut.collect()).unwrap(), shown);
        }
    }

    #[test]
    fn a_color_of_endless_numbers_is_none() {
        let said = format!("a\u{1b}[{}mb", "1".repeat(1000));
        assert_eq!(Harmless::default().pass(said.as_bytes()), b"ab");
    }
}
