-- Version 2 of the database: the id of the request that created a link, so that a repeated request finds its link.

-- The 16 bytes of the request's id, or NULL if the request had none. If another process has already added the column, this
-- fails with "duplicate column name", which counts as success (links_platform::database::error::is_duplicate_column).
ALTER TABLE links ADD COLUMN request_id BLOB;

CREATE UNIQUE INDEX IF NOT EXISTS links_request_id ON links (request_id) WHERE request_id IS NOT NULL;

-- Last, so that the version is recorded only once everything before it is in place.
INSERT INTO schema_version (version, applied_at) VALUES (2, unixepoch()) ON CONFLICT DO NOTHING;
