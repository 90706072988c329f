-- The lanes have the same index by now, attempts_answered.
DROP INDEX attempts_kept;
