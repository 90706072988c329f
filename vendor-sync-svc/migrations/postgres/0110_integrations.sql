-- Systems that send us webhooks. Secrets are sealed with the organization's data key, each for its own row and column.
CREATE TABLE integrations (
    id TEXT NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL,
    kind TEXT NOT NULL,                     -- client-sync, channel-events, supabase, signed-webhook
    vendor TEXT NOT NULL,
    description TEXT NOT NULL,
    supplier_id TEXT NOT NULL,              -- empty: the organization's own
    rate_limit_per_hour BIGINT NOT NULL,   -- 0: the default
    event_type TEXT NOT NULL,
    transformation TEXT NOT NULL,
    secret_header TEXT NOT NULL,
    disabled BIGINT NOT NULL,              -- 0 or 1
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    last_received_at BIGINT,
    secret BYTEA NOT NULL,
    old_secret BYTEA,                        -- verifies too until it expires
    old_secret_expires_at BIGINT
);
CREATE INDEX integrations_organization ON integrations (organization_id, id);

-- Requests that the router has confirmed: what makes a repeat a duplicate, and what the hourly limit is restored from.
CREATE TABLE inbound_receipts (
    event_id TEXT NOT NULL PRIMARY KEY,     -- begins with the integration's id
    integration_id TEXT NOT NULL,
    body_hash BYTEA NOT NULL,                -- SHA-256
    received_at BIGINT NOT NULL
);
CREATE INDEX inbound_receipts_body ON inbound_receipts (integration_id, body_hash);
CREATE INDEX inbound_receipts_recent ON inbound_receipts (integration_id, received_at);
CREATE INDEX inbound_receipts_age ON inbound_receipts (received_at);

-- Requests of senders that never retry, from their 2xx until the router has the event. Bodies are sealed.
CREATE TABLE inbound_spool (
    sequence BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    integration_id TEXT NOT NULL,
    organization_id TEXT NOT NULL,
    supplier_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    traceparent TEXT NOT NULL,
    received_at BIGINT NOT NULL,
    body BYTEA NOT NULL,
    refused TEXT NOT NULL                   -- empty: waiting; else why the router will never take it
);
CREATE INDEX inbound_spool_waiting ON inbound_spool (integration_id, sequence) WHERE refused = '';
CREATE INDEX inbound_spool_refused ON inbound_spool (received_at) WHERE refused <> '';
