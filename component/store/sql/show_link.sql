SELECT url, iif(max_clicks IS NULL, expires_at, limited_until), max_clicks, clicks_left, created_at
FROM links WHERE slug = ?1
