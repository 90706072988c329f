//! That `docs/vendors.md` says of every connector what is so: a row for each, and tests that there are.

use std::{collections::BTreeSet, path::Path};

use crate::connector::catalogue::Catalogue;

const DOCS: &str = include_str!("../../../docs/vendors.md");

/// Texts in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn rows() -> Vec<Vec<&'static str>> {
    let rows = DOCS.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

#[test]
fn every_connector_has_one_row_and_every_row_its_connector() {
    let named: Vec<&str> = rows().iter().filter_map(|row| quoted(row[0]).next()).collect();
    let built_in: Vec<String> = Catalogue::all_built_in().map(|connector| connector.name().to_owned()).collect();
    assert_eq!(
        named.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(),
        built_in.iter().cloned().collect()
    );
    assert_eq!(named.len(), built_in.len(), "one row each");
    for row in rows() {
        assert!(row.len() == 7 && row.iter().all(|cell| !cell.is_empty()), "{row:?}");
    }
}

#[test]
fn what_a_row_says_of_directions_is_declared() {
    for row in rows() {
        let name = quoted(row[0]).next().expect("a name");
        let connector = Catalogue::built_in(name).expect("it is built in");
        let comes_in = connector.inbound().is_some()
            || connector.records().any(|kind| connector.record(kind).is_some_and(|spec| spec.list.is_some()));
        assert_eq!(row[4].starts_with("nothing"), !comes_in, "{name}: {}", row[4]);
        let is_signed = ["signature", "as `", "as HoneyBook"].iter().any(|word| row[2].contains(word));
        assert_eq!(connector.is_signed(), is_signed && name != "mailchimp-oauth", "{name}: {}", row[2]);
        assert!(!connector.can().is_empty() && !connector.cannot().is_empty(), "{name} says what it can and can't");
    }
}

#[test]
fn every_test_that_the_document_names_exists() {
    let folder = Path::new("src/vendors");
    let files = std::fs::read_dir(folder).expect("its folder").map(|file| file.expect("a file").path());
    let elsewhere = ["src/campaign/tests.rs", "../tests/stories/forged.rs", "../tests/stories/secure.rs"]
        .map(std::path::PathBuf::from);
    let files = files.chain(elsewhere);
    let texts: String = files.map(|file| std::fs::read_to_string(file).expect("readable")).collect();
    let is_test = |name: &&str| {
        name.matches('_').count() >= 4
            && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit())
    };
    let named: BTreeSet<&str> = quoted(DOCS).filter(is_test).collect();
    assert!(named.len() >= 18, "{named:?}");
    for name in named {
        assert!(texts.contains(&format!("fn {name}()")), "there is no test {name}");
    }
    for row in rows() {
        let tests = quoted(row[6]).filter(|name| is_test(name)).count();
        let is_elsewhere = row[6].contains("golden pairs") || row[0] == "`database`";
        assert!(tests > 0 || is_elsewhere, "{row:?}");
    }
}
