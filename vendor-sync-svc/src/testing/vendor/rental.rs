//! Two systems of rental companies that have a public API: Rentman, and rental.software (InflatableOffice).
//!
//! Rentman: a token, `{"data": ...}`, pages that name the next one whole, filters like `modified[gte]`.
//! rental.software: a key in the query, 300 calls in 300 seconds for each.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{Asked, Said, Vendor, Window};

/// A Rentman account.
pub struct Rentman {
    token: String,
    /// Project requests by id: what an outsider may hand in.
    pub requests: BTreeMap<u64, Value>,
}

impl Rentman {
    /// An account with its token.
    #[must_use]
    pub fn new(token: &str) -> Self {
        Self { token: token.to_owned(), requests: BTreeMap::new() }
    }
}

impl Vendor for Rentman {
    fn answer(&mut self, asked: &Asked, now: Timestamp) -> Said {
        if asked.header("authorization").strip_prefix("Bearer ") != Some(&self.token) {
            return Said::json(401, &json!({"message": "Unauthorized"}));
        }
        let parts = asked.parts();
        let given = asked.json();
        match (asked.method.as_str(), parts.iter().map(String::as_str).collect::<Vec<_>>().as_slice()) {
            ("GET", ["projectrequests"]) => {
                let limit: usize = asked.query("limit").and_then(|text| text.parse().ok()).unwrap_or(300).min(1_500);
                let from: usize = asked.query("cursor").and_then(|text| text.parse().ok()).unwrap_or(0);
                let wanted = asked.query("external_reference");
                let since = asked.query("modified[gte]");
                let is_in = |it: &&Value| {
                    wanted.is_none_or(|id| it["external_reference"] == id)
                        && since.is_none_or(|since| it["modified"].as_str() >= Some(since))
                };
                let all: Vec<&Value> = self.requests.values().filter(is_in).collect();
                let page: Vec<&&Value> = all.iter().skip(from).take(limit).collect();
                let host = asked.header("host");
                let more = from + limit < all.len();
                let next = more.then(|| format!("http://{host}/projectrequests?limit={limit}&cursor={}", from + limit));
                Said::json(200, &json!({"data": page, "itemCount": page.len(), "limit": limit, "next_page_url": next}))
            }
            ("GET", ["projecttypes"]) => Said::json(200, &json!({"data": [], "itemCount": 0, "limit": 1, "offset": 0})),
            ("POST", ["projectrequests"]) if given["name"].as_str().is_none_or(str::is_empty) => {
                Said::json(400, &json!({"message": "name is required"}))
            }
            ("POST", ["projectrequests"]) => {
                let id = self.requests.len() as u64 + 1;
                let mut made = given;
                made["id"] = id.into();
                made["modified"] = now.to_string().into();
                self.requests.insert(id, made.clone());
                Said::json(201, &json!({"data": made}))
            }
            (method, ["projectrequests", id]) => {
                let Some(known) = id.parse().ok().and_then(|id: u64| self.requests.get_mut(&id)) else {
                    return Said::json(404, &json!({"message": "Not found"}));
                };
                if method == "PUT" {
                    given.as_object().into_iter().flatten().for_each(|(name, value)| known[name] = value.clone());
                }
                Said::json(200, &json!({"data": known}))
            }
            _ => Said::json(404, &json!({"message": "Not found"})),
        }
    }
}

/// An account of rental.software.
pub struct RentalSoftware {
    key: String,
    window: Window,
    /// Leads by id.
    pub leads: BTreeMap<u64, Value>,
}

impl RentalSoftware {
    /// An account with its key.
    #[must_use]
    pub fn new(key: &str) -> Self {
        Self { key: key.to_owned(), window: Window::new(300, SignedDuration::from_secs(300)), leads: BTreeMap::new() }
    }
}

impl Vendor for RentalSoftware {
    fn answer(&mut self, asked: &Asked, now: Timestamp) -> Said {
        if asked.query("apiKey") != Some(&self.key) {
            return Said::json(401, &json!({"error": "invalid apiKey"}));
        }
        if self.window.take(now).is_err() {
            return Said::json(429, &json!({"error": "rate limit"}));
        }
        let (parts, given) = (asked.parts(), asked.json());
        match (asked.method.as_str(), parts.iter().map(String::as_str).collect::<Vec<_>>().as_slice()) {
            ("GET", ["api6", "leads"]) => {
                let wanted = asked.query("externalid");
                let all: Vec<&Value> =
                    self.leads.values().filter(|it| wanted.is_none_or(|id| it["externalid"] == id)).collect();
                Said::json(200, &json!({"items": all}))
            }
            ("POST", ["api6", "leads"]) => {
                let id = self.leads.len() as u64 + 1;
                let mut made = given;
                made["id"] = id.into();
                self.leads.insert(id, made.clone());
                Said::json(200, &made)
            }
            ("PUT", ["api6", "leads", id]) => {
                let Some(known) = id.parse().ok().and_then(|id: u64| self.leads.get_mut(&id)) else {
                    return Said::json(404, &json!({"error": "not found"}));
                };
                given.as_object().into_iter().flatten().for_each(|(name, value)| known[name] = value.clone());
                Said::json(200, known)
            }
            _ => Said::json(404, &json!({"error": "not found"})),
        }
    }
}
