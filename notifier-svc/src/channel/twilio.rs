//! Twilio's Messages API, which SMS and WhatsApp share (twilio-oai, `twilio_api_v2010`).
//!
//! Creating a message can't be repeated safely: there is no idempotency key. So an attempt whose outcome isn't known looks
//! the message up, by whom it goes to, its text and when it was made; and the attempt after it begins so.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use chassis::{
    clock::Clock,
    id::uuid_text,
    lane::Delivery,
    outbound::{Answer, Outbound},
};
use http::header;
use jiff::{Timestamp, fmt::rfc2822};
use serde::Deserialize;
use tokio::time::sleep;

use super::provider::{Ask, Class, Provider, Verdict, by_status};
use crate::config::Twilio as Settings;

/// When a message that may have been taken is looked for.
const LOOK_AFTER: &[Duration] = &[Duration::from_secs(2), Duration::from_secs(10)];
/// Their clock may be behind ours.
const SKEW: Duration = Duration::from_secs(60);
/// How many messages to one number a look-up sees, the latest.
const SEEN: usize = 20;

/// Twilio, by one account.
pub(super) struct Twilio {
    provider: Provider,
    messages: String,
    login: String,
    callback_url: String,
    look_after: &'static [Duration],
}

/// A message as it is created.
pub(super) struct Text<'a> {
    /// With its `whatsapp:`, if it goes there.
    pub(super) to: &'a str,
    /// `From` or `MessagingServiceSid`, and which.
    pub(super) sender: (&'static str, &'a str),
    /// What is said.
    pub(super) said: Said<'a>,
}

pub(super) enum Said<'a> {
    /// `Body`
    Body(&'a str),
    /// A content template, its variables as JSON, and how its text begins or ends.
    Content { sid: &'a str, variables: &'a str, holds: &'a str },
}

/// What a look-up found.
enum Found {
    /// Under this id of Twilio's.
    Yes(String),
    No,
    /// It can't be asked now.
    Later(Verdict),
}

impl Twilio {
    pub(super) fn new(settings: &Settings, outbound: Outbound, clock: Clock) -> Self {
        let login = format!("{}:{}", settings.account_sid, settings.auth_token.expose());
        Self {
            provider: Provider::new("Twilio", outbound, clock, 0),
            messages: format!("{}/2010-04-01/Accounts/{}/Messages.json", settings.base_url, settings.account_sid),
            login: format!("Basic {}", BASE64_STANDARD.encode(login)),
            callback_url: settings.callback_url.clone(),
            look_after: LOOK_AFTER,
        }
    }

    #[cfg(test)]
    pub(super) fn looking_at_once(self) -> Self {
        Self { look_after: super::peer::AT_ONCE, ..self }
    }

    /// Sends one message, where no earlier attempt can have.
    pub(super) async fn send(&self, delivery: &Delivery, text: &Text<'_>) -> Verdict {
        let verdict = self.provider.ask(self.create(delivery, text), table).await;
        if verdict.class == Class::Unsure { self.settle(delivery, text, verdict).await } else { verdict }
    }

    /// Sends one message, unless an earlier attempt has.
    pub(super) async fn again(&self, delivery: &Delivery, text: &Text<'_>) -> Verdict {
        match self.look_up(text, since(delivery)).await {
            Found::Yes(sid) => Verdict::taken(sid),
            Found::Later(verdict) => verdict,
            Found::No => self.send(delivery, text).await,
        }
    }

    /// Whether it was taken after all. If it wasn't so far, it waits, and is looked for again before it is sent again.
    async fn settle(&self, delivery: &Delivery, text: &Text<'_>, unsure: Verdict) -> Verdict {
        for pause in self.look_after {
            sleep(*pause).await;
            if let Found::Yes(sid) = self.look_up(text, since(delivery)).await {
                return Verdict::taken(sid);
            }
        }
        Verdict { class: Class::Unsettled, ..unsure }
    }

    fn create(&self, delivery: &Delivery, text: &Text<'_>) -> Ask {
        let callback = if self.callback_url.is_empty() {
            String::new()
        } else {
            format!("{}?message={}", self.callback_url, uuid_text(delivery.event))
        };
        let mut fields = vec![("To", text.to), text.sender];
        match &text.said {
            Said::Body(body) => fields.push(("Body", body)),
            Said::Content { sid, variables, .. } => {
                fields.extend([("ContentSid", *sid), ("ContentVariables", *variables)]);
            }
        }
        if !callback.is_empty() {
            fields.push(("StatusCallback", &callback));
        }
        Ask::form(self.messages.clone(), &fields).with(header::AUTHORIZATION, &self.login)
    }

    /// `DateSent` isn't asked for: a message that is queued has none yet.
    async fn look_up(&self, text: &Text<'_>, since: Timestamp) -> Found {
        let query = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs([("To", text.to), ("PageSize", &SEEN.to_string())])
            .finish();
        let ask = Ask::get(format!("{}?{query}", self.messages)).with(header::AUTHORIZATION, &self.login);
        match self.provider.answer(ask).await {
            Ok(answer) if answer.status == 200 => match serde_json::from_slice::<Listed>(&answer.body) {
                Ok(Listed { messages }) => found(messages, text, since),
                Err(_) => Found::Later(Verdict::new(Class::Unsettled, "Twilio's list of messages can't be read")),
            },
            Ok(answer) => {
                let said = format!("Twilio answered {} when a message was looked up", answer.status.as_u16());
                Found::Later(Verdict { after: self.provider.asks_for(&answer), ..Verdict::new(Class::Unsettled, said) })
            }
            Err(verdict) => Found::Later(Verdict { class: Class::Unsettled, ..verdict }),
        }
    }
}

/// Since when it can have been created.
fn since(delivery: &Delivery) -> Timestamp {
    Timestamp::from_microsecond(delivery.created_at).unwrap_or(Timestamp::MIN)
}

#[derive(Deserialize)]
struct Listed {
    messages: Vec<Created>,
}

#[derive(Deserialize)]
struct Created {
    sid: String,
    to: String,
    body: Option<String>,
    date_created: Option<String>,
}

/// A message among the latest; where all of those are of the same time, it may be beyond them.
fn found(messages: Vec<Created>, text: &Text<'_>, since: Timestamp) -> Found {
    if let Some(message) = messages.iter().find(|message| message.is(text, since)) {
        return Found::Yes(message.sid.clone());
    }
    if messages.len() >= SEEN && messages.iter().all(|message| message.is_since(since)) {
        return Found::Later(Verdict::new(Class::Unsettled, "Twilio lists too many messages to look one up"));
    }
    Found::No
}

impl Created {
    fn is_since(&self, since: Timestamp) -> bool {
        let at = self.date_created.as_deref().and_then(|at| rfc2822::parse(at).ok());
        at.is_some_and(|at| at.timestamp() >= since - SKEW)
    }

    fn is(&self, text: &Text<'_>, since: Timestamp) -> bool {
        let body = self.body.as_deref().unwrap_or_default().trim();
        let says_it = match &text.said {
            Said::Body(said) => body == said.trim(),
            Said::Content { holds, .. } => body.contains(holds),
        };
        self.to == text.to && says_it && self.is_since(since)
    }
}

#[derive(Deserialize)]
struct Fault {
    code: u32,
}

/// What Twilio's answer to a new message means.
fn table(answer: &Answer) -> (Class, String) {
    if answer.status.is_success() {
        return (Class::Taken, String::new());
    }
    match serde_json::from_slice::<Fault>(&answer.body) {
        Ok(fault) => (of_code(fault.code).unwrap_or_else(|| by_status(answer)), fault.code.to_string()),
        Err(_) => (by_status(answer), String::new()),
    }
}

/// What an error code means, in an answer or in a report; none for one that isn't known.
pub(crate) fn of_code(code: u32) -> Option<Class> {
    Some(match code {
        // Recipients that can't be reached: malformed, no mobile, unknown, a landline.
        21211 | 21214 | 21217 | 21614 | 30005 | 30006 => Class::Dead,
        21610 => Class::Stopped,
        // What is said, or whom this sender may reach.
        21408 | 21602 | 21612 | 21617 | 20404 | 63016 | 30004 => Class::Refused,
        // The recipient's handset or network, for now; a queue of ours that is full.
        30003 | 30008 | 30017 | 21611 => Class::Later,
        20429 | 14107 | 30001 | 63017 | 63018 => Class::Busy,
        // Account, sender or registration; a carrier that filters us.
        20003 | 20005 | 21212 | 21606 | 30002 | 30007 | 30034 => Class::Barred,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::channel::peer::{Peer, Script, assert_described, delivery, vendor_description, way_out};

    const TO: &str = "+15005550009";

    fn settings(peer: &Peer) -> Settings {
        Settings {
            account_sid: format!("AC{}", "a1".repeat(16)),
            auth_token: "token".to_owned().into(),
            from: "+15005550006".to_owned(),
            callback_url: "https://example.org/callbacks/twilio".to_owned(),
            base_url: peer.base(),
            ..Settings::default()
        }
    }

    fn twilio(peer: &Peer) -> Twilio {
        Twilio::new(&settings(peer), way_out(), Clock::System).looking_at_once()
    }

    fn text(body: &str) -> Text<'_> {
        Text { to: TO, sender: ("From", "+15005550006"), said: Said::Body(body) }
    }

    fn created(body: &str, at: Timestamp) -> Value {
        let at = rfc2822::to_string(&at.to_zoned(jiff::tz::TimeZone::UTC)).expect("a date");
        json!({"sid": format!("SM{}", "0".repeat(32)), "to": TO, "body": body, "date_created": at, "date_sent": null, "status": "queued"})
    }

    fn list(messages: &[Value]) -> Script {
        Script::json(200, json!({"messages": messages, "page": 0}))
    }

    async fn send(peer: &Peer, body: &str, attempts: u32) -> Verdict {
        let (twilio, delivery, text) = (twilio(peer), delivery("".into(), attempts), text(body));
        if attempts == 0 { twilio.send(&delivery, &text).await } else { twilio.again(&delivery, &text).await }
    }

    #[tokio::test]
    async fn a_message_is_created_as_twilio_describes_it() {
        let peer = Peer::start([Script::json(201, created("hi & bye", Timestamp::UNIX_EPOCH))]).await;
        assert_eq!(send(&peer, "hi & bye", 0).await.class, Class::Taken);
        let [asked] = &peer.asked()[..] else { panic!("one request") };
        assert_eq!(asked.target, format!("/2010-04-01/Accounts/AC{}/Messages.json", "a1".repeat(16)));
        assert_eq!(asked.header("content-type"), "application/x-www-form-urlencoded");
        let login = asked.header("authorization").strip_prefix("Basic ").expect("Basic");
        assert_eq!(BASE64_STANDARD.decode(login).expect("base64"), format!("AC{}:token", "a1".repeat(16)).into_bytes());
        let form = asked.form();
        assert_eq!(form["Body"], "hi & bye");
        assert_eq!(
            form["StatusCallback"],
            "https://example.org/callbacks/twilio?message=07070707-0707-0707-0707-070707070707"
        );
        if let Some(description) = vendor_description("twilio/twilio_api_v2010.messages.json") {
            let schema = "/paths/~12010-04-01~1Accounts~1{AccountSid}~1Messages.json/post/requestBody/content/application~1x-www-form-urlencoded/schema";
            assert_described(&description, schema, &form);
            let known =
                description.pointer(schema).and_then(|schema| schema["properties"].as_object()).expect("properties");
            assert!(form.as_object().expect("a form").keys().all(|name| known.contains_key(name)), "{form}");
        }
    }

    #[tokio::test]
    async fn every_code_has_its_class() {
        let table: &[(u16, u32, Class)] = &[
            (400, 21211, Class::Dead),
            (400, 21212, Class::Barred),
            (400, 21214, Class::Dead),
            (400, 21217, Class::Dead),
            (403, 21408, Class::Refused),
            (400, 21602, Class::Refused),
            (400, 21606, Class::Barred),
            (400, 21610, Class::Stopped),
            (429, 21611, Class::Later),
            (400, 21612, Class::Refused),
            (400, 21614, Class::Dead),
            (400, 21617, Class::Refused),
            (400, 63016, Class::Refused),
            (401, 20003, Class::Barred),
            (404, 20404, Class::Refused),
            (429, 20429, Class::Busy),
            (429, 14107, Class::Busy),
            (400, 63018, Class::Busy),
            (400, 99999, Class::Refused),
        ];
        let peer = Peer::start([]).await;
        for (status, code, expected) in table {
            let fault = json!({"code": code, "message": "of +15005550009", "more_info": "https://www.twilio.com/docs/errors", "status": status});
            peer.then([Script::json(*status, fault)]);
            let verdict = send(&peer, "hi", 0).await;
            assert_eq!(verdict.class, *expected, "{code}");
            assert_eq!(verdict.said, format!("Twilio answered {status} ({code})"));
        }
        let reported = [
            (30001, Class::Busy),
            (30002, Class::Barred),
            (30003, Class::Later),
            (30004, Class::Refused),
            (30005, Class::Dead),
            (30006, Class::Dead),
            (30007, Class::Barred),
            (30008, Class::Later),
            (30017, Class::Later),
            (30034, Class::Barred),
        ];
        for (code, expected) in reported {
            assert_eq!(of_code(code), Some(expected), "{code}");
        }
        assert_eq!(peer.asked().len(), table.len(), "nothing was looked up");
    }

    #[tokio::test]
    async fn a_connection_that_was_cut_never_makes_a_second_message() {
        // It was taken: found at the second look.
        let peer = Peer::start([Script::HangUp, list(&[]), list(&[created("hi", Clock::System.now())])]).await;
        let found = send(&peer, "hi", 0).await;
        assert_eq!((found.class, found.response), (Class::Taken, format!("SM{}", "0".repeat(32)).into()));
        // It wasn't: it waits, is looked for once more, and then sent.
        let peer = Peer::start([Script::HangUp, list(&[]), list(&[])]).await;
        assert_eq!(send(&peer, "hi", 0).await.class, Class::Unsettled);
        peer.then([list(&[]), Script::json(201, json!({}))]);
        assert_eq!(send(&peer, "hi", 1).await.class, Class::Taken);
        let posts = peer.asked().iter().filter(|asked| asked.method == "POST").count();
        assert_eq!(posts, 2);
        // It turned up late: found before it would be sent again.
        let peer = Peer::start([list(&[created("hi", Clock::System.now())])]).await;
        assert_eq!(send(&peer, "hi", 1).await.class, Class::Taken);
        assert_eq!(peer.asked().len(), 1);
        // While nothing can be looked up, nothing is sent.
        let peer = Peer::start([Script::HangUp, Script::status(503), Script::HangUp]).await;
        assert_eq!(send(&peer, "hi", 0).await.class, Class::Unsettled);
        let peer = Peer::start([Script::status(503)]).await;
        assert_eq!(send(&peer, "hi", 1).await.class, Class::Unsettled);
        assert_eq!(peer.asked().len(), 1);
    }

    #[tokio::test]
    async fn only_the_same_text_to_the_same_number_since_then_is_the_same_message() {
        let old = Clock::System.now() - Duration::from_secs(3_600);
        let other = json!({"sid": "SM2", "to": "+15005550001", "body": "hi", "date_created": created("", Clock::System.now())["date_created"]});
        let listed = [created("hi", old), created("other", Clock::System.now()), other];
        let peer = Peer::start([list(&listed), Script::json(201, json!({}))]).await;
        assert_eq!(send(&peer, "hi", 1).await.class, Class::Taken);
        assert_eq!(peer.asked()[1].method, "POST");
        assert!(peer.asked()[0].target.ends_with("?To=%2B15005550009&PageSize=20"), "{}", peer.asked()[0].target);
        // It may be behind the last that is listed.
        let many = vec![created("other", Clock::System.now()); 20];
        let peer = Peer::start([list(&many)]).await;
        assert_eq!((send(&peer, "hi", 1).await.class, peer.asked().len()), (Class::Unsettled, 1));
    }
}
