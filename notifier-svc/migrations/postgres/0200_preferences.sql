-- What people wish. `definition` is JSON.
CREATE TABLE preferences (
    organization_id TEXT NOT NULL,
    recipient_id TEXT NOT NULL,
    definition TEXT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (organization_id, recipient_id)
);

-- Addresses that are not used any more. `hash` outlives the sealed `address`, which goes with its owner's erasure.
CREATE TABLE suppressions (
    organization_id TEXT NOT NULL,
    channel TEXT NOT NULL,
    hash BYTEA NOT NULL,                 -- SHA-256 of organization and address
    address BYTEA,
    reason TEXT NOT NULL,               -- bounced, complained, stopped, unsubscribed, manual
    source TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (organization_id, channel, hash)
);
CREATE INDEX suppressions_hash ON suppressions (organization_id, hash);

-- Of each message: the hash of where it goes, and each decision in order, a line each.
ALTER TABLE messages ADD COLUMN address BYTEA;
ALTER TABLE messages ADD COLUMN trail TEXT NOT NULL DEFAULT '';
