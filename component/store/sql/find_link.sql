SELECT url, iif(max_clicks IS NULL, expires_at, limited_until) AS expires_at, max_clicks, clicks_left FROM links WHERE slug = ?1
