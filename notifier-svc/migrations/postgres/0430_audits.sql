-- Who did what that touches other people. Subjects are ids.
CREATE TABLE audits (
    id TEXT NOT NULL PRIMARY KEY,       -- UUIDv7
    organization_id TEXT NOT NULL,
    action TEXT NOT NULL,               -- override, erase, preference, acknowledge
    by_key TEXT NOT NULL,               -- the key's name
    subject TEXT NOT NULL,
    detail TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX audits_organization ON audits (organization_id, id);
CREATE INDEX audits_created ON audits (created_at);

-- Until when free text reaches whoever wrote by WhatsApp, by the hash of their number.
CREATE TABLE whatsapp_windows (
    organization_id TEXT NOT NULL,
    hash BYTEA NOT NULL,
    open_until BIGINT NOT NULL,
    PRIMARY KEY (organization_id, hash)
);
CREATE INDEX whatsapp_windows_open ON whatsapp_windows (open_until);
