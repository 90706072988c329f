//! How an account shows who it is: what a connector declares, and what a credential becomes in a request. Pure.
//!
//! Getting and keeping credentials is `credential.rs` and `oauth.rs`, which read the declaration here.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use chassis::expression::Expression;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{read::Reader, scope::ANSWER};
use crate::credential::Credential;

const MOST_PARAMETERS: usize = 16;
const MOST_SCOPES: usize = 32;

/// One way to authenticate.
#[derive(Debug)]
pub(crate) enum Auth {
    /// Nothing is sent.
    None,
    /// A key, somewhere.
    Key { place: Place, name: String, prefix: String },
    /// HTTP Basic; with `user`, the credential is a key that is sent as the password.
    Basic { user: Option<String> },
    /// A token in `Authorization`.
    OAuth2(Box<OAuth2>),
}

/// Where a key goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Header,
    Query,
    /// A member of the JSON or form body.
    Body,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    AuthorizationCode,
    ClientCredentials,
}

/// How our client shows itself at the token URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientAuth {
    Basic,
    Body,
}

/// OAuth 2.0 as this vendor has it (RFC 6749, RFC 7636).
#[derive(Debug)]
pub(crate) struct OAuth2 {
    pub(crate) grant: Grant,
    /// Empty for client credentials.
    pub(crate) authorize_url: String,
    pub(crate) token_url: String,
    pub(crate) revoke_url: Option<String>,
    pub(crate) scopes: Vec<String>,
    pub(crate) scope_separator: String,
    pub(crate) pkce: bool,
    pub(crate) client_auth: ClientAuth,
    pub(crate) authorize_parameters: BTreeMap<String, String>,
    pub(crate) token_parameters: BTreeMap<String, String>,
    /// Before the token in `Authorization`.
    pub(crate) prefix: String,
    /// Over the token answer: `body`, `headers`, `status`, ... (see `scope::of_answer`).
    pub(crate) access_token: Expression,
    pub(crate) refresh_token: Expression,
    pub(crate) expires_in: Expression,
}

#[derive(Clone, Copy)]
enum Kind {
    None,
    ApiKey,
    Bearer,
    Basic,
    OAuth2,
}

impl Auth {
    pub(super) fn read(mut reader: Reader<'_>) -> Option<Self> {
        let kinds = [
            ("none", Kind::None),
            ("api_key", Kind::ApiKey),
            ("bearer", Kind::Bearer),
            ("basic", Kind::Basic),
            ("oauth2", Kind::OAuth2),
        ];
        if !reader.has("kind") {
            reader.fault("kind", "is missing");
        }
        let auth = match reader.choice("kind", &kinds)? {
            Kind::None => Some(Self::None),
            Kind::ApiKey => key(&mut reader),
            Kind::Bearer => {
                Some(Self::Key { place: Place::Header, name: "authorization".to_owned(), prefix: "Bearer ".to_owned() })
            }
            Kind::Basic => Some(Self::Basic { user: reader.text("user") }),
            Kind::OAuth2 => OAuth2::read(&mut reader).map(Box::new).map(Self::OAuth2),
        };
        reader.end();
        auth
    }

    /// As it is shown.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Key { .. } => "api_key",
            Self::Basic { .. } => "basic",
            Self::OAuth2(_) => "oauth2",
        }
    }

    /// The query parameter that a key stands in.
    pub(super) fn query_name(&self) -> Option<&str> {
        match self {
            Self::Key { place: Place::Query, name, .. } => Some(name),
            _ => None,
        }
    }

    /// Whether a credential of this kind is one for it.
    fn takes(&self, credential: &Credential) -> bool {
        matches!(
            (self, credential),
            (Self::None, Credential::None)
                | (Self::Key { .. } | Self::Basic { user: Some(_) }, Credential::Key(_))
                | (Self::Basic { user: None }, Credential::Basic { .. })
                | (Self::OAuth2(_), Credential::Token { .. })
        )
    }

    /// Where the credential goes in a request.
    fn shown(&self, credential: &Credential, prefix: Option<&str>) -> Shown {
        match (self, credential) {
            (Self::Key { place, name, prefix: own }, Credential::Key(key)) => {
                let prefix = if *place == Place::Header { prefix.unwrap_or(own) } else { own };
                Shown::At { place: *place, name: name.clone(), value: format!("{prefix}{}", key.expose()) }
            }
            (Self::Basic { user: Some(user) }, Credential::Key(key)) => basic(user, key.expose()),
            (Self::Basic { .. }, Credential::Basic { user, password }) => basic(user, password.expose()),
            (Self::OAuth2(oauth), Credential::Token { token, .. }) => {
                let prefix = prefix.unwrap_or(&oauth.prefix);
                authorization(format!("{prefix}{}", token.expose()))
            }
            _ => Shown::Nothing,
        }
    }
}

/// The credential as a request carries it.
pub(super) enum Shown {
    Nothing,
    At { place: Place, name: String, value: String },
}

/// By the first way that takes this credential.
///
/// # Errors
/// There is none.
pub(super) fn show(all: &[Auth], credential: &Credential, prefix: Option<&str>) -> Result<Shown, String> {
    if all.is_empty() {
        return Ok(Shown::Nothing);
    }
    let auth = all.iter().find(|auth| auth.takes(credential));
    let auth = auth.ok_or("the account has no credential of a kind that its connector takes: connect it")?;
    Ok(auth.shown(credential, prefix))
}

impl Shown {
    /// Into the headers, where it belongs there.
    pub(super) fn add_header(&self, headers: &mut HeaderMap) -> Result<(), String> {
        let Self::At { place: Place::Header, name, value } = self else { return Ok(()) };
        let name = HeaderName::try_from(name.as_str()).map_err(|_| "the key's header has no possible name")?;
        let mut value =
            HeaderValue::try_from(value.as_str()).map_err(|_| "the credential doesn't fit into a header")?;
        value.set_sensitive(true);
        headers.insert(name, value);
        Ok(())
    }

    /// The query parameter or body member, where it belongs there.
    pub(super) fn member(&self, wanted: Place) -> Option<(&str, &str)> {
        match self {
            Self::At { place, name, value } if *place == wanted => Some((name, value)),
            _ => None,
        }
    }
}

fn authorization(value: String) -> Shown {
    Shown::At { place: Place::Header, name: header::AUTHORIZATION.to_string(), value }
}

fn basic(user: &str, password: &str) -> Shown {
    authorization(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
}

fn key(reader: &mut Reader<'_>) -> Option<Auth> {
    let places = [("header", Place::Header), ("query", Place::Query), ("body", Place::Body)];
    let place = reader.choice("in", &places).unwrap_or(Place::Header);
    let name = reader.required("name");
    let prefix = reader.text("prefix").unwrap_or_default();
    if place == Place::Header {
        super::request::check_header(reader, "name", &name);
    }
    Some(Auth::Key { place, name, prefix })
}

impl OAuth2 {
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let grants =
            [("authorization_code", Grant::AuthorizationCode), ("client_credentials", Grant::ClientCredentials)];
        let grant = reader.choice("grant", &grants).unwrap_or(Grant::AuthorizationCode);
        let by_code = grant == Grant::AuthorizationCode;
        let authorize_url = if by_code { reader.required("authorize_url") } else { String::new() };
        let mut place = |name: &str, default: &str| {
            let source = reader.text(name).unwrap_or_else(|| default.to_owned());
            let compiled = Expression::compile(&source, ANSWER);
            compiled.map_err(|error| reader.fault(name, error.to_string())).ok()
        };
        let access_token = place("access_token", "body.access_token");
        let refresh_token = place("refresh_token", "body.refresh_token");
        let expires_in = place("expires_in", "body.expires_in");
        let parameters =
            |reader: &mut Reader<'_>, name: &str| reader.pairs(name, MOST_PARAMETERS).into_iter().collect();
        Some(Self {
            grant,
            authorize_url,
            token_url: reader.required("token_url"),
            revoke_url: reader.text("revoke_url"),
            scopes: reader.texts("scopes", MOST_SCOPES),
            scope_separator: reader.text("scope_separator").unwrap_or_else(|| " ".to_owned()),
            pkce: reader.flag_or("pkce", by_code),
            client_auth: reader
                .choice("client_auth", &[("basic", ClientAuth::Basic), ("body", ClientAuth::Body)])
                .unwrap_or(ClientAuth::Basic),
            authorize_parameters: parameters(reader, "authorize_parameters"),
            token_parameters: parameters(reader, "token_parameters"),
            prefix: reader.text("prefix").unwrap_or_else(|| "Bearer ".to_owned()),
            access_token: access_token?,
            refresh_token: refresh_token?,
            expires_in: expires_in?,
        })
    }
}
