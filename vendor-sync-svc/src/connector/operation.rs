//! Operations: what can be asked of a vendor, as declared. Building the request is `request.rs`, judging the answer
//! `judge.rs`, walking a list `page.rs`.

use std::{collections::BTreeSet, time::Duration};

use chassis::expression::{Expression, Mapping};
use http::Method;

use super::{
    judge::ErrorRule,
    page::Pages,
    read::Reader,
    request::check_header,
    scope::{ANSWER, REQUEST},
    text::Text,
};

pub(super) const MOST_MEMBERS: usize = 32;
const DEFAULT_TIMEOUT_SECONDS: u64 = 10;
const DEFAULT_ANSWER_KIB: u64 = 256;
const MOST_ANSWER_KIB: u64 = 4096;

/// One thing that can be asked.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(super) method: Method,
    pub(super) path: Text,
    pub(super) base_url: Option<Text>,
    pub(super) auth_prefix: Option<String>,
    pub(super) query: Vec<(String, Text)>,
    pub(super) headers: Vec<(String, Text)>,
    pub(super) body: Option<Mapping>,
    pub(super) encoding: Encoding,
    /// Members that are none stay in the body.
    pub(super) keep_nulls: bool,
    pub(super) success: Option<Expression>,
    pub(super) errors: Vec<ErrorRule>,
    pub(super) timeout: Duration,
    pub(super) answer_bytes: usize,
    pub(super) handed_over: bool,
    pub(super) idempotency: Idempotency,
    pub(super) reply: ReplyRule,
    pub(super) pages: Option<Pages>,
    /// What it may see of a record: filled in from the records and events that use it.
    pub(super) allowed: BTreeSet<String>,
}

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Json,
    Form,
    NestedForm,
}

/// Why a repeat does no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idempotency {
    /// The same request has the same effect.
    Upsert,
    /// `find` tells whether it arrived.
    LookUp,
    /// It carries an id by which the vendor drops repeats.
    ClientId,
    /// It does harm.
    None,
}

/// Where an answer has what.
#[derive(Debug, Default)]
pub(super) struct ReplyRule {
    pub(super) external_id: Option<Expression>,
    pub(super) external_version: Option<Expression>,
    pub(super) resource: Option<Expression>,
}

impl Operation {
    /// Whether it may be sent again when nobody knows whether it arrived.
    pub(crate) fn is_repeatable(&self) -> bool {
        self.idempotency != Idempotency::None
    }

    /// Why a repeat does no harm.
    pub(crate) fn idempotency(&self) -> Idempotency {
        self.idempotency
    }

    /// Whether a person at the vendor must accept what it sends.
    pub(crate) fn is_handed_over(&self) -> bool {
        self.handed_over
    }

    /// Whether it gives a list.
    pub(crate) fn is_list(&self) -> bool {
        self.pages.is_some()
    }

    pub(super) fn read(mut reader: Reader<'_>) -> Option<Self> {
        let method = method(&mut reader);
        let takes_body = [Method::POST, Method::PUT, Method::PATCH].contains(&method);
        if !reader.has("path") {
            reader.fault("path", "is missing");
        }
        let path = reader.template("path", REQUEST);
        if !takes_body && reader.has("body") {
            reader.fault("body", format!("{method} has none"));
        }
        let repeatable = method != Method::POST && method != Method::PATCH;
        let idempotency =
            idempotency(&mut reader).unwrap_or(if repeatable { Idempotency::Upsert } else { Idempotency::None });
        let semantics = [("applied", false), ("handed_over", true)];
        let encodings = [("json", Encoding::Json), ("form", Encoding::Form), ("nested_form", Encoding::NestedForm)];
        let operation = Self {
            path: path.unwrap_or_else(|| Text::compile("", &[]).expect("an empty text has no faults")),
            base_url: reader.template("base_url", &["settings"]),
            auth_prefix: reader.text("auth_prefix"),
            query: reader.templates("query", REQUEST, MOST_MEMBERS),
            headers: headers(&mut reader, REQUEST),
            body: reader.mapping("body", REQUEST),
            encoding: reader.choice("encoding", &encodings).unwrap_or(Encoding::Json),
            keep_nulls: reader.choice("nulls", &[("drop", false), ("keep", true)]).unwrap_or(false),
            success: reader.expression("success", ANSWER),
            errors: ErrorRule::read_all(&mut reader),
            timeout: Duration::from_secs(reader.number("timeout_seconds", 1..=30).unwrap_or(DEFAULT_TIMEOUT_SECONDS)),
            answer_bytes: answer_bytes(&mut reader),
            handed_over: reader.choice("semantics", &semantics).unwrap_or(false),
            idempotency,
            reply: ReplyRule::read(&mut reader),
            pages: reader.table("pages").and_then(Pages::read),
            allowed: BTreeSet::new(),
            method,
        };
        reader.end();
        Some(operation)
    }
}

impl ReplyRule {
    fn read(reader: &mut Reader<'_>) -> Self {
        let Some(mut reader) = reader.table("reply") else { return Self::default() };
        let rule = Self {
            external_id: reader.expression("external_id", ANSWER),
            external_version: reader.expression("external_version", ANSWER),
            resource: reader.expression("resource", ANSWER),
        };
        reader.end();
        rule
    }
}

fn method(reader: &mut Reader<'_>) -> Method {
    if !reader.has("method") {
        reader.fault("method", "is missing");
    }
    // `Method` is no `Copy`.
    let methods = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let words = [("GET", 0), ("POST", 1), ("PUT", 2), ("PATCH", 3), ("DELETE", 4)];
    let index: usize = reader.choice("method", &words).unwrap_or(0);
    methods[index].clone()
}

fn idempotency(reader: &mut Reader<'_>) -> Option<Idempotency> {
    let all = [
        ("upsert", Idempotency::Upsert),
        ("look_up", Idempotency::LookUp),
        ("client_id", Idempotency::ClientId),
        ("none", Idempotency::None),
    ];
    reader.choice("idempotency", &all)
}

fn answer_bytes(reader: &mut Reader<'_>) -> usize {
    let kib = reader.number("answer_kib", 1..=MOST_ANSWER_KIB).unwrap_or(DEFAULT_ANSWER_KIB);
    usize::try_from(kib * 1024).expect("at most 4 MiB")
}

/// Headers whose names are possible and not the connection's.
pub(super) fn headers(reader: &mut Reader<'_>, names: &[&str]) -> Vec<(String, Text)> {
    let headers = reader.templates("headers", names, MOST_MEMBERS);
    for (name, _) in &headers {
        check_header(reader, "headers", name);
    }
    headers
}
