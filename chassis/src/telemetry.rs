//! What the process says about itself: log lines on standard error, and Prometheus metrics.
//!
//! Lines written during a call stand in its span and so carry its `trace_id`. Both are set up once per process; the
//! first settings win, so that several services in one process can each ask.

use std::{
    io::{self, IsTerminal as _},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context as _, Result};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::Subscriber;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter, util::SubscriberInitExt as _};

use crate::config::{LogFormat, Telemetry};

/// Upper bounds in seconds, from an answer out of memory to the longest deadline.
const SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

/// What a database says while it works: a tenant's own would write people, and as much as it likes, into our log.
const NEVER: &str = "sqlx::postgres::notice=off";

/// How often histograms are folded, so that they don't grow while nobody reads them.
pub(crate) const UPKEEP: Duration = Duration::from_secs(5);

/// Starts logging and metrics.
///
/// # Errors
/// An unreadable filter.
pub fn init(settings: &Telemetry) -> Result<()> {
    recorder();
    // An error means that logging runs already.
    let _ = subscriber(settings, io::stderr, io::stderr().is_terminal())?.try_init();
    Ok(())
}

fn subscriber<W>(settings: &Telemetry, writer: W, colour: bool) -> Result<Box<dyn Subscriber + Send + Sync>>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter: EnvFilter = settings.filter.parse().context("[telemetry] filter")?;
    let filter = filter.add_directive(NEVER.parse().context("what is never logged")?);
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    Ok(match settings.format {
        LogFormat::Pretty => Box::new(lines.with_ansi(colour).finish()),
        LogFormat::Json => Box::new(lines.json().flatten_event(true).with_current_span(false).finish()),
    })
}

/// All metrics in Prometheus' text format.
#[must_use]
pub fn render() -> String {
    recorder().render()
}

pub(crate) fn recorder() -> &'static PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    RECORDER.get_or_init(|| {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
            .expect("there are buckets");
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another metrics recorder is installed: /metrics stays empty");
        }
        handle
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn what_is_counted_is_rendered_and_a_second_start_is_harmless() {
        init(&Telemetry::default()).expect("the default filter is well-formed");
        init(&Telemetry::default()).expect("started already");
        metrics::counter!("telemetry_test_total").increment(2);
        metrics::histogram!("telemetry_test_seconds").record(0.004);
        let text = render();
        assert!(text.contains("telemetry_test_total 2"), "{text}");
        assert!(text.contains("telemetry_test_seconds_bucket{le=\"0.005\"} 1"), "{text}");
    }

    #[test]
    fn lines_in_a_call_carry_its_trace_in_either_format() {
        for format in [LogFormat::Pretty, LogFormat::Json] {
            let written = Arc::new(Mutex::new(Vec::new()));
            let settings = Telemetry { format, ..Telemetry::default() };
            let subscriber = subscriber(&settings, Written(Arc::clone(&written)), false).expect("a filter");
            tracing::subscriber::with_default(subscriber, || {
                tracing::error_span!("rpc", trace_id = "4bf9").in_scope(|| tracing::info!("hello"));
            });
            let line = String::from_utf8(written.lock().unwrap().clone()).expect("text");
            assert!(line.contains("4bf9") && line.contains("hello"), "{line}");
        }
    }

    #[test]
    fn what_a_database_says_beside_its_answers_is_never_logged() {
        for filter in ["info", "trace", "sqlx::postgres::notice=trace"] {
            let written = Arc::new(Mutex::new(Vec::new()));
            let settings = Telemetry { filter: filter.to_owned(), ..Telemetry::default() };
            let subscriber = subscriber(&settings, Written(Arc::clone(&written)), false).expect("a filter");
            tracing::subscriber::with_default(subscriber, || {
                tracing::warn!(target: "sqlx::postgres::notice", "guest Ann");
                tracing::error!(target: "sqlx", "anything else");
            });
            let lines = String::from_utf8(written.lock().unwrap().clone()).expect("text");
            assert!(!lines.contains("Ann"), "{filter}: {lines}");
            assert_eq!(lines.contains("anything else"), !filter.starts_with("sqlx"), "{filter}: {lines}");
        }
    }

    struct Written(Arc<Mutex<Vec<u8>>>);

    impl<'a> MakeWriter<'a> for Written {
        type Writer = Written;

        fn make_writer(&'a self) -> Written {
            Written(Arc::clone(&self.0))
        }
    }

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_unreadable_filter_is_refused() {
        let settings = Telemetry { filter: "chassis=loud".to_owned(), ..Telemetry::default() };
        assert!(init(&settings).is_err());
    }
}
