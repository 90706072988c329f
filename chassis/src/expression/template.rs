//! Whole texts: `{{ expressions }}`, `{% if %}`, `{% for %}` and comments, and nothing else of Jinja.
//!
//! Every expression goes through [`super::syntax`]; tags we don't know are refused, so nothing can be assigned, captured,
//! included or defined. Loops run on fuel, the text is bounded, and what is undefined is an error. A name that ends in
//! `.html` escapes for HTML, one that ends in `.json` writes values as JSON (a final `.j2` is not looked at).

use std::io;

use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, escape_formatter, value::ValueKind};
use serde::Serialize;

use super::{
    ENGINE, ExpressionError, SOURCE_BYTES, meter,
    syntax::{is_name, rewrite, rewrite_list},
    value::{Missing, Value, to_json},
};

/// The longest text that a template may give, in bytes.
const TEXT_BYTES: usize = 512 * 1024;

/// A compiled template.
#[derive(Debug)]
pub struct Template {
    name: String,
    engine: Environment<'static>,
}

impl Template {
    /// Compiles `source`; the end of `name` decides how values are escaped.
    ///
    /// # Errors
    /// The first thing that the language doesn't have, or that is too long or too deep.
    pub fn compile(name: &str, source: &str) -> Result<Self, ExpressionError> {
        Self::compile_with(name, source, &mut Names::default())
    }

    /// As [`Template::compile`], where nothing but the variables `names` and those of its loops may be used.
    ///
    /// # Errors
    /// Likewise, and a variable that is none of `names`, with its line.
    pub fn compile_over(name: &str, source: &str, names: &[&str]) -> Result<Self, ExpressionError> {
        Self::compile_with(name, source, &mut Names { given: Some(names), loops: Vec::new() })
    }

    fn compile_with(name: &str, source: &str, names: &mut Names<'_>) -> Result<Self, ExpressionError> {
        let mut compile = || {
            if source.len() > SOURCE_BYTES {
                return Err(ExpressionError::new(1, "is longer than 16 KiB"));
            }
            let mut engine = ENGINE.clone();
            engine.set_auto_escape_callback(escaping);
            engine.set_formatter(print);
            engine.add_template_owned(name.to_owned(), rewrite_template(source, names)?)?;
            Ok(engine)
        };
        let engine = compile().map_err(|error| error.within(name))?;
        Ok(Self { name: name.to_owned(), engine })
    }

    /// Renders it over the members of `data`, which must be a map.
    ///
    /// # Errors
    /// What the data made impossible, or a text longer than 512 KiB.
    pub fn render(&self, data: &impl Serialize) -> Result<String, ExpressionError> {
        let failed = |error: serde_json::Error| ExpressionError::new(1, format!("the data can't be read: {error}"));
        let json = serde_json::to_vec(data).map_err(failed).map_err(|error| error.within(&self.name))?;
        let data =
            Value::read(&json, Missing::IsUndefined).map_err(failed).map_err(|error| error.within(&self.name))?;
        let mut text = Bounded(Vec::new());
        let rendered = meter::run(|| {
            self.engine.get_template(&self.name)?.render_captured_to(data.0, &mut text)?;
            Ok(())
        });
        rendered.map_err(|error| error.within(&self.name))?;
        Ok(String::from_utf8(text.0).expect("the engine writes whole texts"))
    }
}

fn escaping(name: &str) -> AutoEscape {
    let name = name.strip_suffix(".j2").unwrap_or(name);
    match name.rsplit_once('.') {
        Some((_, "html")) => AutoEscape::Html,
        Some((_, "json")) => AutoEscape::Json,
        _ => AutoEscape::None,
    }
}

/// None prints as nothing; lists and maps print in JSON only, where it is clear what they look like.
fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &minijinja::Value) -> Result<(), Error> {
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    if *state.auto_escape() == AutoEscape::Json {
        return Ok(out.write_str(&to_json(value)?.to_string())?);
    }
    match value.kind() {
        ValueKind::None => Ok(()),
        ValueKind::Bool => Ok(out.write_str(if value.is_true() { "true" } else { "false" })?),
        ValueKind::Number => escape_formatter(out, state, value),
        ValueKind::String => {
            meter::charge(value.len().unwrap_or(0))?;
            escape_formatter(out, state, value)
        }
        kind => {
            let reason = format!("{kind} can't be printed: name its parts, or use a loop or tojson");
            Err(Error::new(ErrorKind::InvalidOperation, reason))
        }
    }
}

/// How many blocks and branches of them may be open at a time: well inside the engine's own bound and its stack.
const BLOCKS: usize = 32;

/// Takes so much and no more.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > TEXT_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The variables that may be used, if anybody says so: those given, and those of the open loops.
#[derive(Default)]
struct Names<'n> {
    given: Option<&'n [&'n str]>,
    loops: Vec<Vec<String>>,
}

impl Names<'_> {
    fn all(&self) -> Option<Vec<&str>> {
        let of_loops = self.loops.iter().flatten().map(String::as_str);
        let position = self.loops.first().map(|_| "loop");
        self.given.map(|given| given.iter().copied().chain(of_loops).chain(position).collect())
    }
}

/// Writes the whole template anew, tag by tag.
fn rewrite_template(source: &str, names: &mut Names<'_>) -> Result<String, ExpressionError> {
    let (mut written, mut rest, mut line) = (String::with_capacity(source.len()), source, 1);
    let mut blocks = Blocks::default();
    while let Some(start) = next_tag(rest) {
        let (text, tag) = rest.split_at(start);
        written.push_str(text);
        line += text.matches('\n').count();
        let (inside, length) = inside(tag).ok_or_else(|| ExpressionError::new(line, "a tag is not closed"))?;
        if tag.starts_with("{%") {
            blocks.pass(inside, line)?;
        }
        written.push_str(&rewrite_tag(&tag[..2], inside, line, names)?);
        line += tag[..length].matches('\n').count();
        rest = &tag[length..];
    }
    written.push_str(rest);
    Ok(written)
}

/// The open blocks, each with its branches: the engine nests one branch in the other.
#[derive(Default)]
struct Blocks(Vec<usize>);

impl Blocks {
    fn pass(&mut self, statement: &str, line: usize) -> Result<(), ExpressionError> {
        let statement = statement.trim_start_matches(['-', ' ', '\t', '\r', '\n']);
        let is = |word: &str| statement.starts_with(word);
        if is("end") {
            self.0.pop();
        } else if is("el") {
            if let Some(branches) = self.0.last_mut() {
                *branches += 1;
            }
        } else {
            self.0.push(1);
        }
        let deep = self.0.iter().sum::<usize>() > BLOCKS;
        if deep { Err(ExpressionError::new(line, "nests too deep or has too many branches")) } else { Ok(()) }
    }
}

fn next_tag(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|pair| matches!(pair, b"{{" | b"{%" | b"{#"))
}

/// What stands inside the tag at the beginning of `tag`, and the length of it all. Texts and maps may hold its end.
fn inside(tag: &str) -> Option<(&str, usize)> {
    let end = match &tag[..2] {
        "{{" => "}}",
        "{%" => "%}",
        _ => return tag.get(2..)?.find("#}").map(|end| (&tag[2..2 + end], end + 4)),
    };
    let (mut quote, mut escaped, mut maps) = (None, false, 0_usize);
    for (at, c) in tag.char_indices().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if maps == 0 && tag[at..].starts_with(end) => return Some((&tag[2..at], at + 2)),
            None => match c {
                '\'' | '"' => quote = Some(c),
                '{' => maps += 1,
                '}' => maps = maps.saturating_sub(1),
                _ => {}
            },
        }
    }
    None
}

fn rewrite_tag(kind: &str, inside: &str, line: usize, names: &mut Names<'_>) -> Result<String, ExpressionError> {
    let strip_before = if inside.starts_with('-') { "-" } else { "" };
    let inside = inside.strip_prefix('-').unwrap_or(inside);
    let strip_after = if inside.ends_with('-') { "-" } else { "" };
    let inside = inside.strip_suffix('-').unwrap_or(inside);
    let (open, written, close) = match kind {
        "{{" => ("{{", rewrite(inside, line, names.all().as_deref())?, "}}"),
        "{%" => ("{%", rewrite_statement(inside, line, names)?, "%}"),
        _ => ("{#", "\n".repeat(inside.matches('\n').count()), "#}"),
    };
    // Line breaks before the first and after the last token are not in what was rewritten.
    let lost = inside.matches('\n').count() - written.matches('\n').count();
    let before = inside.len() - inside.trim_start().len();
    let before = inside[..before].matches('\n').count().min(lost);
    let (before, after) = ("\n".repeat(before), "\n".repeat(lost - before));
    Ok(format!("{open}{strip_before} {before}{written}{after} {strip_after}{close}"))
}

fn rewrite_statement(inside: &str, line: usize, names: &mut Names<'_>) -> Result<String, ExpressionError> {
    let line = line + inside[..inside.len() - inside.trim_start().len()].matches('\n').count();
    let statement = inside.trim();
    let (word, rest) = statement
        .split_once(|c: char| c.is_ascii_whitespace() || c == '(')
        .map_or((statement, ""), |(word, _)| statement.split_at(word.len()));
    match (word, rest.trim()) {
        ("if" | "elif", _) => Ok(format!("{word} {}", rewrite(rest, line, names.all().as_deref())?)),
        ("endfor", "") => {
            names.loops.pop();
            Ok(word.to_owned())
        }
        ("else" | "endif", "") => Ok(word.to_owned()),
        ("for", _) => {
            let variables = rest.split_once(" in ").filter(|(variables, _)| {
                let names: Vec<_> = variables.split(',').map(str::trim).collect();
                names.len() <= 2 && names.iter().all(|name| is_name(name))
            });
            let (variables, list) =
                variables.ok_or_else(|| ExpressionError::new(line, "a loop must read `for x in list`"))?;
            let list = rewrite_list(list, line, names.all().as_deref())?;
            names.loops.push(variables.split(',').map(|name| name.trim().to_owned()).collect());
            Ok(format!("for {} in {list}", variables.trim()))
        }
        _ => Err(ExpressionError::new(
            line,
            format!("`{word}` is not part of the language: use if, elif, else, endif, for, endfor"),
        )),
    }
}
