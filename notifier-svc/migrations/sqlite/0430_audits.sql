-- Who did what that touches other people. Subjects are ids.
CREATE TABLE audits (
    id TEXT NOT NULL PRIMARY KEY,       -- UUIDv7
    organization_id TEXT NOT NULL,
    action TEXT NOT NULL,               -- override, erase, preference, acknowledge
    by_key TEXT NOT NULL,               -- the key's name
    subject TEXT NOT NULL,
    detail TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX audits_organization ON audits (organization_id, id);
CREATE INDEX audits_created ON audits (created_at);

-- Until when free text reaches whoever wrote by WhatsApp, by the hash of their number.
CREATE TABLE whatsapp_windows (
    organization_id TEXT NOT NULL,
    hash BLOB NOT NULL,
    open_until INTEGER NOT NULL,
    PRIMARY KEY (organization_id, hash)
) STRICT, WITHOUT ROWID;
CREATE INDEX whatsapp_windows_open ON whatsapp_windows (open_until);
