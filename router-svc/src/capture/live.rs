//! How a source is at this moment: in its metrics, and for whoever asks over gRPC.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// One source. What isn't known is none.
#[derive(Debug)]
pub(crate) struct Live {
    source: String,
    seen: Mutex<Seen>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) is_streaming: bool,
    /// What its server has written beyond the last place that it was told.
    pub(super) lag_bytes: Option<f64>,
    /// How long after its commit the last transaction was durable.
    pub(super) lag_seconds: Option<f64>,
}

impl Live {
    pub(super) fn new(source: &str) -> Self {
        Self { source: source.to_owned(), seen: Mutex::default() }
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    pub(super) fn seen(&self) -> Seen {
        *self.lock()
    }

    /// Changes stream, or they don't: then nobody looks how much there is.
    pub(super) fn streams(&self, is_streaming: bool) {
        let mut seen = self.lock();
        seen.is_streaming = is_streaming;
        if !is_streaming {
            seen.lag_bytes = None;
        }
        metrics::gauge!("capture_connected", "source" => self.source.clone()).set(f64::from(u8::from(is_streaming)));
    }

    pub(super) fn is_behind(&self, bytes: f64) {
        self.lock().lag_bytes = Some(bytes);
        metrics::gauge!("capture_lag_bytes", "source" => self.source.clone()).set(bytes);
    }

    pub(super) fn is_late(&self, seconds: f64) {
        self.lock().lag_seconds = Some(seconds);
        metrics::gauge!("capture_lag_seconds", "source" => self.source.clone()).set(seconds);
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
