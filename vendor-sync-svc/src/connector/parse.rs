//! From the text to the connector: overlaid on the one that it extends, read, and linked. Pure; all faults at once.

use std::{collections::BTreeMap, sync::Arc};

use chassis::expression::Expression;
use regex::{Regex, RegexBuilder};
use toml::{Table, Value};

use super::{
    Connector, Fault, Probe, Setting,
    auth::Auth,
    inbound::Inbound,
    judge::ErrorRule,
    operation::{Operation, headers},
    quota::Quota,
    read::{Faults, Reader},
    scope::REQUEST,
    spec::{EventRule, RecordSpec},
    text::Text,
};
use crate::record::RecordKind;

pub(crate) const SOURCE_BYTES: usize = 64 * 1024;
const MOST_OPERATIONS: usize = 64;
const MOST_EVENTS: usize = 64;
const MOST_QUOTAS: usize = 16;
const MOST_SETTINGS: usize = 32;
const MOST_AUTH: usize = 4;
const MOST_WORDS: usize = 16;
const DEFAULT_CONCURRENCY: u64 = 4;
/// Connectors that may extend one another.
const EXTENSIONS: usize = 4;
/// Of a compiled pattern.
const PATTERN_BYTES: usize = 512 * 1024;

/// Finds the text of a connector that another may extend.
pub(crate) type Base<'a> = &'a dyn Fn(&str) -> Option<&'a str>;

impl Connector {
    /// Compiles a text that extends none or a built-in one.
    ///
    /// # Errors
    /// Everything that is wrong with it, at most 20 faults.
    pub(crate) fn parse(source: &str) -> Result<Self, Vec<Fault>> {
        Self::parse_over(source, &|name| super::catalogue::built_in_text(name))
    }

    /// The same, with other bases.
    ///
    /// # Errors
    /// Likewise.
    pub(crate) fn parse_over(source: &str, base: Base<'_>) -> Result<Self, Vec<Fault>> {
        let faults = Faults::default();
        let table = whole(source, base, &faults);
        let connector = table.map(|table| read(source, Reader::new("", table, &faults)));
        let connector = connector.map(|mut connector| {
            link(&mut connector, &faults);
            connector
        });
        match (connector, faults.into_inner()) {
            (Some(connector), faults) if faults.is_empty() => Ok(connector),
            (_, faults) => Err(faults),
        }
    }
}

/// The text's table over those that it extends.
fn whole(source: &str, base: Base<'_>, faults: &Faults) -> Option<Table> {
    let mut table = table(source, "", faults)?;
    for _ in 0..EXTENSIONS {
        let Some(name) = table.remove("extends") else { return Some(table) };
        let text = name.as_str().and_then(base);
        let Some(text) = text else {
            faults.add("extends", "must be the name of a built-in connector");
            return None;
        };
        let mut under = self::table(text, "extends", faults)?;
        for own in ["name", "title"] {
            under.remove(own);
        }
        lay_over(&mut under, table);
        table = under;
    }
    faults.add("extends", format!("at most {EXTENSIONS} connectors may extend one another"));
    None
}

fn table(source: &str, at: &str, faults: &Faults) -> Option<Table> {
    if source.len() > SOURCE_BYTES {
        faults.add(at, "is longer than 64 KiB");
        return None;
    }
    let parsed = source.parse::<Table>().map_err(|error| {
        let before = error.span().and_then(|span| source.get(..span.start)).unwrap_or_default();
        let line = 1 + before.matches('\n').count();
        faults.add(at, format!("line {line}: is not TOML: {}", error.message()));
    });
    parsed.ok()
}

/// Tables are joined, everything else replaces.
fn lay_over(under: &mut Table, over: Table) {
    for (name, value) in over {
        match (under.get_mut(&name), value) {
            (Some(Value::Table(under)), Value::Table(over)) => lay_over(under, over),
            (_, value) => drop(under.insert(name, value)),
        }
    }
}

fn read(source: &str, mut reader: Reader<'_>) -> Connector {
    let (name, kind) = (reader.required("name"), reader.name("kind"));
    if !name.is_empty() && !is_connector_name(&name) {
        reader.fault("name", "must match [a-z0-9-]{1,64}");
    }
    if kind.is_none() && !reader.has("kind") {
        reader.fault("kind", "is missing, or is no [a-z0-9_]{1,64}");
    }
    if !reader.has("base_url") {
        reader.fault("base_url", "is missing");
    }
    let operations = reader.named("operations", MOST_OPERATIONS);
    let operations =
        operations.into_iter().filter_map(|(name, reader)| Some((name, Operation::read(reader)?))).collect();
    let concurrency = reader.number("concurrency", 1..=64).unwrap_or(DEFAULT_CONCURRENCY);
    let connector = Connector {
        title: reader.required("title"),
        docs: reader.text("docs").unwrap_or_default(),
        can: reader.texts("can", MOST_WORDS),
        cannot: reader.texts("cannot", MOST_WORDS),
        source: Arc::from(source),
        base_url: reader.template("base_url", &["settings"]).unwrap_or_else(nothing),
        headers: headers(&mut reader, REQUEST),
        concurrency: u32::try_from(concurrency).expect("at most 64"),
        signed: reader.flag("signed"),
        settings: reader.named("settings", MOST_SETTINGS).into_iter().map(|(name, r)| (name, setting(r))).collect(),
        auth: reader.tables("auth", MOST_AUTH).into_iter().filter_map(Auth::read).collect(),
        probe: reader.table("probe").map(probe),
        errors: ErrorRule::read_all(&mut reader),
        quotas: reader.tables("quotas", MOST_QUOTAS).into_iter().filter_map(Quota::read).collect(),
        records: records(&mut reader),
        events: reader.tables("events", MOST_EVENTS).into_iter().map(EventRule::read).collect(),
        inbound: reader.table("inbound").map(Inbound::read),
        name,
        kind: kind.unwrap_or_default(),
        operations,
    };
    reader.end();
    connector
}

fn nothing() -> Text {
    Text::compile("", &[]).expect("an empty text has no faults")
}

/// `[a-z0-9-]{1,64}`.
pub(super) fn is_connector_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}

fn setting(mut reader: Reader<'_>) -> Setting {
    let pattern = reader.text("pattern").and_then(|pattern| {
        let compiled = RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(PATTERN_BYTES).build();
        compiled.map_err(|_| reader.fault("pattern", "is no regular expression, or too large a one")).ok()
    });
    let setting = Setting {
        description: reader.required("description"),
        required: reader.flag("required"),
        default: reader.text("default"),
        pattern,
    };
    let fits = |pattern: &Regex| setting.default.as_ref().is_none_or(|default| pattern.is_match(default));
    if !setting.pattern.as_ref().is_none_or(fits) {
        reader.fault("default", "doesn't follow the pattern");
    }
    reader.end();
    setting
}

fn probe(mut reader: Reader<'_>) -> Probe {
    let operation = reader.required("operation");
    let mut settings = Vec::new();
    for (name, source) in reader.pairs("settings", MOST_SETTINGS) {
        match Expression::compile(&source, &["body"]) {
            Ok(expression) => settings.push((name, expression)),
            Err(error) => reader.fault(&format!("settings.{name}"), error.to_string()),
        }
    }
    reader.end();
    Probe { operation, settings }
}

fn records(reader: &mut Reader<'_>) -> BTreeMap<RecordKind, RecordSpec> {
    let mut records = BTreeMap::new();
    for (name, inner) in reader.named("records", RecordKind::ALL.len()) {
        match RecordKind::parse(&name) {
            Some(kind) => drop(records.insert(kind, RecordSpec::read_one(inner))),
            None => reader.fault("records", format!("{name} is no kind of record: client, wedding or booking")),
        }
    }
    records
}

/// Holds the parts to each other, and gives operations and webhooks their allow-lists.
fn link(connector: &mut Connector, faults: &Faults) {
    link_probe(connector, faults);
    link_records(connector, faults);
    link_events(connector, faults);
    link_inbound(connector, faults);
}

fn link_probe(connector: &Connector, faults: &Faults) {
    let Some(probe) = &connector.probe else { return };
    if !connector.operations.contains_key(&probe.operation) {
        faults.add("probe.operation", unknown(&probe.operation));
    }
    for (name, _) in &probe.settings {
        if !connector.settings.contains_key(name) {
            faults.add(format!("probe.settings.{name}"), "is no setting: declare it");
        }
    }
}

fn link_records(connector: &mut Connector, faults: &Faults) {
    let mut owners = BTreeMap::new();
    for (kind, spec) in &connector.records {
        for (member, name) in spec.operations() {
            let at = format!("records.{}.{member}", kind.as_str());
            let Some(operation) = connector.operations.get_mut(name) else {
                faults.add(at, unknown(name));
                continue;
            };
            if (member == "list") != operation.is_list() {
                faults.add(&at, format!("{name} must {}have `pages`", if member == "list" { "" } else { "not " }));
            }
            if owners.insert(name, *kind).is_some_and(|other| other != *kind) {
                faults.add(&at, format!("{name} belongs to another kind of record: declare an operation for each"));
            }
            operation.allowed.extend(spec.fields.iter().cloned());
            if operation.idempotency() == super::Idempotency::LookUp && spec.find.is_none() {
                faults.add(at, format!("{name} is looked up, which needs the operation `find`"));
            }
        }
    }
}

fn link_events(connector: &mut Connector, faults: &Faults) {
    for (index, rule) in connector.events.iter().enumerate() {
        match connector.operations.get_mut(&rule.operation) {
            Some(operation) => operation.allowed.extend(rule.fields.iter().cloned()),
            None => faults.add(format!("events[{index}].operation"), unknown(&rule.operation)),
        }
    }
}

fn link_inbound(connector: &mut Connector, faults: &Faults) {
    let Some(mut inbound) = connector.inbound.take() else { return };
    for kind in inbound.records() {
        if !connector.records.contains_key(&kind) {
            faults.add(
                "inbound.events",
                format!("{0} is no record of this connector: declare records.{0}", kind.as_str()),
            );
        }
    }
    let reads = |kind| connector.records.get(&kind).is_some_and(|spec| spec.read.is_some());
    if let Some(kind) = inbound.read_first().find(|kind| !reads(*kind)) {
        faults.add("inbound.events", format!("read_first needs records.{}.read", kind.as_str()));
    }
    inbound.allow(|kind| connector.allowed(kind));
    connector.inbound = Some(inbound);
}

fn unknown(name: &str) -> String {
    let shown: String = name.chars().take(64).collect();
    format!("there is no operation {shown}")
}
