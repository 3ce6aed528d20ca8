-- The number of pages in the write-ahead log at which a commit through this connection starts a checkpoint; 0 means never.
PRAGMA wal_autocheckpoint
