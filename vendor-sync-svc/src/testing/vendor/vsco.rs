//! VSCO Workspace (once Tave), API v2: one studio.
//!
//! As its description has it: a key, pages, PUT replaces the whole resource, what it names external mappings is written once,
//! lists leave closed jobs out unless told otherwise, 429 says when to come back. Its rest hooks say no more than that
//! something exists; what they send isn't documented, so that [`Vsco::hook`] gives the least.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use serde_json::{Map, Value, json};

use super::{Asked, Said, Vendor, Window};

/// Members that the server alone writes.
const READ_ONLY: &[&str] =
    &["id", "created", "modified", "links", "title", "jobTypeName", "leadSourceName", "totalCost", "primarySessionId"];

/// A studio.
pub struct Vsco {
    key: String,
    made: u64,
    window: Window,
    resources: BTreeMap<&'static str, BTreeMap<String, Value>>,
}

impl Vsco {
    /// A studio with this key and `per_minute` requests in any minute; the real number is not published.
    #[must_use]
    pub fn new(key: &str, per_minute: usize) -> Self {
        let window = Window::new(per_minute, SignedDuration::from_mins(1));
        Self { key: key.to_owned(), made: 0, window, resources: BTreeMap::new() }
    }

    /// Its jobs by id.
    pub fn jobs(&self) -> BTreeMap<String, Value> {
        self.of("job")
    }

    /// Its resources of a kind (`job`, `event`, `address-book`) by id.
    pub fn of(&self, kind: &str) -> BTreeMap<String, Value> {
        self.resources.get(kind).cloned().unwrap_or_default()
    }

    /// What a photographer does by hand: sets members of a job.
    ///
    /// # Panics
    /// Without that job.
    pub fn edit_job(&mut self, id: &str, members: &Value, now: Timestamp) {
        self.edit("job", id, members, now);
    }

    /// The same with a resource of another kind.
    ///
    /// # Panics
    /// Without that resource.
    pub fn edit(&mut self, kind: &str, id: &str, members: &Value, now: Timestamp) {
        let resource = self.resources.get_mut(kind).and_then(|all| all.get_mut(id)).expect("a resource");
        merge(resource, members);
        resource["modified"] = stamp(now);
    }

    /// What a photographer does by hand: makes a job.
    pub fn make_job(&mut self, job: &Value, now: Timestamp) -> String {
        self.create("job", job, now)["id"].as_str().unwrap_or_default().to_owned()
    }

    /// What a rest hook sends: what happened to which resource, and nothing of it.
    #[must_use]
    pub fn hook(event: &str, id: &str) -> Value {
        json!({"event": event, "id": id})
    }

    fn create(&mut self, kind: &'static str, given: &Value, now: Timestamp) -> Value {
        self.made += 1;
        let id = format!("01h35ccwymj5ctckp{:09}", self.made);
        let mut made = writable(given);
        made.insert("id".to_owned(), id.clone().into());
        made.insert("created".to_owned(), stamp(now));
        made.insert("modified".to_owned(), stamp(now));
        if kind == "job" {
            made.entry("closed").or_insert(json!(false));
            made.entry("stage").or_insert(json!("lead"));
        }
        let made = Value::Object(made);
        self.resources.entry(kind).or_default().insert(id, made.clone());
        made
    }

    fn replace(&mut self, kind: &'static str, id: &str, given: &Value, now: Timestamp) -> Said {
        let Some(known) = self.resources.get_mut(kind).and_then(|all| all.get_mut(id)) else { return not_found() };
        let mut new = writable(given);
        if let Some(mappings) = known.get("externalMappings").filter(|known| !known.is_null()) {
            let given = new.get("externalMappings").filter(|given| !given.is_null());
            if given.is_some_and(|given| given != mappings) {
                return invalid("externalMappings", "can not be updated");
            }
            new.insert("externalMappings".to_owned(), mappings.clone());
        }
        for name in ["id", "created"] {
            new.insert(name.to_owned(), known[name].clone());
        }
        new.insert("modified".to_owned(), stamp(now));
        *known = Value::Object(new);
        Said::json(200, known)
    }

    fn list(&self, kind: &'static str, asked: &Asked) -> Said {
        let is_on = |name: &str| asked.query(name) == Some("true");
        // Of people the description has no such filter.
        let mapping = asked.query("externalMappingId").filter(|_| kind != "address-book");
        let email = asked.query("email");
        let of_job = asked.query("jobId");
        let all = self.resources.get(kind).into_iter().flat_map(BTreeMap::values);
        let mut found: Vec<&Value> = all
            .filter(|item| is_on("includeClosed") || item["closed"] != json!(true))
            .filter(|item| is_on("includeHidden") || item["hidden"] != json!(true))
            .filter(|item| mapping.is_none_or(|id| has_mapping(item, id)))
            .filter(|item| {
                email.is_none_or(|email| item["email"].as_str().is_some_and(|it| it.eq_ignore_ascii_case(email)))
            })
            .filter(|item| of_job.is_none_or(|id| item["jobId"] == id))
            .collect();
        let sort = asked.query("sortBy").unwrap_or("id");
        let (by, order) = sort.split_once(' ').unwrap_or((sort, "asc"));
        found.sort_by_key(|item| item[by].to_string());
        if order == "desc" {
            found.reverse();
        }
        page(&found, asked)
    }
}

impl Vendor for Vsco {
    fn answer(&mut self, asked: &Asked, now: Timestamp) -> Said {
        let bearer = asked.header("authorization").strip_prefix("Bearer ");
        if asked.header("x-api-key") != self.key && bearer != Some(&self.key) {
            return error(401, "unknown", "Unauthorized");
        }
        if let Err(seconds) = self.window.take(now) {
            return error(429, "quota-limit", "Too Many Requests").header("retry-after", &seconds.to_string());
        }
        let parts = asked.parts();
        let parts: Vec<&str> =
            parts.iter().map(String::as_str).skip_while(|part| ["api", "v2"].contains(part)).collect();
        let Some(kind) = parts.first().and_then(|part| KINDS.iter().find(|kind| *kind == part).copied()) else {
            return not_found();
        };
        let given = asked.json();
        match (asked.method.as_str(), parts.get(1..).unwrap_or_default()) {
            ("GET", []) => self.list(kind, asked),
            ("GET", ["me"]) if kind == "studio" => {
                Said::json(200, &json!({"id": "01h35ccwymj5ctckp8px1azhg6", "name": "A studio"}))
            }
            ("GET", [id]) => {
                self.resources.get(kind).and_then(|all| all.get(*id)).map_or_else(not_found, |it| Said::json(200, it))
            }
            ("POST" | "PUT", _) if !given.is_object() => invalid("body", "must be an object"),
            ("POST" | "PUT", _) if fault(&given).is_some() => {
                let (field, reason) = fault(&given).unwrap_or_default();
                invalid(field, reason)
            }
            ("POST", []) => Said::json(201, &self.create(kind, &given, now)),
            ("PUT", [id]) => self.replace(kind, id, &given, now),
            ("DELETE", [id]) => match self.resources.get_mut(kind).and_then(|all| all.remove(*id)) {
                Some(_) => Said::status(204),
                None => not_found(),
            },
            _ => not_found(),
        }
    }
}

const KINDS: &[&str] = &["job", "event", "address-book", "job-contact", "rest-hook", "studio", "job-type", "note"];

fn writable(given: &Value) -> Map<String, Value> {
    let given = given.as_object().cloned().unwrap_or_default();
    given.into_iter().filter(|(name, _)| !READ_ONLY.contains(&name.as_str())).collect()
}

/// The first member that the description doesn't allow.
fn fault(given: &Value) -> Option<(&'static str, &'static str)> {
    let is_date =
        |value: &Value| value.is_null() || value.as_str().is_some_and(|it| it.parse::<jiff::civil::Date>().is_ok());
    let count = &given["guestCount"];
    if !["eventDate", "bookingDate"].iter().all(|name| is_date(&given[*name])) {
        return Some(("eventDate", "must be a date"));
    }
    if !count.is_null() && count.as_u64().is_none() {
        return Some(("guestCount", "must be an integer"));
    }
    let mappings = given["externalMappings"].as_array().cloned().unwrap_or_default();
    let fits = |text: &Value, range: std::ops::RangeInclusive<usize>| {
        text.as_str().is_some_and(|it| range.contains(&it.len()))
    };
    if !mappings.iter().all(|it| fits(&it["id"], 1..=64) && fits(&it["url"], 12..=255)) {
        return Some(("externalMappings", "needs an id of at most 64 and a url of 12 to 255 characters"));
    }
    None
}

fn has_mapping(item: &Value, id: &str) -> bool {
    item["externalMappings"].as_array().is_some_and(|all| all.iter().any(|it| it["id"] == id))
}

fn page(found: &[&Value], asked: &Asked) -> Said {
    let number = |name: &str, or: usize| asked.query(name).map_or(Some(or), |text| text.parse().ok());
    let (Some(page), Some(size)) = (number("page", 1), number("pageSize", 100)) else {
        return invalid("page", "must be an integer");
    };
    if page < 1 || !(10..=100).contains(&size) {
        return invalid("pageSize", "must be 10 to 100");
    }
    let items: Vec<&&Value> = found.iter().skip((page - 1) * size).take(size).collect();
    let meta = json!({
        "currentPage": page, "totalPages": found.len().div_ceil(size), "totalItems": found.len(), "rows": items.len(),
    });
    Said::json(200, &json!({"meta": meta, "type": "job-collection", "items": items}))
}

fn merge(into: &mut Value, members: &Value) {
    for (name, value) in members.as_object().into_iter().flatten() {
        into[name] = value.clone();
    }
}

/// Seconds are as fine as its times are.
fn stamp(now: Timestamp) -> Value {
    now.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into()
}

fn error(status: u16, type_: &str, title: &str) -> Said {
    Said::json(status, &json!({"type": type_, "title": title, "detail": title, "status": status}))
}

fn not_found() -> Said {
    error(404, "unknown", "Not Found")
}

fn invalid(field: &str, reason: &str) -> Said {
    let body =
        json!({"type": "validation-error", "title": "Validation Error", "detail": {field: [reason]}, "status": 400});
    Said::json(400, &body)
}
