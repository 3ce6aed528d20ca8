-- Version 3 of the database: click counts. A batch of clicks is inserted as one row of click_batches, and a trigger adds it to
-- the sums below. That is one statement, so a batch is added completely or not at all.
--
-- Hours and days are numbered from 1970 in UTC. link_id 0 stands for all links together. Time comes first in each key, so that
-- the rows of the current hour and day lie together however many links there are. A link's days are looked up one by one.

-- The latest batch of each journal. Batches follow each other without a gap: `start` is where the previous batch stopped, or
-- the batch is a further part of the same range.
CREATE TABLE IF NOT EXISTS click_batches (
    journal TEXT NOT NULL,
    -- Positions in the journal.
    start INTEGER NOT NULL,
    stop INTEGER NOT NULL,
    -- The last slug, in byte order, whose clicks in this range have been counted; "~" when all have been.
    through TEXT NOT NULL,
    -- Unix seconds.
    accepted_at INTEGER NOT NULL,
    -- The batch as JSON (links_domain::clicks::Batch); empty once it has been added.
    body TEXT NOT NULL,
    PRIMARY KEY (journal, start, through)
) STRICT, WITHOUT ROWID;

-- Kept for 90 days; click_days has the same clicks for ever.
CREATE TABLE IF NOT EXISTS click_hours (
    hour INTEGER NOT NULL,
    link_id INTEGER NOT NULL,
    clicks INTEGER NOT NULL,
    -- Not included in `clicks`.
    bots INTEGER NOT NULL,
    PRIMARY KEY (hour, link_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS click_days (
    day INTEGER NOT NULL,
    link_id INTEGER NOT NULL,
    clicks INTEGER NOT NULL,
    bots INTEGER NOT NULL,
    PRIMARY KEY (day, link_id)
) STRICT, WITHOUT ROWID;

-- To list the hours and days that have rows.
CREATE INDEX IF NOT EXISTS click_hours_of_all ON click_hours (hour) WHERE link_id = 0;

CREATE INDEX IF NOT EXISTS click_days_of_all ON click_days (day) WHERE link_id = 0;

-- Sketches that estimate the number of different visitors (links_domain::visitors). A sketch has up to 16 words of 64 bits;
-- sketches are merged by OR.
CREATE TABLE IF NOT EXISTS click_visitors (
    day INTEGER NOT NULL,
    link_id INTEGER NOT NULL,
    word INTEGER NOT NULL,
    bits INTEGER NOT NULL,
    PRIMARY KEY (day, link_id, word)
) STRICT, WITHOUT ROWID;

-- Where clicks came from, and with which software: `kind` and `name` are those of links_domain::clicks::Detail.
CREATE TABLE IF NOT EXISTS click_details (
    day INTEGER NOT NULL,
    link_id INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    name TEXT NOT NULL,
    clicks INTEGER NOT NULL,
    PRIMARY KEY (day, link_id, kind, name)
) STRICT, WITHOUT ROWID;

-- Anybody can make up referrers (kind 1). When a link has more than 40 of them on a day, the 20 with the most clicks stay and
-- the others are merged into "*".
CREATE TRIGGER IF NOT EXISTS click_details_few_referrers AFTER INSERT ON click_details
WHEN NEW.kind = 1 AND NEW.name <> '*' AND 40 < (
    SELECT count(*) FROM click_details
    WHERE day = NEW.day AND link_id = NEW.link_id AND kind = 1 AND name <> '*'
)
BEGIN
    INSERT INTO click_details (day, link_id, kind, name, clicks)
    SELECT NEW.day, NEW.link_id, 1, '*', sum(clicks) FROM (
        SELECT clicks FROM click_details
        WHERE day = NEW.day AND link_id = NEW.link_id AND kind = 1 AND name <> '*'
        ORDER BY clicks DESC, name LIMIT -1 OFFSET 20
    ) WHERE true
    ON CONFLICT DO UPDATE SET clicks = clicks + excluded.clicks;
    DELETE FROM click_details
    WHERE day = NEW.day AND link_id = NEW.link_id AND kind = 1 AND name IN (
        SELECT name FROM click_details
        WHERE day = NEW.day AND link_id = NEW.link_id AND kind = 1 AND name <> '*'
        ORDER BY clicks DESC, name LIMIT -1 OFFSET 20
    );
END;

-- Clicks on a slug that has no link any more are left out. The empty slug stands for all links.
CREATE TRIGGER IF NOT EXISTS click_batches_expand AFTER INSERT ON click_batches
BEGIN
    INSERT INTO click_hours (hour, link_id, clicks, bots)
    SELECT value ->> 1, ifnull(links.id, 0), value ->> 2, value ->> 3
    FROM json_each(NEW.body, '$.clicks') LEFT JOIN links ON links.slug = value ->> 0
    WHERE links.id IS NOT NULL OR value ->> 0 = ''
    ON CONFLICT DO UPDATE SET clicks = clicks + excluded.clicks, bots = bots + excluded.bots;
    INSERT INTO click_days (day, link_id, clicks, bots)
    SELECT (value ->> 1) / 24, ifnull(links.id, 0), value ->> 2, value ->> 3
    FROM json_each(NEW.body, '$.clicks') LEFT JOIN links ON links.slug = value ->> 0
    WHERE links.id IS NOT NULL OR value ->> 0 = ''
    ON CONFLICT DO UPDATE SET clicks = clicks + excluded.clicks, bots = bots + excluded.bots;
    INSERT INTO click_visitors (day, link_id, word, bits)
    SELECT value ->> 1, ifnull(links.id, 0), value ->> 2, value ->> 3
    FROM json_each(NEW.body, '$.visitors') LEFT JOIN links ON links.slug = value ->> 0
    WHERE links.id IS NOT NULL OR value ->> 0 = ''
    ON CONFLICT DO UPDATE SET bits = bits | excluded.bits;
    INSERT INTO click_details (day, link_id, kind, name, clicks)
    SELECT value ->> 1, ifnull(links.id, 0), value ->> 2, value ->> 3, value ->> 4
    FROM json_each(NEW.body, '$.details') LEFT JOIN links ON links.slug = value ->> 0
    WHERE links.id IS NOT NULL OR value ->> 0 = ''
    ON CONFLICT DO UPDATE SET clicks = clicks + excluded.clicks;
    UPDATE click_batches SET body = ''
    WHERE journal = NEW.journal AND start = NEW.start AND through = NEW.through;
    DELETE FROM click_batches
    WHERE journal = NEW.journal AND (start <> NEW.start OR through <> NEW.through);
    -- Only one hour for each batch, so that no batch takes long.
    DELETE FROM click_hours
    WHERE hour = (SELECT min(hour) FROM click_hours) AND hour < NEW.accepted_at / 3600 - 90 * 24;
END;

-- Otherwise a later link with the same id would inherit the clicks.
CREATE TRIGGER IF NOT EXISTS links_deleted_with_clicks AFTER DELETE ON links
BEGIN
    DELETE FROM click_hours
    WHERE hour IN (SELECT hour FROM click_hours WHERE link_id = 0) AND link_id = OLD.id;
    DELETE FROM click_details
    WHERE day IN (SELECT day FROM click_days WHERE link_id = 0) AND link_id = OLD.id;
    DELETE FROM click_visitors
    WHERE day IN (SELECT day FROM click_days WHERE link_id = 0) AND link_id = OLD.id;
    DELETE FROM click_days
    WHERE day IN (SELECT day FROM click_days WHERE link_id = 0) AND link_id = OLD.id;
END;

-- Last, so that the version is recorded only once everything before it is in place.
INSERT INTO schema_version (version, applied_at) VALUES (3, unixepoch()) ON CONFLICT DO NOTHING;
