//! What an answer means: success over status and body, then the first rule that holds, then the defaults. Pure.

use std::time::Duration;

use chassis::{
    expression::{Expression, Value},
    outbound::{Answer, Failure, FailureClass},
};
use http::StatusCode;
use jiff::{Timestamp, ToSpan as _, tz::TimeZone};
use serde_json::Value as Json;

use super::{
    CallError, Class, Connector, Judgement, Park, Reply,
    operation::Operation,
    read::Reader,
    scope::{ANSWER, of_answer},
    text::printed,
};

const MOST_RULES: usize = 32;
const REASON_CHARS: usize = 256;
/// The longest that a vendor may have us wait: a rule that asks for more was misread.
const LONGEST_WAIT: Duration = Duration::from_secs(25 * 60 * 60);
const ID_BYTES: usize = 256;

/// What one kind of refusal means.
#[derive(Debug)]
pub(super) struct ErrorRule {
    when: Expression,
    /// None: it is no refusal.
    class: Option<Class>,
    reason: Option<Expression>,
    retry_after: Option<Expression>,
    /// The zone at whose midnight it may be tried again.
    midnight: Option<TimeZone>,
    park: Option<Park>,
}

impl ErrorRule {
    pub(super) fn read_all(reader: &mut Reader<'_>) -> Vec<Self> {
        reader.tables("errors", MOST_RULES).into_iter().filter_map(Self::read).collect()
    }

    fn read(mut reader: Reader<'_>) -> Option<Self> {
        let when = reader.required_expression("when", ANSWER);
        if !reader.has("class") {
            reader.fault("class", "is missing");
        }
        let class = reader.choice("class", CLASSES);
        let until = reader.choice("until", &[("midnight", ())]);
        let zone = zone(&mut reader);
        let rule = Self {
            when: when?,
            class: class?,
            reason: reader.expression("reason", ANSWER),
            retry_after: reader.expression("retry_after_seconds", ANSWER),
            midnight: until.map(|()| zone),
            park: reader.choice("park", &[("account", Park::Account), ("application", Park::Application)]),
        };
        reader.end();
        Some(rule)
    }

    fn error(&self, class: Class, scope: &Value, answer: &Answer, now: Timestamp) -> CallError {
        let given = self.retry_after.as_ref().and_then(|expression| expression.eval(scope).ok());
        let given = given.and_then(|value| value.as_f64()).filter(|seconds| *seconds >= 0.0);
        let asked = given.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST_WAIT));
        let midnight = self.midnight.as_ref().map(|zone| until_midnight(now, zone));
        let retry_after = midnight.or(asked).or_else(|| answer.retry_after(now)).map(|wait| wait.min(LONGEST_WAIT));
        let reason = self.reason.as_ref().and_then(|expression| expression.eval(scope).ok());
        let reason = reason.and_then(|value| printed(&value).ok().flatten()).filter(|text| !text.is_empty());
        CallError {
            class,
            retry_after,
            reason: cut(&reason.unwrap_or_else(|| format!("the vendor answered {}", answer.status))),
            park: self.park.or((class == Class::Throttled).then_some(Park::Account)),
        }
    }
}

const CLASSES: &[(&str, Option<Class>)] = &[
    ("permanent", Some(Class::Permanent)),
    ("retry", Some(Class::Retry)),
    ("throttled", Some(Class::Throttled)),
    ("unauthorized", Some(Class::Unauthorized)),
    ("duplicate", Some(Class::Duplicate)),
    ("gone", Some(Class::Gone)),
    ("conflict", Some(Class::Conflict)),
    ("done", None),
];

/// A time zone by its name; UTC if none is said.
pub(super) fn zone(reader: &mut Reader<'_>) -> TimeZone {
    let Some(name) = reader.text("zone") else { return TimeZone::UTC };
    TimeZone::get(&name).unwrap_or_else(|_| {
        reader.fault("zone", "must be a time zone like Europe/London");
        TimeZone::UTC
    })
}

/// How long until the next 00:00 there.
pub(super) fn until_midnight(now: Timestamp, zone: &TimeZone) -> Duration {
    let tomorrow = now.to_zoned(zone.clone()).checked_add(1.day()).and_then(|tomorrow| tomorrow.start_of_day());
    let wait = tomorrow.map(|midnight| midnight.timestamp().duration_since(now));
    wait.ok().and_then(|wait| Duration::try_from(wait).ok()).unwrap_or(LONGEST_WAIT)
}

impl Connector {
    /// What an answer to an operation means.
    pub(crate) fn judge(&self, name: &str, answer: &Answer, now: Timestamp) -> Judgement {
        let Some(operation) = self.operations.get(name) else {
            return Judgement::Failed(CallError::permanent(format!("{} has no operation {name}", self.name)));
        };
        let body = serde_json::from_slice::<Json>(&answer.body).ok();
        let scope = of_answer(answer.status, &answer.headers, &answer.body, body.as_ref());
        let success = match &operation.success {
            Some(condition) => condition.holds(&scope).unwrap_or(false),
            None => answer.status.is_success(),
        };
        if success && !answer.complete {
            return Judgement::Failed(cut_off(operation, answer));
        }
        if success {
            return operation.done(body, &scope).map_or_else(Judgement::Failed, Judgement::Done);
        }
        match self.refusal(operation, &scope, answer, now) {
            Some(error) if error.class == Class::Gone && self.is_find(name) => Judgement::Done(Reply::nothing()),
            Some(error) => Judgement::Failed(error),
            None => operation.done(body, &scope).map_or_else(Judgement::Failed, Judgement::Done),
        }
    }

    /// What it means that no answer came.
    pub(crate) fn judge_failure(&self, name: &str, failure: &Failure) -> CallError {
        let repeatable = self.operations.get(name).is_some_and(Operation::is_repeatable);
        let may_have_arrived = matches!(failure.class, FailureClass::Timeout | FailureClass::Protocol);
        let class = if may_have_arrived && !repeatable { Class::Unknown } else { Class::Retry };
        CallError { class, retry_after: None, reason: cut(&failure.to_string()), park: None }
    }

    /// None where a rule says that it is none.
    fn refusal(&self, operation: &Operation, scope: &Value, answer: &Answer, now: Timestamp) -> Option<CallError> {
        let rules = operation.errors.iter().chain(&self.errors);
        let rule = rules.into_iter().find(|rule| rule.when.holds(scope).unwrap_or(false));
        match rule {
            Some(rule) => rule.class.map(|class| rule.error(class, scope, answer, now)),
            None => Some(by_status(answer, now)),
        }
    }
}

impl Operation {
    fn done(&self, body: Option<Json>, scope: &Value) -> Result<Reply, CallError> {
        let text = |name: &str, expression: &Option<Expression>| match expression {
            None => Ok(String::new()),
            Some(expression) => id(expression, scope).map_err(|reason| unreadable(&format!("{name}: {reason}"))),
        };
        let resource = self.reply.resource.as_ref().map(|expression| expression.eval(scope)).transpose();
        let resource = resource.map_err(|error| unreadable(&format!("resource: {error}")))?;
        let body = body.unwrap_or(Json::Null);
        Ok(Reply {
            external_id: text("external_id", &self.reply.external_id)?,
            external_version: text("external_version", &self.reply.external_version)?,
            handed_over: self.handed_over,
            resource: resource.unwrap_or_else(|| body.clone()),
            body,
        })
    }
}

/// An id or a version: a text of at most 256 bytes without control characters, empty for none.
pub(super) fn id(expression: &Expression, scope: &Value) -> Result<String, String> {
    let value = expression.eval(scope).map_err(|error| error.to_string())?;
    let text = printed(&value)?.unwrap_or_default();
    let fits = text.len() <= ID_BYTES && !text.chars().any(char::is_control);
    if fits { Ok(text) } else { Err("is longer than 256 bytes or holds control characters".to_owned()) }
}

/// It was done, so sending it again does not help and may harm.
fn unreadable(reason: &str) -> CallError {
    let reason = cut(&format!("the vendor's answer can't be read: {reason}"));
    CallError { class: Class::Unknown, retry_after: None, reason, park: None }
}

fn cut_off(operation: &Operation, answer: &Answer) -> CallError {
    let too_long = answer.body.len() >= operation.answer_bytes;
    let reason = match too_long {
        true => format!("the answer is longer than {} KiB", operation.answer_bytes / 1024),
        false => "the answer broke off".to_owned(),
    };
    let class = match (operation.is_repeatable(), too_long) {
        (false, _) => Class::Unknown,
        (true, true) => Class::Permanent,
        (true, false) => Class::Retry,
    };
    CallError { class, retry_after: None, reason, park: None }
}

fn by_status(answer: &Answer, now: Timestamp) -> CallError {
    let (class, park) = match answer.status {
        StatusCode::UNAUTHORIZED => (Class::Unauthorized, None),
        StatusCode::NOT_FOUND | StatusCode::GONE => (Class::Gone, None),
        StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => (Class::Conflict, None),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            (Class::Throttled, Some(Park::Account))
        }
        status if status.is_server_error() => (Class::Retry, None),
        _ => (Class::Permanent, None),
    };
    let waits = matches!(class, Class::Throttled | Class::Retry);
    let retry_after = answer.retry_after(now).filter(|_| waits).map(|wait| wait.min(LONGEST_WAIT));
    CallError { class, retry_after, reason: format!("the vendor answered {}", answer.status), park }
}

fn cut(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_control()).take(REASON_CHARS).collect()
}
