-- Which events told that an integration is behind with a wedding, until it has caught up.
CREATE TABLE behinds (
    organization_id TEXT NOT NULL,
    about TEXT NOT NULL,                -- integration and wedding
    event_uid TEXT NOT NULL,
    PRIMARY KEY (organization_id, about, event_uid)
);

-- When what a notice tells was over.
ALTER TABLE notices ADD COLUMN resolved_at BIGINT;
CREATE INDEX notices_event ON notices (organization_id, event_uid) WHERE resolved_at IS NULL;
