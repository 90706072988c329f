-- What didn't arrive and still says something, and what was answered to attempts that failed: purged once it is old.
CREATE INDEX deliveries_ended ON deliveries (finished_at) WHERE content IS NOT NULL AND state IN (4, 5, 6);
CREATE INDEX attempts_answered ON attempts (started_at) WHERE response IS NOT NULL AND outcome <> 'delivered';
