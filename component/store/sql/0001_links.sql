-- Version 1 of the database: the links.
--
-- Several processes may run this at once, and an older release keeps running on what a newer one left. So every
-- statement is whole by itself and may be repeated, and a later version (a file of its own) only adds. Statements are
-- separated by an empty line (links_store::schema::statements); what each means is the same on SQLite and on libSQL.

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

-- Last, so that the version is there only when everything before it is.
INSERT INTO schema_version (version, applied_at) VALUES (1, unixepoch()) ON CONFLICT DO NOTHING;
