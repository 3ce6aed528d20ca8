-- Version 5 of the database: nothing of a deleted link passes to a later one.
--
-- This version only adds. An older release keeps working on these tables, and the triggers apply to its statements as well.

-- SQLite gives a new row the highest id in the table plus one, so a new link could get the id of a deleted one, and with it the
-- clicks that are still counted for that id. This is the highest id that ever belonged to a deleted link.
CREATE TABLE IF NOT EXISTS link_ids (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    highest_deleted INTEGER NOT NULL
) STRICT;

-- Links that were deleted before this version may have left clicks behind. Each day, and its highest link, is found by key.
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

-- The replacement is the highest id of all, so this happens once after the latest link was deleted, not for every new link.
CREATE TRIGGER IF NOT EXISTS links_made_with_a_new_id AFTER INSERT ON links
WHEN NEW.id <= (SELECT highest_deleted FROM link_ids)
BEGIN
    UPDATE links SET id = (SELECT highest_deleted + 1 FROM link_ids) WHERE id = NEW.id;
END;

-- links_deleted_with_clicks (version 3) looks for a link's clicks in the hours and days that have a row of link 0, but only the
-- last part of a batch used to insert that row. Now every part first inserts it, with zero clicks.
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

-- The same for parts that were added before this version.
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

-- The requests of the last ten minutes that deleted a link. A request that is repeated because its answer was lost finds its
-- own row. Inserting a row deletes the link by a trigger: that is one statement, so neither happens without the other.
CREATE TABLE IF NOT EXISTS link_deletions (
    -- 16 bytes, as in `links`.
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

-- The slugs of deleted links, kept for 30 days: a slug may be given to a new link while nginx's journal still holds clicks of
-- the old one. Times are in Unix milliseconds.
CREATE TABLE IF NOT EXISTS deleted_slugs (
    slug TEXT PRIMARY KEY,
    deleted_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS deleted_slugs_by_time ON deleted_slugs (deleted_at);

-- Slugs of deleted links that were given to a new link. A click on the slug before `at` belongs to an older link. Numbers never
-- repeat: an old row is removed only when a later one is inserted.
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

-- Last, so that the version is recorded only once everything before it is in place.
INSERT INTO schema_version (version, applied_at) VALUES (5, unixepoch()) ON CONFLICT DO NOTHING;
