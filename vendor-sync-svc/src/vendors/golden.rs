//! Golden pairs: what an event becomes as a request, what a webhook becomes as items. One file each in
//! `tests/golden/<connector>/`; with `WEDSYNC_GOLDEN=write` they are written anew, to be read before they are committed.

use std::{collections::BTreeMap, path::PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::rig::{Rig, SECRET, client, wedding};
use crate::connector::{Webhook, catalogue::Catalogue};

/// One pair; what is expected is missing until it is written.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    /// What it shows, for people.
    claim: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    settings: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event: Option<Out>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    webhook: Option<In>,
    /// The request, or the items.
    #[serde(default)]
    becomes: Json,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Out {
    operation: String,
    /// `wedding` or `client`: the samples of `rig.rs`.
    about: String,
    /// Laid over the sample.
    #[serde(default, skip_serializing_if = "Json::is_null")]
    with: Json,
    #[serde(default, skip_serializing_if = "is_false")]
    token: bool,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct In {
    #[serde(default, skip_serializing_if = "Json::is_null")]
    json: Json,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    text: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks it so")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[test]
fn every_event_and_webhook_becomes_what_its_golden_pair_says() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    // What asks nothing of a vendor has nothing to become.
    for connector in Catalogue::all_built_in().filter(|connector| connector.operations().next().is_some()) {
        let name = connector.name();
        let folder = PathBuf::from("tests/golden").join(name);
        let files = std::fs::read_dir(&folder).unwrap_or_else(|_| panic!("{name} has golden pairs"));
        let mut files: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
        files.sort();
        assert!(!files.is_empty(), "{name} has golden pairs");
        for file in files {
            count += 1;
            let text = std::fs::read(&file).expect("readable");
            let mut pair: Pair =
                serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            let became = pair.run(name);
            if is_writing() {
                pair.becomes = became;
                let text = serde_json::to_string_pretty(&pair).expect("JSON");
                std::fs::write(&file, format!("{text}\n")).expect("writable");
            } else if became != pair.becomes {
                wrong.push(format!("{}: {became:#}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 60, "{count} pairs");
}

impl Pair {
    fn run(&self, connector: &str) -> Json {
        let mut rig = Rig::built_in(connector);
        rig.settings = self.settings.clone();
        match (&self.event, &self.webhook) {
            (Some(event), None) => event.request(if event.token { rig.token("t0ken") } else { rig }),
            (None, Some(webhook)) => webhook.items(&rig),
            _ => panic!("a pair has an event or a webhook"),
        }
    }
}

impl Out {
    fn request(&self, rig: Rig) -> Json {
        let mut given = if self.about == "wedding" { wedding() } else { client() };
        if !self.with.is_null() {
            lay_over(&mut given, &self.with);
        }
        let request = match rig.request(&self.operation, &given) {
            Ok(request) => request,
            Err(error) => return json!({"refused": format!("{}: {}", error.class.as_str(), error.reason)}),
        };
        let headers: BTreeMap<&str, &str> =
            request.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("ASCII"))).collect();
        let text = String::from_utf8(request.body.to_vec()).expect("text");
        let body = serde_json::from_str(&text).unwrap_or_else(|_| form(&text));
        json!({"method": request.method.as_str(), "url": request.url, "headers": headers, "body": body})
    }
}

impl In {
    fn items(&self, rig: &Rig) -> Json {
        let body =
            if self.json.is_null() { Bytes::from(self.text.clone()) } else { Bytes::from(self.json.to_string()) };
        let webhook = Webhook { method: "POST", url: "", query: "", headers: &[], body: &body, integration_id: "i1" };
        let inbound = rig.connector.inbound().expect("it takes webhooks");
        match inbound.events(&webhook, &rig.settings) {
            Err(reason) => json!({"refused": reason}),
            Ok(items) => items
                .into_iter()
                .map(|item| {
                    json!({
                        "event_type": item.event_type, "record": item.kind.map(|kind| kind.as_str()),
                        "external_id": item.external_id, "external_version": item.external_version,
                        "at": item.at.map(|at| at.to_string()), "fields": item.fields, "deleted": item.deleted,
                        "read_first": item.read_first,
                    })
                })
                .collect(),
        }
    }
}

fn form(text: &str) -> Json {
    if text.is_empty() {
        return Json::Null;
    }
    let pairs: Vec<(String, String)> = url::form_urlencoded::parse(text.as_bytes()).into_owned().collect();
    json!({"form": pairs})
}

fn lay_over(under: &mut Json, over: &Json) {
    match (under, over) {
        (Json::Object(under), Json::Object(over)) => {
            over.iter().for_each(|(name, value)| lay_over(under.entry(name).or_insert(Json::Null), value));
        }
        (under, over) => *under = over.clone(),
    }
}

fn is_writing() -> bool {
    #[expect(clippy::disallowed_methods, reason = "whoever writes golden pairs anew says so by the environment")]
    std::env::var("WEDSYNC_GOLDEN").is_ok_and(|value| value == "write")
}

/// Keeps the samples honest: the secret is one that the public library takes.
#[test]
fn the_samples_secret_is_one_of_the_public_librarys() {
    standardwebhooks::Webhook::new(SECRET).expect("a secret");
}
