-- How far messages have come, by what their providers reported.
CREATE TABLE receipts (
    uid BYTEA NOT NULL PRIMARY KEY,      -- the message's
    stage BIGINT NOT NULL,               -- 1 sent, 2 delivered, 3 failed, 4 bounced, 5 read, 6 complained, 7 acknowledged
    code TEXT NOT NULL,                 -- the provider's, where it failed
    reported_at BIGINT NOT NULL
);
