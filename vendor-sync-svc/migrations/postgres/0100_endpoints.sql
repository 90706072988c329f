-- Webhook endpoints. `settings` is what the owner set, as JSON; `sealed` holds the secrets and the custom headers.
-- state: 1 active, 2 paused, 3 disabled
CREATE TABLE endpoints (
    id TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL,
    supplier_id TEXT NOT NULL,          -- empty: the whole organization's
    settings TEXT NOT NULL,
    sealed BYTEA NOT NULL,
    state BIGINT NOT NULL,
    state_reason TEXT NOT NULL,
    announce BIGINT NOT NULL,           -- 1: that it was disabled is still to be published
    version BIGINT NOT NULL,
    log_id TEXT NOT NULL,               -- it sees events after this position
    sequence BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX endpoints_organization ON endpoints (organization_id, id);
CREATE INDEX endpoints_announce ON endpoints (id) WHERE announce = 1;
