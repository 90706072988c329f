//! In which encoding a file is, and its cells as text. Pure.
//!
//! A file is UTF-8 if all of it is well-formed UTF-8, which no longer text in Windows-1252 is by chance; else it is
//! Windows-1252, what older spreadsheets write. UTF-16 is known by its byte order mark, and refused with what to do.

use std::borrow::Cow;

const UTF8_MARK: &[u8] = b"\xEF\xBB\xBF";

/// How a file's bytes are text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Utf8,
    Windows1252,
}

impl Encoding {
    /// As the store has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Utf8 => "utf-8",
            Self::Windows1252 => "windows-1252",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Utf8, Self::Windows1252].into_iter().find(|encoding| encoding.as_str() == text)
    }

    /// The bytes as text. What a file that was found to be UTF-8 can't hold is replaced.
    pub(crate) fn decode(self, bytes: &[u8]) -> Cow<'_, str> {
        match self {
            Self::Utf8 => String::from_utf8_lossy(bytes),
            Self::Windows1252 if bytes.is_ascii() => String::from_utf8_lossy(bytes),
            Self::Windows1252 => bytes.iter().map(|byte| windows_1252(*byte)).collect::<String>().into(),
        }
    }
}

/// Looks at a file as it comes, in whatever pieces.
#[derive(Debug, Default)]
pub(crate) struct Detector {
    seen: usize,
    /// A character that the piece before began.
    begun: Vec<u8>,
    broken: bool,
    head: Vec<u8>,
}

impl Detector {
    /// Looks at the next bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let missing = UTF8_MARK.len().saturating_sub(self.head.len()).min(bytes.len());
        self.head.extend_from_slice(&bytes[..missing]);
        self.seen += bytes.len();
        if self.broken {
            return;
        }
        // A character has at most four bytes: what is left over of the piece before is completed by the first of this one.
        let mut rest = bytes;
        while !self.begun.is_empty() && !rest.is_empty() {
            self.begun.push(rest[0]);
            rest = &rest[1..];
            match std::str::from_utf8(&self.begun) {
                Ok(_) => self.begun.clear(),
                Err(error) if error.error_len().is_some() => self.broken = true,
                Err(_) => continue,
            }
            break;
        }
        if let Err(error) = std::str::from_utf8(rest) {
            match error.error_len() {
                Some(_) => self.broken = true,
                None => self.begun = rest[error.valid_up_to()..].to_vec(),
            }
        }
    }

    /// The encoding of what was seen, and how many bytes at its start are its mark.
    ///
    /// # Errors
    /// What to do with a file that is neither.
    pub(crate) fn end(&self) -> Result<(Encoding, usize), &'static str> {
        if self.head.starts_with(b"\xFF\xFE") || self.head.starts_with(b"\xFE\xFF") {
            return Err("is UTF-16: save it as CSV UTF-8");
        }
        let mark = if self.head.starts_with(UTF8_MARK) { UTF8_MARK.len() } else { 0 };
        let encoding = if self.broken || !self.begun.is_empty() { Encoding::Windows1252 } else { Encoding::Utf8 };
        if mark > 0 && encoding == Encoding::Windows1252 {
            return Err("says that it is UTF-8 and isn't: save it again as CSV UTF-8");
        }
        if self.seen == mark {
            return Err("is empty");
        }
        Ok((encoding, mark))
    }
}

/// Source: encoding.spec.whatwg.org, index windows-1252: Latin-1 but for 0x80 to 0x9F.
fn windows_1252(byte: u8) -> char {
    const HIGH: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8D}', 'Ž', '\u{8F}', '\u{90}', '‘',
        '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9D}', 'ž', 'Ÿ',
    ];
    match byte {
        0x80..=0x9F => HIGH[usize::from(byte - 0x80)],
        _ => char::from(byte),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn detected(pieces: &[&[u8]]) -> Result<(Encoding, usize), &'static str> {
        let mut detector = Detector::default();
        pieces.iter().for_each(|piece| detector.push(piece));
        detector.end()
    }

    #[test]
    fn a_character_that_two_pieces_share_is_still_utf_8() {
        for at in 0.."Zoë € 💍".len() {
            let (one, two) = "Zoë € 💍".as_bytes().split_at(at);
            assert_eq!(detected(&[one, two]), Ok((Encoding::Utf8, 0)), "cut at {at}");
        }
        assert_eq!(detected(&[b"Zo\xC3", b"x"]), Ok((Encoding::Windows1252, 0)));
        assert_eq!(detected(&[b"Zo\xC3"]), Ok((Encoding::Windows1252, 0)), "cut off within a character");
    }

    #[test]
    fn windows_1252_reads_what_old_spreadsheets_write() {
        assert_eq!(detected(&[b"Zo\xEB \x96 \x80"]), Ok((Encoding::Windows1252, 0)));
        assert_eq!(Encoding::Windows1252.decode(b"Zo\xEB \x96 \x80"), "Zoë – €");
    }

    #[test]
    fn marks_are_known_and_what_contradicts_them_is_refused() {
        assert_eq!(detected(&[b"\xEF", b"\xBB\xBFa"]), Ok((Encoding::Utf8, 3)));
        assert!(detected(&[b"\xEF\xBB\xBF\xEB "]).is_err() && detected(&[b"\xFF\xFEa\0"]).is_err());
        assert!(detected(&[]).is_err() && detected(&[b"\xEF\xBB\xBF"]).is_err(), "empty");
    }

    proptest! {
        #[test]
        fn how_a_file_is_cut_changes_nothing(bytes in prop::collection::vec(any::<u8>(), 0..60), cut in 0usize..60) {
            let (one, two) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(detected(&[one, two]), detected(&[&bytes]));
        }
    }
}
