//! What a person reads on the terminal.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the command line is for people")]

use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};

/// Prints a text and a line's end.
pub(crate) fn say(text: &str) {
    println!("{text}");
}

/// Prints a text where errors go.
pub(crate) fn complain(text: &str) {
    eprintln!("{text}");
}

/// Prints rows under a heading; says so where there are none.
pub(crate) fn show(heading: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(heading.to_vec());
    table.add_rows(rows);
    if table.row_count() == 0 {
        say("nothing to show");
    } else {
        say(&table.to_string());
    }
}
