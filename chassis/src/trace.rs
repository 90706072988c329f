//! Which piece of work this is part of, across services: W3C Trace Context (w3.org/TR/trace-context), `traceparent` only.
//!
//! The current context is task-local: the server sets it for each call, [`crate::tasks::Tasks`] carries it into the
//! tasks that a call starts, and clients send a child of it along.

use std::{fmt, str::FromStr};

use tonic::metadata::MetadataMap;

use crate::{error::Error, secret::random};

/// The name of the header, and of the metadata key.
pub const TRACEPARENT: &str = "traceparent";

tokio::task_local! {
    static CURRENT: TraceContext;
}

/// One step of a trace: `00-<trace id>-<span id>-<flags>`, printed by `to_string` and read by `parse`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
    flags: u8,
}

impl TraceContext {
    /// The first step of a new trace.
    #[must_use]
    pub fn new_root() -> Self {
        Self { trace: random(), span: random(), flags: 1 }
    }

    /// The next step of the same trace.
    #[must_use]
    pub fn new_child(&self) -> Self {
        Self { span: random(), ..*self }
    }

    /// Takes what a caller sent. Fields that a later version appends are ignored, as the standard asks.
    ///
    /// # Errors
    /// `Error::Invalid` for anything else.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::read(text).ok_or_else(|| Error::invalid(TRACEPARENT, "must be 00-<32 hex>-<16 hex>-<2 hex>"))
    }

    fn read(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let version = fields.next()?;
        let [version_byte] = hex_bytes::<1>(version)?;
        let trace = hex_bytes::<16>(fields.next()?)?;
        let span = hex_bytes::<8>(fields.next()?)?;
        let [flags] = hex_bytes::<1>(fields.next()?)?;
        let later = version_byte != 0;
        let well_formed =
            version_byte != 0xff && trace != [0; 16] && span != [0; 8] && (later || fields.next().is_none());
        well_formed.then_some(Self { trace, span, flags: flags & 1 })
    }

    /// The trace's id: 32 hex digits.
    #[must_use]
    pub fn trace_id(&self) -> String {
        hex::encode(self.trace)
    }

    /// Adds it to a call's metadata.
    pub fn inject(&self, metadata: &mut MetadataMap) {
        let value = self.to_string().parse().expect("hex digits and dashes are ASCII");
        metadata.insert(TRACEPARENT, value);
    }

    /// What the caller sent, if it is well-formed; else nothing, as the standard asks.
    #[must_use]
    pub fn extract(headers: &http::HeaderMap) -> Option<Self> {
        headers.get(TRACEPARENT)?.to_str().ok().and_then(Self::read)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", hex::encode(self.trace), hex::encode(self.span), self.flags)
    }
}

impl FromStr for TraceContext {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

/// The step that the running task is in, if any.
#[must_use]
pub fn current() -> Option<TraceContext> {
    CURRENT.try_with(|context| *context).ok()
}

/// Runs `future` as step `context`.
pub async fn within<F: Future>(context: TraceContext, future: F) -> F::Output {
    CURRENT.scope(context, future).await
}

/// Takes the step that this task is in along, to wherever `future` will run.
pub(crate) fn carry<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let context = current();
    async move {
        match context {
            Some(context) => CURRENT.scope(context, future).await,
            None => future.await,
        }
    }
}

/// Lower-case hex only: the standard refuses capitals.
fn hex_bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (lower && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use futures_util::future;

    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_standards_example_survives_a_round_trip() {
        let context = TraceContext::parse(EXAMPLE).expect("the standard's own example");
        assert_eq!(context.to_string(), EXAMPLE);
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
    }

    #[test]
    fn a_child_keeps_the_trace_and_gets_its_own_span() {
        let parent = TraceContext::new_root();
        let child = parent.new_child();
        assert_eq!(child.trace, parent.trace);
        assert_ne!(child.span, parent.span);
    }

    #[test]
    fn malformed_contexts_are_refused_and_later_versions_read() {
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        ] {
            assert!(TraceContext::parse(bad).is_err(), "{bad}");
        }
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-brings";
        assert_eq!(TraceContext::parse(later).expect("a later version").to_string(), EXAMPLE);
    }

    #[tokio::test]
    async fn the_context_is_carried_into_what_a_task_starts() {
        let context = TraceContext::new_root();
        let carried = within(context, future::lazy(|_| carry(async { current() }))).await;
        assert_eq!(carried.await, Some(context));
        assert_eq!(current(), None);
    }
}
