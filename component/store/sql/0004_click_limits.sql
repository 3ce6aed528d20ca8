-- Version 4 of the database: links that redirect a limited number of times.

-- All three columns are NULL for a link without a limit. If another process has already added them, these statements fail with
-- "duplicate column name", which counts as success (links_platform::database::error::is_duplicate_column).
ALTER TABLE links ADD COLUMN max_clicks INTEGER;

ALTER TABLE links ADD COLUMN clicks_left INTEGER;

-- The expiry of a link with a limit, in Unix seconds. The expires_at of such a link is 0: an older release would redirect
-- without counting, and so takes the link for one that expired long ago.
ALTER TABLE links ADD COLUMN limited_until INTEGER;

-- Last, so that the version is recorded only once everything before it is in place.
INSERT INTO schema_version (version, applied_at) VALUES (4, unixepoch()) ON CONFLICT DO NOTHING;
