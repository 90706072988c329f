//! Our grammar of expressions: reads a source and writes it anew for the engine.
//!
//! A recursive descent over a subset of Jinja's expressions. The output is parenthesised in full, so that the engine
//! can't group it otherwise, and calls functions where the engine's operators know no kinds: `a < b` becomes
//! `_lt(a, b)`, `a + b` becomes `_add(a, b)`. Line breaks are kept, so that the engine's errors name our lines.
//!
//! Invariant: no name, function, filter, test, operator or literal reaches the engine unless this file knows it.

use std::borrow::Cow;

use super::{
    ExpressionError,
    function::{FILTERS, FUNCTIONS, TESTS},
};

/// How deep an expression may nest: well inside the engine's own bound and its stack.
const DEPTH: usize = 32;
const KEYWORDS: &[&str] = &["and", "else", "if", "in", "is", "not", "or"];

/// Writes `source`, which begins at `line`, anew for the engine. Only the variables `names` may be used, if given.
pub(super) fn rewrite(source: &str, line: usize, names: Option<&[&str]>) -> Result<String, ExpressionError> {
    let mut parser = Parser { tokens: tokens(source, line)?, next: 0, depth: 0, names };
    let written = parser.choice()?;
    parser.end(written)
}

/// The same for what a loop goes through, where Jinja gives `if` another meaning.
pub(super) fn rewrite_list(source: &str, line: usize, names: Option<&[&str]>) -> Result<String, ExpressionError> {
    let mut parser = Parser { tokens: tokens(source, line)?, next: 0, depth: 0, names };
    let written = parser.any_of()?;
    parser.end(written)
}

/// A variable's name, as a loop may introduce it.
pub(super) fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !KEYWORDS.contains(&text)
        && !["true", "false", "none", "loop"].contains(&text)
}

#[derive(Debug, Clone, PartialEq)]
enum Token<'s> {
    Name(&'s str),
    /// As it is written: decimal.
    Number(&'s str),
    /// Its meaning, escapes resolved.
    Text(Cow<'s, str>),
    Sign(&'s str),
    End,
}

impl Token<'_> {
    fn shown(&self) -> String {
        match self {
            Token::Name(text) | Token::Number(text) | Token::Sign(text) => format!("`{text}`"),
            Token::Text(_) => "a text".to_owned(),
            Token::End => "the end".to_owned(),
        }
    }
}

/// Longer signs first. The refused ones are known, to say what to write instead.
const SIGNS: &[&str] = &[
    "==", "!=", "<=", ">=", "//", "**", "<", ">", "+", "-", "/", "%", "(", ")", "[", "]", "{", "}", ",", ":", ".", "|",
    "*", "~", "=",
];

/// The tokens with their lines.
fn tokens(source: &str, mut line: usize) -> Result<Vec<(Token<'_>, usize)>, ExpressionError> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            ' ' | '\t' | '\r' | '\n' => {
                line += usize::from(first == '\n');
                rest = &rest[1..];
                continue;
            }
            '\'' | '"' => text(rest).map_err(|reason| ExpressionError::new(line, reason))?,
            '0'..='9' => number(rest).map_err(|reason| ExpressionError::new(line, reason))?,
            'A'..='Z' | 'a'..='z' | '_' => {
                let length = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                (Token::Name(&rest[..length]), length)
            }
            other => match SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
                Some(sign) => (Token::Sign(sign), sign.len()),
                None => return Err(ExpressionError::new(line, format!("{other:?} is not part of the language"))),
            },
        };
        tokens.push((token, line));
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    tokens.push((Token::End, line));
    Ok(tokens)
}

/// A text in either quotes, with the escapes that JSON has and `\'`.
fn text(source: &str) -> Result<(Token<'_>, usize), &'static str> {
    let quote = source.chars().next().unwrap_or('"');
    let mut meaning = String::new();
    let mut chars = source.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            _ if c == quote => return Ok((Token::Text(meaning.into()), at + 1)),
            '\\' => match chars.next() {
                Some((_, plain @ ('\\' | '\'' | '"' | '/'))) => meaning.push(plain),
                Some((_, 'b')) => meaning.push('\u{8}'),
                Some((_, 'f')) => meaning.push('\u{c}'),
                Some((_, 'n')) => meaning.push('\n'),
                Some((_, 'r')) => meaning.push('\r'),
                Some((_, 't')) => meaning.push('\t'),
                Some((_, 'u')) => {
                    let digits: String = chars.by_ref().take(4).map(|(_, digit)| digit).collect();
                    let code = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 4);
                    meaning.push(code.and_then(char::from_u32).ok_or("\\u needs four digits of a character")?);
                }
                _ => return Err("a backslash in a text must be followed by \\ ' \" / b f n r t or u"),
            },
            _ => meaning.push(c),
        }
    }
    Err("a text is not closed")
}

/// `12`, `12.5`, `1.5e3`.
fn number(source: &str) -> Result<(Token<'_>, usize), &'static str> {
    let digits = |from: usize| from + source[from..].bytes().take_while(u8::is_ascii_digit).count();
    let mut end = digits(0);
    if source[end..].starts_with('.') && digits(end + 1) > end + 1 {
        end = digits(end + 1);
    }
    if source[end..].starts_with(['e', 'E']) {
        let sign = usize::from(source[end + 1..].starts_with(['+', '-']));
        end = Some(digits(end + 1 + sign))
            .filter(|to| *to > end + 1 + sign)
            .ok_or("a number's exponent has no digits")?;
    }
    if source[end..].starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        || source[..end].parse::<f64>().is_ok_and(f64::is_infinite)
    {
        return Err("a number must be decimal and in range");
    }
    Ok((Token::Number(&source[..end]), end))
}

/// Source for the engine, and how deep it nests.
struct Written {
    text: String,
    depth: usize,
}

struct Parser<'s, 'n> {
    tokens: Vec<(Token<'s>, usize)>,
    next: usize,
    depth: usize,
    names: Option<&'n [&'n str]>,
}

impl<'s> Parser<'s, '_> {
    fn peek(&self) -> &Token<'s> {
        &self.tokens[self.next].0
    }

    /// Takes the next token, with the line breaks that stood before it.
    fn take(&mut self) -> (Token<'s>, String) {
        let (token, line) = self.tokens[self.next].clone();
        let before = self.next.checked_sub(1).map_or(line, |before| self.tokens[before].1);
        self.next = (self.next + 1).min(self.tokens.len() - 1);
        (token, "\n".repeat(line - before))
    }

    fn accept_sign(&mut self, sign: &str) -> Option<String> {
        if *self.peek() == Token::Sign(sign) { Some(self.take().1) } else { None }
    }

    fn accept_word(&mut self, word: &str) -> Option<String> {
        if *self.peek() == Token::Name(word) { Some(self.take().1) } else { None }
    }

    fn expect_sign(&mut self, sign: &str) -> Result<String, ExpressionError> {
        self.accept_sign(sign).ok_or_else(|| self.error(&format!("`{sign}` is missing before {}", self.peek().shown())))
    }

    fn error(&self, reason: &str) -> ExpressionError {
        ExpressionError::new(self.tokens[self.next].1, reason)
    }

    fn end(&self, written: Written) -> Result<String, ExpressionError> {
        match self.peek() {
            Token::End => Ok(written.text),
            other => Err(self.error(&format!("{} doesn't belong here", other.shown()))),
        }
    }

    fn written(&self, text: String, parts: &[&Written]) -> Result<Written, ExpressionError> {
        let depth = 1 + parts.iter().map(|part| part.depth).max().unwrap_or(0);
        if depth > DEPTH { Err(self.error("nests too deep or chains too long")) } else { Ok(Written { text, depth }) }
    }

    /// `a if b else c`
    fn choice(&mut self) -> Result<Written, ExpressionError> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(self.error("nests too deep or chains too long"));
        }
        let mut chosen = self.any_of()?;
        if let Some(breaks) = self.accept_word("if") {
            let condition = self.any_of()?;
            let (otherwise, other) = match self.accept_word("else") {
                Some(breaks) => (breaks, self.choice()?),
                None => (String::new(), Written { text: "none".to_owned(), depth: 0 }),
            };
            let text = format!("({}{breaks} if {}{otherwise} else {})", chosen.text, condition.text, other.text);
            chosen = self.written(text, &[&chosen, &condition, &other])?;
        }
        self.depth -= 1;
        Ok(chosen)
    }

    fn any_of(&mut self) -> Result<Written, ExpressionError> {
        self.chain("or", Self::all_of)
    }

    fn all_of(&mut self) -> Result<Written, ExpressionError> {
        self.chain("and", Self::negation)
    }

    /// `a and b and c`, grouped as a balanced tree, which means the same and stays shallow.
    fn chain(
        &mut self,
        word: &str,
        operand: impl Fn(&mut Self) -> Result<Written, ExpressionError>,
    ) -> Result<Written, ExpressionError> {
        let mut operands = vec![operand(self)?];
        while let Some(breaks) = self.accept_word(word) {
            let mut next = operand(self)?;
            next.text.insert_str(0, &breaks);
            operands.push(next);
        }
        while operands.len() > 1 {
            let mut pairs = Vec::with_capacity(operands.len().div_ceil(2));
            let mut left = operands.into_iter();
            while let Some(a) = left.next() {
                pairs.push(match left.next() {
                    Some(b) => self.written(format!("({} {word} {})", a.text, b.text), &[&a, &b])?,
                    None => a,
                });
            }
            operands = pairs;
        }
        Ok(operands.remove(0))
    }

    fn negation(&mut self) -> Result<Written, ExpressionError> {
        let mut negated = None;
        while let Some(breaks) = self.accept_word("not") {
            negated = match negated {
                None => Some((true, breaks)),
                Some((odd, before)) => Some((!odd, before + &breaks)),
            };
        }
        let inner = self.comparison()?;
        match negated {
            None => Ok(inner),
            Some((true, breaks)) => self.written(format!("({breaks}not {})", inner.text), &[&inner]),
            Some((false, breaks)) => self.written(format!("({breaks}not (not {}))", inner.text), &[&inner]),
        }
    }

    /// One comparison: `a < b < c` reads differently in different languages.
    fn comparison(&mut self) -> Result<Written, ExpressionError> {
        let left = self.sum()?;
        let Some((operator, breaks)) = self.comparing()? else { return Ok(left) };
        let right = self.sum()?;
        let (a, b) = (&left.text, &right.text);
        let text = match operator {
            "==" | "!=" => format!("({a}{breaks} {operator} {b})"),
            "not in" => format!("(not _in({a},{breaks} {b}))"),
            "in" => format!("_in({a},{breaks} {b})"),
            "<" => format!("_lt({a},{breaks} {b})"),
            "<=" => format!("_le({a},{breaks} {b})"),
            ">" => format!("_gt({a},{breaks} {b})"),
            _ => format!("_ge({a},{breaks} {b})"),
        };
        if self.comparing()?.is_some() {
            return Err(self.error("compares more than two things at a time: join comparisons with `and`"));
        }
        self.written(text, &[&left, &right])
    }

    fn comparing(&mut self) -> Result<Option<(&'static str, String)>, ExpressionError> {
        for sign in ["==", "!=", "<=", ">=", "<", ">"] {
            if let Some(breaks) = self.accept_sign(sign) {
                return Ok(Some((sign, breaks)));
            }
        }
        if let Some(breaks) = self.accept_word("in") {
            return Ok(Some(("in", breaks)));
        }
        match self.accept_word("not") {
            Some(before) => match self.accept_word("in") {
                Some(breaks) => Ok(Some(("not in", before + &breaks))),
                None => Err(self.error("`in` is missing after `not`")),
            },
            None => Ok(None),
        }
    }

    fn sum(&mut self) -> Result<Written, ExpressionError> {
        let mut left = self.product()?;
        loop {
            let (adds, breaks) = match (self.accept_sign("+"), self.accept_sign("-")) {
                (Some(breaks), _) => (true, breaks),
                (None, Some(breaks)) => (false, breaks),
                (None, None) => return Ok(left),
            };
            let right = self.product()?;
            let (a, b) = (&left.text, &right.text);
            let text = if adds { format!("_add({a},{breaks} {b})") } else { format!("({a}{breaks} - {b})") };
            left = self.written(text, &[&left, &right])?;
        }
    }

    fn product(&mut self) -> Result<Written, ExpressionError> {
        let mut left = self.unary()?;
        loop {
            let found = ["//", "/", "%"].into_iter().find(|sign| *self.peek() == Token::Sign(sign));
            let Some(sign) = found else {
                return match self.peek() {
                    Token::Sign("*" | "**") => Err(self.error("`*` is not part of the language: use mul(a, b)")),
                    Token::Sign("~") => Err(self.error("`~` is not part of the language: use concat(a, b)")),
                    _ => Ok(left),
                };
            };
            let (_, breaks) = self.take();
            let right = self.unary()?;
            left = self.written(format!("({}{breaks} {sign} {})", left.text, right.text), &[&left, &right])?;
        }
    }

    /// A sign binds tighter than a filter, as in Jinja: `-1|abs` is 1.
    fn unary(&mut self) -> Result<Written, ExpressionError> {
        let Some(breaks) = self.accept_sign("-") else {
            let step = self.steps()?;
            return self.filters(step);
        };
        if *self.peek() == Token::Sign("-") {
            return Err(self.error("two signs in a row"));
        }
        let inner = self.steps()?;
        let negative = self.written(format!("{breaks}(-{})", inner.text), &[&inner])?;
        self.filters(negative)
    }

    /// `a.b["c"]`
    fn steps(&mut self) -> Result<Written, ExpressionError> {
        let mut base = self.primary()?;
        loop {
            if let Some(breaks) = self.accept_sign(".") {
                let (Token::Name(name), more) = self.take() else {
                    return Err(self.error("a name is missing after `.`"));
                };
                if *self.peek() == Token::Sign("(") {
                    return Err(self.error("values have no methods: use a filter, as in `x|length`"));
                }
                base = self.written(format!("{}{breaks}{more}.{name}", base.text), &[&base])?;
            } else if let Some(breaks) = self.accept_sign("[") {
                let index = self.choice()?;
                if *self.peek() == Token::Sign(":") {
                    return Err(
                        self.error("slices are not part of the language: use the filters first, last or truncate")
                    );
                }
                let end = self.expect_sign("]")?;
                base = self.written(format!("{}{breaks}[{}{end}]", base.text, index.text), &[&base, &index])?;
            } else if *self.peek() == Token::Sign("(") {
                return Err(self.error("only functions can be called"));
            } else {
                return Ok(base);
            }
        }
    }

    /// `a|filter(b) is test(c)`
    fn filters(&mut self, mut base: Written) -> Result<Written, ExpressionError> {
        loop {
            if let Some(breaks) = self.accept_sign("|") {
                let name = self.known("filter", FILTERS)?;
                let (arguments, depth) = self.arguments()?;
                let text = format!("({}{breaks}|{name}{arguments})", base.text);
                base = self.written(text, &[&base, &Written { text: String::new(), depth }])?;
            } else if let Some(breaks) = self.accept_word("is") {
                let not = self.accept_word("not").map_or_else(String::new, |breaks| format!("{breaks} not"));
                let name = self.known("test", TESTS)?;
                let (arguments, depth) = self.arguments()?;
                let text = format!("({}{breaks} is{not} {name}{arguments})", base.text);
                base = self.written(text, &[&base, &Written { text: String::new(), depth }])?;
            } else {
                return Ok(base);
            }
        }
    }

    fn known(&mut self, what: &str, all: &[&'static str]) -> Result<String, ExpressionError> {
        let error = |parser: &Self, found: String| {
            parser.error(&format!("{found} is not a {what}: use one of {}", all.join(", ")))
        };
        match self.peek().clone() {
            Token::Name(name) if all.contains(&name) => {
                let (_, breaks) = self.take();
                Ok(format!("{breaks}{name}"))
            }
            other => Err(error(self, other.shown())),
        }
    }

    /// `(a, b)`, or nothing.
    fn arguments(&mut self) -> Result<(String, usize), ExpressionError> {
        let Some(breaks) = self.accept_sign("(") else { return Ok((String::new(), 0)) };
        let (list, depth) = self.list(")")?;
        Ok((format!("{breaks}({list})"), depth))
    }

    /// Expressions between commas, up to `end`.
    fn list(&mut self, end: &str) -> Result<(String, usize), ExpressionError> {
        let (mut list, mut depth) = (String::new(), 0);
        loop {
            if let Some(breaks) = self.accept_sign(end) {
                return Ok((list + &breaks, depth));
            }
            let item = self.choice()?;
            depth = depth.max(item.depth);
            list.push_str(&item.text);
            if *self.peek() == Token::Sign("=") {
                return Err(self.error("arguments have no names"));
            }
            if *self.peek() != Token::Sign(end) {
                list.push_str(&self.expect_sign(",")?);
                list.push_str(", ");
            }
        }
    }

    fn primary(&mut self) -> Result<Written, ExpressionError> {
        let (token, breaks) = match self.peek() {
            Token::End | Token::Sign("*" | "~" | "**" | "=" | ")" | "]" | "}" | ",") => {
                return Err(self.error(&format!("something is missing before {}", self.peek().shown())));
            }
            _ => self.take(),
        };
        let (text, depth) = match token {
            Token::Number(number) => (number.to_owned(), 0),
            Token::Text(text) => (quoted(&text), 0),
            Token::Name(name) => self.name(name)?,
            Token::Sign("(") => {
                let inner = self.choice()?;
                let end = self.expect_sign(")")?;
                (format!("({}{end})", inner.text), inner.depth)
            }
            Token::Sign("[") => {
                let (list, depth) = self.list("]")?;
                (format!("[{list}]"), depth)
            }
            Token::Sign("{") => self.map()?,
            other => return Err(self.error(&format!("{} doesn't belong here", other.shown()))),
        };
        self.written(breaks + &text, &[&Written { text: String::new(), depth }])
    }

    /// A literal, a function's call or a variable.
    fn name(&mut self, name: &str) -> Result<(String, usize), ExpressionError> {
        match name {
            "true" | "True" => return Ok(("true".to_owned(), 0)),
            "false" | "False" => return Ok(("false".to_owned(), 0)),
            "none" | "None" | "null" => return Ok(("none".to_owned(), 0)),
            keyword if KEYWORDS.contains(&keyword) => {
                return Err(self.error(&format!("`{keyword}` doesn't belong here")));
            }
            _ => {}
        }
        if *self.peek() == Token::Sign("(") {
            if !FUNCTIONS.contains(&name) {
                return Err(self.error(&format!("`{name}` is not a function: use one of {}", FUNCTIONS.join(", "))));
            }
            let (arguments, depth) = self.arguments()?;
            return Ok((format!("_{name}{arguments}"), depth));
        }
        let known = match self.names {
            Some(names) => names.contains(&name),
            None => is_name(name) || name == "loop",
        };
        if !known {
            let names = self.names.map_or_else(String::new, |names| format!(": use one of {}", names.join(", ")));
            return Err(self.error(&format!("`{name}` is not a variable{names}")));
        }
        Ok((name.to_owned(), 0))
    }

    /// `{"name": a}`
    fn map(&mut self) -> Result<(String, usize), ExpressionError> {
        let (mut map, mut depth) = ("{".to_owned(), 0);
        loop {
            if let Some(breaks) = self.accept_sign("}") {
                // The space keeps two of them from ending a template's tag.
                return Ok((format!("{map}{breaks} }}"), depth));
            }
            let (Token::Text(name), breaks) = self.take() else {
                return Err(self.error("names in a map must be texts, as in {\"name\": x}"));
            };
            let colon = self.expect_sign(":")?;
            let member = self.choice()?;
            depth = depth.max(member.depth);
            map.push_str(&format!("{breaks}{}{colon}: {}", quoted(&name), member.text));
            if *self.peek() != Token::Sign("}") {
                map.push_str(&self.expect_sign(",")?);
                map.push_str(", ");
            }
        }
    }
}

/// In the one spelling that the engine reads as we do: JSON's, which escapes quotes, backslashes and control characters.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
