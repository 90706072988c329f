-- 1: what concerns everybody in a wedding's Slack channel is told there, once.
ALTER TABLE organization_settings ADD COLUMN slack_notices BIGINT NOT NULL DEFAULT 0;
