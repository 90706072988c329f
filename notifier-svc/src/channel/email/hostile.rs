//! Letters that are made of naughty strings, as mail programs and browsers read them: nothing is in them that isn't in one
//! of harmless texts.

use std::sync::LazyLock;

use serde_json::json;

use super::*;
use crate::channel::{
    foreign::{node, python},
    naughty::{HARMLESS, Rendered, naughty, rendered_with},
    peer::way_out,
    tests::message_of,
};

/// A letter, and what it was made of.
struct Written {
    workflow: &'static str,
    case: &'static str,
    text: String,
    letter: Letter,
}

impl Written {
    fn api(&self, field: &str) -> &str {
        self.letter.api[field].as_str().unwrap()
    }
}

/// By both ways; a server that nobody runs.
fn channel(public_name: &str) -> Email {
    let mut config = Config { public_name: public_name.to_owned(), ..Config::default() };
    (config.smtp.host, config.smtp.from) = ("localhost".to_owned(), "us@example.org".to_owned());
    (config.resend.api_key, config.resend.from) = ("re_1".to_owned().into(), "us@example.org".to_owned());
    Email::new(&config, &way_out(), &Clock::System).unwrap()
}

/// Letters of the harmless text, and as many of each naughty one.
static WRITTEN: LazyLock<(Vec<Written>, Vec<Vec<Written>>)> = LazyLock::new(|| {
    let channel = channel("WedSync");
    let of = |text: &str| -> Vec<Written> {
        let written = |Rendered { workflow, case, content }| Written {
            workflow,
            case,
            text: text.to_owned(),
            letter: serde_json::from_slice(&content).unwrap(),
        };
        rendered_with(&channel, text).into_iter().map(written).collect()
    };
    (of(HARMLESS), naughty().iter().map(|text| of(text)).collect())
});

/// Without what mail programs make of line ends.
fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect()
}

/// The same components, with none but the usual properties, each once: what isn't known may be left out.
fn assert_no_more(components: &Value, usual: &Value, of: &str) {
    let (components, usual) = (components.as_array(), usual.as_array());
    assert_eq!(components.map(Vec::len), usual.map(Vec::len), "{of}");
    for (properties, usual) in components.into_iter().flatten().zip(usual.into_iter().flatten()) {
        let mut usual: Vec<&Value> = usual.as_array().unwrap().iter().collect();
        for property in properties.as_array().unwrap() {
            let known = usual.iter().position(|known| *known == property);
            usual.remove(known.unwrap_or_else(|| panic!("{property} of {of}")));
        }
    }
}

#[test]
fn no_text_adds_a_header_a_receiver_a_part_or_a_line_to_a_calendar() {
    let (harmless, naughty) = &*WRITTEN;
    // One of each workflow: whole letters take long to read.
    let is_read = |written: &&Written| written.case == "everything";
    let all = || harmless.iter().chain(naughty.iter().flatten()).filter(is_read);
    let each = harmless.iter().filter(is_read).count();
    let questions: Vec<Value> = all().map(|written| json!(written.letter.text)).collect();
    let Some(read) = python("mail.py", &questions) else { return };
    let usual = &read[..each];
    for (number, (written, read)) in all().zip(&read).enumerate() {
        let Written { workflow, case, text, letter } = written;
        let (usual, of) = (&usual[number % each], format!("{workflow}, {case}: {text:?}\n{read:#}"));
        for part in ["headers", "kinds", "from", "to"] {
            assert_eq!(read[part], usual[part], "{part} of {of}");
        }
        assert_no_more(&read["entry"], &usual["entry"], &of);
        assert_eq!(read["defects"], json!([]), "{of}");
        assert_eq!(read["to"], json!([letter.to]), "{of}");
        assert_eq!(read["subject"], written.api("subject"), "{of}");
        assert_eq!(lines(read["text"].as_str().unwrap()), lines(written.api("text")), "{of}");
        assert_eq!(lines(read["html"].as_str().unwrap()), lines(written.api("html")), "{of}");
        assert!(read["longest"].as_u64().unwrap() <= 998 && letter.text.is_ascii(), "{of}");
    }
}

#[test]
fn whatever_we_are_called_a_letter_is_from_one_address() {
    // What the settings take for a name.
    let names = naughty().into_iter().filter(|name| !name.trim().is_empty() && !name.chars().any(char::is_control));
    let questions = names.map(|name| {
        let content = message_of(&channel(&name), "emergency", json!({}));
        json!(serde_json::from_slice::<Letter>(&content).unwrap().text)
    });
    let questions: Vec<Value> = questions.collect();
    let Some(read) = python("mail.py", &questions) else { return };
    for (read, letter) in read.iter().zip(&questions) {
        assert_eq!((&read["from"], &read["defects"]), (&json!(["us@example.org"]), &json!([])), "{letter}");
    }
}

#[test]
fn no_text_adds_an_element_an_attribute_or_an_address_to_html_and_none_is_lost() {
    let (harmless, naughty) = &*WRITTEN;
    let all = || harmless.iter().chain(naughty.iter().flatten());
    let questions: Vec<Value> = all().map(|written| json!(written.api("html"))).collect();
    let Some(read) = node("html.mjs", &questions) else { return };
    let usual = &read[..harmless.len()];
    for (number, (written, read)) in all().zip(&read).enumerate() {
        let Written { workflow, case, text, .. } = written;
        let (usual, of) = (&usual[number % harmless.len()], format!("{workflow}, {case}: {text:?}\n{read:#}"));
        let mut usual: Vec<&Value> = usual["elements"].as_array().unwrap().iter().collect();
        // What is empty may be left out, with what is around it.
        for element in read["elements"].as_array().unwrap() {
            let known = usual.iter().position(|known| *known == element);
            usual.swap_remove(known.unwrap_or_else(|| panic!("{element} of {of}")));
        }
        let is_shown = !text.contains(|c: char| c.is_control()) && *case == "everything";
        assert!(!is_shown || read["text"].as_str().unwrap().contains(clean(text).trim()), "{of}");
    }
}

#[test]
fn what_resend_gets_has_one_receiver_and_the_headers_that_are_ours() {
    let (harmless, naughty) = &*WRITTEN;
    let usual = |name: &str, number: usize| harmless[number].letter.api[name].clone();
    for (number, written) in naughty.iter().flat_map(|letters| letters.iter().enumerate()) {
        for name in ["from", "to", "headers", "tags"] {
            assert_eq!(written.letter.api[name], usual(name, number), "{name} of {:?}", written.text);
        }
        let is_line = |text: &str| !text.contains(|c: char| c.is_control());
        assert!(is_line(written.api("subject")), "{:?}", written.text);
    }
}
