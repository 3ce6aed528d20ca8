-- A row comes back only if this made it. No check before: between a check and an insert another process may take the
-- slug.
INSERT INTO links (slug, url, created_at, expires_at) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (slug) DO NOTHING
RETURNING id
