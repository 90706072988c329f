//! How far behind its database a source is, as the server itself counts: what is written there beyond the last place that
//! it was told. Looked at beside the stream, so that it tells the truth also while nothing is read.

use std::time::Duration;

use super::{
    CaptureError,
    config::{Source, literal},
    slot::text,
    wire::Connection,
};

const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Looks for as long as it is polled. A look that fails is tried again at the next.
pub(super) async fn run(source: &Source) {
    let mut connection = None;
    loop {
        if let Err(error) = look(source, &mut connection).await {
            tracing::debug!(source = source.name, %error, "the lag isn't known");
            connection = None;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(source: &Source, connection: &mut Option<Connection>) -> Result<(), CaptureError> {
    let open = match connection {
        Some(open) => open,
        None => connection.insert(Connection::open(&source.address).await?),
    };
    let rows = open
        .query(&format!(
            "SELECT pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, confirmed_flush_lsn), safe_wal_size
             FROM pg_replication_slots WHERE slot_name = {}",
            literal(&source.slot)
        ))
        .await?;
    let Some(row) = rows.first() else { return Ok(()) };
    let number = |column| text(row, column).parse::<f64>().ok();
    if let Some(lag) = number(0) {
        source.live.is_behind(lag);
    }
    if let Some(left) = number(1) {
        // What the server will still keep for us before it invalidates the slot.
        metrics::gauge!("capture_safe_bytes", "source" => source.name.clone()).set(left);
    }
    Ok(())
}
