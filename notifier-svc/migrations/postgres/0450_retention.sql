-- What is still to be purged once it is old.
CREATE INDEX notifications_kept ON notifications (created_at) WHERE kept IS NOT NULL;
CREATE INDEX notices_kept ON notices (created_at) WHERE LENGTH(content) > 0;
CREATE INDEX deliveries_kept ON deliveries (created_at) WHERE content IS NOT NULL AND state IN (4, 5, 6);
CREATE INDEX attempts_kept ON attempts (started_at) WHERE response IS NOT NULL AND outcome <> 'delivered';
