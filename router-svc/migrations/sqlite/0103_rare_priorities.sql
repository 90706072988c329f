-- Most events have priority 3: the log itself holds those in their order.
DROP INDEX events_priority;
CREATE INDEX events_priority ON events (priority, sequence) WHERE priority <> 3;
