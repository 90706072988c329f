//! The integrations in `GET /integrations/health`: their states and counts, by id. No parameter and no credential is shown.

use jiff::Timestamp;
use proto::vendorsync::v1::{ConnectionState, HealthState, IntegrationHealth as Wire};
use serde::Serialize;

use crate::{health::Status, wire};

#[derive(Debug, Serialize)]
pub(crate) struct IntegrationHealth {
    id: String,
    vendor: String,
    description: Option<String>,
    pub(crate) status: Status,
    connection: String,
    connection_reason: Option<String>,
    state: String,
    state_since: Option<Timestamp>,
    probe_error: Option<String>,
    probed_at: Option<Timestamp>,
    breaker: String,
    backlog: u64,
    oldest_waiting_at: Option<Timestamp>,
    attempts: u64,
    failed_attempts: u64,
    error_rate: f64,
    last_success_at: Option<Timestamp>,
    last_received_at: Option<Timestamp>,
}

/// What somebody disconnected on purpose is no failure.
pub(crate) fn judge(wire: Wire) -> IntegrationHealth {
    let (connection, state, breaker) = (wire.connection(), wire.state(), wire.breaker());
    let healthy = connection != ConnectionState::NeedsReconnect && state != HealthState::Failing;
    IntegrationHealth {
        status: Status::of(healthy),
        connection: wire::name(connection.as_str_name(), "CONNECTION_STATE_"),
        state: wire::name(state.as_str_name(), "HEALTH_STATE_"),
        breaker: wire::name(breaker.as_str_name(), "BREAKER_STATE_"),
        error_rate: crate::health::rate(wire.failed_attempts, wire.attempts),
        id: wire.id,
        vendor: wire.vendor,
        description: wire::text(wire.description),
        connection_reason: wire::text(wire.connection_reason),
        state_since: wire::time(wire.state_since),
        probe_error: wire::text(wire.probe_error),
        probed_at: wire::time(wire.probed_at),
        backlog: wire.backlog,
        oldest_waiting_at: wire::time(wire.oldest_waiting_at),
        attempts: wire.attempts,
        failed_attempts: wire.failed_attempts,
        last_success_at: wire::time(wire.last_success_at),
        last_received_at: wire::time(wire.last_received_at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_integration_is_degraded_when_its_vendor_fails_or_refuses_it_and_not_by_its_owners_wish() {
        let status = |connection: ConnectionState, state: HealthState| {
            judge(Wire { connection: connection.into(), state: state.into(), ..Wire::default() }).status
        };
        assert_eq!(status(ConnectionState::Connected, HealthState::Healthy), Status::Healthy);
        assert_eq!(status(ConnectionState::Connected, HealthState::Failing), Status::Degraded);
        assert_eq!(status(ConnectionState::NeedsReconnect, HealthState::Unspecified), Status::Degraded);
        assert_eq!(status(ConnectionState::Disconnected, HealthState::Unspecified), Status::Healthy);
    }
}
