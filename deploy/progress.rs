//! How far an import is, on one line that moves where there is a terminal, and as a line now and then where there is none.

#![expect(clippy::print_stderr, reason = "the command line is for people")]

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use proto::vendorsync::v1::{Import, ImportPhase, ImportState};

const CELLS: u64 = 24;
/// Between lines, where they stay.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// What was shown.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    moving: bool,
    shown: Option<(ImportPhase, Instant)>,
}

impl Progress {
    /// Shows how an import is.
    pub(crate) fn tell(&mut self, import: &Import) {
        if io::stderr().is_terminal() {
            eprint!("\r\x1b[2K{}", line(import));
            let _ = io::stderr().flush();
            self.moving = true;
            return;
        }
        let is_news = self.shown.is_none_or(|(phase, at)| phase != import.phase() || at.elapsed() >= LINE_EVERY);
        if is_news {
            eprintln!("{}", line(import));
            self.shown = Some((import.phase(), Instant::now()));
        }
    }

    /// What comes next is on a line of its own.
    pub(crate) fn end(&mut self) {
        if std::mem::take(&mut self.moving) {
            eprintln!();
        }
    }
}

fn line(import: &Import) -> String {
    let phase = match (import.state(), import.phase()) {
        (ImportState::Asked, _) => "asks",
        (ImportState::Done, _) => "done",
        (_, ImportPhase::Receiving) => "sending the file",
        (_, ImportPhase::Listing) => "reading the list",
        (_, ImportPhase::Counting) => "counting",
        (_, ImportPhase::Applying) => "applying",
        (_, ImportPhase::Unspecified) => "?",
    };
    let figures =
        format!("{} seen, {} new, {} changed, {} refused", import.seen, import.created, import.changed, import.refused);
    match import.position.saturating_mul(CELLS).checked_div(import.total) {
        None => format!("{phase}: {figures}"),
        Some(done) => {
            let done = usize::try_from(done.min(CELLS)).unwrap_or_default();
            let percent = import.position.saturating_mul(100) / import.total.max(1);
            let rest = " ".repeat(CELLS as usize - done);
            format!("{phase} [{}{rest}] {:>3} %  {figures}", "#".repeat(done), percent.min(100))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_it_is_far_and_none_without_an_end() {
        let at = |position, total| {
            let phase = ImportPhase::Applying.into();
            line(&Import { phase, position, total, seen: 7, ..Import::default() })
        };
        assert!(at(50, 100).contains("[############            ]  50 %  7 seen"), "{}", at(50, 100));
        assert!(at(300, 100).contains("[########################] 100 %"));
        assert_eq!(at(0, 0), "applying: 7 seen, 0 new, 0 changed, 0 refused");
    }
}
