-- Version 4 of the database: links that lead on a limited number of times.

-- Of a link without a limit all three are NULL. A process that runs this after another one gets "duplicate column
-- name", which means that it is done (links_platform::database::error::is_duplicate_column).
ALTER TABLE links ADD COLUMN max_clicks INTEGER;

ALTER TABLE links ADD COLUMN clicks_left INTEGER;

-- What expires_at is for other links, in Unix seconds. Of a link with a limit expires_at itself is 0: an older release,
-- which would lead on without counting, takes it for one that expired long ago.
ALTER TABLE links ADD COLUMN limited_until INTEGER;

-- Last, so that the version is there only when everything before it is.
INSERT INTO schema_version (version, applied_at) VALUES (4, unixepoch()) ON CONFLICT DO NOTHING;
