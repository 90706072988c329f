-- How an integration is connected, and what it authenticates with at its vendor: sealed with the organization's data key,
-- each credential for its own row and column.
CREATE TABLE connections (
    integration_id TEXT NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL,
    state TEXT NOT NULL,                    -- connected, needs_reconnect, disconnected
    reason TEXT NOT NULL,                   -- why it isn't connected; empty while it is
    since BIGINT NOT NULL,                 -- of the state
    changes BIGINT NOT NULL,               -- of the state, counted: what announces one is named by it
    version BIGINT NOT NULL,               -- raised by each new credential
    credential BYTEA,                        -- null: nothing is kept
    old_credential BYTEA,                    -- tried once where the new one is refused, until the overlap ends
    old_expires_at BIGINT,
    old_used_at BIGINT,                    -- when the old one was last needed
    yielded TEXT NOT NULL,                  -- JSON: settings that the vendor gave when it was connected
    expires_at BIGINT,                     -- of an access token; null: unknown, or never
    refresh_at BIGINT,                     -- null: there is nothing to refresh
    failures BIGINT NOT NULL,              -- of refreshing, in a row
    lease_epoch BIGINT NOT NULL,           -- raised by whoever begins to refresh
    lease_until BIGINT                     -- null: nobody refreshes
);
CREATE INDEX connections_due ON connections (refresh_at) WHERE refresh_at IS NOT NULL;

-- Connections that somebody has begun in a browser. Neither the ticket, the state nor the browser's own secret is kept:
-- only their SHA-256.
CREATE TABLE authorizations (
    ticket BYTEA NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL,
    integration_id TEXT NOT NULL,
    state BYTEA UNIQUE,                      -- null until a browser opened the ticket
    browser BYTEA,                           -- likewise
    secrets BYTEA NOT NULL,                  -- sealed: the verifier, and the organization's own app
    expires_at BIGINT NOT NULL
);
CREATE INDEX authorizations_age ON authorizations (expires_at);
