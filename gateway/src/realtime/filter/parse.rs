//! The grammar of filters. Pure.
//!
//! A value goes to the next comma outside of parentheses; `\,` is a comma of its own, and a value in double quotes may
//! hold anything, `\"` and `\\` escaped. The values of `in` stand in parentheses and follow the same rules.

use regex::RegexBuilder;

use super::{Clause, Comparison, FilterError, Literal, Pattern, Test, Truth};

const FILTER_BYTES: usize = 8 * 1024;
const CLAUSES: usize = 16;
const COLUMN_BYTES: usize = 256;
const IN_VALUES: usize = 100;
/// Of a pattern or a regular expression: what matching costs grows with it.
const EXPRESSION_BYTES: usize = 256;
/// Each for a compiled expression and for what it remembers while it runs; `\w+` takes 49 KiB of the first.
const EXPRESSION_MEMORY: usize = 64 * 1024;
const EXPRESSION_DEPTH: u32 = 32;

pub(super) fn clauses(text: &str) -> Result<Vec<Clause>, FilterError> {
    if text.len() > FILTER_BYTES {
        return Err(error("it is longer than 8 KiB"));
    }
    let mut reader = Reader(text.trim());
    let mut clauses = Vec::new();
    while !reader.0.is_empty() {
        if clauses.len() == CLAUSES {
            return Err(error("it has more than 16 conditions"));
        }
        clauses.push(reader.clause()?);
        if !reader.0.is_empty() {
            reader.expect(',')?;
        }
    }
    Ok(clauses)
}

fn error(reason: &str) -> FilterError {
    FilterError(reason.to_owned())
}

/// What is still to be read.
struct Reader<'a>(&'a str);

impl<'a> Reader<'a> {
    fn take(&mut self, prefix: &str) -> bool {
        let rest = self.0.strip_prefix(prefix);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn expect(&mut self, sign: char) -> Result<(), FilterError> {
        let found = self.take(sign.encode_utf8(&mut [0; 4]));
        if found { Ok(()) } else { Err(FilterError(format!("`{sign}` is missing, or a value needs double quotes"))) }
    }

    /// Up to `sign`, which is taken too.
    fn until(&mut self, sign: char) -> Result<&'a str, FilterError> {
        let (taken, rest) = self.0.split_once(sign).ok_or_else(|| FilterError(format!("`{sign}` is missing")))?;
        self.0 = rest;
        Ok(taken)
    }

    fn clause(&mut self) -> Result<Clause, FilterError> {
        self.0 = self.0.trim_start();
        let quoted = if self.0.starts_with('"') { Some(self.quoted()?) } else { None };
        let plain = self.until('=')?.trim();
        let column = quoted.unwrap_or_else(|| plain.to_owned());
        if column.is_empty() || column.len() > COLUMN_BYTES {
            return Err(error("a column must have a name of at most 256 bytes"));
        }
        Ok(Clause { column: column.into(), negated: self.take("not."), test: self.test()? })
    }

    fn test(&mut self) -> Result<Test, FilterError> {
        let compare = |comparison, value: String| Ok(Test::Compare(comparison, Literal::new(&value)));
        match self.until('.')? {
            "eq" => compare(Comparison::Equal, self.value()?),
            "neq" => compare(Comparison::Unequal, self.value()?),
            "lt" => compare(Comparison::Less, self.value()?),
            "lte" => compare(Comparison::AtMost, self.value()?),
            "gt" => compare(Comparison::Greater, self.value()?),
            "gte" => compare(Comparison::AtLeast, self.value()?),
            "in" => self.list(),
            "is" => truth(&self.value()?),
            "isdistinct" => Ok(Test::Distinct(Literal::new(&self.value()?))),
            "like" => like(&self.value()?, false),
            "ilike" => like(&self.value()?, true),
            "match" => expression(&self.value()?, false),
            "imatch" => expression(&self.value()?, true),
            other => Err(FilterError(format!("{other:.20?} is no operator"))),
        }
    }

    fn value(&mut self) -> Result<String, FilterError> {
        if self.0.starts_with('"') { self.quoted() } else { Ok(self.plain(&[','])) }
    }

    /// Up to one of `ends` that stands outside of parentheses and isn't escaped; without blanks at its end.
    fn plain(&mut self, ends: &[char]) -> String {
        let (mut value, mut depth, mut at) = (String::new(), 0_usize, 0);
        let mut chars = self.0.char_indices().peekable();
        while let Some((index, char)) = chars.next() {
            at = index;
            match char {
                '\\' => match chars.next() {
                    Some((_, ',')) => value.push(','),
                    Some((_, escaped)) => value.extend(['\\', escaped]),
                    None => value.push('\\'),
                },
                end if depth == 0 && ends.contains(&end) => break,
                other => {
                    depth = if other == '(' { depth + 1 } else { depth.saturating_sub(usize::from(other == ')')) };
                    value.push(other);
                }
            }
            at = chars.peek().map_or(self.0.len(), |(index, _)| *index);
        }
        self.0 = &self.0[at..];
        value.truncate(value.trim_end().len());
        value
    }

    fn quoted(&mut self) -> Result<String, FilterError> {
        let mut value = String::new();
        let mut chars = self.0.char_indices().skip(1);
        while let Some((index, char)) = chars.next() {
            match char {
                '"' => {
                    self.0 = &self.0[index + 1..];
                    return Ok(value);
                }
                '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
                other => value.push(other),
            }
        }
        Err(error("a double quote is missing"))
    }

    fn list(&mut self) -> Result<Test, FilterError> {
        self.expect('(')?;
        let mut literals = Vec::new();
        while !self.take(")") {
            if !literals.is_empty() {
                self.expect(',')?;
            }
            self.0 = self.0.trim_start();
            let value = if self.0.starts_with('"') { self.quoted()? } else { self.plain(&[',', ')']) };
            literals.push(Literal::new(&value));
            self.0 = self.0.trim_start();
            if literals.len() > IN_VALUES {
                return Err(error("`in` has more than 100 values"));
            }
        }
        Ok(Test::In(literals.into()))
    }
}

fn truth(text: &str) -> Result<Test, FilterError> {
    Ok(Test::Is(match text.to_ascii_lowercase().as_str() {
        "null" => Truth::Null,
        "true" => Truth::True,
        "false" => Truth::False,
        "unknown" => Truth::Unknown,
        _ => return Err(error("`is` takes null, true, false or unknown")),
    }))
}

fn like(text: &str, any_case: bool) -> Result<Test, FilterError> {
    if text.len() > EXPRESSION_BYTES {
        return Err(error("a pattern is longer than 256 bytes"));
    }
    let pattern = Pattern::parse(text, any_case).ok_or_else(|| error("a pattern ends within an escape"))?;
    Ok(Test::Like(pattern))
}

/// `^` and `$` are the text's ends and `.` is any character, as in PostgreSQL; there are no back references.
fn expression(text: &str, any_case: bool) -> Result<Test, FilterError> {
    if text.len() > EXPRESSION_BYTES {
        return Err(error("a regular expression is longer than 256 bytes"));
    }
    let expression = RegexBuilder::new(text)
        .case_insensitive(any_case)
        .dot_matches_new_line(true)
        .size_limit(EXPRESSION_MEMORY)
        .dfa_size_limit(EXPRESSION_MEMORY)
        .nest_limit(EXPRESSION_DEPTH)
        .build();
    expression.map(Test::Match).map_err(|_| error("a regular expression is malformed or too large"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::realtime::row::Scalar;

    fn read(text: &str) -> Vec<Clause> {
        clauses(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn text(literal: &Literal) -> &str {
        let Some(Scalar::Text(text)) = literal.readings().last() else { panic!("a text is always one of them") };
        text
    }

    fn values(filter: &str) -> Vec<String> {
        let value = |clause: Clause| match &clause.test {
            Test::Compare(_, literal) | Test::Distinct(literal) => text(literal).to_owned(),
            Test::In(literals) => literals.iter().map(text).collect::<Vec<_>>().join(";"),
            other => panic!("{other:?} has no values"),
        };
        read(filter).into_iter().map(value).collect()
    }

    #[test]
    fn values_end_where_the_grammar_says() {
        assert_eq!(values("a=eq.1, b=neq.x y ,c=lt.f(1,2)"), ["1", "x y", "f(1,2)"]);
        assert_eq!(values(r#"a=eq."1,b=eq.2""#), ["1,b=eq.2"]);
        assert_eq!(values(r#"a=eq."q\"\\""#), [r#"q"\"#]);
        assert_eq!(values(r#"a=in.(1, "2,)", x\,y ),b=eq.3"#), ["1;2,);x,y", "3"]);
        assert_eq!(values("a=in.()"), [""]);
        assert_eq!(values("a=eq."), [""]);
        assert_eq!(values("a=eq.a=eq.b"), ["a=eq.b"]);
    }

    #[test]
    fn columns_and_negation_are_read() {
        let clause = read(r#" "my, column"=not.eq.1"#).remove(0);
        assert_eq!((&*clause.column, clause.negated), ("my, column", true));
        assert!(read("").is_empty());
    }

    #[test]
    fn what_is_no_filter_is_refused_and_says_why() {
        let many = |count: usize| vec!["a=eq.1"; count].join(",");
        let values = |count: usize| format!("a=in.({})", vec!["1"; count].join(","));
        assert!(clauses(&many(16)).is_ok() && clauses(&values(100)).is_ok());
        for bad in [
            "a",
            "=eq.1",
            "a=eq",
            "a=foo.1",
            "a=not.not.eq.1",
            "a=is.1",
            "a=in.1",
            "a=in.(1",
            r#"a=eq."1"#,
            r#"a=eq."1"2"#,
            r"a=like.\",
            "a=match.(",
            "a=match.(a{1000}){1000}",
            "a=eq.1,b",
            &many(17),
            &values(101),
            &format!("a=match.{}", "a".repeat(257)),
            &format!("a=ilike.{}", "a".repeat(257)),
            &format!("a=eq.{}", "a".repeat(8192)),
        ] {
            let error = clauses(bad).expect_err(bad).to_string();
            assert!(error.starts_with("filter: ") && error.len() < 200, "{error}");
        }
    }
}
