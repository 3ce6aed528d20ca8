SELECT id FROM links WHERE slug = ?1
