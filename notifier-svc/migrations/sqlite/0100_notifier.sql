-- The directory: who can be told. `contact` is one sealed JSON object: name, email, phone.
CREATE TABLE recipients (
    organization_id TEXT NOT NULL,
    id TEXT NOT NULL,
    kind INTEGER NOT NULL,              -- 1 supplier, 2 couple, 3 planner, 4 operator
    vendor_type TEXT NOT NULL,
    time_zone TEXT NOT NULL,
    locale TEXT NOT NULL,
    channels TEXT NOT NULL,             -- JSON list
    contact BLOB NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (organization_id, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX recipients_kind ON recipients (organization_id, kind);

-- Who belongs to a wedding, by who says so. One recipient may be several members: a photographer who also films.
CREATE TABLE wedding_recipients (
    organization_id TEXT NOT NULL,
    wedding_id TEXT NOT NULL,
    source TEXT NOT NULL,               -- rpc, wedding_vendors, wedding_details
    member TEXT NOT NULL,
    recipient_id TEXT NOT NULL,
    vendor_type TEXT NOT NULL,          -- empty: the recipient's own
    PRIMARY KEY (organization_id, wedding_id, source, member)
) STRICT, WITHOUT ROWID;
CREATE INDEX wedding_recipients_recipient ON wedding_recipients (organization_id, recipient_id);

-- The last change event taken in about each thing: one that comes again later changes nothing.
CREATE TABLE learnt (
    organization_id TEXT NOT NULL,
    about TEXT NOT NULL,
    log_id TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    PRIMARY KEY (organization_id, about)
) STRICT, WITHOUT ROWID;

-- An event, a workflow, and the people who are told.
CREATE TABLE notifications (
    id TEXT NOT NULL PRIMARY KEY,       -- UUIDv7
    organization_id TEXT NOT NULL,
    workflow TEXT NOT NULL,
    event_id TEXT NOT NULL,             -- idempotency key
    event_uid TEXT NOT NULL,
    priority INTEGER NOT NULL,          -- 1 CRITICAL to 4 LOW
    collapse_key TEXT NOT NULL,
    request BLOB NOT NULL,              -- SHA-256 of what an RPC asked for; empty for an event
    created_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX notifications_event ON notifications (organization_id, event_uid, workflow);
CREATE INDEX notifications_organization ON notifications (organization_id, id);
CREATE INDEX notifications_event_id ON notifications (organization_id, event_id);

-- One row per person and channel, fixed when the notification was resolved.
CREATE TABLE messages (
    uid BLOB NOT NULL PRIMARY KEY,      -- 16 bytes, the `event` of its delivery
    notification_id TEXT NOT NULL REFERENCES notifications (id),
    organization_id TEXT NOT NULL,
    recipient_id TEXT NOT NULL,
    channel TEXT NOT NULL,
    fate INTEGER NOT NULL,              -- 0 sent through a lane, 1 recorded (the record is the delivery), 2 skipped
    cancelled INTEGER NOT NULL,         -- 1: its recipient was removed before it was sent
    reason TEXT NOT NULL,
    priority INTEGER NOT NULL,
    content BLOB,                       -- sealed; until its lane has it
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX messages_notification ON messages (notification_id);
CREATE INDEX messages_recipient ON messages (organization_id, recipient_id, notification_id);
CREATE INDEX messages_outbox ON messages (priority, created_at) WHERE content IS NOT NULL;

-- What people were last told about a thing, and by which kind of event: how the other kind is recognised.
CREATE TABLE told (
    organization_id TEXT NOT NULL,
    workflow TEXT NOT NULL,
    about TEXT NOT NULL,
    says TEXT NOT NULL,
    is_change INTEGER NOT NULL,
    event_id TEXT NOT NULL,
    told_at INTEGER NOT NULL,
    PRIMARY KEY (organization_id, workflow, about)
) STRICT, WITHOUT ROWID;

-- The in-app inbox. `content` is one sealed JSON object: title, body.
CREATE TABLE notices (
    id TEXT NOT NULL PRIMARY KEY,       -- UUIDv7
    organization_id TEXT NOT NULL,
    recipient_id TEXT NOT NULL,
    workflow TEXT NOT NULL,
    event_uid TEXT NOT NULL,
    priority INTEGER NOT NULL,
    content BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    read_at INTEGER,
    archived_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX notices_recipient ON notices (organization_id, recipient_id, id) WHERE archived_at IS NULL;
CREATE INDEX notices_unread ON notices (organization_id, recipient_id, id) WHERE read_at IS NULL AND archived_at IS NULL;
