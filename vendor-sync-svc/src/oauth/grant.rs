//! The forms that ask for tokens, and what the answers mean. Pure.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD, prelude::BASE64_STANDARD};
use chassis::{
    config::Secret,
    error::{Error, Result},
    expression::Expression,
    outbound::{Answer, Request},
};
use http::{HeaderMap, HeaderValue, Method, header};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use url::{Url, form_urlencoded};

use super::ANSWER_WITHIN;
use crate::{
    connector::{self, ClientAuth, OAuth2},
    credential::{App, Tokens},
};

const TOKEN_BYTES: usize = 8 << 10;
/// The longest code of an error that counts as one.
const CODE_BYTES: usize = 40;

/// Names and values of a form.
pub(crate) type Form = Vec<(String, String)>;

/// What a vendor granted; an empty refresh token means that the one before stays good.
pub(crate) type Granted = Tokens;

/// Why there are no tokens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// What was shown is not good any more: a person must agree anew.
    #[error("{0}")]
    Grant(String),
    /// The same may succeed later, or once our client's own settings are put right.
    #[error("{reason}")]
    Passing { reason: String, retry_after: Option<Duration> },
}

/// Where a browser is sent to ask its person. Its state comes back with the answer.
///
/// # Errors
/// `Error::Invalid` for a declared URL that is none.
pub(crate) fn authorization_url(
    provider: &OAuth2,
    app: &App,
    redirect: &str,
    state: &str,
    verifier: &Secret,
) -> Result<Url> {
    let mut url = Url::parse(&provider.authorize_url)
        .map_err(|error| Error::invalid("connector.auth.authorize_url", error.to_string()))?;
    {
        let mut query = url.query_pairs_mut();
        query.append_pair("response_type", "code").append_pair("client_id", &app.id);
        query.append_pair("redirect_uri", redirect).append_pair("state", state);
        if !provider.scopes.is_empty() {
            query.append_pair("scope", &provider.scopes.join(&provider.scope_separator));
        }
        if provider.pkce {
            query.append_pair("code_challenge", &challenge(verifier)).append_pair("code_challenge_method", "S256");
        }
        query.extend_pairs(&provider.authorize_parameters);
    }
    Ok(url)
}

/// RFC 7636, section 4.2.
fn challenge(verifier: &Secret) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.expose()))
}

/// The code that a browser brought back, for tokens.
pub(crate) fn code(provider: &OAuth2, code: &str, redirect: &str, verifier: &Secret) -> Form {
    let mut form = form(provider, "authorization_code");
    form.extend([pair("code", code), pair("redirect_uri", redirect)]);
    if provider.pkce {
        form.push(pair("code_verifier", verifier.expose()));
    }
    form
}

/// A refresh token for new tokens.
pub(crate) fn refresh(provider: &OAuth2, token: &Secret) -> Form {
    let mut form = form(provider, "refresh_token");
    form.push(pair("refresh_token", token.expose()));
    form
}

/// Our client's own credentials for a token.
pub(crate) fn client_credentials(provider: &OAuth2) -> Form {
    let mut form = form(provider, "client_credentials");
    if !provider.scopes.is_empty() {
        form.push(pair("scope", &provider.scopes.join(&provider.scope_separator)));
    }
    form
}

pub(super) fn revocation(token: &Secret) -> Form {
    vec![pair("token", token.expose())]
}

fn form(provider: &OAuth2, grant_type: &str) -> Form {
    let parameters = provider.token_parameters.iter().map(|(name, value)| pair(name, value));
    std::iter::once(pair("grant_type", grant_type)).chain(parameters).collect()
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// A form post to `url`, in the name of `app`.
pub(super) fn request(url: &str, provider: &OAuth2, app: &App, form: &Form) -> Request {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    let mut body = form_urlencoded::Serializer::new(String::new());
    body.extend_pairs(form);
    // A public client has nothing to authenticate with, and only says who it is (RFC 6749, section 3.2.1).
    if provider.client_auth == ClientAuth::Basic && !app.secret.is_empty() {
        headers.insert(header::AUTHORIZATION, basic(app));
    } else {
        body.append_pair("client_id", &app.id);
        if !app.secret.is_empty() {
            body.append_pair("client_secret", app.secret.expose());
        }
    }
    Request { method: Method::POST, url: url.to_owned(), headers, body: body.finish().into(), timeout: ANSWER_WITHIN }
}

/// RFC 6749, section 2.3.1: both parts are form-encoded first.
fn basic(app: &App) -> HeaderValue {
    let part = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let both = format!("{}:{}", part(&app.id), part(app.secret.expose()));
    let mut value = HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(both))).expect("base64 is ASCII");
    value.set_sensitive(true);
    value
}

/// What an answer to such a form means. An error counts with every status, since some vendors send theirs with 200.
///
/// # Errors
/// As [`Refused`].
pub(crate) fn judge(provider: &OAuth2, answer: &Answer, now: Timestamp) -> Result<Granted, Refused> {
    let passing = |reason: String| Refused::Passing { reason, retry_after: answer.retry_after(now) };
    if !answer.complete {
        return Err(passing("the vendor's answer is too long, or broke off".to_owned()));
    }
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
    if let Some(error) = body.get("error").filter(|error| !error.is_null()) {
        return Err(refusal(error, passing));
    }
    if !answer.status.is_success() {
        return Err(passing(format!("the vendor answered {}", answer.status)));
    }
    let scope = connector::of_answer(answer);
    let text = |expression: &Expression| match expression.eval(&scope) {
        Ok(Value::String(text)) if text.len() <= TOKEN_BYTES && !text.chars().any(char::is_control) => text,
        _ => String::new(),
    };
    let access = text(&provider.access_token);
    if access.is_empty() {
        return Err(passing("the vendor's answer holds no token".to_owned()));
    }
    let lasts = provider.expires_in.eval(&scope).ok().and_then(|value| seconds(&value));
    Ok(Tokens {
        access: access.into(),
        refresh: text(&provider.refresh_token).into(),
        expires_at: lasts.and_then(|lasts| now.checked_add(SignedDuration::from_secs(lasts)).ok()),
    })
}

/// Some vendors say numbers as texts. What lasts no time doesn't say how long it lasts.
fn seconds(value: &Value) -> Option<i64> {
    let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
    (1.0..=4e9).contains(&number).then_some(number as i64)
}

/// RFC 6749, section 5.2; OpenID Connect Core, section 3.1.2.6.
/// The code alone is kept, shown and logged: what a vendor describes it with may name a person.
fn refusal(error: &Value, passing: impl Fn(String) -> Refused) -> Refused {
    let code = error.as_str().or_else(|| error.get("code")?.as_str()).unwrap_or("unknown");
    let reason = format!("the vendor said {}", if is_code(code) { code } else { "something of its own" });
    match code {
        "invalid_grant"
        | "interaction_required"
        | "consent_required"
        | "login_required"
        | "access_denied"
        | "invalid_refresh_token"
        | "token_revoked"
        | "token_expired" => Refused::Grant(reason),
        _ => passing(reason),
    }
}

fn is_code(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphabetic() || b == b'_' || b == b'-';
    (1..=CODE_BYTES).contains(&text.len()) && text.bytes().all(fits)
}

#[cfg(test)]
pub(crate) mod tests {
    use bytes::Bytes;
    use chassis::testing::noon;
    use http::StatusCode;
    use proptest::prelude::*;

    use super::*;
    use crate::{connector::Connector, oauth::Provider};

    /// A connector that declares OAuth with these lines.
    pub(crate) fn provider(lines: &str) -> Provider {
        let text = format!(
            "name = 'test'\ntitle = 'Test'\nkind = 'email_marketing'\nbase_url = 'https://v.example'\n\
             [[auth]]\nkind = 'oauth2'\n{lines}\n"
        );
        let connector = Connector::parse(&text).unwrap_or_else(|faults| panic!("{faults:?}"));
        Provider::of(connector.into()).expect("it declares OAuth")
    }

    fn lines(more: &str) -> String {
        format!(
            "grant = 'authorization_code'\nauthorize_url = 'https://v.example/a?x=1'\ntoken_url = 'https://v.example/t'\n\
             scopes = ['contact_data', 'offline_access']\nauthorize_parameters = {{ access_type = 'offline' }}\n{more}"
        )
    }

    fn code_provider() -> Provider {
        provider(&lines("client_auth = 'basic'"))
    }

    fn app() -> App {
        App { id: "a b".to_owned(), secret: Secret::from("s:e/c".to_owned()) }
    }

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: HeaderMap::new(),
            body: Bytes::copy_from_slice(body.as_bytes()),
            complete: true,
            duration: Duration::ZERO,
        }
    }

    #[test]
    fn the_challenge_is_that_of_rfc_7636_appendix_b() {
        let verifier = Secret::from("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".to_owned());
        assert_eq!(challenge(&verifier), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn the_vendors_page_gets_all_that_it_needs_and_keeps_its_own_query() {
        let verifier = Secret::from("verifier".to_owned());
        let redirect = "https://us.example/oauth/callback";
        let url = authorization_url(code_provider().declared(), &app(), redirect, "st", &verifier).expect("a URL");
        assert_eq!(
            url.as_str(),
            format!(
                "https://v.example/a?x=1&response_type=code&client_id=a+b&redirect_uri=https%3A%2F%2Fus.example%2Foauth%2Fcallback\
                 &state=st&scope=contact_data+offline_access&code_challenge={}&code_challenge_method=S256&access_type=offline",
                challenge(&verifier)
            )
        );
        assert!(!url.as_str().contains("verifier"));
    }

    #[test]
    fn the_client_shows_itself_as_the_vendor_wants_it() {
        let form = refresh(code_provider().declared(), &Secret::from("r&1".to_owned()));
        let sent = request("https://v.example/t", code_provider().declared(), &app(), &form);
        assert_eq!(&sent.body[..], b"grant_type=refresh_token&refresh_token=r%261");
        assert_eq!(sent.headers[header::AUTHORIZATION], format!("Basic {}", BASE64_STANDARD.encode("a+b:s%3Ae%2Fc")));
        let body = provider(&lines("client_auth = 'body'"));
        let sent = request("https://v.example/t", body.declared(), &app(), &form);
        assert!(sent.body.ends_with(b"&client_id=a+b&client_secret=s%3Ae%2Fc") && sent.headers.len() == 2);
        let public = App { secret: Secret::default(), ..app() };
        let sent = request("https://v.example/t", code_provider().declared(), &public, &form);
        assert!(sent.body.ends_with(b"&client_id=a+b") && !sent.headers.contains_key(header::AUTHORIZATION));
    }

    #[test]
    fn numbers_as_texts_and_errors_with_200_are_understood() {
        let judged = |status, body: &str| judge(code_provider().declared(), &answer(status, body), noon());
        let granted = judged(200, r#"{"access_token":"a","expires_in":"3600"}"#).expect("granted");
        assert_eq!((granted.access.expose(), granted.refresh.is_empty()), ("a", true));
        assert_eq!(granted.expires_at, Some(noon() + SignedDuration::from_secs(3_600)));
        let lasting = judged(200, r#"{"access_token":"a","refresh_token":"r","expires_in":0}"#).expect("granted");
        assert_eq!((lasting.refresh.expose(), lasting.expires_at), ("r", None));
        for (status, body) in [
            (400, r#"{"error":"invalid_grant"}"#),
            (200, r#"{"ok":false,"error":"invalid_grant"}"#),
            (400, r#"{"error":{"code":"token_revoked"}}"#),
        ] {
            assert!(matches!(judged(status, body), Err(Refused::Grant(_))), "{body}");
        }
        for (status, body) in [
            (401, r#"{"error":"invalid_client"}"#),
            (503, ""),
            (429, "{}"),
            (200, "<html>"),
            (200, "{}"),
            (200, r#"{"access_token":""}"#),
            (200, r#"{"access_token":"a\nb"}"#),
        ] {
            assert!(matches!(judged(status, body), Err(Refused::Passing { .. })), "{body}");
        }
        let described = r#"{"error":"invalid_grant","error_description":"Mia Lens has left"}"#;
        let refused = judged(400, described).expect_err("refused").to_string();
        assert_eq!(refused, "the vendor said invalid_grant", "what it says of people is not kept");
        let cut = Answer { complete: false, ..answer(200, r#"{"access_token":"a"}"#) };
        assert!(judge(code_provider().declared(), &cut, noon()).is_err());
    }

    proptest! {
        #[test]
        fn no_answer_breaks_it_and_no_reason_quotes_more_than_a_code(status in 200_u16..600, error in ".{0,60}", body in ".{3,}") {
            drop(judge(code_provider().declared(), &answer(status, &body), noon()));
            let body = serde_json::json!({ "error": error, "error_description": body }).to_string();
            let refused = judge(code_provider().declared(), &answer(status, &body), noon()).expect_err("an error").to_string();
            let code = refused.strip_prefix("the vendor said ").expect("so it begins");
            prop_assert!(code == "something of its own" || code == error && is_code(code), "{refused}");
        }
    }
}
