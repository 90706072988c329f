//! The providers of messages: `[notifier.resend]`, `[notifier.twilio]` and their like. One that isn't given its
//! credentials isn't used.

use chassis::config::Secret;
use lettre::Address;
use serde::{Deserialize, Serialize};

use super::Problems;
use crate::recipient::is_e164;

/// `[notifier.resend]`: mail by an API; where it can't take a letter now, the mail server does.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resend {
    /// The key, `re_...`; default empty, which means that mail goes by the mail server alone.
    pub api_key: Secret,
    /// The sender's address, of a domain that is verified there; no default.
    pub from: String,
    /// What its webhooks are signed with, `whsec_...`; default empty: none are taken.
    pub webhook_secret: Secret,
    /// How many requests a second the account may make; default 2, 0 means no limit of ours.
    pub per_second: u32,
    /// Where the API is; default `https://api.resend.com`.
    pub base_url: String,
}

impl Default for Resend {
    fn default() -> Self {
        Self {
            api_key: Secret::default(),
            from: String::new(),
            webhook_secret: Secret::default(),
            per_second: 2,
            base_url: "https://api.resend.com".to_owned(),
        }
    }
}

impl Resend {
    pub(crate) fn is_configured(&self) -> bool {
        !self.api_key.is_empty()
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Problems::of("resend");
        if self.is_configured() {
            problems.unless(self.api_key.expose().starts_with("re_"), "api_key must be a key of Resend: re_...");
            problems.unless(self.from.parse::<Address>().is_ok(), "from must be an e-mail address");
        } else {
            problems.unless(self.from.is_empty(), "from needs an api_key beside it");
        }
        problems.list
    }
}

/// `[notifier.twilio]`: SMS and WhatsApp.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Twilio {
    /// `AC` and 32 hexadecimal digits; default empty, which means that no SMS is sent.
    pub account_sid: String,
    /// The account's token; it signs callbacks too.
    pub auth_token: Secret,
    /// Who sends: a number in E.164, a short code or a name of 3 to 11 letters and digits; empty: nobody, no SMS is sent.
    pub from: String,
    /// A messaging service (`MG...`) that chooses the sender, instead of `from`.
    pub messaging_service_sid: String,
    /// The number in E.164 that sends by WhatsApp; default empty: that way is not used.
    pub whatsapp_from: String,
    /// The content template (`HX...`) of WhatsApp messages, whose variables are `1` title and `2` body.
    pub whatsapp_content_sid: String,
    /// Where Twilio reports what became of a message, and what people write: `/callbacks/twilio` of the gateway as Twilio
    /// reaches it; default empty: nowhere.
    pub callback_url: String,
    /// How many parts a text may be sent in, 1 to 10; default 4. Longer ones are cut.
    pub max_segments: u32,
    /// Where the API is; default `https://api.twilio.com`.
    pub base_url: String,
}

impl Default for Twilio {
    fn default() -> Self {
        Self {
            account_sid: String::new(),
            auth_token: Secret::default(),
            from: String::new(),
            messaging_service_sid: String::new(),
            whatsapp_from: String::new(),
            whatsapp_content_sid: String::new(),
            callback_url: String::new(),
            max_segments: 4,
            base_url: "https://api.twilio.com".to_owned(),
        }
    }
}

impl Twilio {
    pub(crate) fn sends_sms(&self) -> bool {
        let has_sender = !self.from.is_empty() || !self.messaging_service_sid.is_empty();
        has_sender && !self.account_sid.is_empty()
    }

    pub(crate) fn sends_whatsapp(&self) -> bool {
        !self.account_sid.is_empty() && !self.whatsapp_from.is_empty()
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Problems::of("twilio");
        if self.account_sid.is_empty() {
            problems.unless(self.auth_token.is_empty(), "auth_token needs an account_sid beside it");
            return problems.list;
        }
        problems.unless(is_sid(&self.account_sid, "AC"), "account_sid must be AC and 32 hexadecimal digits");
        problems.unless(!self.auth_token.is_empty(), "auth_token must be given with account_sid");
        problems.unless(
            self.from.is_empty() || self.messaging_service_sid.is_empty(),
            "from and messaging_service_sid exclude each other",
        );
        problems.unless(
            self.from.is_empty() || is_sender(&self.from),
            "from must be a number in E.164, a short code, or 3 to 11 letters and digits",
        );
        for (name, sid, prefix) in [
            ("messaging_service_sid", &self.messaging_service_sid, "MG"),
            ("whatsapp_content_sid", &self.whatsapp_content_sid, "HX"),
        ] {
            problems.unless(
                sid.is_empty() || is_sid(sid, prefix),
                &format!("{name} must be {prefix} and 32 hexadecimal digits"),
            );
        }
        problems.unless(
            self.whatsapp_from.is_empty() || is_e164(&self.whatsapp_from),
            "whatsapp_from must be a number in E.164",
        );
        problems.unless(
            self.whatsapp_from.is_empty() || !self.whatsapp_content_sid.is_empty(),
            "whatsapp_content_sid must be given with whatsapp_from: only templates reach who hasn't written first",
        );
        problems.unless(!self.callback_url.contains('?'), "callback_url must have no query: one is added");
        problems.unless((1..=10).contains(&self.max_segments), "max_segments must be 1 to 10");
        problems.list
    }
}

/// `[notifier.slack]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Slack {
    /// The bot's token, `xoxb-...`; default empty: only incoming webhooks are used.
    pub bot_token: Secret,
    /// What the app's requests are signed with; default empty: none are taken.
    pub signing_secret: Secret,
    /// How many calls a second its workspace takes; default 5, 0 means no limit of ours.
    pub per_second: u32,
    /// Hosts that incoming webhooks may be at; default `hooks.slack.com`. None: webhooks are not used.
    pub hook_hosts: Vec<String>,
    /// Where the API is; default `https://slack.com/api`.
    pub base_url: String,
}

impl Default for Slack {
    fn default() -> Self {
        Self {
            bot_token: Secret::default(),
            signing_secret: Secret::default(),
            per_second: 5,
            hook_hosts: vec!["hooks.slack.com".to_owned()],
            base_url: "https://slack.com/api".to_owned(),
        }
    }
}

impl Slack {
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Problems::of("slack");
        let token = self.bot_token.expose();
        problems.unless(token.is_empty() || token.starts_with("xoxb-"), "bot_token must be a bot's: xoxb-...");
        problems.list
    }
}

/// `[notifier.teams]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Teams {
    /// Hosts that workflows' webhooks may be at, one with a leading dot for all below it; default those of Microsoft's.
    /// None: Teams is not used.
    pub hosts: Vec<String>,
}

impl Default for Teams {
    fn default() -> Self {
        Self { hosts: vec![".environment.api.powerplatform.com".to_owned(), ".logic.azure.com".to_owned()] }
    }
}

/// `[notifier.whatsapp]`: WhatsApp by Meta's Cloud API.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Whatsapp {
    /// A system user's token; default empty, which means that this way is not used.
    pub access_token: Secret,
    /// Meta's id of the number that sends; digits.
    pub phone_number_id: String,
    /// What the app's webhooks are signed with; default empty: none are taken.
    pub app_secret: Secret,
    /// What Meta shows when it tries our address out; default empty: it isn't answered.
    pub verify_token: Secret,
    /// The approved template of our messages, whose body has two variables: title and body; default `wedsync_notice`.
    pub template: String,
    /// The template's language; default `en`.
    pub language: String,
    /// How many messages a second the number may send; default 80, 0 means no limit of ours.
    pub per_second: u32,
    /// Where the API is; default `https://graph.facebook.com`.
    pub base_url: String,
}

impl Default for Whatsapp {
    fn default() -> Self {
        Self {
            access_token: Secret::default(),
            phone_number_id: String::new(),
            app_secret: Secret::default(),
            verify_token: Secret::default(),
            template: "wedsync_notice".to_owned(),
            language: "en".to_owned(),
            per_second: 80,
            base_url: "https://graph.facebook.com".to_owned(),
        }
    }
}

impl Whatsapp {
    pub(crate) fn is_configured(&self) -> bool {
        !self.access_token.is_empty()
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Problems::of("whatsapp");
        let id = &self.phone_number_id;
        let is_id = !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit());
        problems.unless(!self.is_configured() || is_id, "phone_number_id must be digits: Meta's id, not the number");
        problems.unless(self.is_configured() || id.is_empty(), "phone_number_id needs an access_token beside it");
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let is_named = !self.template.is_empty() && self.template.chars().all(is_name);
        problems.unless(is_named, "template must be a template's name: lower-case letters, digits and _");
        let is_code = |c: char| c.is_ascii_alphabetic() || c == '_';
        let is_language = (2..=6).contains(&self.language.len()) && self.language.chars().all(is_code);
        problems.unless(is_language, "language must be a code like en or en_GB");
        problems.list
    }
}

fn is_sid(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|rest| rest.len() == 32 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// A number, a short code or an alphanumeric sender.
fn is_sender(text: &str) -> bool {
    let is_short = (3..=6).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let is_name = (3..=11).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == ' ')
        && text.chars().any(|c| c.is_ascii_alphabetic());
    is_e164(text) || is_short || is_name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(problems: Vec<String>) -> String {
        problems.join("; ")
    }

    fn twilio() -> Twilio {
        Twilio {
            account_sid: format!("AC{}", "0".repeat(32)),
            auth_token: Secret::from("t".to_owned()),
            from: "+15005550006".to_owned(),
            ..Twilio::default()
        }
    }

    #[test]
    fn resend_needs_a_key_and_a_sender() {
        assert_eq!(said(Resend::default().problems()), "");
        let resend = |key: &str, from: &str| {
            said(Resend { api_key: key.to_owned().into(), from: from.to_owned(), ..Resend::default() }.problems())
        };
        assert_eq!(resend("re_1", "us@example.org"), "");
        assert_eq!(resend("re_1", "us"), "[notifier.resend] from must be an e-mail address");
        assert_eq!(resend("sk_1", "us@example.org"), "[notifier.resend] api_key must be a key of Resend: re_...");
        assert_eq!(resend("", "us@example.org"), "[notifier.resend] from needs an api_key beside it");
    }

    #[test]
    fn whatsapp_needs_a_number_of_metas() {
        assert_eq!(said(Whatsapp::default().problems()), "");
        let wrong = |change: fn(&mut Whatsapp)| {
            let mut whatsapp = Whatsapp {
                access_token: Secret::from("EAA".to_owned()),
                phone_number_id: "1".to_owned(),
                ..Whatsapp::default()
            };
            change(&mut whatsapp);
            said(whatsapp.problems())
        };
        assert_eq!(wrong(|_| ()), "");
        assert_eq!(
            wrong(|w| w.phone_number_id = "+49301234".to_owned()),
            "[notifier.whatsapp] phone_number_id must be digits: Meta's id, not the number"
        );
        assert_eq!(
            wrong(|w| w.access_token = Secret::default()),
            "[notifier.whatsapp] phone_number_id needs an access_token beside it"
        );
        assert_eq!(
            wrong(|w| w.template = "My Template".to_owned()),
            "[notifier.whatsapp] template must be a template's name: lower-case letters, digits and _"
        );
        assert_eq!(
            wrong(|w| w.language = "english".to_owned()),
            "[notifier.whatsapp] language must be a code like en or en_GB"
        );
    }

    #[test]
    fn slack_takes_a_bots_token_alone() {
        assert_eq!(said(Slack::default().problems()), "");
        let user = Slack { bot_token: Secret::from("xoxp-1".to_owned()), ..Slack::default() };
        assert_eq!(said(user.problems()), "[notifier.slack] bot_token must be a bot's: xoxb-...");
    }

    #[test]
    fn twilio_is_held_to_its_forms() {
        assert_eq!(said(Twilio::default().problems()), "");
        assert_eq!(said(twilio().problems()), "");
        let wrong = |change: fn(&mut Twilio)| {
            let mut twilio = twilio();
            change(&mut twilio);
            said(twilio.problems())
        };
        assert_eq!(
            wrong(|t| t.account_sid = "AC12".to_owned()),
            "[notifier.twilio] account_sid must be AC and 32 hexadecimal digits"
        );
        assert_eq!(
            wrong(|t| t.auth_token = Secret::default()),
            "[notifier.twilio] auth_token must be given with account_sid"
        );
        assert_eq!(
            wrong(|t| t.from = "we".to_owned()),
            "[notifier.twilio] from must be a number in E.164, a short code, or 3 to 11 letters and digits"
        );
        assert_eq!(wrong(|t| t.max_segments = 11), "[notifier.twilio] max_segments must be 1 to 10");
        assert!(wrong(|t| t.messaging_service_sid = format!("MG{}", "0".repeat(32))).contains("exclude each other"));
        assert!(wrong(|t| t.whatsapp_from = "+15005550006".to_owned()).contains("whatsapp_content_sid must be given"));
        assert_eq!(wrong(|t| t.from = "Rose Oak".to_owned()), "");
    }
}
