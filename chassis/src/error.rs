//! The one error that crosses a service's surface, and its form on the wire (google.rpc details).
//!
//! Domain functions return it where a caller can act on the kind; the texts name the thing and the next step and hold
//! no secret. Internal errors are logged here, and the caller is told no more than that.

use std::{borrow::Cow, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// What a caller can do about a failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request itself is wrong; trying it again can't help.
    #[error("{field}: {reason}")]
    Invalid {
        /// Path of the field at fault: `event.type`.
        field: Cow<'static, str>,
        /// What it must be.
        reason: String,
    },
    /// No such thing, or it belongs to another organization.
    #[error("{0} not found")]
    NotFound(Cow<'static, str>),
    /// The name is taken by something else.
    #[error("{0}")]
    AlreadyExists(String),
    /// Somebody else changed it meanwhile: read again, then retry.
    #[error("{0}")]
    Aborted(String),
    /// The state it is in doesn't allow it.
    #[error("{0}")]
    FailedPrecondition(String),
    /// No credentials, or none that we know.
    #[error("{0}")]
    Unauthenticated(Cow<'static, str>),
    /// Known, but not allowed.
    #[error("{0}")]
    PermissionDenied(String),
    /// Over a limit; try again after `retry_after`.
    #[error("{reason}")]
    Exhausted {
        /// Which limit.
        reason: String,
        /// When it may work.
        retry_after: Duration,
    },
    /// A position that this log doesn't have.
    #[error("{reason}")]
    OutOfRange {
        /// Why.
        reason: String,
        /// What the caller needs to resync: `log_id`, `oldest`, `head`.
        metadata: Vec<(&'static str, String)>,
    },
    /// Nothing is wrong with the request; the same one may succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// Ours. The text is logged, never sent.
    #[error("internal error")]
    Internal(#[source] anyhow::Error),
}

/// What functions of the domain return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How long a caller is told to wait when a store or a peer is away.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Error {
    /// The field `field` must be something else.
    pub fn invalid(field: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }

    /// Ours, with what was being done.
    pub fn internal(error: impl Into<anyhow::Error>) -> Self {
        Self::Internal(error.into())
    }

    /// The same error with its field below `parent`: `type` becomes `event.type`.
    #[must_use]
    pub fn within(self, parent: &str) -> Self {
        match self {
            Self::Invalid { field, reason } => Self::Invalid { field: format!("{parent}.{field}").into(), reason },
            other => other,
        }
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Exhausted { .. } | Self::Aborted(_))
    }

    /// The gRPC code it is sent with.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid { .. } => Code::InvalidArgument,
            Self::NotFound(_) => Code::NotFound,
            Self::AlreadyExists(_) => Code::AlreadyExists,
            Self::Aborted(_) => Code::Aborted,
            Self::FailedPrecondition(_) => Code::FailedPrecondition,
            Self::Unauthenticated(_) => Code::Unauthenticated,
            Self::PermissionDenied(_) => Code::PermissionDenied,
            Self::Exhausted { .. } => Code::ResourceExhausted,
            Self::OutOfRange { .. } => Code::OutOfRange,
            Self::Unavailable(_) => Code::Unavailable,
            Self::Internal(_) => Code::Internal,
        }
    }

    fn details(&self) -> ErrorDetails {
        let mut details = ErrorDetails::new();
        match self {
            Self::Invalid { field, reason } => {
                details.add_bad_request_violation(field.as_ref(), reason);
            }
            Self::Exhausted { retry_after, .. } => {
                details.set_retry_info(Some(*retry_after));
            }
            Self::Unavailable(_) => {
                details.set_retry_info(Some(RETRY_AFTER));
            }
            Self::OutOfRange { metadata, .. } => {
                let metadata = metadata.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
                details.set_error_info(
                    "POSITION_OUT_OF_RANGE",
                    "wedsync",
                    metadata.collect::<std::collections::HashMap<_, _>>(),
                );
            }
            _ => {}
        }
        details
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        if let Error::Internal(cause) = &error {
            tracing::error!(error = format!("{cause:#}"), "internal error");
        }
        Status::with_error_details(error.code(), error.to_string(), error.details())
    }
}

/// What a peer answered, as our own caller should see it: a peer that is away is retryable, its other refusals pass through.
impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::InvalidArgument => {
                let violation =
                    status.get_details_bad_request().and_then(|bad| bad.field_violations.into_iter().next());
                match violation {
                    Some(violation) => Self::Invalid { field: violation.field.into(), reason: violation.description },
                    None => Self::Invalid { field: "request".into(), reason: message },
                }
            }
            Code::NotFound => Self::NotFound(message.trim_end_matches(" not found").to_owned().into()),
            Code::AlreadyExists => Self::AlreadyExists(message),
            Code::Aborted => Self::Aborted(message),
            Code::FailedPrecondition => Self::FailedPrecondition(message),
            Code::Unauthenticated => Self::Unauthenticated(message.into()),
            Code::PermissionDenied => Self::PermissionDenied(message),
            Code::ResourceExhausted => {
                let retry_after =
                    status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap_or(RETRY_AFTER);
                Self::Exhausted { reason: message, retry_after }
            }
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => Self::Unavailable(message),
            _ => Self::Internal(anyhow::anyhow!("peer answered {:?}: {message}", status.code())),
        }
    }
}

/// A store that doesn't take something for any other reason than the row itself or our statement takes it later: whoever
/// gives up on what isn't retryable must never do so because a store is locked, full, read-only or away.
impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as Sql;
        match &error {
            Sql::Database(cause) if cause.code().is_some_and(|code| is_at_fault(&code)) => {}
            Sql::Database(cause) => {
                return Self::Unavailable(format!("the store can't take it now: {}", cause.message()));
            }
            Sql::PoolTimedOut
            | Sql::PoolClosed
            | Sql::Io(_)
            | Sql::Tls(_)
            | Sql::Protocol(_)
            | Sql::BeginFailed
            | Sql::WorkerCrashed => return Self::Unavailable(format!("the store is away: {error}")),
            _ => {}
        }
        Self::Internal(anyhow::Error::new(error).context("store"))
    }
}

/// Whether a code says that the row or our statement is at fault. PostgreSQL: 0A (not supported), 21 (cardinality), 22 (data),
/// 23 (constraint), 42 (syntax or access; but a right that we lack may be given again), 44 (check option), 54 (a row beyond
/// the limits), P0 (a trigger's word). SQLite, in the low byte of the extended code: 1 (error), 18 (too big), 19
/// (constraint), 20 (mismatch), 21 (misuse), 25 (range).
/// Sources: PostgreSQL appendix A, sqlite.org/rescode.html.
fn is_at_fault(code: &str) -> bool {
    if code.len() == 5 {
        return ["0A", "21", "22", "23", "42", "44", "54", "P0"].contains(&&code[..2]) && code != "42501";
    }
    code.parse::<u32>().is_ok_and(|code| [1, 18, 19, 20, 21, 25].contains(&(code & 0xff)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_request_keeps_its_field_across_the_wire() {
        let sent = Error::invalid("type", "must not be empty").within("event");
        let Error::Invalid { field, reason } = Error::from(Status::from(sent)) else { panic!("the kind changed") };
        assert_eq!((field.as_ref(), reason.as_str()), ("event.type", "must not be empty"));
    }

    #[test]
    fn an_internal_cause_is_never_sent() {
        let status = Status::from(Error::internal(anyhow::anyhow!("password is hunter2")));
        assert_eq!(status.message(), "internal error");
    }

    #[test]
    fn only_the_row_and_our_statement_are_at_fault_for_good() {
        // Busy, locked, full, read-only, no file, no memory, I/O; cancelled, full, locked, read-only, I/O, password, gone.
        let passing = ["5", "261", "13", "8", "1032", "14", "7", "10", "57014", "53100", "55P03", "40001", "25006"];
        for code in passing.into_iter().chain(["58030", "28P01", "3D000", "XX000", "42501"]) {
            assert!(!is_at_fault(code), "{code}");
        }
        for code in ["2067", "1", "18", "25", "23505", "42P01", "22021", "54000"] {
            assert!(is_at_fault(code), "{code}");
        }
    }

    #[test]
    fn a_connection_that_breaks_in_any_way_is_a_store_that_is_away() {
        for broken in
            [sqlx::Error::Protocol("cut".into()), sqlx::Error::Tls("expired".into()), sqlx::Error::BeginFailed]
        {
            assert!(Error::from(broken).is_retryable());
        }
        assert!(!Error::from(sqlx::Error::RowNotFound).is_retryable());
    }
}
