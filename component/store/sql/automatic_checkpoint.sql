-- After how many pages in the write-ahead log a commit through this connection checkpoints it. 0: never.
PRAGMA wal_autocheckpoint
