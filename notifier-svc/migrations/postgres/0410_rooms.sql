-- The weddings' rooms in Slack.
CREATE TABLE rooms (
    organization_id TEXT NOT NULL,
    wedding_id TEXT NOT NULL,
    stage BIGINT NOT NULL,             -- 0 wanted, 1 made, 2 open, 3 archived
    room_id TEXT NOT NULL,              -- Slack's; empty until it is known
    name TEXT NOT NULL,
    taken BIGINT NOT NULL,             -- names that turned out to be taken
    asked_at BIGINT,                   -- when this name was asked for first
    tries BIGINT NOT NULL,             -- calls in a row that came to nothing
    said TEXT NOT NULL,                 -- what Slack said then
    touched BIGINT NOT NULL,
    due_at BIGINT,                     -- when it is looked at again; null: once something changes
    PRIMARY KEY (organization_id, wedding_id)
);
CREATE INDEX rooms_due ON rooms (due_at) WHERE due_at IS NOT NULL;

-- Whom we brought into them, or tried to, by Slack's ids.
CREATE TABLE room_members (
    organization_id TEXT NOT NULL,
    wedding_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    standing BIGINT NOT NULL,          -- 0 asked, 1 in, 2 Slack can't, 3 leaving
    said TEXT NOT NULL,
    PRIMARY KEY (organization_id, wedding_id, user_id)
);
