-- Links in the order of their creation: those with an id above ?1 and up to ?2, at most ?3 of them. Links that are created
-- meanwhile have higher ids.
SELECT id, slug, url, created_at, expires_at, CASE WHEN request_id IS NOT NULL THEN hex(request_id) END,
    max_clicks, clicks_left, limited_until
FROM links WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT ?3
