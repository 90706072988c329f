-- E-mail campaigns that are followed, until what became of them is known for good. Names are the organization's own words.
CREATE TABLE campaigns (
    id TEXT NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL,
    integration_id TEXT NOT NULL,
    name TEXT NOT NULL,
    external_id TEXT NOT NULL,              -- empty: it is being made, or nobody knows whether it was
    state TEXT NOT NULL,                    -- making, unknown, draft, scheduled, sending, sent, cancelled, gone
    reason TEXT NOT NULL,                   -- what went wrong last; empty: nothing
    sent_at INTEGER,
    report TEXT NOT NULL,                   -- JSON; empty: there is none yet
    reported_at INTEGER,
    created_at INTEGER NOT NULL,
    next_at INTEGER                         -- when it is asked about next; null: never again
) STRICT;
CREATE INDEX campaigns_organization ON campaigns (organization_id, id);
CREATE INDEX campaigns_integration ON campaigns (integration_id) WHERE next_at IS NOT NULL;
CREATE INDEX campaigns_due ON campaigns (next_at) WHERE next_at IS NOT NULL;
