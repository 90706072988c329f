-- Records that a vendor was asked to make, until it is known what they are called there: what it shows as new may be one.
CREATE TABLE makings (
    organization_id TEXT NOT NULL,
    integration_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    record_id TEXT NOT NULL,
    began_at BIGINT NOT NULL,
    PRIMARY KEY (integration_id, kind, record_id)
);
