-- As SQLite's trigger, but here the append's own statement moves the head: it must look at the epoch under the row's lock.
SELECT 1;
