-- Version 5 of the database: nothing of a deleted link passes to a later one.
--
-- Only additions: an older release goes on on these tables, and what is done here holds for what it does as well.

-- SQLite gives a new row the highest id in the table plus one, so the id of a deleted link could come back, and with it
-- whatever was still counted for it. The highest id that ever belonged to a deleted link:
CREATE TABLE IF NOT EXISTS link_ids (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    highest_deleted INTEGER NOT NULL
) STRICT;

-- Links that were deleted before this version may have left clicks behind. Each day is found by key, and its highest link.
INSERT INTO link_ids (only_row, highest_deleted)
WITH RECURSIVE days (day) AS (
    SELECT min(day) FROM click_days
    UNION ALL
    SELECT (SELECT min(later.day) FROM click_days AS later WHERE later.day > days.day) FROM days WHERE day IS NOT NULL
)
SELECT 1, ifnull(max((SELECT max(link_id) FROM click_days WHERE click_days.day = days.day)), 0) FROM days WHERE true
ON CONFLICT DO UPDATE SET highest_deleted = max(highest_deleted, excluded.highest_deleted);

CREATE TRIGGER IF NOT EXISTS links_deleted_for_good AFTER DELETE ON links
BEGIN
    UPDATE link_ids SET highest_deleted = OLD.id WHERE highest_deleted < OLD.id;
END;

-- The new id is the highest of all, so this happens once after the latest link was deleted, not for each new one.
CREATE TRIGGER IF NOT EXISTS links_made_with_a_new_id AFTER INSERT ON links
WHEN NEW.id <= (SELECT highest_deleted FROM link_ids)
BEGIN
    UPDATE links SET id = (SELECT highest_deleted + 1 FROM link_ids) WHERE id = NEW.id;
END;

-- links_deleted_with_clicks (version 3) looks for a link's clicks in the hours and days that have a row of link 0, which
-- came only with the last part of a batch. Now each part brings the row, without clicks, before its own.
CREATE TRIGGER IF NOT EXISTS click_batches_calendar BEFORE INSERT ON click_batches
BEGIN
    INSERT INTO click_hours (hour, link_id, clicks, bots)
    SELECT DISTINCT value ->> 1, 0, 0, 0 FROM json_each(NEW.body, '$.clicks') WHERE true
    ON CONFLICT DO NOTHING;
    INSERT INTO click_days (day, link_id, clicks, bots)
    SELECT DISTINCT (value ->> 1) / 24, 0, 0, 0 FROM json_each(NEW.body, '$.clicks') WHERE true
    ON CONFLICT DO NOTHING;
    INSERT INTO click_days (day, link_id, clicks, bots)
    SELECT DISTINCT value ->> 1, 0, 0, 0 FROM json_each(NEW.body, '$.visitors') WHERE true
    ON CONFLICT DO NOTHING;
    INSERT INTO click_days (day, link_id, clicks, bots)
    SELECT DISTINCT value ->> 1, 0, 0, 0 FROM json_each(NEW.body, '$.details') WHERE true
    ON CONFLICT DO NOTHING;
END;

-- The same for the parts that were added before this version.
INSERT INTO click_hours (hour, link_id, clicks, bots)
WITH RECURSIVE hours (hour) AS (
    SELECT min(hour) FROM click_hours
    UNION ALL
    SELECT (SELECT min(later.hour) FROM click_hours AS later WHERE later.hour > hours.hour) FROM hours
    WHERE hour IS NOT NULL
)
SELECT hour, 0, 0, 0 FROM hours WHERE hour IS NOT NULL
ON CONFLICT DO NOTHING;

INSERT INTO click_days (day, link_id, clicks, bots)
WITH RECURSIVE days (day) AS (
    SELECT min(day) FROM click_days
    UNION ALL
    SELECT (SELECT min(later.day) FROM click_days AS later WHERE later.day > days.day) FROM days WHERE day IS NOT NULL
)
SELECT day, 0, 0, 0 FROM days WHERE day IS NOT NULL
ON CONFLICT DO NOTHING;

-- Deletions of the last minutes, by request: one that is repeated because its answer got lost finds what it did. To insert
-- a row is to delete the link: one statement, so that the link and the note of it are never there without each other.
CREATE TABLE IF NOT EXISTS link_deletions (
    -- 16 bytes, as in links.
    request_id BLOB PRIMARY KEY,
    slug TEXT NOT NULL,
    -- Unix seconds.
    deleted_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS link_deletions_by_time ON link_deletions (deleted_at);

CREATE TRIGGER IF NOT EXISTS link_deletions_delete AFTER INSERT ON link_deletions
BEGIN
    DELETE FROM links WHERE slug = NEW.slug;
    DELETE FROM link_deletions WHERE deleted_at < NEW.deleted_at - 600;
END;

-- Slugs of deleted links, for 30 days: one of them may be given to a new link while nginx's journal still holds clicks of
-- the old one. Times are in Unix milliseconds.
CREATE TABLE IF NOT EXISTS deleted_slugs (
    slug TEXT PRIMARY KEY,
    deleted_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS deleted_slugs_by_time ON deleted_slugs (deleted_at);

-- Such slugs that were given to a new link. A click on the slug before `at` was a click on an older link. The number never
-- goes back: a row is removed only when a later one comes.
CREATE TABLE IF NOT EXISTS slug_reuses (
    number INTEGER PRIMARY KEY,
    slug TEXT NOT NULL,
    at INTEGER NOT NULL
) STRICT;

CREATE TRIGGER IF NOT EXISTS links_deleted_leave_the_slug AFTER DELETE ON links
BEGIN
    INSERT INTO deleted_slugs (slug, deleted_at)
    VALUES (OLD.slug, CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER))
    ON CONFLICT DO UPDATE SET deleted_at = excluded.deleted_at;
    DELETE FROM deleted_slugs
    WHERE deleted_at < CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - 30 * 86400000;
END;

CREATE TRIGGER IF NOT EXISTS links_made_with_an_old_slug AFTER INSERT ON links
WHEN EXISTS (SELECT 1 FROM deleted_slugs WHERE slug = NEW.slug)
BEGIN
    INSERT INTO slug_reuses (slug, at)
    VALUES (NEW.slug, CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER));
    DELETE FROM slug_reuses
    WHERE number < (SELECT max(number) FROM slug_reuses)
        AND at < CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - 30 * 86400000;
END;

-- Last, so that the version is there only when everything before it is.
INSERT INTO schema_version (version, applied_at) VALUES (5, unixepoch()) ON CONFLICT DO NOTHING;
