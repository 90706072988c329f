//! Forged, replayed, altered and cross-tenant webhooks: two thousand of them for every connector that takes any, by its own
//! declared verification, and none is believed.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use chassis::{
    signature::{WebhookSecret, hex_sign, sign},
    testing::noon,
};
use jiff::{SignedDuration, Timestamp};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::rig::{Rig, SECRET};
use crate::connector::{Connector, Known, Proved, Webhook, catalogue::Catalogue};

/// The secret of somebody else's integration.
const OTHER: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const FORGERIES: u32 = 2_000;
const TOLERANCE: i64 = 300;

/// A webhook, to be sent and tampered with.
#[derive(Clone, Debug)]
struct Message {
    query: String,
    headers: Vec<(String, Bytes)>,
    body: Vec<u8>,
}

impl Message {
    fn believed(&self, connector: &Connector, secret: &str, now: Timestamp) -> Option<Proved> {
        let webhook = Webhook {
            method: "POST",
            url: "https://hooks.example/webhooks/v/i1",
            query: &self.query,
            headers: &self.headers,
            body: &self.body,
            integration_id: "i1",
        };
        connector.inbound().expect("it takes webhooks").verify(&webhook, &[secret], now).ok()
    }
}

/// How a connector's sender shows itself: found by what it believes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Standard,
    SecretInQuery,
    SecretInHeader,
}

impl Scheme {
    const ALL: [Self; 3] = [Self::Standard, Self::SecretInQuery, Self::SecretInHeader];

    fn message(self, secret: &str, body: &[u8], at: Timestamp) -> Message {
        let header = |name: &str, value: &str| (name.to_owned(), Bytes::from(value.to_owned()));
        let (query, headers) = match self {
            Self::Standard => {
                let key = WebhookSecret::parse(secret).expect("a secret");
                let (id, seconds) = ("msg_1", at.as_second());
                let signature = sign(id, seconds, body, &[key]);
                let headers = [
                    ("webhook-id", id),
                    ("webhook-timestamp", &seconds.to_string()),
                    ("webhook-signature", &signature),
                ];
                (String::new(), headers.map(|(name, value)| header(name, value)).to_vec())
            }
            Self::SecretInQuery => {
                let query = url::form_urlencoded::Serializer::new(String::new()).append_pair("secret", secret).finish();
                (query, Vec::new())
            }
            Self::SecretInHeader => (String::new(), vec![header("x-wedsync-secret", secret)]),
        };
        Message { query, headers, body: body.to_vec() }
    }

    /// Whether the body is what was signed.
    fn signs(self) -> bool {
        self == Self::Standard
    }
}

fn scheme_of(connector: &Connector) -> Scheme {
    let believed =
        |scheme: &Scheme| scheme.message(SECRET, b"{}", noon()).believed(connector, SECRET, noon()).is_some();
    let found: Vec<Scheme> = Scheme::ALL.into_iter().filter(believed).collect();
    assert_eq!(found.len(), 1, "{}: {found:?}", connector.name());
    found[0]
}

/// One way to tamper.
#[derive(Clone, Debug)]
enum Forgery {
    /// By somebody who has the secret of another integration.
    OtherTenant,
    /// Some other secret.
    Guess(String),
    /// A byte of what proves is another one.
    Proof { which: prop::sample::Index, at: prop::sample::Index, flip: u8 },
    /// A byte of the body is another one.
    Body { at: prop::sample::Index, flip: u8 },
    /// The same again, much later or from the future.
    Replayed(i64),
    /// Without what proves.
    Bare,
    /// What proves stands twice.
    Twice,
    /// In the manner of another scheme.
    Otherwise(prop::sample::Index),
}

fn forgery() -> impl Strategy<Value = Forgery> {
    let index = || any::<prop::sample::Index>();
    prop_oneof![
        Just(Forgery::OtherTenant),
        "[ -~]{0,64}".prop_map(Forgery::Guess),
        (index(), index(), 1u8..).prop_map(|(which, at, flip)| Forgery::Proof { which, at, flip }),
        (index(), 1u8..).prop_map(|(at, flip)| Forgery::Body { at, flip }),
        prop_oneof![TOLERANCE + 1..1_000_000, -1_000_000..-TOLERANCE].prop_map(Forgery::Replayed),
        Just(Forgery::Bare),
        Just(Forgery::Twice),
        index().prop_map(Forgery::Otherwise),
    ]
}

impl Forgery {
    /// The forged message and when it comes; none where this scheme can't tell, which is left to what remembers requests.
    fn make(&self, scheme: Scheme, body: &[u8]) -> Option<(Message, Timestamp)> {
        let good = scheme.message(SECRET, body, noon());
        let mut forged = good.clone();
        let mut now = noon();
        match self {
            Self::OtherTenant => forged = scheme.message(OTHER, body, noon()),
            Self::Guess(secret) if scheme.signs() => {
                let key = format!("whsec_{}", BASE64_STANDARD.encode(format!("{secret:-<32}")));
                forged = scheme.message(&key, body, noon());
            }
            Self::Guess(secret) => forged = scheme.message(secret, body, noon()),
            Self::Proof { which, at, flip } if forged.headers.is_empty() => {
                let _ = which;
                let mut query = forged.query.into_bytes();
                let at = at.index(query.len());
                query[at] ^= flip;
                forged.query = String::from_utf8(query).ok()?;
            }
            Self::Proof { which, at, flip } => {
                let which = which.index(forged.headers.len());
                let mut value = forged.headers[which].1.to_vec();
                let at = at.index(value.len());
                value[at] ^= flip;
                forged.headers[which].1 = value.into();
            }
            Self::Body { at, flip } if scheme.signs() && !body.is_empty() => {
                let at = at.index(body.len());
                forged.body[at] ^= flip;
            }
            Self::Replayed(seconds) if scheme.signs() => now = noon() + SignedDuration::from_secs(*seconds),
            Self::Body { .. } | Self::Replayed(_) => return None,
            Self::Bare => (forged.query, forged.headers) = (String::new(), Vec::new()),
            Self::Twice => {
                forged.headers.extend(good.headers);
                forged.query = if good.query.is_empty() { String::new() } else { format!("{0}&{0}", good.query) };
            }
            Self::Otherwise(index) => {
                let others: Vec<Scheme> = Scheme::ALL.into_iter().filter(|other| *other != scheme).collect();
                forged = others[index.index(others.len())].message(SECRET, body, noon());
            }
        }
        Some((forged, now))
    }
}

#[test]
fn two_thousand_forgeries_of_every_connectors_webhooks_are_all_refused() {
    let mut tried = 0;
    for built_in in Catalogue::all_built_in() {
        let connector = Rig::built_in(built_in.name()).connector;
        if connector.inbound().is_none() {
            continue;
        }
        let scheme = scheme_of(&connector);
        let count = std::cell::Cell::new(0_u32);
        let mut runner =
            TestRunner::new(Config { cases: FORGERIES, max_global_rejects: 1_000_000, ..Config::default() });
        let strategy = (forgery(), prop::collection::vec(any::<u8>(), 1..300));
        let refused = runner.run(&strategy, |(forgery, body)| {
            let good = scheme.message(SECRET, &body, noon());
            prop_assert!(good.believed(&connector, SECRET, noon()).is_some(), "what is in order is believed");
            let Some((forged, now)) = forgery.make(scheme, &body) else {
                return Err(TestCaseError::reject("not told by it"));
            };
            count.set(count.get() + 1);
            prop_assert_eq!(forged.believed(&connector, SECRET, now), None);
            Ok(())
        });
        refused.unwrap_or_else(|error| panic!("{}: {error}", connector.name()));
        assert!(count.get() >= FORGERIES, "{}: {}", connector.name(), count.get());
        tried += 1;
    }
    assert!(tried >= 18, "{tried} connectors take webhooks");
}

#[test]
fn a_signed_webhook_proves_its_id_and_a_shared_secret_its_sender_alone() {
    for built_in in Catalogue::all_built_in() {
        let connector = Rig::built_in(built_in.name()).connector;
        if connector.inbound().is_none() {
            continue;
        }
        let scheme = scheme_of(&connector);
        let proved = scheme.message(SECRET, b"{}", noon()).believed(&connector, SECRET, noon());
        let expected = if scheme.signs() { Proved::Id("msg_1".to_owned()) } else { Proved::Sender };
        assert_eq!(proved, Some(expected), "{}", connector.name());
    }
}

#[test]
fn mailchimp_asks_its_address_with_the_secret_and_nobody_else_is_answered() {
    let connector = Rig::built_in("mailchimp").connector;
    let inbound = connector.inbound().expect("it takes webhooks");
    let ask = |query: &str| {
        let webhook = Webhook { method: "GET", url: "", query, headers: &[], body: b"", integration_id: "i1" };
        inbound.handshake(&webhook, &[SECRET], &std::collections::BTreeMap::new(), noon())
    };
    let query = Scheme::SecretInQuery.message(SECRET, b"", noon()).query;
    assert_eq!(ask(&query).expect("verified").expect("a handshake").status, 200);
    for query in ["", "secret=", "secret=whsec_guess", &format!("{query}x")] {
        assert!(ask(query).is_err(), "{query}");
    }
}

#[test]
fn what_mailchimp_signs_must_be_signed_once_its_secret_is_known() {
    let connector = Rig::built_in("mailchimp").connector;
    let inbound = connector.inbound().expect("it takes webhooks");
    let body = b"type=unsubscribe&fired_at=2026-05-01+11%3A58%3A00&data%5Bemail%5D=ada%40example.org";
    let query = Scheme::SecretInQuery.message(SECRET, body, noon()).query;
    let signed = |secret: &str, at: i64| {
        let message = [format!("{at}.").as_bytes(), body].concat();
        format!("t={at},v1={}", hex_sign(secret.as_bytes(), &message))
    };
    let ask = |method: &str, signing, signature: Option<String>, body: &[u8]| {
        let headers: Vec<_> = signature.map(|it| ("x-mailchimp-signature".to_owned(), it.into())).into_iter().collect();
        let webhook = Webhook { method, url: "", query: &query, headers: &headers, body, integration_id: "i1" };
        let known = Known { secrets: &[SECRET], signing };
        if method == "GET" {
            inbound.handshake(&webhook, known, &std::collections::BTreeMap::new(), noon()).map(|_| Proved::Sender).ok()
        } else {
            inbound.verify(&webhook, known, noon()).ok()
        }
    };
    let (theirs, now) = (Some("0f1e2d3c4b5a69788796a5b4c3d2e1f0"), noon().as_second());
    let good = signed(theirs.expect("one"), now);
    assert_eq!(ask("POST", theirs, Some(good.clone()), body), Some(Proved::Body));
    assert_eq!(ask("POST", None, None, body), Some(Proved::Sender), "as before it signed");
    assert_eq!(ask("GET", theirs, None, b""), Some(Proved::Sender), "it asks before it signs");
    assert_eq!(ask("POST", theirs, None, body), None);
    assert_eq!(ask("POST", theirs, Some(good), b"type=subscribe"), None);
    assert_eq!(ask("POST", theirs, Some(signed(SECRET, now)), body), None, "whoever knows the address");
    for off in [TOLERANCE + 1, -TOLERANCE - 1] {
        assert_eq!(ask("POST", theirs, Some(signed(theirs.expect("one"), now + off)), body), None, "{off}");
    }
}

#[test]
fn a_secret_has_no_other_spelling() {
    let hex = hex_sign(SECRET.as_bytes(), b"{}");
    for name in ["crm", "mailchimp", "honeybook"] {
        let connector = Rig::built_in(name).connector;
        let message = Message {
            query: String::new(),
            headers: vec![("x-wedsync-signature".into(), hex.clone().into())],
            body: b"{}".to_vec(),
        };
        assert_eq!(message.believed(&connector, SECRET, noon()), None, "{name}");
    }
}
