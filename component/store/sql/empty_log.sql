-- Writes everything in the write-ahead log into the database and empties the log. The first column is 1 if another connection
-- prevented that.
PRAGMA wal_checkpoint(TRUNCATE)
