-- How an integration is connected, and what it authenticates with at its vendor: sealed with the organization's data key,
-- each credential for its own row and column.
CREATE TABLE connections (
    integration_id TEXT NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL,
    state TEXT NOT NULL,                    -- connected, needs_reconnect, disconnected
    reason TEXT NOT NULL,                   -- why it isn't connected; empty while it is
    since INTEGER NOT NULL,                 -- of the state
    changes INTEGER NOT NULL,               -- of the state, counted: what announces one is named by it
    version INTEGER NOT NULL,               -- raised by each new credential
    credential BLOB,                        -- null: nothing is kept
    old_credential BLOB,                    -- tried once where the new one is refused, until the overlap ends
    old_expires_at INTEGER,
    old_used_at INTEGER,                    -- when the old one was last needed
    yielded TEXT NOT NULL,                  -- JSON: settings that the vendor gave when it was connected
    expires_at INTEGER,                     -- of an access token; null: unknown, or never
    refresh_at INTEGER,                     -- null: there is nothing to refresh
    failures INTEGER NOT NULL,              -- of refreshing, in a row
    lease_epoch INTEGER NOT NULL,           -- raised by whoever begins to refresh
    lease_until INTEGER                     -- null: nobody refreshes
) STRICT;
CREATE INDEX connections_due ON connections (refresh_at) WHERE refresh_at IS NOT NULL;

-- Connections that somebody has begun in a browser. Neither the ticket, the state nor the browser's own secret is kept:
-- only their SHA-256.
CREATE TABLE authorizations (
    ticket BLOB NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL,
    integration_id TEXT NOT NULL,
    state BLOB UNIQUE,                      -- null until a browser opened the ticket
    browser BLOB,                           -- likewise
    secrets BLOB NOT NULL,                  -- sealed: the verifier, and the organization's own app
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX authorizations_age ON authorizations (expires_at);
