-- Version 2 of the database: the request that made a link, so that the same request again finds it.

-- The 16 bytes of nginx's $request_id; NULL for a link of version 1, and for one that was made without nginx. A process
-- that runs this after another one gets "duplicate column name", which means that it is done
-- (links_platform::database::error::is_duplicate_column).
ALTER TABLE links ADD COLUMN request_id BLOB;

CREATE UNIQUE INDEX IF NOT EXISTS links_request_id ON links (request_id) WHERE request_id IS NOT NULL;

-- Last, so that the version is there only when everything before it is.
INSERT INTO schema_version (version, applied_at) VALUES (2, unixepoch()) ON CONFLICT DO NOTHING;
