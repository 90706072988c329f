//! Mailchimp's Marketing API 3.0: one account with its audiences.
//!
//! Members are known by the MD5 of the lower-case address; PUT adds or changes one. Who unsubscribed in a way that the law
//! keeps, or was deleted for good, can't be subscribed by the API. Too many at once are turned away with a 403 that isn't
//! JSON. A webhook's URL is asked by GET before it is taken; [`Mailchimp::form`] is what would be posted there.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::{Timestamp, tz::TimeZone};
use md5::{Digest as _, Md5};
use serde_json::{Map, Value, json};

use super::{Asked, Said, Vendor, campaign::Campaigns};

/// The most operations of one batch and members of one list request.
const BATCH: usize = 500;

/// An account.
#[derive(Default)]
pub struct Mailchimp {
    key: String,
    /// Without these merge fields nobody is added or changed.
    pub required: BTreeSet<String>,
    /// Addresses that are in a compliance state, or forgotten.
    pub refused: BTreeMap<String, &'static str>,
    audiences: BTreeMap<String, Audience>,
    /// Its campaigns, whichever audience they are for.
    pub campaigns: Campaigns,
}

/// What an audience holds.
#[derive(Default)]
pub struct Audience {
    /// By the hash of the address.
    pub members: BTreeMap<String, Value>,
    /// Names that are active, by hash.
    pub tags: BTreeMap<String, BTreeSet<String>>,
    /// What triggers journeys, by hash.
    pub events: BTreeMap<String, Vec<Value>>,
    webhooks: Vec<Value>,
}

impl Mailchimp {
    /// An account with this key and one audience.
    #[must_use]
    pub fn new(key: &str, audience: &str) -> Self {
        let audiences = BTreeMap::from([(audience.to_owned(), Audience::default())]);
        Self { key: key.to_owned(), audiences, ..Self::default() }
    }

    /// One of its audiences.
    ///
    /// # Panics
    /// Without it.
    pub fn audience(&mut self, id: &str) -> &mut Audience {
        self.audiences.get_mut(id).expect("an audience")
    }

    /// What a webhook posts: brackets for what is nested.
    #[must_use]
    pub fn form(type_: &str, fired_at: &str, data: &Value) -> String {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("type", type_).append_pair("fired_at", fired_at);
        flatten("data", data, &mut form);
        form.finish()
    }

    fn audience_answer(&mut self, parts: &[&str], asked: &Asked, now: Timestamp) -> Said {
        let Some((id, rest)) = parts.split_first() else { return problem(404, "Resource Not Found") };
        let refused = self.refused.clone();
        let required = self.required.clone();
        let Some(audience) = self.audiences.get_mut(*id) else { return problem(404, "Resource Not Found") };
        let given = asked.json();
        match (asked.method.as_str(), rest) {
            ("GET", []) => Said::json(200, &json!({"id": id, "name": "Couples"})),
            ("POST", []) => batch(audience, &given, now),
            ("GET", ["members"]) => list(audience, asked),
            ("GET", ["members", hash]) => match audience.members.get(*hash) {
                Some(member) => Said::json(200, member),
                None => problem(404, "Resource Not Found"),
            },
            ("PUT", ["members", hash]) => put(audience, hash, &given, &refused, &required, asked, now),
            ("DELETE", ["members", hash]) => archive(audience, hash, now),
            ("POST", ["members", hash, _]) if !audience.members.contains_key(*hash) => {
                problem(404, "Resource Not Found")
            }
            ("POST", ["members", hash, "tags"]) => tag(audience, hash, &given),
            ("POST", ["members", hash, "events"]) => happen(audience, hash, &given),
            ("GET", ["tag-search"]) => {
                Said::json(200, &json!({"tags": tags(audience, asked.query("name").unwrap_or_default())}))
            }
            ("GET", ["webhooks"]) => Said::json(200, &json!({"webhooks": audience.webhooks})),
            ("POST", ["webhooks"]) => {
                let mut webhook = given;
                webhook["id"] = format!("hook{}", audience.webhooks.len()).into();
                audience.webhooks.push(webhook.clone());
                Said::json(200, &webhook)
            }
            _ => problem(404, "Resource Not Found"),
        }
    }
}

impl Vendor for Mailchimp {
    fn answer(&mut self, asked: &Asked, now: Timestamp) -> Said {
        if !self.knows(asked.header("authorization")) {
            return problem(401, "API Key Invalid");
        }
        let parts = asked.parts();
        let parts: Vec<&str> = parts.iter().map(String::as_str).skip_while(|part| *part == "3.0").collect();
        match parts.as_slice() {
            [] => Said::json(200, &json!({"account_id": "a1", "account_name": "Weddings"})),
            ["ping"] => Said::json(200, &json!({"health_status": "Everything's Chimpy!"})),
            ["templates", id] if *id == "7" => Said::json(200, &json!({"id": 7, "name": "Ours"})),
            ["campaigns", rest @ ..] => self.campaign(rest, asked),
            ["reports", id] => self.report(id),
            ["lists", rest @ ..] => self.audience_answer(rest, asked, now),
            _ => problem(404, "Resource Not Found"),
        }
    }
}

impl Mailchimp {
    fn campaign(&mut self, parts: &[&str], asked: &Asked) -> Said {
        let given = asked.json();
        match (asked.method.as_str(), parts) {
            ("POST", []) => {
                let list = given["recipients"]["list_id"].as_str().unwrap_or_default();
                if given["type"] != "regular" || !self.audiences.contains_key(list) {
                    return invalid("recipients.list_id", "This value should be an audience's id.");
                }
                let id = self.campaigns.make(&given);
                Said::json(200, &json!({"id": id, "status": "save"}))
            }
            ("PUT", [id, "content"]) => match self.campaigns.get_mut(id) {
                Some(campaign) => {
                    campaign.html = given["html"].as_str().unwrap_or_default().to_owned();
                    Said::json(200, &json!({"html": campaign.html}))
                }
                None => problem(404, "Resource Not Found"),
            },
            ("GET", [id]) => match self.campaigns.get(id) {
                Some(campaign) => {
                    let status = if campaign.sent_at.is_some() { "sent" } else { "save" };
                    let at = campaign.sent_at.map_or_else(|| "".into(), stamp);
                    Said::json(200, &json!({"id": id, "status": status, "send_time": at}))
                }
                None => problem(404, "Resource Not Found"),
            },
            _ => problem(404, "Resource Not Found"),
        }
    }

    fn report(&self, id: &str) -> Said {
        let Some(campaign) = self.campaigns.get(id).filter(|it| it.sent_at.is_some()) else {
            return problem(404, "Resource Not Found");
        };
        let [sent, opens, clicks, unsubscribed, bounces] = campaign.figures;
        Said::json(
            200,
            &json!({
                "id": id, "emails_sent": sent, "unsubscribed": unsubscribed,
                "opens": {"opens_total": opens * 2, "unique_opens": opens},
                "clicks": {"clicks_total": clicks * 3, "unique_subscriber_clicks": clicks},
                "bounces": {"hard_bounces": bounces, "soft_bounces": 0, "syntax_errors": 0},
            }),
        )
    }

    /// The name in front of the key is anything; a token comes as a bearer.
    fn knows(&self, authorization: &str) -> bool {
        let basic = authorization.strip_prefix("Basic ").and_then(|it| BASE64_STANDARD.decode(it).ok());
        let basic = basic.and_then(|it| String::from_utf8(it).ok());
        let basic = basic.and_then(|it| it.split_once(':').map(|(_, key)| key.to_owned()));
        basic.as_deref() == Some(&self.key) || authorization.strip_prefix("Bearer ") == Some(&self.key)
    }
}

/// The answer to who isn't JSON: what very many requests get.
#[must_use]
pub fn turned_away() -> Said {
    Said::text(403, "<html><body>Forbidden</body></html>").header("content-type", "text/html")
}

/// The hash by which a member is known.
#[must_use]
pub fn hash_of(address: &str) -> String {
    hex::encode(Md5::digest(address.to_lowercase()))
}

fn put(
    audience: &mut Audience,
    hash: &str,
    given: &Value,
    refused: &BTreeMap<String, &'static str>,
    required: &BTreeSet<String>,
    asked: &Asked,
    now: Timestamp,
) -> Said {
    let known = audience.members.get(hash);
    let address = given["email_address"].as_str().or_else(|| known.and_then(|it| it["email_address"].as_str()));
    let Some(address) = address.map(str::to_owned) else {
        return invalid("email_address", "This value should not be blank.");
    };
    if !address.contains('@') || address.contains(' ') {
        return invalid("email_address", "Please provide a valid email address.");
    }
    if known.is_none() && hash != hash_of(&address) {
        return invalid("email_address", "The subscriber hash doesn't belong to it.");
    }
    if let Some(title) = refused.get(&address.to_lowercase()) {
        return problem(400, title);
    }
    let status = match (known, given["status"].as_str(), given["status_if_new"].as_str()) {
        (_, Some(status), _) | (None, None, Some(status)) => status.to_owned(),
        (Some(known), None, _) => known["status"].as_str().unwrap_or_default().to_owned(),
        (None, None, None) => return invalid("status_if_new", "This value should not be blank."),
    };
    let mut merged = known.map_or_else(Map::new, |it| it["merge_fields"].as_object().cloned().unwrap_or_default());
    merged.extend(given["merge_fields"].as_object().cloned().unwrap_or_default());
    let is_missing = |tag: &String| merged.get(tag).and_then(Value::as_str).is_none_or(str::is_empty);
    if asked.query("skip_merge_validation") != Some("true") && required.iter().any(is_missing) {
        return invalid("merge_fields", "Your merge fields were invalid.");
    }
    audience.members.remove(hash);
    let hash = hash_of(&address);
    let member = json!({
        "id": hash, "email_address": address, "unique_email_id": &hash[..10], "contact_id": &hash[..16],
        "status": status, "merge_fields": merged, "last_changed": stamp(now), "list_id": "a",
    });
    audience.members.insert(hash, member.clone());
    Said::json(200, &member)
}

fn archive(audience: &mut Audience, hash: &str, now: Timestamp) -> Said {
    let Some(member) = audience.members.get_mut(hash) else { return problem(404, "Resource Not Found") };
    member["status"] = "archived".into();
    member["last_changed"] = stamp(now);
    Said::status(204)
}

fn tag(audience: &mut Audience, hash: &str, given: &Value) -> Said {
    let tags = audience.tags.entry(hash.to_owned()).or_default();
    for tag in given["tags"].as_array().into_iter().flatten() {
        match (tag["name"].as_str(), tag["status"].as_str()) {
            (Some(name), Some("active")) => drop(tags.insert(name.to_owned())),
            (Some(name), Some("inactive")) => drop(tags.remove(name)),
            _ => return invalid("tags", "Schema describes object with a name and a status."),
        }
    }
    Said::status(204)
}

/// Those that begin so.
fn tags(audience: &Audience, name: &str) -> Vec<Value> {
    let all: BTreeSet<&String> = audience.tags.values().flatten().collect();
    let numbered = all.iter().enumerate().filter(|(_, tag)| tag.starts_with(name));
    numbered.map(|(number, tag)| json!({"id": number + 100, "name": tag})).collect()
}

fn happen(audience: &mut Audience, hash: &str, given: &Value) -> Said {
    let name = given["name"].as_str().unwrap_or_default();
    if !(2..=30).contains(&name.len()) {
        return invalid("name", "Must be 2-30 characters in length");
    }
    let properties = given["properties"].as_object();
    if properties.is_some_and(|all| all.values().any(|it| !it.is_string())) {
        return invalid("properties", "Schema describes string");
    }
    audience.events.entry(hash.to_owned()).or_default().push(given.clone());
    Said::status(204)
}

fn batch(audience: &mut Audience, given: &Value, now: Timestamp) -> Said {
    let members = given["members"].as_array().cloned().unwrap_or_default();
    if members.len() > BATCH {
        return invalid("members", "The batch is too large.");
    }
    let (mut new, mut updated, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for member in members {
        let address = member["email_address"].as_str().unwrap_or_default().to_owned();
        let hash = hash_of(&address);
        if audience.members.contains_key(&hash) && given["update_existing"] != json!(true) {
            errors.push(json!({"email_address": address, "error_code": "ERROR_CONTACT_EXISTS"}));
            continue;
        }
        let is_new = !audience.members.contains_key(&hash);
        let mut member = member;
        member["id"] = hash.clone().into();
        member["last_changed"] = stamp(now);
        audience.members.insert(hash, member.clone());
        if is_new { new.push(member) } else { updated.push(member) }
    }
    let body = json!({
        "total_created": new.len(), "total_updated": updated.len(), "error_count": errors.len(),
        "new_members": new, "updated_members": updated, "errors": errors,
    });
    Said::json(200, &body)
}

fn list(audience: &Audience, asked: &Asked) -> Said {
    let number = |name: &str, or: usize| asked.query(name).and_then(|text| text.parse().ok()).unwrap_or(or);
    let (count, offset) = (number("count", 10).min(1_000), number("offset", 0));
    let since = asked.query("since_last_changed").and_then(|text| text.parse::<Timestamp>().ok());
    let changed = |member: &Value| member["last_changed"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let found: Vec<&Value> = audience
        .members
        .values()
        .filter(|member| asked.query("status").is_none_or(|status| member["status"] == status))
        .filter(|member| since.is_none_or(|since| changed(member).is_some_and(|at| at >= since)))
        .collect();
    let page: Vec<&&Value> = found.iter().skip(offset).take(count).collect();
    Said::json(200, &json!({"members": page, "list_id": "a", "total_items": found.len()}))
}

fn flatten(name: &str, value: &Value, form: &mut url::form_urlencoded::Serializer<'_, String>) {
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(key, value)| flatten(&format!("{name}[{key}]"), value, form))
        }
        Value::String(text) => {
            form.append_pair(name, text);
        }
        other => {
            form.append_pair(name, &other.to_string());
        }
    }
}

fn stamp(now: Timestamp) -> Value {
    now.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%S+00:00").to_string().into()
}

fn problem(status: u16, title: &str) -> Said {
    let type_ = "https://mailchimp.com/developer/marketing/docs/errors/";
    let body = json!({"type": type_, "title": title, "status": status, "detail": title, "instance": "1"});
    Said::json(status, &body).header("content-type", "application/problem+json; charset=utf-8")
}

fn invalid(field: &str, message: &str) -> Said {
    let body = json!({
        "type": "https://mailchimp.com/developer/marketing/docs/errors/", "title": "Invalid Resource", "status": 400,
        "detail": message, "instance": "1", "errors": [{"field": field, "message": message}],
    });
    Said::json(400, &body).header("content-type", "application/problem+json; charset=utf-8")
}
