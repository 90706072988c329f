//! A message in Slack's blocks (docs.slack.dev, Block Kit). Pure.
//!
//! Whatever people wrote stands in `plain_text`, where nothing is marked up, mentioned or linked; the `text` that
//! notifications show is escaped and has its markup turned off. Lengths are counted as UTF-16, which is never less than
//! what Slack counts.

use chassis::id::uuid_text;
use serde_json::{Value, json};

use super::super::words::{Words, cut_by};

#[cfg(test)]
pub(super) use self::tests::assert_within_limits;

/// What the button is called in an interaction.
pub(crate) const ACKNOWLEDGE: &str = "acknowledge";
/// What the metadata of our messages is called.
pub(super) const EVENT_TYPE: &str = "wedsync_message";

pub(in crate::channel) const HEADER: usize = 150;
pub(in crate::channel) const SECTION: usize = 3000;
const FIELD: usize = 2000;
/// What is cut at 40,000 is best kept below 4,000, escaped.
const FALLBACK: usize = 3000;

/// For a member or a channel: named, so that it can be found again, and with a button where the reader is to confirm.
pub(super) fn addressed(words: &Words, public_name: &str, to: &str, uid: [u8; 16]) -> Value {
    let name = uuid_text(uid);
    let mut blocks = blocks(words, public_name);
    if words.asks {
        blocks.push(json!({
            "type": "actions",
            "block_id": name,
            "elements": [{
                "type": "button",
                "action_id": ACKNOWLEDGE,
                "style": "primary",
                "text": {"type": "plain_text", "text": "Acknowledge", "emoji": false},
                "value": name,
            }],
        }));
    }
    json!({
        "channel": to,
        "text": fallback(words),
        "mrkdwn": false,
        "blocks": blocks,
        "unfurl_links": false,
        "unfurl_media": false,
        "metadata": {"event_type": EVENT_TYPE, "event_payload": {"message": name}},
    })
}

/// For a webhook, which knows its channel and has nobody to press a button for.
pub(in crate::channel) fn plain(words: &Words, public_name: &str) -> Value {
    json!({
        "text": fallback(words),
        "mrkdwn": false,
        "blocks": blocks(words, public_name),
        "unfurl_links": false,
        "unfurl_media": false,
    })
}

fn blocks(words: &Words, public_name: &str) -> Vec<Value> {
    let title = if words.title.is_empty() { public_name } else { &words.title };
    let mut blocks = vec![json!({"type": "header", "text": text(title, HEADER)})];
    if !words.body.trim().is_empty() {
        blocks.push(json!({"type": "section", "text": text(&words.body, SECTION)}));
    }
    if !words.facts.is_empty() {
        let fields = words.facts.iter().map(|(name, value)| text(&format!("{name}\n{value}"), FIELD));
        blocks.push(json!({"type": "section", "fields": fields.collect::<Vec<_>>()}));
    }
    blocks.push(json!({"type": "context", "elements": [text(public_name, FIELD)]}));
    blocks
}

fn text(text: &str, limit: usize) -> Value {
    json!({"type": "plain_text", "text": cut_by(text, limit, char::len_utf16), "emoji": false})
}

fn fallback(words: &Words) -> String {
    let line = words.line();
    let escaped = |c| match c {
        '&' => 5,
        '<' | '>' => 4,
        c => c.len_utf16(),
    };
    escape(&cut_by(if line.is_empty() { "…" } else { &line }, FALLBACK, escaped))
}

/// The three characters that Slack gives a meaning to.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Walks a message and holds every text to the limit of its place.
    pub(in crate::channel::slack) fn assert_within_limits(message: &Value) {
        let length = |text: &Value| text["text"].as_str().expect("a text").encode_utf16().count();
        let blocks = message["blocks"].as_array().expect("blocks");
        assert!((1..=50).contains(&blocks.len()));
        for block in blocks {
            match block["type"].as_str().expect("a type") {
                "header" => assert!((1..=150).contains(&length(&block["text"])), "{block}"),
                "section" if block.get("text").is_some() => assert!((1..=3000).contains(&length(&block["text"]))),
                "section" => {
                    let fields = block["fields"].as_array().expect("fields");
                    assert!((1..=10).contains(&fields.len()));
                    assert!(fields.iter().all(|field| (1..=2000).contains(&length(field))));
                }
                "context" => assert!(block["elements"].as_array().expect("elements").len() <= 10),
                "actions" => {
                    let button = &block["elements"][0];
                    assert!(length(&button["text"]) <= 75 && button["value"].as_str().expect("a value").len() <= 2000);
                    assert!(block["block_id"].as_str().expect("an id").len() <= 255);
                }
                other => panic!("a block of another kind: {other}"),
            }
        }
        let fallback = message["text"].as_str().expect("a text");
        assert!((1..=4000).contains(&fallback.encode_utf16().count()));
        assert!(!fallback.contains(['<', '>']), "{fallback}");
        assert_eq!(message["mrkdwn"], false);
        let all = message.to_string();
        assert!(!all.contains(r#""type":"mrkdwn""#), "{all}");
    }

    proptest! {
        #[test]
        fn no_words_break_a_limit(
            title in ".{0,400}", body in "(?s).{0,6000}", asks in any::<bool>(),
            facts in proptest::collection::vec((".{1,50}", ".{1,3000}"), 0..10),
        ) {
            let words = Words { title, body, facts, asks, link: None };
            assert_within_limits(&addressed(&words, "WedSync", "C012AB3CD", [7; 16]));
            assert_within_limits(&plain(&words, "WedSync"));
        }
    }
}
