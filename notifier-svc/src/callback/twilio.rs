//! Twilio's callbacks: what became of a message, and what people write to our numbers (twilio.com/docs/usage/security).
//!
//! The signature is over the URL as Twilio was given it, with or without the default port, and over the form's fields, or
//! over the URL alone, which then holds the hash of any other body.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use chassis::signature::equal;
use ring::{digest, hmac};
use url::{Url, form_urlencoded};

use super::{Meaning, Refused, Report, message, written};
use crate::channel::{provider::Class, twilio::of_code};

/// A form's fields; a name may stand several times.
type Fields = BTreeMap<String, BTreeSet<String>>;

/// Believes a form that was sent to `url` and signed with the account's token.
///
/// # Errors
/// Why not.
pub(crate) fn verify(url: &str, body: &[u8], signature: &str, token: &str) -> Result<(), Refused> {
    let signature = BASE64_STANDARD.decode(signature).map_err(|_| Refused::Signature)?;
    let hash = Url::parse(url)
        .ok()
        .and_then(|url| url.query_pairs().find(|(name, _)| name == "bodySHA256").map(|(_, hash)| hash.to_lowercase()));
    let fields = match hash {
        Some(hash) if !equal(hex::encode(digest::digest(&digest::SHA256, body)).as_bytes(), hash.as_bytes()) => {
            return Err(Refused::Signature);
        }
        Some(_) => String::new(),
        None => fields(body)
            .iter()
            .flat_map(|(name, values)| values.iter().flat_map(move |value| [name.as_str(), value]))
            .collect(),
    };
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, token.as_bytes());
    let holds = |url: &String| hmac::verify(&key, format!("{url}{fields}").as_bytes(), &signature).is_ok();
    if !token.is_empty() && forms(url).iter().any(holds) { Ok(()) } else { Err(Refused::Signature) }
}

fn fields(body: &[u8]) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in form_urlencoded::parse(body) {
        fields.entry(name.into_owned()).or_default().insert(value.into_owned());
    }
    fields
}

/// The URL as it is, with its default port, and without.
fn forms(url: &str) -> Vec<String> {
    let mut forms = vec![url.to_owned()];
    for (scheme, port) in [("https://", ":443"), ("http://", ":80")] {
        let Some(rest) = url.strip_prefix(scheme) else { continue };
        let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        forms.push(match host.strip_suffix(port) {
            Some(host) => format!("{scheme}{host}{path}"),
            None => format!("{scheme}{host}{port}{path}"),
        });
    }
    forms
}

/// What a verified form reports; nothing for states on the way to being sent.
///
/// # Errors
/// A form that is none of a message's.
pub(crate) fn read(url: &str, body: &[u8]) -> Result<Vec<Report>, Refused> {
    let fields = fields(body);
    let field = |name: &str| fields.get(name).and_then(|values| values.first()).map_or("", String::as_str);
    let sid = field("MessageSid");
    if sid.is_empty() {
        return Err(Refused::Malformed);
    }
    let status = field("MessageStatus");
    let meaning = if status.is_empty() || status == "received" {
        received(field)
    } else {
        reported(status, field("ErrorCode"), field("To"))
    };
    let name = Url::parse(url)
        .ok()
        .and_then(|url| url.query_pairs().find(|(name, _)| name == "message").and_then(|(_, name)| message(&name)));
    Ok(meaning.map(|meaning| Report { id: format!("{sid}:{status}"), message: name, meaning }).into_iter().collect())
}

fn reported(status: &str, code: &str, to: &str) -> Option<Meaning> {
    let reaches_nobody = || code.parse().ok().and_then(of_code) == Some(Class::Dead);
    Some(match status {
        "sent" => Meaning::Sent,
        "delivered" => Meaning::Delivered,
        "read" => Meaning::Read,
        "failed" | "undelivered" if reaches_nobody() => Meaning::Bounced { address: to.to_owned(), for_good: true },
        "failed" | "undelivered" | "canceled" => Meaning::Failed { code: code.to_owned() },
        _ => return None,
    })
}

/// Somebody wrote: a word that has a meaning of its own, or a reply.
fn received<'a>(field: impl Fn(&str) -> &'a str) -> Option<Meaning> {
    let (from, said) = (field("From").to_owned(), field("Body"));
    if from.is_empty() {
        return None;
    }
    Some(match field("OptOutType") {
        "STOP" => Meaning::OptedOut { address: from },
        "START" if said.trim().to_uppercase() != "YES" => Meaning::OptedIn { address: from },
        _ => written(from, said),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::callback::tests::{of, vectors};

    fn form(vectors: &serde_json::Value, pointer: &str) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        for (name, value) in vectors.pointer(pointer).unwrap().as_object().unwrap() {
            let values = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
            for value in values {
                form.append_pair(name, value.as_str().unwrap());
            }
        }
        form.finish()
    }

    #[test]
    fn the_published_examples_are_believed_and_nothing_near_them() {
        let vectors = vectors();
        let (token, url, body) =
            (of(&vectors, "/twilio/auth_token"), of(&vectors, "/twilio/url"), form(&vectors, "/twilio/params"));
        let with_port = |port: &str, scheme: &str| format!("{scheme}://mycompany.com:{port}/myapp.php?foo=1&bar=2");
        for (url, signature) in [
            (url.clone(), "/twilio/signature"),
            (with_port("443", "https"), "/twilio/signature"),
            (with_port("443", "https"), "/twilio/same_params_url_with_port_443"),
            (url.clone(), "/twilio/same_params_url_with_port_443"),
            (with_port("80", "http"), "/twilio/same_params_http_url_port_80"),
            (with_port("1234", "http"), "/twilio/same_params_http_url_port_1234"),
        ] {
            assert_eq!(verify(&url, body.as_bytes(), &of(&vectors, signature), &token), Ok(()), "{url} {signature}");
        }
        let several = form(&vectors, "/twilio/duplicate_params/params");
        assert_eq!(
            verify(&url, several.as_bytes(), &of(&vectors, "/twilio/duplicate_params/signature"), &token),
            Ok(())
        );
        let signature = of(&vectors, "/twilio/signature");
        let refused = Err(Refused::Signature);
        assert_eq!(verify(&url, format!("{body}&More=1").as_bytes(), &signature, &token), refused);
        assert_eq!(verify("https://mycompany.com/myapp.php?foo=1", body.as_bytes(), &signature, &token), refused);
        assert_eq!(verify(&with_port("8443", "https"), body.as_bytes(), &signature, &token), refused);
        assert_eq!(verify(&url, body.as_bytes(), &signature, "12346"), refused);
        assert_eq!(verify(&url, body.as_bytes(), "not base64", &token), refused);
    }

    #[test]
    fn a_body_that_is_no_form_is_believed_by_its_hash() {
        let vectors = vectors();
        let part = |name: &str| of(&vectors, &format!("/twilio/json_body/{name}"));
        let url = format!("{}&bodySHA256={}", of(&vectors, "/twilio/url"), part("sha256_hex"));
        assert_eq!(verify(&url, part("body").as_bytes(), &part("signature"), "12345"), Ok(()));
        assert_eq!(verify(&url, b"{}", &part("signature"), "12345"), Err(Refused::Signature));
    }

    fn meaning(form: &str) -> Option<Meaning> {
        let url = "https://example.org/callbacks/twilio?message=07070707-0707-0707-0707-070707070707";
        let report = read(url, form.as_bytes()).unwrap().pop()?;
        assert_eq!(report.message, Some([7; 16]));
        Some(report.meaning)
    }

    #[test]
    fn every_status_and_every_word_has_its_meaning() {
        for (status, expected) in [
            ("queued", None),
            ("sending", None),
            ("accepted", None),
            ("sent", Some(Meaning::Sent)),
            ("delivered", Some(Meaning::Delivered)),
            ("read", Some(Meaning::Read)),
            ("undelivered", Some(Meaning::Failed { code: "30003".to_owned() })),
            ("failed", Some(Meaning::Failed { code: "30003".to_owned() })),
        ] {
            assert_eq!(
                meaning(&format!("MessageSid=SM1&MessageStatus={status}&To=%2B1&ErrorCode=30003")),
                expected,
                "{status}"
            );
        }
        let bounced = Some(Meaning::Bounced { address: "+1".to_owned(), for_good: true });
        for (code, expected) in [
            ("30005", bounced.clone()),
            ("30006", bounced),
            ("30008", Some(Meaning::Failed { code: "30008".to_owned() })),
        ] {
            assert_eq!(
                meaning(&format!("MessageSid=SM1&MessageStatus=undelivered&To=%2B1&ErrorCode={code}")),
                expected,
                "{code}"
            );
        }
        let address = || "+15005550009".to_owned();
        let from = "MessageSid=SM1&From=%2B15005550009&Body=";
        for word in ["STOP", " stop ", "Unsubscribe", "QUIT"] {
            assert_eq!(meaning(&format!("{from}{word}")), Some(Meaning::OptedOut { address: address() }), "{word}");
        }
        assert_eq!(meaning(&format!("{from}start")), Some(Meaning::OptedIn { address: address() }));
        assert_eq!(
            meaning(&format!("{from}Arr%C3%AAt&OptOutType=STOP")),
            Some(Meaning::OptedOut { address: address() })
        );
        let reply = Meaning::Replied { from: address(), text: "Please stop by at 5".to_owned() };
        assert_eq!(meaning(&format!("{from}Please+stop+by+at+5")), Some(reply));
        assert_eq!(read("https://example.org/", b"CallSid=CA1"), Err(Refused::Malformed));
    }
}
