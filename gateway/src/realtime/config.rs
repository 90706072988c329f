//! `[gateway.realtime]`: whose tokens are believed, and the bounds of live subscriptions.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use chassis::{config::Secret, outbound::Outbound, service::Chassis};
use serde::{Deserialize, Serialize};

use super::jwks::Source;

/// Each hub is looked at so often, under the lock of all of them.
const LINGER_LEAST_MS: u64 = 50;
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// `[gateway.realtime]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RealtimeConfig {
    /// What browsers' tokens are signed with (HS256), at least 32 characters. Default: none; development mode makes one.
    pub jwt_secret: Secret,
    /// Where the keys of signed tokens (RS256, ES256) are published, a JWKS. Default: nowhere.
    pub jwks_url: String,
    /// The same in a file. Default: none.
    pub jwks_file: PathBuf,
    /// What a token's `aud` must hold; empty: anything.
    pub audience: String,
    /// What a token's `iss` must be; empty: anything.
    pub issuer: String,
    /// Sockets and event streams at a time; default 20,000.
    pub max_connections: u32,
    /// The same of one organization; default 10,000.
    pub connections_per_organization: u32,
    /// New ones a second, from everybody together; default 1,000.
    pub connects_per_second: u32,
    /// Channels joined a second, of one organization; default 2,000.
    pub joins_per_second: u32,
    /// Channels of one connection; default 100.
    pub channels_per_connection: u32,
    /// `postgres_changes` of one channel; default 100.
    pub bindings_per_channel: u32,
    /// Messages a second that one connection may send, besides heartbeats; default 50.
    pub messages_per_second: u32,
    /// Bytes that may wait for one connection to take them; default 1 MiB.
    pub queue_bytes: u32,
    /// How long a client may be silent, or on no channel, in milliseconds; its heartbeats come every 25 s. Default 60,000.
    pub idle_timeout_ms: u64,
    /// Over how long connections are closed when the gateway stops, in milliseconds; default 5,000.
    pub drain_ms: u64,
    /// How long an organization's changes are still followed after its last connection, in milliseconds; default 30,000.
    pub linger_ms: u64,
    /// Whether `/realtime/inspector` is served, which gives whoever opens it here a token for any organization; on loopback
    /// only. Default false; development mode turns it on.
    pub inspector: bool,
}

impl Default for RealtimeConfig {
    fn default() -> Self {
        Self {
            jwt_secret: Secret::default(),
            jwks_url: String::new(),
            jwks_file: PathBuf::new(),
            audience: String::new(),
            issuer: String::new(),
            max_connections: 20_000,
            connections_per_organization: 10_000,
            connects_per_second: 1_000,
            joins_per_second: 2_000,
            channels_per_connection: 100,
            bindings_per_channel: 100,
            messages_per_second: 50,
            queue_bytes: 1 << 20,
            idle_timeout_ms: 60_000,
            drain_ms: 5_000,
            linger_ms: 30_000,
            inspector: false,
        }
    }
}

impl RealtimeConfig {
    /// # Errors
    /// A limit that would let nothing through, or two places for keys.
    pub(crate) fn check(&self) -> Result<()> {
        let both = !self.jwks_url.is_empty() && !self.jwks_file.as_os_str().is_empty();
        ensure!(!both, "[gateway.realtime] jwks_url and jwks_file: only one of them");
        let limits = [
            ("max_connections", self.max_connections),
            ("connections_per_organization", self.connections_per_organization),
            ("connects_per_second", self.connects_per_second),
            ("joins_per_second", self.joins_per_second),
            ("channels_per_connection", self.channels_per_connection),
            ("bindings_per_channel", self.bindings_per_channel),
            ("messages_per_second", self.messages_per_second),
        ];
        for (name, limit) in limits {
            ensure!(limit > 0, "[gateway.realtime] {name} must be above 0");
        }
        ensure!(self.queue_bytes >= 64 << 10, "[gateway.realtime] queue_bytes must be at least 65536");
        for (name, millis, least) in
            [("idle_timeout_ms", self.idle_timeout_ms, 1_000), ("linger_ms", self.linger_ms, LINGER_LEAST_MS)]
        {
            ensure!(
                (least..=DAY_MS).contains(&millis),
                "[gateway.realtime] {name} must be at least {least} and at most {DAY_MS}"
            );
        }
        Ok(())
    }

    /// Where public keys come from.
    ///
    /// # Errors
    /// Settings of the way out that can't hold.
    pub(super) fn keys(&self, chassis: &Chassis) -> Result<Source> {
        Ok(if !self.jwks_url.is_empty() {
            Source::Url(self.jwks_url.clone(), Outbound::new(&chassis.shared.outbound)?)
        } else if !self.jwks_file.as_os_str().is_empty() {
            Source::File(self.jwks_file.clone())
        } else {
            Source::Nowhere
        })
    }

    /// Whether anybody's token could be believed.
    pub(crate) fn has_keys(&self) -> bool {
        !self.jwt_secret.is_empty() || !self.jwks_url.is_empty() || !self.jwks_file.as_os_str().is_empty()
    }
}
