-- What a lane holds is found by its state, and counted from the index alone; so are its attempts.
CREATE INDEX deliveries_lane ON deliveries (lane, state, id, priority, created_at);
DROP INDEX deliveries_dead;
DROP INDEX attempts_lane;
CREATE INDEX attempts_lane ON attempts (lane, started_at, outcome, duration);
-- What a process that died had under way, and what waits behind others, is found without looking at all that waits.
CREATE INDEX deliveries_sending ON deliveries (id) WHERE state = 1;
CREATE INDEX deliveries_blocked ON deliveries (lane, ordering_key, id) WHERE state = 2;
