-- A row: it was there.
DELETE FROM links WHERE slug = ?1 RETURNING 1
