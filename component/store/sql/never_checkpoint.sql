-- Applies to this connection only; linksctl's agent checkpoints instead.
PRAGMA wal_autocheckpoint = 0
