//! WedMe, the sibling platform: couples' profiles whose fields have each a version.
//!
//! A change names the version that it saw of every field it touches; where WedMe's is newer the field is left, and the
//! answer says so. A change that comes twice under its idempotency key is one change. Both ways are signed.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use standardwebhooks::Webhook;

use super::{Asked, Said, Vendor};

/// The platform, as one planner's account sees it.
pub struct WedMe {
    token: String,
    verifier: Webhook,
    secret: String,
    keys: BTreeMap<String, Value>,
    /// Profiles by couple: `{"version", "fields": {name: {"value", "version", "at", "source"}}}`.
    pub clients: BTreeMap<String, Value>,
}

impl WedMe {
    /// An account with its token and the secret that both sides sign with (`whsec_...`).
    ///
    /// # Panics
    /// For a secret that the public library doesn't take.
    #[must_use]
    pub fn new(token: &str, secret: &str) -> Self {
        let verifier = Webhook::new(secret).expect("a secret");
        let (keys, clients) = (BTreeMap::new(), BTreeMap::new());
        Self { token: token.to_owned(), verifier, secret: secret.to_owned(), keys, clients }
    }

    /// What a couple does: sets a field. The body of the webhook that WedMe sends of it.
    pub fn prefer(&mut self, couple: &str, field: &str, value: &Value, now: Timestamp) -> Value {
        let (version, fields) = self.write(couple, &Map::from_iter([(field.to_owned(), value.clone())]), "couple", now);
        let changed: Map<String, Value> = fields.into_iter().filter(|(name, _)| name == field).collect();
        json!({
            "type": "preference.updated", "id": format!("wm-{couple}-{version}"), "time": now.to_string(),
            "client_id": couple, "version": version, "fields": changed,
        })
    }

    /// The headers of a webhook that WedMe sends.
    ///
    /// # Panics
    /// Never: the secret was taken.
    #[must_use]
    pub fn sign(&self, id: &str, body: &str, now: Timestamp) -> Vec<(String, String)> {
        let signer = Webhook::new(&self.secret).expect("a secret");
        let signature = signer.sign(id, now.as_second(), body.as_bytes()).expect("a time");
        let headers = [
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", now.as_second().to_string()),
            ("webhook-signature", signature),
        ];
        headers.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    fn write(
        &mut self,
        couple: &str,
        values: &Map<String, Value>,
        source: &str,
        now: Timestamp,
    ) -> (u64, Map<String, Value>) {
        let profile = self.clients.entry(couple.to_owned()).or_insert_with(|| json!({"version": 0, "fields": {}}));
        let version = profile["version"].as_u64().unwrap_or_default() + 1;
        profile["version"] = version.into();
        for (name, value) in values {
            profile["fields"][name] =
                json!({"value": value, "version": version, "at": now.to_string(), "source": source});
        }
        (version, profile["fields"].as_object().cloned().unwrap_or_default())
    }

    fn patch(&mut self, couple: &str, given: &Value, now: Timestamp) -> Said {
        let Some(given) = given["fields"].as_object() else { return problem(422, "fields must be an object") };
        // A field that is null is not spoken of.
        let given: Map<String, Value> = given.clone().into_iter().filter(|(_, field)| !field.is_null()).collect();
        let known = self.clients.get(couple).cloned().unwrap_or_default();
        let seen = |name: &String| known["fields"][name]["version"].as_u64().unwrap_or_default();
        let is_stale =
            |name: &String, field: &Value| field["seen"].as_u64().is_some_and(|version| version < seen(name));
        if given.values().any(|field| field.get("value").is_none()) {
            return problem(422, "every field needs a value");
        }
        let (stale, fresh): (Vec<_>, Vec<_>) = given.iter().partition(|(name, field)| is_stale(name, field));
        if fresh.is_empty() && !stale.is_empty() {
            return Said::json(409, &json!({"title": "every field is newer here", "client": known}));
        }
        let values = fresh.into_iter().map(|(name, field)| (name.clone(), field["value"].clone())).collect();
        let (version, _) = self.write(couple, &values, "wedsync", now);
        let skipped: Vec<&String> = stale.into_iter().map(|(name, _)| name).collect();
        Said::json(200, &json!({"id": couple, "version": version, "skipped": skipped}))
    }
}

impl Vendor for WedMe {
    fn answer(&mut self, asked: &Asked, now: Timestamp) -> Said {
        if asked.header("authorization").strip_prefix("Bearer ") != Some(&self.token) {
            return problem(401, "no such token");
        }
        if asked.method != "GET" && self.verifier.verify(&asked.body, &asked.headers).is_err() {
            return problem(401, "the signature doesn't verify");
        }
        let parts = asked.parts();
        match (asked.method.as_str(), parts.iter().map(String::as_str).collect::<Vec<_>>().as_slice()) {
            ("GET", ["v1", "clients", couple]) => match self.clients.get(*couple) {
                Some(client) => Said::json(200, &shown(couple, client)),
                None => problem(404, "no such client"),
            },
            ("GET", ["v1", "clients"]) => {
                let since = asked.query("changed_after").and_then(|text| text.parse::<Timestamp>().ok());
                let all = self.clients.iter().map(|(id, client)| shown(id, client));
                let items: Vec<Value> =
                    all.filter(|client| since.is_none_or(|since| changed_at(client) > Some(since))).collect();
                Said::json(200, &json!({"items": items, "next_cursor": null}))
            }
            ("PATCH", ["v1", "clients", couple]) => {
                let key = asked.header("idempotency-key").to_owned();
                if let Some(earlier) = self.keys.get(&key) {
                    return Said::json(200, earlier);
                }
                let said = self.patch(couple, &asked.json(), now);
                if !key.is_empty() && said.status == 200 {
                    self.keys.insert(key, serde_json::from_str(&said.body).unwrap_or_default());
                }
                said
            }
            _ => problem(404, "no such path"),
        }
    }
}

fn shown(id: &str, client: &Value) -> Value {
    let at = changed_at(client).map(|at| at.to_string());
    json!({"id": id, "version": client["version"], "at": at, "fields": client["fields"]})
}

fn changed_at(client: &Value) -> Option<Timestamp> {
    let fields = client["fields"].as_object()?;
    fields.values().filter_map(|field| field["at"].as_str()?.parse().ok()).max()
}

fn problem(status: u16, title: &str) -> Said {
    Said::json(status, &json!({"title": title, "status": status})).header("content-type", "application/problem+json")
}
