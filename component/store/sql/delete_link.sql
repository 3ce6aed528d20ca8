-- Deletes the link with the slug ?1 for the request ?2 at the time ?3 (0005_deleted_links.sql). A row means that the link
-- existed, or that the same request deleted it before. The update on conflict changes nothing; without it no row would be
-- returned.
INSERT INTO link_deletions (request_id, slug, deleted_at)
SELECT ?2, ?1, ?3 WHERE EXISTS (SELECT 1 FROM links WHERE slug = ?1)
    OR EXISTS (SELECT 1 FROM link_deletions WHERE request_id = ?2)
ON CONFLICT (request_id) DO UPDATE SET request_id = request_id
RETURNING 1
