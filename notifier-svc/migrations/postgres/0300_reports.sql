-- Reports that did something, by the hash of provider and id: one that comes again does nothing. Providers try for a week.
CREATE TABLE reports (
    hash BYTEA NOT NULL PRIMARY KEY,
    reported_at BIGINT NOT NULL
);
CREATE INDEX reports_reported ON reports (reported_at);
-- Whose an address is that answers.
CREATE INDEX messages_address ON messages (address) WHERE address IS NOT NULL;
