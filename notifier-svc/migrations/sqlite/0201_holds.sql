-- When people were told of anything within the last hour: the limit looks here.
CREATE TABLE tellings (
    organization_id TEXT NOT NULL,
    recipient_id TEXT NOT NULL,
    told_at INTEGER NOT NULL,
    notification_id TEXT NOT NULL,
    PRIMARY KEY (organization_id, recipient_id, told_at, notification_id)
) STRICT, WITHOUT ROWID;

-- `fate` is also: 3 waits until `due_at`, 4 is in the digest `carried_by`.
ALTER TABLE messages ADD COLUMN how INTEGER NOT NULL DEFAULT 0;   -- 1 deferred, 2 for a digest, 3 over the limit
ALTER TABLE messages ADD COLUMN due_at INTEGER;
ALTER TABLE messages ADD COLUMN handed_at INTEGER;                -- when it was given to its lane or its inbox
ALTER TABLE messages ADD COLUMN carried_by BLOB;
ALTER TABLE messages ADD COLUMN fact TEXT NOT NULL DEFAULT '';    -- of two about the same, a digest holds the later
ALTER TABLE messages ADD COLUMN ended TEXT NOT NULL DEFAULT '';   -- why it was cancelled
CREATE INDEX messages_due ON messages (due_at) WHERE fate = 3 AND cancelled = 0;
CREATE INDEX messages_held ON messages (organization_id, recipient_id, due_at) WHERE fate = 3 AND cancelled = 0;

-- What is needed to decide and render anew while something waits: sealed.
ALTER TABLE notifications ADD COLUMN kept BLOB;
-- Who had limits and quiet hours passed over, and why.
ALTER TABLE notifications ADD COLUMN override_by TEXT NOT NULL DEFAULT '';
ALTER TABLE notifications ADD COLUMN override_reason TEXT NOT NULL DEFAULT '';

-- What people were last told of a fact on each channel, and what they believed before.
CREATE TABLE known_facts (
    organization_id TEXT NOT NULL,
    recipient_id TEXT NOT NULL,
    channel TEXT NOT NULL,
    fact TEXT NOT NULL,                 -- wedding_date:<wedding>
    value TEXT NOT NULL,
    before TEXT,
    message BLOB NOT NULL,
    told_at INTEGER NOT NULL,
    PRIMARY KEY (organization_id, recipient_id, channel, fact)
) STRICT, WITHOUT ROWID;
CREATE INDEX known_facts_fact ON known_facts (organization_id, fact);

-- The days of weddings, on their venues' clocks.
CREATE TABLE wedding_days (
    organization_id TEXT NOT NULL,
    wedding_id TEXT NOT NULL,
    day TEXT NOT NULL,                  -- YYYY-MM-DD; empty: not known
    time_zone TEXT NOT NULL,            -- IANA name; empty: UTC
    PRIMARY KEY (organization_id, wedding_id)
) STRICT, WITHOUT ROWID;
