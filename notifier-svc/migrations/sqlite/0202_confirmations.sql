-- What somebody is asked to confirm, and who is told next if they don't.
CREATE TABLE confirmations (
    notification_id TEXT NOT NULL,
    recipient_id TEXT NOT NULL,
    organization_id TEXT NOT NULL,
    fact TEXT NOT NULL,                 -- as in known_facts; empty: none
    asked_at INTEGER NOT NULL,
    step INTEGER NOT NULL,              -- escalations so far
    wait INTEGER NOT NULL,              -- microseconds between them
    due_at INTEGER,                     -- when the next is; null: never
    acknowledged_at INTEGER,
    acknowledged_by TEXT NOT NULL,      -- a recipient
    how TEXT NOT NULL,                  -- link, call; or why nobody is told any more
    PRIMARY KEY (notification_id, recipient_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX confirmations_due ON confirmations (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX confirmations_fact ON confirmations (organization_id, recipient_id, fact) WHERE due_at IS NOT NULL;

-- Whose confirmation of which notification is asked for by this one, which went to somebody else; empty: its own.
ALTER TABLE notifications ADD COLUMN confirms_id TEXT NOT NULL DEFAULT '';
ALTER TABLE notifications ADD COLUMN confirms_recipient TEXT NOT NULL DEFAULT '';
CREATE INDEX notifications_confirms ON notifications (confirms_id, confirms_recipient) WHERE confirms_id <> '';
-- Empty: the workflow's own.
ALTER TABLE notifications ADD COLUMN category TEXT NOT NULL DEFAULT '';
