//! Records and events as a connector declares them: which operations, which fields, which mapping. Pure.
//!
//! When a record is found, created or updated is decided in `sync`; this says how.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chassis::expression::{Expression, Mapping};
use jiff::Timestamp;
use serde_json::{Map, Value as Json};

use super::{
    judge,
    read::{Reader, is_name},
    scope::{self, ITEM, OUT, RULE, of_item},
};
use crate::record::RecordKind;

const MOST_FIELDS: usize = 128;
const MOST_TYPES: usize = 32;
const DEFAULT_OVERLAP_SECONDS: u64 = 120;
const DEFAULT_INTERVAL_SECONDS: u64 = 300;

/// What a connector can do with one kind of record.
#[derive(Debug)]
pub(crate) struct RecordSpec {
    /// Names of operations.
    pub(crate) find: Option<String>,
    pub(crate) create: Option<String>,
    pub(crate) read: Option<String>,
    pub(crate) update: Option<String>,
    pub(crate) delete: Option<String>,
    pub(crate) list: Option<String>,
    /// Canonical fields that go out and come in; no other does.
    pub(crate) fields: BTreeSet<String>,
    pub(crate) out: Option<Mapping>,
    pub(crate) into: Option<Mapping>,
    pub(crate) incremental: Incremental,
    /// Members of the vendor's resource that an update sends back as they were read; none: it needs no reading.
    keep: Option<Vec<String>>,
    out_only_if: Option<Expression>,
    external_id: Option<Expression>,
    external_version: Option<Expression>,
    at: Option<Expression>,
    deleted: Option<Expression>,
}

/// How changes are found by asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Incremental {
    pub(crate) kind: IncrementalKind,
    /// How far before the last known time to begin: clocks differ, and rows are committed late.
    pub(crate) overlap: Duration,
    pub(crate) interval: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IncrementalKind {
    /// The list operation takes `since`.
    Since,
    /// The list is sorted by change, the newest first: stop at what is older than the last known time.
    NewestFirst,
    /// All of it is read and compared.
    Full,
}

/// What the vendor says about one record.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Item {
    pub(crate) external_id: String,
    pub(crate) external_version: String,
    /// None: the vendor doesn't say.
    pub(crate) at: Option<Timestamp>,
    /// Canonical, of the allow-list alone. Null: it has none.
    pub(crate) fields: BTreeMap<String, Json>,
    pub(crate) deleted: bool,
}

impl RecordSpec {
    pub(super) fn read_one(mut reader: Reader<'_>) -> Self {
        let fields = allow_list(&mut reader);
        let into = reader.mapping("into", ITEM);
        let spec = Self {
            find: reader.name("find"),
            create: reader.name("create"),
            read: reader.name("read"),
            update: reader.name("update"),
            delete: reader.name("delete"),
            list: reader.name("list"),
            out: reader.mapping("out", OUT),
            incremental: Incremental::read(&mut reader),
            keep: reader.has("keep").then(|| reader.texts("keep", MOST_FIELDS)),
            out_only_if: only_if(&mut reader),
            external_id: reader.expression("external_id", ITEM),
            external_version: reader.expression("external_version", ITEM),
            at: reader.expression("at", ITEM),
            deleted: reader.expression("deleted", ITEM),
            fields,
            into,
        };
        if (spec.list.is_some() || spec.read.is_some()) && spec.external_id.is_none() {
            reader.fault("external_id", "is missing: what is listed or read must be known again");
        }
        if spec.keep.is_some() && (spec.read.is_none() || spec.update.is_none()) {
            reader.fault("keep", "needs the operations `read` and `update`");
        }
        reader.end();
        spec
    }

    /// The operations that it names, each with the member that does.
    pub(super) fn operations(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            ("find", &self.find),
            ("create", &self.create),
            ("read", &self.read),
            ("update", &self.update),
            ("delete", &self.delete),
            ("list", &self.list),
        ];
        all.into_iter().filter_map(|(member, name)| Some((member, name.as_deref()?)))
    }

    pub(super) fn uses(&self, operation: &str) -> bool {
        self.operations().any(|(_, name)| name == operation)
    }

    /// Whether an update replaces the whole resource, so that it must be read first and given as `current`.
    pub(crate) fn reads_before_update(&self) -> bool {
        self.keep.is_some()
    }

    /// Whether this record may go out at all. An error is a no.
    ///
    /// # Errors
    /// Why the condition can't be decided.
    pub(crate) fn may_go_out(&self, given: &Json, settings: &BTreeMap<String, String>) -> Result<bool, String> {
        let Some(condition) = &self.out_only_if else { return Ok(true) };
        rule_holds(condition, given, settings, &self.all_of(given))
    }

    /// A condition may look at fields that never go out, such as a consent.
    fn all_of(&self, given: &Json) -> BTreeSet<String> {
        let names = given.get("record").and_then(Json::as_object).into_iter().flatten().map(|(name, _)| name.clone());
        names.collect()
    }

    /// What an update sends: what was read, as far as it is kept, with our members over it.
    pub(super) fn over_kept(&self, current: Option<&Json>, out: Json) -> Json {
        let (Some(keep), Some(Json::Object(current)), Json::Object(ours)) = (&self.keep, current, &out) else {
            return out;
        };
        let kept = current.iter().filter(|(name, _)| keep.contains(name));
        let mut whole: Map<String, Json> = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        whole.extend(ours.iter().map(|(name, value)| (name.clone(), value.clone())));
        Json::Object(whole)
    }

    /// Which record it is, though the rest of it may not be legible.
    pub(crate) fn external_id(&self, item: &Json, settings: &BTreeMap<String, String>) -> Option<String> {
        judge::id(self.external_id.as_ref()?, &of_item(item, settings)).ok().filter(|id| !id.is_empty())
    }

    /// What a resource or list item says.
    ///
    /// # Errors
    /// What can't be read, with its place.
    pub(crate) fn item(&self, item: &Json, settings: &BTreeMap<String, String>) -> Result<Item, String> {
        let scope = of_item(item, settings);
        let text = |name: &str, expression: &Option<Expression>| match expression {
            Some(expression) => judge::id(expression, &scope).map_err(|reason| format!("{name}: {reason}")),
            None => Ok(String::new()),
        };
        let deleted = self.deleted.as_ref().map(|expression| expression.holds(&scope)).transpose();
        Ok(Item {
            external_id: text("external_id", &self.external_id)?,
            external_version: text("external_version", &self.external_version)?,
            at: self.at.as_ref().map(|expression| time(expression, &scope)).transpose()?.flatten(),
            deleted: deleted.map_err(|error| format!("deleted: {error}"))?.unwrap_or(false),
            fields: self.into.as_ref().map(|into| fields(into, &scope, &self.fields)).transpose()?.unwrap_or_default(),
        })
    }
}

impl Incremental {
    fn read(reader: &mut Reader<'_>) -> Self {
        let mut incremental = Self {
            kind: IncrementalKind::Full,
            overlap: Duration::from_secs(DEFAULT_OVERLAP_SECONDS),
            interval: Duration::from_secs(DEFAULT_INTERVAL_SECONDS),
        };
        let Some(mut reader) = reader.table("incremental") else { return incremental };
        let kinds = [
            ("since", IncrementalKind::Since),
            ("newest_first", IncrementalKind::NewestFirst),
            ("full", IncrementalKind::Full),
        ];
        incremental.kind = reader.choice("kind", &kinds).unwrap_or(IncrementalKind::Full);
        if let Some(seconds) = reader.number("overlap_seconds", 0..=86_400) {
            incremental.overlap = Duration::from_secs(seconds);
        }
        if let Some(seconds) = reader.number("interval_seconds", 30..=604_800) {
            incremental.interval = Duration::from_secs(seconds);
        }
        reader.end();
        incremental
    }
}

/// What is done about an event, beside or instead of a record's change.
#[derive(Debug)]
pub(crate) struct EventRule {
    types: Vec<String>,
    when: Option<Expression>,
    pub(crate) operation: String,
    /// Whose record is wanted as `record`.
    pub(crate) record: Option<RecordKind>,
    pub(crate) fields: BTreeSet<String>,
    /// The record's own operations are not called for these events.
    pub(crate) instead: bool,
}

impl EventRule {
    pub(super) fn read(mut reader: Reader<'_>) -> Self {
        let types = reader.texts("types", MOST_TYPES);
        if types.is_empty() {
            reader.fault("types", "must name at least one event type");
        }
        let rule = Self {
            types,
            when: reader.expression("when", RULE),
            operation: reader.required("operation"),
            record: record_kind(&mut reader),
            fields: allow_list(&mut reader),
            instead: reader.flag("instead"),
        };
        reader.end();
        rule
    }

    /// Whether an event of this type is one for it, whatever it holds.
    pub(crate) fn takes(&self, event_type: &str) -> bool {
        self.types.iter().any(|wanted| match wanted.strip_suffix(".*") {
            Some(prefix) => event_type.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')),
            None => wanted == event_type,
        })
    }

    /// Whether it is called for over `given`, an object with the names of requests.
    ///
    /// # Errors
    /// Why the condition can't be decided.
    pub(crate) fn holds(&self, given: &Json, settings: &BTreeMap<String, String>) -> Result<bool, String> {
        let Some(condition) = &self.when else { return Ok(true) };
        let all = given.get("record").and_then(Json::as_object).into_iter().flatten();
        rule_holds(condition, given, settings, &all.map(|(name, _)| name.clone()).collect())
    }
}

fn rule_holds(
    condition: &Expression,
    given: &Json,
    settings: &BTreeMap<String, String>,
    allowed: &BTreeSet<String>,
) -> Result<bool, String> {
    condition.holds(&scope::of_request(given, settings, allowed, Json::Null)).map_err(|error| error.to_string())
}

fn only_if(reader: &mut Reader<'_>) -> Option<Expression> {
    let mut reader = reader.table("out_only_if")?;
    let when = reader.required_expression("when", RULE);
    reader.end();
    when
}

/// A record kind by its name, where one is said.
pub(super) fn record_kind(reader: &mut Reader<'_>) -> Option<RecordKind> {
    let kinds = RecordKind::ALL.map(|kind| (kind.as_str(), kind));
    reader.choice("record", &kinds)
}

fn allow_list(reader: &mut Reader<'_>) -> BTreeSet<String> {
    let fields = reader.texts("fields", MOST_FIELDS);
    if let Some(strange) = fields.iter().find(|field| !is_name(field)) {
        reader.fault("fields", format!("{strange:?} is no field: [a-z0-9_]{{1,64}}"));
    }
    fields.into_iter().collect()
}

/// A time, or none. What can't be read as a time is an error.
pub(super) fn time(expression: &Expression, scope: &chassis::expression::Value) -> Result<Option<Timestamp>, String> {
    let wrong = |reason: String| format!("at: {reason}");
    match expression.eval(scope).map_err(|error| wrong(error.to_string()))? {
        Json::Null => Ok(None),
        Json::String(text) if text.is_empty() => Ok(None),
        Json::String(text) => moment(&text).map(Some).ok_or_else(|| wrong("must be a time".to_owned())),
        Json::Number(number) => {
            let seconds = number.as_i64().and_then(|seconds| Timestamp::from_second(seconds).ok());
            seconds.map(Some).ok_or_else(|| wrong("must be seconds since 1970".to_owned()))
        }
        _ => Err(wrong("must be a time".to_owned())),
    }
}

/// RFC 3339, with `+0000` for an offset too; without a zone it is UTC.
fn moment(text: &str) -> Option<Timestamp> {
    let civil = || text.parse::<jiff::civil::DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok();
    text.parse().ok().or_else(|| civil().map(|zoned| zoned.timestamp()))
}

/// What a mapping gives, of the allowed fields alone.
pub(super) fn fields(
    mapping: &Mapping,
    scope: &chassis::expression::Value,
    allowed: &BTreeSet<String>,
) -> Result<BTreeMap<String, Json>, String> {
    match mapping.apply(scope).map_err(|error| format!("into.{error}"))? {
        Json::Object(members) => Ok(members.into_iter().filter(|(name, _)| allowed.contains(name)).collect()),
        _ => Err("into: must give fields by their names".to_owned()),
    }
}
