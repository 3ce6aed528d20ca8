-- What a redirect needs.
SELECT url, expires_at, max_clicks, clicks_left, limited_until FROM links WHERE slug = ?1
