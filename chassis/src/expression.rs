//! The one language for conditions, mappings and templates: a bounded subset of Jinja, run by `minijinja`.
//!
//! [`syntax`] reads a source by our own grammar and writes it anew, fully parenthesised, for the engine; what the grammar
//! doesn't know is refused there, and orderings and sums become calls of checked functions. [`function`] holds the
//! functions, filters and tests, [`convert`] the filters between systems' forms, [`value`] the data they see, [`template`] whole texts.
//!
//! Guarantees, for sources written by strangers: evaluation ends, its memory and its work are bounded, and it sees
//! nothing but the names it was given. A missing last step is none, going deeper is an error; ordering two kinds, adding
//! anything but numbers and using what is undefined are errors. Errors name the line and hold no data.
//!
//! Source: jinja.palletsprojects.com/templates for the meaning of what is left.

mod convert;
mod function;
mod meter;
mod syntax;
mod template;
mod value;

use std::{fmt, sync::LazyLock};

use minijinja::Environment;

pub use self::{template::Template, value::Value};

/// The longest source, in bytes.
pub const SOURCE_BYTES: usize = 16 * 1024;

/// What conditions and transformations of a change see: its `new` and `old` record and the `event` around them.
pub const OF_CHANGE: &[&str] = &["event", "new", "old"];

/// Steps of the engine for one evaluation.
const FUEL: u64 = 50_000;

/// Why a source is refused, or an evaluation came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ExpressionError {
    /// The leaf of a mapping, as a path from its root (`$.address.city`); the name of a template; none for a single expression.
    pub at: Option<String>,
    /// Line of the source, from 1.
    pub line: usize,
    /// What is wrong, without any of the data.
    pub reason: String,
}

impl fmt::Display for ExpressionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(at) = &self.at {
            write!(f, "{at}: ")?;
        }
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl ExpressionError {
    fn new(line: usize, reason: impl Into<String>) -> Self {
        Self { at: None, line, reason: reason.into() }
    }

    fn within(mut self, at: impl Into<String>) -> Self {
        self.at = Some(at.into());
        self
    }
}

/// The engine's own texts can quote data for a few kinds; our functions' never do.
impl From<minijinja::Error> for ExpressionError {
    fn from(error: minijinja::Error) -> Self {
        use minijinja::ErrorKind::{InvalidOperation, OutOfFuel, UndefinedError, WriteFailure};
        let line = error.line().unwrap_or(1);
        let reason = match error.kind() {
            OutOfFuel => "takes too many steps".to_owned(),
            UndefinedError => "uses something that is undefined".to_owned(),
            WriteFailure => "gives too long a text".to_owned(),
            InvalidOperation => match error.detail() {
                Some(detail) if detail.starts_with("unable to calculate") => "can't be calculated".to_owned(),
                Some(detail) => detail.to_owned(),
                None => "is not possible with these values".to_owned(),
            },
            kind => error.detail().map_or_else(|| kind.to_string(), str::to_owned),
        };
        Self::new(line, reason)
    }
}

/// The engine without anything of its own: strict about what is undefined, on fuel.
static ENGINE: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut engine = Environment::empty();
    engine.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    engine.set_fuel(Some(FUEL));
    function::register(&mut engine);
    engine
});

/// One expression with a result of any type. Compile once, evaluate often: about a microsecond each.
#[derive(Debug)]
pub struct Expression(minijinja::Expression<'static, 'static>);

impl Expression {
    /// Compiles `source`, which may use the variables `names`.
    ///
    /// # Errors
    /// The first thing that the language doesn't have, or that is too long or too deep.
    pub fn compile(source: &str, names: &[&str]) -> Result<Self, ExpressionError> {
        if source.len() > SOURCE_BYTES {
            return Err(ExpressionError::new(1, "is longer than 16 KiB"));
        }
        let rewritten = syntax::rewrite(source, 1, Some(names))?;
        Ok(Self(ENGINE.compile_expression_owned(rewritten)?))
    }

    /// Evaluates it over `scope` (see [`Value::scope`]).
    ///
    /// # Errors
    /// What the data made impossible; a result longer than a mebibyte.
    pub fn eval(&self, scope: &Value) -> Result<serde_json::Value, ExpressionError> {
        meter::run(|| self.result(scope))
    }

    /// Whether it holds: none, false, zero and what is empty are no.
    ///
    /// # Errors
    /// What the data made impossible.
    pub fn holds(&self, scope: &Value) -> Result<bool, ExpressionError> {
        meter::run(|| {
            let result = self.0.eval(scope.0.clone())?;
            if result.is_undefined() {
                return Err(ExpressionError::new(1, "uses something that is undefined"));
            }
            Ok(result.is_true())
        })
    }

    fn result(&self, scope: &Value) -> Result<serde_json::Value, ExpressionError> {
        let result = self.0.eval(scope.0.clone())?;
        Ok(value::to_json(&result)?)
    }
}

/// An expression that is taken as yes or no: none, false, zero and what is empty are no.
#[derive(Debug)]
pub struct Condition(Expression);

impl Condition {
    /// Compiles `source` over [`OF_CHANGE`].
    ///
    /// # Errors
    /// As [`Expression::compile`].
    pub fn compile(source: &str) -> Result<Self, ExpressionError> {
        Expression::compile(source, OF_CHANGE).map(Self)
    }

    /// Whether it holds. An error is not a yes: callers store why.
    ///
    /// # Errors
    /// What the data made impossible.
    pub fn eval(&self, scope: &Value) -> Result<bool, ExpressionError> {
        self.0.holds(scope)
    }
}

/// A JSON structure whose strings are expressions with typed results; other leaves stand for themselves.
#[derive(Debug)]
pub struct Mapping(Node);

#[derive(Debug)]
enum Node {
    Constant(serde_json::Value),
    /// With its path from the root.
    Leaf(String, Expression),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Mapping {
    /// Compiles the JSON text `source`, whose expressions may use the variables `names`.
    ///
    /// # Errors
    /// A text that is not JSON or longer than 16 KiB; as [`Expression::compile`], with the path of the leaf.
    pub fn compile(source: &str, names: &[&str]) -> Result<Self, ExpressionError> {
        if source.len() > SOURCE_BYTES {
            return Err(ExpressionError::new(1, "is longer than 16 KiB"));
        }
        let json = serde_json::from_str(source);
        let json = json.map_err(|error| ExpressionError::new(error.line(), format!("is not JSON: {error}")))?;
        Ok(Self(Node::compile(json, "$", names)?))
    }

    /// Evaluates every leaf over `scope` (see [`Value::scope`]).
    ///
    /// # Errors
    /// What the data made impossible, with the path of the leaf; a result longer than a mebibyte.
    pub fn apply(&self, scope: &Value) -> Result<serde_json::Value, ExpressionError> {
        meter::run(|| self.0.apply(scope))
    }
}

impl Node {
    fn compile(json: serde_json::Value, at: &str, names: &[&str]) -> Result<Self, ExpressionError> {
        Ok(match json {
            serde_json::Value::String(source) => {
                let expression = Expression::compile(&source, names).map_err(|error| error.within(at))?;
                Self::Leaf(at.to_owned(), expression)
            }
            serde_json::Value::Array(items) => {
                let compile = |(index, item)| Self::compile(item, &format!("{at}[{index}]"), names);
                Self::List(items.into_iter().enumerate().map(compile).collect::<Result<_, _>>()?)
            }
            serde_json::Value::Object(members) => {
                let compile = |(name, member): (String, _)| {
                    Self::compile(member, &format!("{at}.{name}"), names).map(|node| (name, node))
                };
                Self::Map(members.into_iter().map(compile).collect::<Result<_, _>>()?)
            }
            constant => Self::Constant(constant),
        })
    }

    fn apply(&self, scope: &Value) -> Result<serde_json::Value, ExpressionError> {
        Ok(match self {
            Self::Constant(json) => json.clone(),
            Self::Leaf(at, expression) => expression.result(scope).map_err(|error| error.within(at))?,
            Self::List(items) => items.iter().map(|item| item.apply(scope)).collect::<Result<_, _>>()?,
            Self::Map(members) => {
                let apply = |(name, node): &(String, Node)| node.apply(scope).map(|json| (name.clone(), json));
                serde_json::Value::Object(members.iter().map(apply).collect::<Result<_, _>>()?)
            }
        })
    }
}

#[cfg(test)]
mod tests;
