//! The three that take leads and tell nothing: Tave's New Lead, ShootQ's leads and Light Blue's inbox.
//!
//! Tave says in the body whether it took one; ShootQ by 200 alone, and takes the same one twice; Light Blue answers 200
//! always, with a number in its first line, and knows a repeat by `Source` and `ID`.

use jiff::{Timestamp, civil::Date};
use serde_json::{Map, Value, json};

use super::{Asked, Said, Vendor};

/// Tave's form of one studio.
pub struct Tave {
    studio: String,
    secret: String,
    /// What it took.
    pub leads: Vec<Value>,
}

impl Tave {
    /// A studio with the secret of its form.
    #[must_use]
    pub fn new(studio: &str, secret: &str) -> Self {
        Self { studio: studio.to_owned(), secret: secret.to_owned(), leads: Vec::new() }
    }
}

impl Vendor for Tave {
    fn answer(&mut self, asked: &Asked, _: Timestamp) -> Said {
        let is_json = asked.header("content-type").starts_with("application/json");
        let lead = if is_json { asked.json() } else { Value::Object(asked.form()) };
        let is_here = asked.method == "POST" && asked.parts() == ["webservice", "create-lead", &self.studio];
        let said = |status: &str, more: Value| Said::json(200, &json!({"Status": status, "Message": more}));
        if !is_here {
            return Said::status(404);
        }
        if lead["SecretKey"] != self.secret.as_str() {
            return said("error", "Invalid SecretKey".into());
        }
        if let Some(name) = ["FirstName", "JobType"].iter().find(|name| lead[**name].as_str().is_none_or(str::is_empty))
        {
            return said("error", format!("{name} is required").into());
        }
        self.leads.push(lead);
        Said::json(200, &json!({"Status": "success", "JobID": (1_234_566 + self.leads.len()).to_string()}))
    }
}

/// ShootQ's leads of one brand.
pub struct ShootQ {
    brand: String,
    key: String,
    /// What it took, repeats too.
    pub leads: Vec<Value>,
}

impl ShootQ {
    /// A brand with its key.
    #[must_use]
    pub fn new(brand: &str, key: &str) -> Self {
        Self { brand: brand.to_owned(), key: key.to_owned(), leads: Vec::new() }
    }

    fn fault(&self, lead: &Value) -> Option<&'static str> {
        let is_text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
        let (contact, event) = (&lead["contact"], &lead["event"]);
        if lead["api_key"] != self.key.as_str() {
            return Some("api_key");
        }
        if !is_text(&contact["first_name"]) || !is_text(&contact["last_name"]) || !is_text(&event["type"]) {
            return Some("contact.first_name, contact.last_name, event.type");
        }
        if contact["emails"].as_array().is_none_or(|all| all.is_empty() || !all.iter().all(|it| is_text(&it["email"])))
        {
            return Some("contact.emails");
        }
        let is_date = |text: &str| Date::strptime("%m/%d/%Y", text).is_ok() && text.len() == 10;
        (!event["date"].is_null() && !event["date"].as_str().is_some_and(is_date)).then_some("event.date")
    }
}

impl Vendor for ShootQ {
    fn answer(&mut self, asked: &Asked, _: Timestamp) -> Said {
        if asked.method != "POST" || asked.parts() != ["api", &self.brand, "leads"] {
            return Said::status(404);
        }
        let lead = asked.json();
        match self.fault(&lead) {
            Some("api_key") => Said::json(401, &json!({"error": "api_key"})),
            Some(field) => Said::json(400, &json!({"error": field})),
            None => {
                self.leads.push(lead);
                Said::json(200, &json!({}))
            }
        }
    }
}

/// Light Blue's inbox, which a person empties.
pub struct LightBlue {
    key: String,
    /// What waits for that person.
    pub inbox: Vec<Map<String, Value>>,
}

impl LightBlue {
    /// An account with its key.
    #[must_use]
    pub fn new(key: &str) -> Self {
        Self { key: key.to_owned(), inbox: Vec::new() }
    }

    fn knows(&self, form: &Map<String, Value>) -> bool {
        let same =
            |known: &Map<String, Value>, name: &str| known.get(name).is_some() && known.get(name) == form.get(name);
        let is_repeat =
            |known: &Map<String, Value>| (same(known, "Source") && same(known, "ID")) || same(known, "Reference");
        self.inbox.iter().any(is_repeat)
    }
}

impl Vendor for LightBlue {
    fn answer(&mut self, asked: &Asked, _: Timestamp) -> Said {
        let form = asked.form();
        let says = |number: i32, summary: &str| Said::text(200, format!("{number}\r{summary}"));
        let text = |name: &str| form.get(name).and_then(Value::as_str).unwrap_or_default();
        match asked.parts().iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["apiCheck.php"] if text("Key") == self.key => says(0, "OK"),
            ["api.php"] if text("Key") != self.key => says(-1, "Unknown key"),
            ["api.php"] if text("Type") != "contact form" || form.len() < 3 => says(-3, "No valid parameters"),
            ["api.php"] if self.knows(&form) => says(-4, "Duplicate"),
            ["api.php"] => {
                self.inbox.push(form);
                says(0, "OK")
            }
            _ => Said::status(404),
        }
    }
}
