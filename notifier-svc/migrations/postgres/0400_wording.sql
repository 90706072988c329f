-- What holds for a whole organization.
CREATE TABLE organization_settings (
    organization_id TEXT NOT NULL PRIMARY KEY,
    time_zone TEXT NOT NULL,            -- IANA name; empty: UTC
    locale TEXT NOT NULL,               -- BCP 47; empty: English
    slack_weddings BIGINT NOT NULL,         -- 1: each wedding has a Slack channel
    slack_archive_days BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

-- Organizations' own texts, every version; they hold nobody's data. The latest counts; one without a source means ours.
CREATE TABLE templates (
    organization_id TEXT NOT NULL,
    workflow TEXT NOT NULL,
    part TEXT NOT NULL,                 -- email.subject, sms.text, ...
    locale TEXT NOT NULL,               -- lower case
    version BIGINT NOT NULL,
    source TEXT,
    author TEXT NOT NULL,               -- the key's name
    created_at BIGINT NOT NULL,
    PRIMARY KEY (organization_id, workflow, part, locale, version)
);
