-- What people were told about a thing within the day, each value by each kind of event: how the other kind is recognised,
-- also where it comes after a third.
CREATE TABLE said (
    organization_id TEXT NOT NULL,
    workflow TEXT NOT NULL,
    about TEXT NOT NULL,
    says TEXT NOT NULL,
    is_change BIGINT NOT NULL,
    event_id TEXT NOT NULL,
    told_at BIGINT NOT NULL,
    PRIMARY KEY (organization_id, workflow, about, says, is_change)
);
INSERT INTO said (organization_id, workflow, about, says, is_change, event_id, told_at)
SELECT organization_id, workflow, about, says, is_change, event_id, told_at FROM told;
DROP TABLE told;
CREATE INDEX said_told_at ON said (organization_id, told_at);
