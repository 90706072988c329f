//! From an operation and what it is about to the request that is sent. Pure.
//!
//! What it gives is judged by the outbound guard like every other URL. A path's expressions can't leave their segment, a
//! header's can't end their line, and a base URL's can't choose another host unless it is all theirs.

use std::collections::BTreeMap;

use bytes::Bytes;
use chassis::{
    expression::Value,
    outbound::{self, may_set},
    signature::{self, WebhookSecret},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value as Json};
use url::Url;

use super::{
    Account, CallError, Connector,
    auth::{self, Place, Shown},
    encode,
    operation::{Encoding, Operation},
    page::Position,
    read::Reader,
    scope::{self, of_settings},
    text::{Text, printed},
};

/// What stays as it is in a path's segment (RFC 3986, section 2.3).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const URL_BYTES: usize = 8 * 1024;
const BODY_BYTES: usize = 1024 * 1024;

impl Connector {
    /// The request of one operation over `given`, an object with the names that `docs/connectors.md` lists.
    ///
    /// # Errors
    /// What the data made impossible, with its place: sending it again would not help.
    pub(crate) fn request(
        &self,
        operation: &str,
        account: &Account<'_>,
        given: &Json,
        now: Timestamp,
    ) -> Result<outbound::Request, CallError> {
        self.request_at(operation, account, given, &Position::default(), now)
    }

    /// The same, for the page of a list that begins at `position`.
    ///
    /// # Errors
    /// Likewise.
    pub(crate) fn request_at(
        &self,
        name: &str,
        account: &Account<'_>,
        given: &Json,
        position: &Position,
        now: Timestamp,
    ) -> Result<outbound::Request, CallError> {
        let failed = |reason: String| CallError::permanent(format!("operations.{name}.{reason}"));
        let Some(operation) = self.operations.get(name) else {
            return Err(CallError::permanent(format!("{} has no operation {name}", self.name)));
        };
        let settings = self.filled(account.settings);
        let shown = auth::show(&self.auth, account.credential, operation.auth_prefix.as_deref());
        let shown = shown.map_err(CallError::unauthorized)?;
        let scope = self.scope(name, operation, &settings, given, position).map_err(failed)?;
        let url = self.url(operation, &settings, &scope, &shown, position).map_err(failed)?;
        let body = body(operation, &scope, &shown).map_err(failed)?;
        let mut headers = self.headers(operation, &scope, &shown, !body.is_empty()).map_err(failed)?;
        if self.signed {
            sign(&mut headers, account.secrets, given, &body, now).map_err(failed)?;
        }
        Ok(outbound::Request { method: operation.method.clone(), url, headers, body, timeout: operation.timeout })
    }

    fn scope(
        &self,
        name: &str,
        operation: &Operation,
        settings: &BTreeMap<String, String>,
        given: &Json,
        position: &Position,
    ) -> Result<Value, String> {
        let paged;
        let given = match &operation.pages {
            Some(pages) => {
                let mut all = given.as_object().cloned().unwrap_or_default();
                all.insert("page".to_owned(), pages.shown(position));
                paged = Json::Object(all);
                &paged
            }
            None => given,
        };
        let out = self.out(name, operation, settings, given)?;
        Ok(scope::of_request(given, settings, &operation.allowed, out))
    }

    /// The record as the vendor has it; over what it kept, where it replaces all of it.
    fn out(
        &self,
        name: &str,
        operation: &Operation,
        settings: &BTreeMap<String, String>,
        given: &Json,
    ) -> Result<Json, String> {
        let spec = self.records.values().find(|spec| spec.uses(name));
        let Some((spec, mapping)) = spec.and_then(|spec| Some((spec, spec.out.as_ref()?))) else {
            return Ok(Json::Null);
        };
        if given.get("record").is_none_or(Json::is_null) {
            return Ok(Json::Null);
        }
        let scope = scope::of_request(given, settings, &operation.allowed, Json::Null);
        let out = mapping.apply(&scope).map_err(|error| format!("out.{error}"))?;
        Ok(if spec.update.as_deref() == Some(name) { spec.over_kept(given.get("current"), out) } else { out })
    }

    fn url(
        &self,
        operation: &Operation,
        settings: &BTreeMap<String, String>,
        scope: &Value,
        shown: &Shown,
        position: &Position,
    ) -> Result<String, String> {
        let base = base(operation.base_url.as_ref().unwrap_or(&self.base_url), settings)?;
        let mut url = match (operation.pages.as_ref(), position.path()) {
            (Some(pages), Some(path)) if pages.follows() => {
                base.join(path).ok().filter(|url| url.origin() == base.origin()).ok_or("pages: leads elsewhere")?
            }
            _ => target(operation, &base, scope, position)?,
        };
        // The vendor's own next page may hold it already.
        if let Some((name, value)) =
            shown.member(Place::Query).filter(|(name, _)| url.query_pairs().all(|(n, _)| n != *name))
        {
            url.query_pairs_mut().append_pair(name, value);
        }
        if url.as_str().len() > URL_BYTES {
            return Err("path: the URL is longer than 8 KiB".to_owned());
        }
        Ok(url.into())
    }

    fn headers(
        &self,
        operation: &Operation,
        scope: &Value,
        shown: &Shown,
        has_body: bool,
    ) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        if has_body {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(operation.encoding.content_type()));
        }
        for (name, text) in self.headers.iter().chain(&operation.headers) {
            let at = |reason: String| format!("headers.{name}: {reason}");
            if let Some(value) = text.write(scope, Ok).map_err(at)? {
                let value = HeaderValue::try_from(value).map_err(|_| at("doesn't fit into a header".to_owned()))?;
                headers.insert(HeaderName::try_from(name.as_str()).map_err(|e| at(e.to_string()))?, value);
            }
        }
        shown.add_header(&mut headers)?;
        Ok(headers)
    }
}

/// The base URL, without a slash at its end.
fn base(text: &Text, settings: &BTreeMap<String, String>) -> Result<Url, String> {
    let scope = Value::scope([("settings", of_settings(settings))]);
    let whole = text.begins_with_expression();
    let plain = |result: String| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if whole || result.bytes().all(allowed) { Ok(result) } else { Err("may hold [A-Za-z0-9._-] here".to_owned()) }
    };
    let url = text.write(&scope, plain).map_err(|reason| format!("base_url: {reason}"))?;
    let url = Url::parse(url.unwrap_or_default().trim_end_matches('/')).map_err(|e| format!("base_url: {e}"))?;
    let plain =
        url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
    if !["http", "https"].contains(&url.scheme()) || !plain {
        return Err("base_url: must be https://host/path, without user, query or fragment".to_owned());
    }
    Ok(url)
}

fn target(operation: &Operation, base: &Url, scope: &Value, position: &Position) -> Result<Url, String> {
    let segment = |result: String| match result.as_str() {
        "" | "." | ".." => Err("an expression gives no segment of a path".to_owned()),
        result => Ok(utf8_percent_encode(result, SEGMENT).to_string()),
    };
    let path = operation.path.write(scope, segment).map_err(|reason| format!("path: {reason}"))?;
    let path = path.ok_or("path: an expression gives no segment of a path")?;
    let url = format!("{}{path}", base.as_str().trim_end_matches('/'));
    let mut url = Url::parse(&url).map_err(|e| format!("path: {e}"))?;
    let mut pairs = Vec::new();
    for (name, text) in &operation.query {
        let value = text.write(scope, Ok).map_err(|reason| format!("query.{name}: {reason}"))?;
        pairs.extend(value.map(|value| (name.clone(), value)));
    }
    pairs.extend(operation.pages.as_ref().map(|pages| pages.parameters(position)).unwrap_or_default());
    if !pairs.is_empty() {
        url.query_pairs_mut().extend_pairs(pairs);
    }
    Ok(url)
}

fn body(operation: &Operation, scope: &Value, shown: &Shown) -> Result<Bytes, String> {
    let json = operation.body.as_ref().map(|mapping| mapping.apply(scope)).transpose();
    let mut json = json.map_err(|error| format!("body.{error}"))?;
    if let Some((name, value)) = shown.member(Place::Body) {
        let members = json.get_or_insert_with(|| Json::Object(Map::new())).as_object_mut();
        members.ok_or("body: the key needs an object to stand in")?.insert(name.to_owned(), value.into());
    }
    let Some(mut json) = json.filter(|_| takes_body(&operation.method)) else { return Ok(Bytes::new()) };
    if !operation.keep_nulls {
        encode::drop_nulls(&mut json);
    }
    let text = match operation.encoding {
        Encoding::Json => json.to_string(),
        Encoding::Form => encode::form(&json).map_err(|reason| format!("body: {reason}"))?,
        Encoding::NestedForm => encode::nested_form(&json).map_err(|reason| format!("body: {reason}"))?,
    };
    if text.len() > BODY_BYTES { Err("body: is longer than 1 MiB".to_owned()) } else { Ok(Bytes::from(text)) }
}

fn takes_body(method: &Method) -> bool {
    [Method::POST, Method::PUT, Method::PATCH].contains(method)
}

/// Standard Webhooks and our own headers, where the request tells of an event.
fn sign(
    headers: &mut HeaderMap,
    secrets: &[WebhookSecret],
    given: &Json,
    body: &[u8],
    now: Timestamp,
) -> Result<(), String> {
    let event = |name: &str| printed(&given["event"][name]).ok().flatten();
    let Some(id) = event("delivery_id") else { return Ok(()) };
    let newest = secrets.first().ok_or("signed: the account has no secret to sign with")?;
    let seconds = now.as_second();
    let ours = [
        ("webhook-id", id.clone()),
        ("webhook-timestamp", seconds.to_string()),
        ("webhook-signature", signature::sign(&id, seconds, body, secrets)),
        ("x-wedsync-signature", signature::hex_sign(newest.expose().as_bytes(), body)),
        ("x-wedsync-event", event("type").unwrap_or_default()),
        ("x-wedsync-timestamp", event("time").unwrap_or_default()),
        ("x-wedsync-source", event("origin").unwrap_or_else(|| "realtime".to_owned())),
    ];
    for (name, value) in ours {
        let value = HeaderValue::try_from(value).map_err(|_| format!("signed: {name} doesn't fit into a header"))?;
        headers.insert(HeaderName::from_static(name), value);
    }
    Ok(())
}

impl Encoding {
    fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Form | Self::NestedForm => "application/x-www-form-urlencoded",
        }
    }
}

/// A header that a connector may set.
pub(super) fn check_header(reader: &Reader<'_>, member: &str, name: &str) {
    match HeaderName::try_from(name) {
        Ok(name) if may_set(&name) => {}
        Ok(name) => reader.fault(member, format!("{name} belongs to the connection and can't be set")),
        Err(_) => reader.fault(member, "holds a name that no header can have"),
    }
}
