//! Walking a list page by page: where the next one begins, and when it ends. Pure.
//!
//! A [`Position`] is a text that can be kept, so that a walk goes on where it stopped. No page leads to another host, and
//! every walk has a bound.

use chassis::{
    expression::{Expression, Value},
    outbound::Answer,
};
use http::header;
use serde_json::{Value as Json, json};
use url::Url;

use super::{
    CallError, Connector,
    read::Reader,
    scope::{ANSWER, of_answer},
    text::printed,
};

const DEFAULT_SIZE: u64 = 100;
const DEFAULT_MOST: u64 = 1_000;
const CURSOR_BYTES: usize = 4 * 1024;
/// Items that one page may hold.
const MOST_ITEMS: usize = 10_000;

/// How a list is cut into pages.
#[derive(Debug)]
pub(crate) struct Pages {
    kind: Kind,
    items: Expression,
    parameter: Option<String>,
    first: u64,
    size: u64,
    size_parameter: Option<String>,
    last: Option<Expression>,
    most: u64,
}

#[derive(Debug)]
enum Kind {
    Page,
    Offset,
    Cursor(Expression),
    /// `Link: <...>; rel="next"`.
    Link,
    Next(Expression),
}

/// Where a page begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// Pages before it.
    pages: u64,
    /// Items before it.
    items: u64,
    /// The vendor's own word for it: a cursor, or path and query of the page. Empty at the beginning.
    cursor: String,
}

impl Position {
    /// As it is kept.
    pub(crate) fn print(&self) -> String {
        format!("{}/{}/{}", self.pages, self.items, self.cursor)
    }

    /// What [`Position::print`] gave; the beginning, for anything else.
    pub(crate) fn parse(text: &str) -> Self {
        let parse = || {
            let mut parts = text.splitn(3, '/');
            let (pages, items) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            Some(Self { pages, items, cursor: parts.next()?.to_owned() })
        };
        parse().unwrap_or_default()
    }

    pub(super) fn path(&self) -> Option<&str> {
        Some(self.cursor.as_str()).filter(|cursor| !cursor.is_empty())
    }
}

/// One page.
#[derive(Debug, PartialEq)]
pub(crate) struct Page {
    pub(crate) items: Vec<Json>,
    /// None: it was the last.
    pub(crate) next: Option<Position>,
}

#[derive(Clone, Copy)]
enum Word {
    Page,
    Offset,
    Cursor,
    Link,
    Next,
}

impl Pages {
    pub(super) fn read(mut reader: Reader<'_>) -> Option<Self> {
        let words = [
            ("page", Word::Page),
            ("offset", Word::Offset),
            ("cursor", Word::Cursor),
            ("link", Word::Link),
            ("next", Word::Next),
        ];
        if !reader.has("kind") {
            reader.fault("kind", "is missing");
        }
        let kind = match reader.choice("kind", &words) {
            Some(Word::Page) => Some(Kind::Page),
            Some(Word::Offset) => Some(Kind::Offset),
            Some(Word::Cursor) => reader.required_expression("cursor", ANSWER).map(Kind::Cursor),
            Some(Word::Link) => Some(Kind::Link),
            Some(Word::Next) => reader.required_expression("next", ANSWER).map(Kind::Next),
            None => None,
        };
        let items = reader.required_expression("items", ANSWER);
        let pages = Self {
            parameter: reader.text("parameter"),
            first: reader.number("first", 0..=1).unwrap_or(1),
            size: reader.number("size", 1..=1_000).unwrap_or(DEFAULT_SIZE),
            size_parameter: reader.text("size_parameter"),
            last: reader.expression("last", ANSWER),
            most: reader.number("most", 1..=100_000).unwrap_or(DEFAULT_MOST),
            kind: kind?,
            items: items?,
        };
        reader.end();
        Some(pages)
    }

    /// Whether the next page is a URL of the vendor's own.
    pub(super) fn follows(&self) -> bool {
        matches!(self.kind, Kind::Link | Kind::Next(_))
    }

    /// What expressions see as `page`.
    pub(super) fn shown(&self, position: &Position) -> Json {
        let cursor = position.path().map_or(Json::Null, Json::from);
        json!({"number": self.first + position.pages, "offset": position.items, "size": self.size, "cursor": cursor})
    }

    pub(super) fn parameters(&self, position: &Position) -> Vec<(String, String)> {
        let value = match self.kind {
            Kind::Page => Some((self.first + position.pages).to_string()),
            Kind::Offset => Some(position.items.to_string()),
            Kind::Cursor(_) => position.path().map(str::to_owned),
            Kind::Link | Kind::Next(_) => None,
        };
        let size = self.size_parameter.clone().map(|name| (name, self.size.to_string()));
        self.parameter.clone().zip(value).into_iter().chain(size).collect()
    }

    fn next(
        &self,
        position: &Position,
        list: &str,
        answer: &Answer,
        scope: &Value,
        count: usize,
    ) -> Result<Option<String>, String> {
        if let Some(last) = &self.last
            && last.holds(scope).map_err(|error| format!("last: {error}"))?
        {
            return Ok(None);
        }
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        let cursor = |expression: &Expression| {
            let value = expression.eval(scope).map_err(|error| format!("next: {error}"))?;
            let text = printed(&value)?.unwrap_or_default();
            if text.len() > CURSOR_BYTES { Err("next: is longer than 4 KiB".to_owned()) } else { Ok(text) }
        };
        let next = match &self.kind {
            Kind::Page | Kind::Offset => {
                let more = if self.last.is_some() { count > 0 } else { count >= self.size };
                return Ok(more.then(String::new));
            }
            Kind::Cursor(expression) => cursor(expression)?,
            Kind::Link => link(answer).unwrap_or_default(),
            Kind::Next(expression) => cursor(expression)?,
        };
        if next.is_empty() {
            return Ok(None);
        }
        let next = if self.follows() { below_origin(list, &next)? } else { next };
        if next == position.cursor {
            return Err("the page names itself as the next".to_owned());
        }
        Ok(Some(next))
    }
}

impl Connector {
    /// The items of a page that was asked for at `position` of a list whose request went to `url`, and what follows it.
    ///
    /// # Errors
    /// What the answer made impossible; the bound on pages.
    pub(crate) fn page(&self, name: &str, position: &Position, url: &str, answer: &Answer) -> Result<Page, CallError> {
        let failed = |reason: String| CallError::permanent(format!("operations.{name}.pages.{reason}"));
        let pages = self.operations.get(name).and_then(|operation| operation.pages.as_ref());
        let pages = pages.ok_or_else(|| CallError::permanent(format!("operations.{name} gives no list")))?;
        let body = serde_json::from_slice::<Json>(&answer.body).ok();
        let scope = of_answer(answer.status, &answer.headers, &answer.body, body.as_ref());
        let items = match pages.items.eval(&scope).map_err(|error| failed(format!("items: {error}")))? {
            Json::Array(items) if items.len() <= MOST_ITEMS => items,
            Json::Null => Vec::new(),
            _ => return Err(failed("items: must give a list of at most 10,000".to_owned())),
        };
        let next = pages.next(position, url, answer, &scope, items.len()).map_err(failed)?;
        let next = next.map(|cursor| {
            let items = position.items + u64::try_from(items.len()).unwrap_or(0);
            let next = Position { pages: position.pages + 1, items, cursor };
            if next.pages < pages.most {
                Ok(next)
            } else {
                Err(format!("most: there are more than {} pages", pages.most))
            }
        });
        Ok(Page { next: next.transpose().map_err(failed)?, items })
    }
}

/// The target of the link whose relation is `next` (RFC 8288).
fn link(answer: &Answer) -> Option<String> {
    let values = answer.headers.get_all(header::LINK).iter().filter_map(|value| value.to_str().ok());
    let mut links = values.flat_map(|value| value.split('<').skip(1)).filter_map(|link| link.split_once('>'));
    links.find(|(_, parameters)| parameters.split([';', ',']).any(is_next)).map(|(target, _)| target.trim().to_owned())
}

fn is_next(parameter: &str) -> bool {
    let (name, value) = parameter.trim().split_once('=').unwrap_or_default();
    let mut relations = value.trim().trim_matches('"').split_ascii_whitespace();
    name.trim().eq_ignore_ascii_case("rel") && relations.any(|relation| relation.eq_ignore_ascii_case("next"))
}

/// Path and query of the next page, which is all that is kept: it must be of the list's own origin.
fn below_origin(list: &str, next: &str) -> Result<String, String> {
    let base = Url::parse(list).map_err(|error| format!("next: {error}"))?;
    let url = base.join(next).ok().filter(|url| url.origin() == base.origin() && next.len() <= CURSOR_BYTES);
    let url = url.ok_or("next: leads to another host")?;
    Ok(url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path())))
}
