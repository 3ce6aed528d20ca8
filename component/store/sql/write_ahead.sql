-- Readers and the one writer do not wait for each other. The mode stays in the file; a remote database refuses the
-- pragma.
PRAGMA journal_mode = WAL
