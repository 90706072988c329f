//! Rows of a CSV file (RFC 4180, and what spreadsheets make of it), as its bytes come. Pure.
//!
//! It holds one row at most, of at most [`ROW_BYTES`]: a longer one is passed over to its end and given as a fault, and so
//! a quote that is never closed costs one row's memory and not the file's. Cells are bytes: [`super::text`] decodes them.

use csv_core::ReadRecordResult;

/// Bytes of a row's cells.
pub(crate) const ROW_BYTES: usize = 64 << 10;
/// Cells of a row.
pub(crate) const CELLS: usize = 256;

/// Why a row can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    TooLong,
    TooManyCells,
}

impl Fault {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::TooLong => "is longer than 64 KiB (is a quote not closed?)",
            Self::TooManyCells => "has more than 256 cells",
        }
    }
}

/// One row.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Where it begins, counted from 1.
    pub(crate) line: u64,
    pub(crate) cells: Result<Vec<Vec<u8>>, Fault>,
}

/// Reads rows from pieces of a file.
#[derive(Debug)]
pub(crate) struct Rows {
    core: csv_core::Reader,
    bytes: Vec<u8>,
    ends: Vec<usize>,
    filled: (usize, usize),
    fault: Option<Fault>,
    line: u64,
    within: bool,
}

impl Rows {
    /// From `line` on, which must begin a row.
    pub(crate) fn new(delimiter: u8, line: u64) -> Self {
        let mut core = csv_core::ReaderBuilder::new().delimiter(delimiter).build();
        core.set_line(line);
        let (bytes, ends) = (vec![0; ROW_BYTES], vec![0; CELLS]);
        Self { core, bytes, ends, filled: (0, 0), fault: None, line, within: false }
    }

    /// The line that the next row begins on, unless blank ones come before it.
    pub(crate) fn line(&self) -> u64 {
        self.core.line()
    }

    /// Takes bytes until a row is complete: how many, and the row. An empty `input` says that the file is at its end.
    pub(crate) fn next(&mut self, input: &[u8]) -> (usize, Option<Row>) {
        let mut used = if self.within { 0 } else { self.skip_blank(input) };
        loop {
            // An empty input would say that the file is at its end.
            if used == input.len() && !input.is_empty() {
                return (used, None);
            }
            self.within |= !input.is_empty();
            let (bytes, ends) = (&mut self.bytes[self.filled.0..], &mut self.ends[self.filled.1..]);
            let (result, taken, written, ended) = self.core.read_record(&input[used..], bytes, ends);
            used += taken;
            self.filled = (self.filled.0 + written, self.filled.1 + ended);
            match result {
                ReadRecordResult::InputEmpty if input.is_empty() => {}
                ReadRecordResult::InputEmpty => return (used, None),
                ReadRecordResult::OutputFull => self.pass_over(Fault::TooLong),
                ReadRecordResult::OutputEndsFull => self.pass_over(Fault::TooManyCells),
                ReadRecordResult::Record => return (used, Some(self.finish())),
                ReadRecordResult::End => return (used, None),
            }
        }
    }

    fn skip_blank(&mut self, input: &[u8]) -> usize {
        let blank = input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        if blank > 0 {
            self.core.read_record(&input[..blank], &mut self.bytes, &mut self.ends);
        }
        self.line = self.core.line();
        blank
    }

    /// What was read of the row is of no use: its room is that of what follows.
    fn pass_over(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
        self.filled = (0, 0);
    }

    fn finish(&mut self) -> Row {
        let cells = match self.fault.take() {
            Some(fault) => Err(fault),
            None => Ok(self.cells()),
        };
        (self.filled, self.within) = ((0, 0), false);
        Row { line: self.line, cells }
    }

    fn cells(&self) -> Vec<Vec<u8>> {
        let mut start = 0;
        let mut cell = |end: &usize| self.bytes[std::mem::replace(&mut start, *end)..*end].to_vec();
        self.ends[..self.filled.1].iter().map(&mut cell).collect()
    }
}

/// What parts the cells of a file that begins like `head`: what stands most often in its first line, outside of quotes.
pub(crate) fn delimiter(head: &[u8]) -> u8 {
    let mut counts = [(b',', 0), (b';', 0), (b'\t', 0)];
    let mut quoted = false;
    for byte in head {
        match byte {
            b'"' => quoted = !quoted,
            b'\n' | b'\r' if !quoted => break,
            byte if !quoted => counts.iter_mut().filter(|(of, _)| of == byte).for_each(|(_, count)| *count += 1),
            _ => {}
        }
    }
    // The first of those that are equal: a file of one column has none.
    counts.iter().rev().max_by_key(|(_, count)| *count).map_or(b',', |(delimiter, _)| *delimiter)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(pieces: &[&[u8]], delimiter: u8) -> Vec<Row> {
        let (mut rows, mut read) = (Rows::new(delimiter, 1), Vec::new());
        for mut piece in pieces.iter().copied().filter(|piece| !piece.is_empty()) {
            while !piece.is_empty() {
                let (used, row) = rows.next(piece);
                read.extend(row);
                piece = &piece[used..];
            }
        }
        read.extend(rows.next(&[]).1);
        read
    }

    fn texts(row: &Row) -> Vec<String> {
        let cells = row.cells.as_ref().expect("a row that can be used");
        cells.iter().map(|cell| String::from_utf8_lossy(cell).into_owned()).collect()
    }

    #[test]
    fn quotes_hold_delimiters_and_lines_and_a_row_knows_where_it_begins() {
        let read = rows(&[b"a,b\r\n\r\n\"x,1\",\"two\nlines \"\"q\"\"\"\nlast,row"], b',');
        let lines: Vec<u64> = read.iter().map(|row| row.line).collect();
        assert_eq!(lines, [1, 3, 5]);
        assert_eq!(texts(&read[1]), ["x,1", "two\nlines \"q\""]);
        assert_eq!(texts(&read[2]), ["last", "row"]);
    }

    #[test]
    fn a_row_over_the_bound_is_a_fault_with_its_line_and_the_next_one_is_read() {
        let long = "y".repeat(3 * ROW_BYTES);
        let file = format!("a,b\n1,\"{long}\"\n2,ok\n");
        let read = rows(&[file.as_bytes()], b',');
        assert_eq!((read[1].line, &read[1].cells), (2, &Err(Fault::TooLong)));
        assert_eq!(texts(&read[2]), ["2", "ok"]);
        let wide = format!("{}\nz\n", ",".repeat(300));
        let read = rows(&[wide.as_bytes()], b',');
        assert_eq!(read[0].cells, Err(Fault::TooManyCells));
        assert_eq!(texts(&read[1]), ["z"]);
    }

    #[test]
    fn a_quote_that_is_never_closed_costs_one_row() {
        let file = format!("a\n\"{}", "open\n".repeat(100_000));
        let read = rows(&[file.as_bytes()], b',');
        assert_eq!((read.len(), read[1].line, &read[1].cells), (2, 2, &Err(Fault::TooLong)));
    }

    #[test]
    fn the_delimiter_is_what_the_first_line_has_most_of_outside_of_quotes() {
        for (head, expected) in [
            ("name;date;guests\n1,5;2", b';'),
            ("name\tdate\n", b'\t'),
            ("\"a;b;c\",date\n", b','),
            ("one", b','),
            ("\"a\nb\";c\n,,,", b';'),
        ] {
            assert_eq!(delimiter(head.as_bytes()), expected, "{head}");
        }
    }

    proptest! {
        #[test]
        fn how_a_file_is_cut_changes_nothing(text in "[ab,\"\r\n]{0,60}", cuts in prop::collection::vec(1usize..8, 0..30)) {
            let (mut rest, mut pieces) = (text.as_bytes(), Vec::new());
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(rows(&pieces, b','), rows(&[text.as_bytes()], b','));
        }
    }
}
