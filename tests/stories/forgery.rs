//! How senders show who they are, and the ways in which somebody else might try to. Nothing is sent from here.

use std::fmt::Write as _;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use chassis::signature::{WebhookSecret, hex_sign, sign};
use proto::vendorsync::v1::IntegrationKind;
use url::form_urlencoded::byte_serialize;

use super::inbound::Sender;
use crate::crash::chance::Chance;

/// Beyond the tolerance of five minutes, and beyond what a slow machine takes to send it.
const STALE_SECONDS: std::ops::Range<u64> = 3_600..1_000_000;
/// One byte more than a body may have.
pub(super) const HUGE: usize = (1 << 20) + 1;

/// How a sender shows who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scheme {
    /// The three headers of Standard Webhooks.
    Standard,
    /// `X-WedSync-Signature` over the body.
    Hex,
    /// A `signature` member over the body's time and content.
    Member,
    SecretInQuery,
    SecretInHeader,
}

impl Scheme {
    pub(super) const ALL: [Self; 5] =
        [Self::Standard, Self::Hex, Self::Member, Self::SecretInQuery, Self::SecretInHeader];
    /// Those that a connector may declare, and which of them is found by what it believes.
    pub(super) const OF_CONNECTORS: [Self; 3] = [Self::Standard, Self::SecretInQuery, Self::SecretInHeader];

    /// Whether the message is what was signed, and not its sender alone.
    pub(super) fn signs(self) -> bool {
        !matches!(self, Self::SecretInQuery | Self::SecretInHeader)
    }
}

/// Where one sender's webhooks come in.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) name: String,
    pub(super) scheme: Scheme,
    pub(super) sender: Sender,
    /// A genuine body, with `{at}` for its time and, where that is signed, `{signature}` for what shows its sender.
    pub(super) body: String,
}

/// A webhook, to be sent and tampered with.
#[derive(Clone, Debug, Default)]
pub(super) struct Message {
    pub(super) path: String,
    /// Values of the query's `secret`, as they are meant.
    secrets: Vec<String>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// Of the headers, the first so many name the integration; the others prove.
    naming: usize,
}

impl Message {
    pub(super) fn target(&self) -> String {
        let mut target = self.path.clone();
        for (index, secret) in self.secrets.iter().enumerate() {
            let secret: String = byte_serialize(secret.as_bytes()).collect();
            let _ = write!(target, "{}secret={secret}", if index == 0 { '?' } else { '&' });
        }
        target
    }
}

impl Door {
    /// Whether the integration is named in a header.
    fn is_named(&self) -> bool {
        !self.sender.integration.path.ends_with(&self.sender.integration.id)
    }

    /// Whether a message that comes again is known. Supabase can neither sign nor number what it sends, and never repeats
    /// it: there each request is a message of its own.
    pub(super) fn knows_repeats(&self) -> bool {
        self.sender.integration.kind() != IntegrationKind::Supabase
    }

    /// What its sender sends as message `id` at this time.
    pub(super) fn message(&self, id: &str, at: jiff::Timestamp) -> Message {
        self.message_by(self.scheme, &self.sender.secret, id, at)
    }

    /// The same in this manner and with this secret.
    fn message_by(&self, scheme: Scheme, secret: &str, id: &str, at: jiff::Timestamp) -> Message {
        let body = self.written(secret, at);
        let path = self.sender.integration.path.clone();
        let mut message = Message { path, body, ..Message::default() };
        if self.is_named() {
            message.naming = 1;
            message.headers.push(("x-wedsync-integration".to_owned(), self.sender.integration.id.clone()));
        }
        let mut header = |name: &str, value: &str| message.headers.push((name.to_owned(), value.to_owned()));
        match scheme {
            Scheme::Standard => {
                let (key, seconds) = (WebhookSecret::parse(secret).expect("a secret"), at.as_second());
                header("webhook-id", id);
                header("webhook-timestamp", &seconds.to_string());
                header("webhook-signature", &sign(id, seconds, &message.body, &[key]));
            }
            Scheme::Hex => header("x-wedsync-signature", &hex_sign(secret.as_bytes(), &message.body)),
            Scheme::SecretInHeader => header("x-wedsync-secret", secret),
            Scheme::SecretInQuery => message.secrets.push(secret.to_owned()),
            Scheme::Member => {}
        }
        message
    }

    fn written(&self, secret: &str, at: jiff::Timestamp) -> Vec<u8> {
        let at = at.to_string();
        let signature = hex_sign(secret.as_bytes(), format!("{at}.{}", self.content()).as_bytes());
        self.body.replace("{at}", &at).replace("{signature}", &signature).into_bytes()
    }

    /// What a signature in the body is of.
    fn content(&self) -> &str {
        let from = self.body.find("\"data\":").map(|at| at + 7);
        let from = from.or_else(|| self.body.find("\"payload\":").map(|at| at + 10));
        let rest = from.map_or("", |from| &self.body[from..]);
        rest.split_once(",\"timestamp\"").map_or(rest, |(content, _)| content)
    }
}

/// A way to tamper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Forgery {
    /// Without what proves.
    Bare,
    /// With a secret that was made up.
    Guess,
    /// By another organization, with the secret of its own account at the same vendor.
    OtherTenant,
    /// In order, but at another organization's address.
    OtherAddress,
    /// At an address of another vendor.
    Misnamed,
    /// A byte of what is signed is another one.
    Body,
    /// A character of what proves is another one.
    Proof,
    Old,
    Future,
    /// What was taken before, byte for byte.
    Again,
    /// What proves is right, and spelled in another way.
    Spelling,
    /// What proves, or what is signed, lacks its end.
    Cut,
    /// What proves stands twice.
    Twice,
    /// What proves is of another message.
    Transplant,
    Empty,
    Huge,
    /// In the manner of another scheme.
    Manner,
}

/// How it is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Refused(u16),
    /// As what it is: a message that was taken.
    Repeat,
}

impl Forgery {
    pub(super) const ALL: [Self; 17] = [
        Self::Bare,
        Self::Guess,
        Self::OtherTenant,
        Self::OtherAddress,
        Self::Misnamed,
        Self::Body,
        Self::Proof,
        Self::Old,
        Self::Future,
        Self::Again,
        Self::Spelling,
        Self::Cut,
        Self::Twice,
        Self::Transplant,
        Self::Empty,
        Self::Huge,
        Self::Manner,
    ];

    /// Whether the scheme can tell: whoever shows a shared secret may say anything, whenever.
    pub(super) fn fits(self, scheme: Scheme) -> bool {
        let of_content = [Self::Body, Self::Old, Self::Future, Self::Transplant, Self::Empty];
        scheme.signs() || !of_content.contains(&self)
    }

    pub(super) fn due(self) -> Due {
        match self {
            Self::Again => Due::Repeat,
            Self::Misnamed => Due::Refused(404),
            Self::Huge => Due::Refused(413),
            _ => Due::Refused(401),
        }
    }

    /// The forged message: at `door`, whose counterpart in another organization is `rival`, which took `taken` before.
    pub(super) fn make(
        self,
        chance: &mut Chance,
        door: &Door,
        rival: &Door,
        taken: &Message,
        now: jiff::Timestamp,
    ) -> Message {
        let id = format!("msg_{}", chance.within(0..u64::MAX));
        let good = door.message(&id, now);
        let mut forged = good.clone();
        match self {
            Self::Again => return taken.clone(),
            Self::Huge => {}
            Self::Bare => bare(door.scheme, &mut forged),
            Self::Guess => forged = door.message_by(door.scheme, &made_up(chance), &id, now),
            Self::OtherTenant => forged = door.message_by(door.scheme, &rival.sender.secret, &id, now),
            Self::OtherAddress => {
                let other = rival.message(&id, now);
                forged.path = other.path;
                forged.headers.splice(..good.naming, other.headers.into_iter().take(good.naming));
            }
            Self::Misnamed if good.naming > 0 => forged.headers.insert(0, good.headers[0].clone()),
            Self::Misnamed => forged.path = good.path.replacen("/webhooks/", "/webhooks/x-", 1),
            Self::Old | Self::Future => {
                let seconds = i64::try_from(chance.within(STALE_SECONDS)).expect("small");
                let off = jiff::SignedDuration::from_secs(if self == Self::Old { -seconds } else { seconds });
                forged = door.message(&id, now + off);
            }
            Self::Body => {
                let (from, to) = signed_part(door, &forged.body);
                let at = index(chance, to - from) + from;
                forged.body[at] ^= u8::try_from(chance.within(1..256)).expect("a byte");
            }
            Self::Proof => change_proof(door.scheme, &mut forged, |text| other_character(chance, text)),
            Self::Spelling => change_proof(door.scheme, &mut forged, |text| respelled(chance, text)),
            Self::Cut => {
                if matches!(door.scheme, Scheme::Standard | Scheme::Hex) && chance.within(0..2) == 0 {
                    forged.body.truncate(index(chance, good.body.len()));
                } else {
                    change_proof(door.scheme, &mut forged, |text| text[..index(chance, text.len())].to_owned());
                }
            }
            Self::Twice => twice(door.scheme, &mut forged),
            Self::Transplant => {
                forged.headers = taken.headers.clone();
                forged.body = if door.scheme == Scheme::Member { transplanted(&taken.body) } else { good.body };
                if door.scheme != Scheme::Member {
                    forged.body.push(b' ');
                }
            }
            Self::Empty => forged.body.clear(),
            Self::Manner => {
                let others: Vec<Scheme> = match door.scheme {
                    // An integration without a connector takes several manners of signing.
                    scheme if scheme.signs() => vec![Scheme::SecretInQuery, Scheme::SecretInHeader],
                    scheme => Scheme::ALL.into_iter().filter(|other| *other != scheme).collect(),
                };
                let other = others[index(chance, others.len())];
                forged = door.message_by(other, &door.sender.secret, &id, now);
                if door.scheme == Scheme::Member {
                    edit(&mut forged.body, unsigned);
                }
            }
        }
        forged
    }
}

fn index(chance: &mut Chance, length: usize) -> usize {
    usize::try_from(chance.within(0..length as u64)).expect("small")
}

fn made_up(chance: &mut Chance) -> String {
    let bytes: Vec<u8> = (0..32).map(|_| u8::try_from(chance.within(0..256)).expect("a byte")).collect();
    format!("whsec_{}", BASE64_STANDARD.encode(bytes))
}

fn bare(scheme: Scheme, message: &mut Message) {
    message.secrets.clear();
    message.headers.truncate(message.naming);
    if scheme == Scheme::Member {
        edit(&mut message.body, unsigned);
    }
}

/// A body without its `signature`.
fn unsigned(text: &str) -> String {
    let (head, rest) = text.split_once(",\"signature\":\"").expect("it is signed");
    format!("{head}{}", &rest[65..])
}

fn twice(scheme: Scheme, message: &mut Message) {
    let proving: Vec<_> = message.headers[message.naming..].to_vec();
    message.headers.extend(proving);
    message.secrets.extend(message.secrets.clone());
    if scheme == Scheme::Member {
        edit(&mut message.body, |text| {
            let (head, rest) = text.split_once(",\"signature\":\"").expect("it is signed");
            let signature = &rest[..64];
            format!("{head},\"signature\":\"{signature}\",\"signature\":\"{rest}")
        });
    }
}

/// The signature of another message, over a content that nobody signed.
fn transplanted(taken: &[u8]) -> Vec<u8> {
    let mut body = taken.to_vec();
    edit(&mut body, |text| text.replacen("\"timestamp\":\"", "\"timestamp\":\"0", 1));
    body
}

fn edit(body: &mut Vec<u8>, change: impl FnOnce(&str) -> String) {
    *body = change(std::str::from_utf8(body).expect("ours are text")).into_bytes();
}

/// From where to where a byte counts.
fn signed_part(door: &Door, body: &[u8]) -> (usize, usize) {
    if door.scheme != Scheme::Member {
        return (0, body.len());
    }
    let text = std::str::from_utf8(body).expect("ours are text");
    let from = text.find(door.content()).expect("it is in there");
    (from, from + door.content().len())
}

/// Changes one text of those that prove: a header, the secret of the query, the member of the body.
fn change_proof(scheme: Scheme, message: &mut Message, change: impl FnOnce(&str) -> String) {
    match scheme {
        Scheme::SecretInQuery => message.secrets[0] = change(&message.secrets[0]),
        Scheme::Member => edit(&mut message.body, |text| {
            let (head, rest) = text.split_once("\"signature\":\"").expect("it is signed");
            format!("{head}\"signature\":\"{}{}", change(&rest[..64]), &rest[64..])
        }),
        // Of Standard Webhooks the signature, which stands last.
        _ => {
            let value = &mut message.headers.last_mut().expect("a header proves").1;
            *value = change(value);
        }
    }
}

fn other_character(chance: &mut Chance, text: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    let at = index(chance, bytes.len());
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=-_.,";
    let others: Vec<u8> = letters.iter().copied().filter(|letter| *letter != bytes[at]).collect();
    bytes[at] = others[index(chance, others.len())];
    String::from_utf8(bytes).expect("ASCII")
}

/// The same to somebody who is lenient.
fn respelled(chance: &mut Chance, text: &str) -> String {
    let spellings = [
        text.to_uppercase(),
        format!("sha256={text}"),
        format!("Bearer:{text}"),
        format!("\"{text}\""),
        BASE64_STANDARD.encode(text),
        hex::encode(text),
        format!("{text}="),
    ];
    let spellings: Vec<&String> = spellings.iter().filter(|other| *other != text).collect();
    spellings[index(chance, spellings.len())].clone()
}
