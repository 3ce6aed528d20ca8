-- Version 1 of the database: the links.
--
-- Several processes may run this script at once, and an older release keeps running on the tables that a newer one has changed.
-- Therefore every statement is complete by itself and may be repeated, and later versions (one file each) only add to the
-- tables. An empty line ends a statement (links_store::schema::statements). SQLite and libSQL understand all of them alike.

CREATE TABLE IF NOT EXISTS links (
    id INTEGER PRIMARY KEY,
    slug TEXT NOT NULL UNIQUE,
    -- The normal form of an absolute http or https URL.
    url TEXT NOT NULL,
    -- Unix seconds; expires_at NULL means never.
    created_at INTEGER NOT NULL,
    expires_at INTEGER
) STRICT;

CREATE TABLE IF NOT EXISTS schema_version (
    version INTEGER PRIMARY KEY,
    -- Unix seconds.
    applied_at INTEGER NOT NULL
) STRICT;

-- Last, so that the version is recorded only once everything before it is in place.
INSERT INTO schema_version (version, applied_at) VALUES (1, unixepoch()) ON CONFLICT DO NOTHING;
