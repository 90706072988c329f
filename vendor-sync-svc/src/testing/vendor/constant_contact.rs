//! Constant Contact's API v3: one application, whose limits all its customers share, and one customer's account.
//!
//! `sign_up_form` adds or changes by address; PUT replaces the whole contact. Pages follow `_links.next.href`, which is a
//! path alone. Four requests a second and ten thousand a day for the application: both are 429 without a header, and told
//! apart by `error_key`. No webhooks for contacts.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};
use serde_json::{Value, json};

use super::{Asked, Said, Vendor, Window, campaign::Campaigns};

/// The application and one account.
pub struct ConstantContact {
    token: String,
    second: Window,
    /// Requests that may be made on one day.
    pub daily: usize,
    today: (Date, usize),
    /// By id.
    pub contacts: BTreeMap<String, Value>,
    /// Names by id.
    pub tags: BTreeMap<String, String>,
    /// Its campaigns; an activity's id is its campaign's with an `a` in front.
    pub campaigns: Campaigns,
}

impl ConstantContact {
    /// An account whose access token this is.
    #[must_use]
    pub fn new(token: &str) -> Self {
        Self {
            token: token.to_owned(),
            second: Window::new(4, SignedDuration::from_secs(1)),
            daily: 10_000,
            today: (Date::constant(1970, 1, 1), 0),
            contacts: BTreeMap::new(),
            tags: BTreeMap::new(),
            campaigns: Campaigns::default(),
        }
    }

    /// What a customer does by hand, or a recipient by a link: sets members of a contact.
    ///
    /// # Panics
    /// Without that contact.
    pub fn edit(&mut self, id: &str, members: &Value, now: Timestamp) {
        let contact = self.contacts.get_mut(id).expect("a contact");
        for (name, value) in members.as_object().into_iter().flatten() {
            contact[name] = value.clone();
        }
        contact["updated_at"] = stamp(now);
    }

    fn refuse_too_many(&mut self, now: Timestamp) -> Option<Said> {
        let today = now.to_zoned(TimeZone::UTC).date();
        if self.today.0 != today {
            self.today = (today, 0);
        }
        if self.today.1 >= self.daily {
            return Some(error(429, "quota_exceeded", "The daily quota is used up."));
        }
        self.today.1 += 1;
        self.second.take(now).is_err().then(|| error(429, "throttled", "Too many requests."))
    }

    fn find(&self, address: &str) -> Option<&str> {
        let is = |contact: &Value| {
            contact["email_address"]["address"].as_str().is_some_and(|it| it.eq_ignore_ascii_case(address))
        };
        self.contacts.iter().find(|(_, contact)| is(contact)).map(|(id, _)| id.as_str())
    }

    fn sign_up(&mut self, given: &Value, now: Timestamp) -> Said {
        let address = given["email_address"].as_str().unwrap_or_default().to_owned();
        if !address.contains('@') {
            return error(400, "contacts.api.validation.error", "email_address: must be an address");
        }
        if given["list_memberships"].as_array().is_none_or(Vec::is_empty) {
            return error(400, "contacts.api.validation.error", "list_memberships: may not be empty");
        }
        let known = self.find(&address).map(str::to_owned);
        let action = if known.is_some() { "updated" } else { "created" };
        let id = known.unwrap_or_else(|| format!("00000000-0000-4000-8000-{:012}", self.contacts.len() + 1));
        let contact = self.contacts.entry(id.clone()).or_insert_with(|| {
            let address = json!({"address": address, "permission_to_send": "implicit"});
            json!({"contact_id": id, "email_address": address, "created_at": stamp(now), "list_memberships": [], "taggings": []})
        });
        for name in ["first_name", "last_name", "phone_number", "custom_fields", "street_address"] {
            if !given[name].is_null() {
                contact[name] = given[name].clone();
            }
        }
        add_all(&mut contact["list_memberships"], &given["list_memberships"]);
        contact["updated_at"] = stamp(now);
        Said::json(if action == "created" { 201 } else { 200 }, &json!({"contact_id": id, "action": action}))
    }

    fn list(&self, asked: &Asked) -> Said {
        let limit = asked.query("limit").and_then(|text| text.parse().ok()).unwrap_or(50).min(500);
        let from: usize = asked.query("cursor").and_then(|text| text.parse().ok()).unwrap_or(0);
        let time = |name: &str| asked.query(name).and_then(|text| text.parse::<Timestamp>().ok());
        let of = |value: &Value| value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
        let (updated, opted_out) = (time("updated_after"), time("optout_after"));
        let status = asked.query("status").unwrap_or("all");
        let is_in = |contact: &&Value| {
            updated.is_none_or(|after| of(&contact["updated_at"]).is_some_and(|at| at > after))
                && opted_out
                    .is_none_or(|after| of(&contact["email_address"]["opt_out_date"]).is_some_and(|at| at > after))
                && (status != "deleted" || !contact["deleted_at"].is_null())
                && asked.query("email").is_none_or(|email| contact["email_address"]["address"] == email)
        };
        let found: Vec<&Value> = self.contacts.values().filter(is_in).collect();
        let page: Vec<&&Value> = found.iter().skip(from).take(limit).collect();
        let mut body = json!({"contacts": page, "contacts_count": found.len()});
        if from + limit < found.len() {
            let rest = asked.query.iter().filter(|(name, _)| name != "cursor");
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query.extend_pairs(rest);
            query.append_pair("cursor", &(from + limit).to_string());
            body["_links"] = json!({"next": {"href": format!("/v3/contacts?{}", query.finish())}});
        }
        Said::json(200, &body)
    }

    fn tag(&mut self, given: &Value) -> Said {
        let ids = given["source"]["contact_ids"].as_array().cloned().unwrap_or_default();
        if ids.is_empty() || given["tag_ids"].as_array().is_none_or(Vec::is_empty) {
            return error(400, "contacts.api.validation.error", "source and tag_ids may not be empty");
        }
        for id in &ids {
            if let Some(contact) = self.contacts.get_mut(id.as_str().unwrap_or_default()) {
                add_all(&mut contact["taggings"], &given["tag_ids"]);
            }
        }
        Said::json(201, &json!({"activity_id": "a1", "state": "initialized", "percent_done": 0}))
    }
}

impl Vendor for ConstantContact {
    fn answer(&mut self, asked: &Asked, now: Timestamp) -> Said {
        if asked.header("authorization").strip_prefix("Bearer ") != Some(&self.token) {
            return error(401, "unauthorized", "Unauthorized");
        }
        if let Some(refused) = self.refuse_too_many(now) {
            return refused;
        }
        let (parts, given) = (asked.parts(), asked.json());
        let parts: Vec<&str> = parts.iter().map(String::as_str).skip_while(|part| *part == "v3").collect();
        match (asked.method.as_str(), parts.as_slice()) {
            ("GET", ["account", "summary"]) => Said::json(200, &json!({"encoded_account_id": "a1"})),
            ("GET", ["contacts"]) => self.list(asked),
            ("POST", ["contacts", "sign_up_form"]) => self.sign_up(&given, now),
            ("GET", ["contacts", id]) => self.contacts.get(*id).map_or_else(not_found, |it| Said::json(200, it)),
            ("DELETE", ["contacts", id]) if self.contacts.contains_key(*id) => {
                self.edit(id, &json!({"deleted_at": stamp(now)}), now);
                Said::status(204)
            }
            ("POST", ["activities", "contacts_taggings_add"]) => self.tag(&given),
            (_, ["emails", rest @ ..]) => self.email(rest, asked.method.as_str(), &given),
            ("GET", ["reports", "stats", "email_campaigns", id]) => self.statistics(id),
            ("GET", ["contact_tags"]) => {
                let all: Vec<Value> = self.tags.iter().map(|(id, name)| json!({"tag_id": id, "name": name})).collect();
                Said::json(200, &json!({"tags": all}))
            }
            _ => not_found(),
        }
    }
}

impl ConstantContact {
    fn email(&mut self, parts: &[&str], method: &str, given: &Value) -> Said {
        let missing = |activity: &Value| {
            let required = ["format_type", "from_name", "from_email", "reply_to_email", "subject", "html_content"];
            required.iter().any(|name| activity[*name].is_null())
        };
        match (method, parts) {
            ("POST", []) => {
                let activity = &given["email_campaign_activities"][0];
                if given["name"].is_null() || missing(activity) {
                    return error(400, "campaigns.api.validation.error", "a required member is missing");
                }
                if self.campaigns.all().any(|known| known.said["name"] == given["name"]) {
                    return error(409, "campaigns.api.conflict", "The name is taken.");
                }
                let id = self.campaigns.make(given);
                let activities = json!([{"role": "primary_email", "campaign_activity_id": format!("a{id}")}]);
                Said::json(
                    200,
                    &json!({"campaign_id": id, "current_status": "Draft", "campaign_activities": activities}),
                )
            }
            ("PUT", ["activities", activity]) => {
                let known = self.campaigns.get_mut(activity.trim_start_matches('a'));
                let Some(campaign) = known else { return not_found() };
                if missing(given) || (given["contact_list_ids"].is_null() && given["segment_ids"].is_null()) {
                    return error(400, "campaigns.api.validation.error", "a required member is missing");
                }
                campaign.html = given["html_content"].as_str().unwrap_or_default().to_owned();
                campaign.to = given["contact_list_ids"].as_array().or_else(|| given["segment_ids"].as_array()).cloned();
                Said::json(200, given)
            }
            ("GET", [id]) => match self.campaigns.get(id) {
                Some(campaign) => {
                    let status = if campaign.sent_at.is_some() { "Done" } else { "Draft" };
                    let at = campaign.sent_at.map_or(Value::Null, stamp);
                    Said::json(200, &json!({"campaign_id": id, "current_status": status, "last_sent_date": at}))
                }
                None => not_found(),
            },
            _ => not_found(),
        }
    }

    fn statistics(&self, id: &str) -> Said {
        let Some(campaign) = self.campaigns.get(id) else { return not_found() };
        let [sent, opens, clicks, unsubscribed, bounces] = campaign.figures;
        let stats = json!({
            "em_sends": sent, "em_opens": opens, "em_opens_all": opens * 2, "em_clicks": clicks, "em_bounces": bounces,
            "em_optouts": unsubscribed,
        });
        Said::json(200, &json!({"results": [{"campaign_id": id, "stats": stats}], "errors": []}))
    }
}

/// What two changes of one contact at once get.
#[must_use]
pub fn modified_at_once() -> Said {
    error(409, "contacts.api.conflict", "Conflict while modifying the contact.")
}

fn add_all(into: &mut Value, more: &Value) {
    let mut all = into.as_array().cloned().unwrap_or_default();
    for one in more.as_array().into_iter().flatten() {
        if !all.contains(one) {
            all.push(one.clone());
        }
    }
    *into = all.into();
}

fn stamp(now: Timestamp) -> Value {
    now.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into()
}

fn not_found() -> Said {
    error(404, "not_found", "The resource doesn't exist.")
}

fn error(status: u16, key: &str, message: &str) -> Said {
    Said::json(status, &json!([{"error_key": key, "error_message": message}]))
}
