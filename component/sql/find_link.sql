SELECT url, expires_at FROM links WHERE slug = ?1
