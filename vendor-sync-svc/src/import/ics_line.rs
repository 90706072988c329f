//! Content lines of an iCalendar file (RFC 5545, 3.1): parted, unfolded, with name, parameters and value. Pure.
//!
//! A line is kept to [`LINE_BYTES`]: what is beyond is left out, which only descriptions that nobody reads come near.

use super::text::Encoding;

const LINE_BYTES: usize = 64 << 10;

/// One content line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// In capitals.
    pub(super) name: String,
    /// Names in capitals.
    parameters: Vec<(String, String)>,
    pub(super) value: String,
}

impl Line {
    fn parse(text: &str) -> Self {
        let mut quoted = false;
        let outside = |c: char| {
            quoted ^= c == '"';
            c == ':' && !quoted
        };
        let (head, value) = text.find(outside).map_or((text, ""), |at| (&text[..at], &text[at + 1..]));
        let mut quoted = false;
        let mut parts = head.split(|c: char| {
            quoted ^= c == '"';
            c == ';' && !quoted
        });
        let name = parts.next().unwrap_or_default().trim().to_ascii_uppercase();
        let parameter = |part: &str| {
            let (name, value) = part.split_once('=')?;
            Some((name.to_ascii_uppercase(), value.trim_matches('"').to_owned()))
        };
        Self { name, parameters: parts.filter_map(parameter).collect(), value: value.to_owned() }
    }

    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// The value as TEXT (3.3.11): `\n`, `\,`, `\;` and `\\` are what they stand for.
    pub(super) fn text(&self) -> String {
        let (mut text, mut escaped) = (String::with_capacity(self.value.len()), false);
        for c in self.value.chars() {
            if c == '\\' && !escaped {
                escaped = true;
                continue;
            }
            text.push(if escaped && matches!(c, 'n' | 'N') { '\n' } else { c });
            escaped = false;
        }
        text.trim().to_owned()
    }
}

/// Parts and unfolds lines from pieces of a file.
#[derive(Debug)]
pub(super) struct Lines {
    line: Vec<u8>,
    /// Of the line that is being read, counted from 1.
    began: u64,
    number: u64,
    /// Its end was seen; the next byte says whether it goes on.
    ended: bool,
}

impl Lines {
    pub(super) fn new(line: u64) -> Self {
        Self { line: Vec::new(), began: line, number: line, ended: false }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Takes bytes until a line is complete: how many, and the line with where it begins. `last`: nothing comes any more.
    pub(super) fn next(&mut self, input: &[u8], last: bool, encoding: Encoding) -> (usize, Option<(u64, Line)>) {
        let mut used = 0;
        while let Some(byte) = input.get(used) {
            match (self.ended, byte) {
                (true, b' ' | b'\t') => (self.ended, used) = (false, used + 1),
                (true, _) => return (used, Some(self.finish(encoding))),
                (false, _) => used += self.take(&input[used..]),
            }
        }
        let rest = last && (self.ended || !self.line.is_empty());
        (used, rest.then(|| self.finish(encoding)))
    }

    /// Up to and with the line's end.
    fn take(&mut self, input: &[u8]) -> usize {
        let end = input.iter().position(|byte| *byte == b'\n');
        let piece = &input[..end.unwrap_or(input.len())];
        let room = LINE_BYTES.saturating_sub(self.line.len());
        self.line.extend_from_slice(&piece[..piece.len().min(room)]);
        let Some(end) = end else { return input.len() };
        if self.line.last() == Some(&b'\r') {
            self.line.pop();
        }
        (self.ended, self.number) = (true, self.number + 1);
        end + 1
    }

    fn finish(&mut self, encoding: Encoding) -> (u64, Line) {
        let line = Line::parse(&encoding.decode(&self.line));
        self.line.clear();
        self.ended = false;
        (std::mem::replace(&mut self.began, self.number), line)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<(u64, Line)> {
        let (mut lines, mut read) = (Lines::new(1), Vec::new());
        for mut piece in pieces.iter().copied() {
            while !piece.is_empty() {
                let (used, line) = lines.next(piece, false, Encoding::Utf8);
                read.extend(line);
                piece = &piece[used..];
            }
        }
        read.extend(lines.next(&[], true, Encoding::Utf8).1);
        read
    }

    #[test]
    fn a_folded_line_is_one_even_within_a_character() {
        let read = lines(&[b"SUMMARY:Zo\xC3\r\n \xAB\r\n\t and Lee\r\nUID:1\r\n"]);
        assert_eq!((read[0].0, read[0].1.value.as_str()), (1, "Zoë and Lee"));
        assert_eq!((read[1].0, read[1].1.name.as_str()), (4, "UID"));
    }

    #[test]
    fn quoted_parameters_hold_colons_and_semicolons() {
        let line = Line::parse("attendee;CN=\"a;b:c\";X=1:mailto:a@b.c");
        assert_eq!((line.name.as_str(), line.value.as_str()), ("ATTENDEE", "mailto:a@b.c"));
        assert_eq!((line.parameter("CN"), line.parameter("X")), (Some("a;b:c"), Some("1")));
    }

    #[test]
    fn escapes_are_what_they_stand_for() {
        assert_eq!(Line::parse("X:a\\, b\\; c\\nd \\\\n").text(), "a, b; c\nd \\n");
    }

    #[test]
    fn a_line_without_end_is_kept_to_the_bound() {
        let long = vec![b'x'; 3 * LINE_BYTES];
        let mut lines = Lines::new(1);
        lines.next(&long, false, Encoding::Utf8);
        assert_eq!(lines.line.len(), LINE_BYTES);
    }

    proptest! {
        #[test]
        fn how_a_file_is_cut_changes_nothing(text in "[aB:; \t\r\n\"=]{0,60}", cut in 0usize..60) {
            let (one, two) = text.as_bytes().split_at(cut.min(text.len()));
            prop_assert_eq!(lines(&[one, two]), lines(&[text.as_bytes()]));
        }
    }
}
