-- What was set aside is listed by its organization, oldest first; of a connector's it is the whole request that is kept.
ALTER TABLE inbound_spool ADD COLUMN has_request INTEGER NOT NULL DEFAULT 0;   -- 1: the whole request is sealed, else its body
CREATE INDEX inbound_spool_set_aside ON inbound_spool (organization_id, sequence) WHERE refused <> '';
