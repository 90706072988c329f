//! SQL's LIKE: `%` is any run of characters, `_` any one, a backslash takes the next as it is. Pure, in no more steps
//! than the text's length times the pattern's, without memory of its own.

/// A pattern.
#[derive(Debug)]
pub(super) struct Pattern {
    tokens: Box<[Token]>,
    any_case: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Token {
    Run,
    One,
    Char(char),
}

impl Pattern {
    /// None for one that ends within an escape. With `any_case`, characters match that are one in lower case.
    pub(super) fn parse(text: &str, any_case: bool) -> Option<Self> {
        let mut tokens = Vec::new();
        let mut chars = text.chars();
        while let Some(char) = chars.next() {
            let token = match char {
                '%' => Token::Run,
                '_' => Token::One,
                '\\' => Token::Char(chars.next()?),
                char => Token::Char(char),
            };
            if token != Token::Run || tokens.last() != Some(&Token::Run) {
                tokens.push(if let Token::Char(char) = token { Token::Char(folded(char, any_case)) } else { token });
            }
        }
        Some(Self { tokens: tokens.into(), any_case })
    }

    /// After a mismatch only the last `%` is given one more character: what it then fails to find, no earlier one would.
    pub(super) fn matches(&self, text: &str) -> bool {
        let (mut at, mut rest) = (0, text.chars());
        let mut retry = None;
        loop {
            let token = self.tokens.get(at);
            if token == Some(&Token::Run) {
                at += 1;
                retry = Some((at, rest.clone()));
                continue;
            }
            let next = rest.next();
            match (token, next) {
                (None, None) => return true,
                (Some(_), None) => return false,
                (Some(token), Some(char)) if self.fits(*token, char) => at += 1,
                _ => {
                    let Some((after, from)) = &mut retry else { return false };
                    from.next();
                    (at, rest) = (*after, from.clone());
                }
            }
        }
    }

    fn fits(&self, token: Token, char: char) -> bool {
        token == Token::One || token == Token::Char(folded(char, self.any_case))
    }
}

fn folded(char: char, any_case: bool) -> char {
    // One character for one: only `İ` has two in lower case, and `i` is the first of them.
    if any_case { char.to_lowercase().next().unwrap_or(char) } else { char }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn like(text: &str, pattern: &str) -> bool {
        Pattern::parse(pattern, false).expect("a pattern").matches(text)
    }

    /// The definition, without care for time.
    fn plainly(text: &[char], pattern: &[char]) -> bool {
        match pattern {
            [] => text.is_empty(),
            ['%', rest @ ..] => (0..=text.len()).any(|skip| plainly(&text[skip..], rest)),
            [first, rest @ ..] => !text.is_empty() && (*first == '_' || *first == text[0]) && plainly(&text[1..], rest),
        }
    }

    #[test]
    fn the_signs_mean_what_sql_says() {
        assert!(like("a%b", r"a\%b") && !like("axb", r"a\%b") && like(r"a\b", r"a\\b"));
        assert!(like("", "%") && like("", "") && !like("", "_") && like("äö\n", "__%"));
        assert!(Pattern::parse(r"a\", false).is_none());
        assert!(Pattern::parse("STRASSE%Ö", true).expect("a pattern").matches("Strasse 5ö"));
    }

    #[test]
    fn a_hard_pattern_on_a_long_text_ends() {
        assert!(!like(&"a".repeat(100_000), &format!("%{}b", "_a".repeat(100))));
    }

    proptest! {
        #[test]
        fn it_is_what_the_definition_says(text in "[ab]{0,8}", pattern in "[ab%_]{0,8}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(like(&text, &pattern), plainly(&chars(&text), &chars(&pattern)));
        }
    }
}
