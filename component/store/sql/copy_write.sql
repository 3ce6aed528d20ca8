-- Inserts links from a JSON array of objects in one statement: all of them, or none if it fails. Existing links stay as they
-- are. Every new link gets an id of this database: the clicks, which refer to ids, are not copied. Returns a row for each new
-- link.
INSERT INTO links (slug, url, created_at, expires_at, request_id, max_clicks, clicks_left, limited_until)
SELECT
    json_extract(value, '$.slug'),
    json_extract(value, '$.url'),
    json_extract(value, '$.created_at'),
    json_extract(value, '$.expires_at'),
    unhex(json_extract(value, '$.request_id')),
    json_extract(value, '$.max_clicks'),
    json_extract(value, '$.clicks_left'),
    json_extract(value, '$.limited_until')
FROM json_each(?1) WHERE true ORDER BY key
ON CONFLICT DO NOTHING
RETURNING 1
