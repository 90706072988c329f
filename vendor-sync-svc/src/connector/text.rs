//! Texts with expressions in braces: paths, headers, query parameters, signed strings. Pure.

use chassis::expression::{Expression, ExpressionError, Value};

/// The longest text that one may give.
const RESULT_BYTES: usize = 16 * 1024;
const PIECES: usize = 64;

/// Literal text with expressions in it.
#[derive(Debug)]
pub(crate) struct Text(Vec<Piece>);

#[derive(Debug)]
enum Piece {
    Literal(String),
    Result(Expression),
}

impl Text {
    /// Compiles `Bearer {settings.token}`; `{{` and `}}` are braces.
    pub(super) fn compile(source: &str, names: &[&str]) -> Result<Self, ExpressionError> {
        let (mut pieces, mut literal, mut rest) = (Vec::new(), String::new(), source);
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let (brace, after) = (&rest[at..=at], &rest[at + 1..]);
            if let Some(escaped) = after.strip_prefix(brace) {
                literal.push_str(brace);
                rest = escaped;
                continue;
            }
            let end = (brace == "{").then(|| closing(after)).flatten();
            let end = end.ok_or_else(|| wrong("a brace has no partner: write {{ or }} for one that is meant"))?;
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Result(Expression::compile(&after[..end], names)?));
            rest = &after[end + 1..];
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        if pieces.len() > PIECES {
            return Err(wrong("has more than 64 pieces"));
        }
        Ok(Self(pieces))
    }

    /// Whether it begins with an expression, which then decides over what follows.
    pub(super) fn begins_with_expression(&self) -> bool {
        matches!(self.0.first(), Some(Piece::Result(_)))
    }

    /// The text; none where it is one expression that gives none. Each result passes through `encode`.
    pub(super) fn write(
        &self,
        scope: &Value,
        encode: impl Fn(String) -> Result<String, String>,
    ) -> Result<Option<String>, String> {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Result(expression) => match printed(&expression.eval(scope).map_err(|e| e.to_string())?)? {
                    None if self.0.len() == 1 => return Ok(None),
                    result => text.push_str(&encode(result.unwrap_or_default())?),
                },
            }
            if text.len() > RESULT_BYTES {
                return Err("gives more than 16 KiB".to_owned());
            }
        }
        Ok(Some(text))
    }
}

/// A result as text; none is none, a list or map is an error.
pub(super) fn printed(value: &serde_json::Value) -> Result<Option<String>, String> {
    match value {
        serde_json::Value::Null => Ok(None),
        serde_json::Value::String(text) => Ok(Some(text.clone())),
        serde_json::Value::Bool(_) | serde_json::Value::Number(_) => Ok(Some(value.to_string())),
        _ => Err("gives a list or a map where a text is wanted".to_owned()),
    }
}

/// Where the expression at the beginning of `text` ends: at the brace that isn't in a map or a text.
fn closing(text: &str) -> Option<usize> {
    let (mut quote, mut escaped, mut maps) = (None, false, 0_usize);
    for (at, c) in text.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None => match c {
                '\'' | '"' => quote = Some(c),
                '{' => maps += 1,
                '}' if maps == 0 => return Some(at),
                '}' => maps -= 1,
                _ => {}
            },
        }
    }
    None
}

fn wrong(reason: &str) -> ExpressionError {
    ExpressionError { at: None, line: 1, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn write(source: &str) -> Result<Option<String>, String> {
        let text = Text::compile(source, &["a"]).map_err(|error| error.to_string())?;
        text.write(&Value::scope([("a", Value::of(&json!({"b": "x/y", "n": 7, "l": [1]})))]), |result| {
            Ok(result.replace('/', "%2F"))
        })
    }

    #[test]
    fn results_are_encoded_and_literals_are_not() {
        assert_eq!(write("/p/{a.b}/{a.n}"), Ok(Some("/p/x%2Fy/7".to_owned())));
        assert_eq!(write("{{{a.n}}}"), Ok(Some("{7}".to_owned())));
        assert_eq!(write("{a.n | lookup({'7': 'se}ven'})}!"), Ok(Some("se}ven!".to_owned())));
    }

    #[test]
    fn one_expression_that_gives_none_gives_nothing_and_among_others_it_is_empty() {
        assert_eq!(write("{a.missing}"), Ok(None));
        assert_eq!(write("x{a.missing}"), Ok(Some("x".to_owned())));
    }

    #[test]
    fn what_is_no_text_and_braces_without_partner_are_refused() {
        for source in ["{a.l}", "{a", "a}", "{a.b", "{", "}", "{'}", "{}", "{b}"] {
            assert!(write(source).is_err(), "{source}");
        }
    }
}
