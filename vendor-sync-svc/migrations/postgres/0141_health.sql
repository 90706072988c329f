-- How an integration stands, written when that changes; what single probes find is in memory alone.
CREATE TABLE integration_health (
    integration_id TEXT NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL,
    failing BIGINT NOT NULL,               -- 0 or 1
    since BIGINT NOT NULL,
    changes BIGINT NOT NULL,               -- counted: what announces one is named by it
    recent TEXT NOT NULL                    -- JSON: times of the last changes, by which flapping is held back
);
