-- Some of the links in the order in which they were made: after ?1, up to ?2, at most ?3 of them. What is made meanwhile
-- has a higher id.
SELECT id, slug, url, created_at, expires_at, CASE WHEN request_id IS NOT NULL THEN hex(request_id) END,
    max_clicks, clicks_left, limited_until
FROM links WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT ?3
