-- The links with the slugs in the JSON array ?1.
SELECT slug, url, created_at, expires_at, CASE WHEN request_id IS NOT NULL THEN hex(request_id) END,
    max_clicks, clicks_left, limited_until
FROM links WHERE slug IN (SELECT value FROM json_each(?1))
