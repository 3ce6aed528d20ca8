-- Links in the order of their creation: those with an id above ?1 and up to ?2, at most ?3 of them. Links that are created
-- meanwhile have higher ids.
SELECT id, {{columns, blobs as hex}} FROM links WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT ?3
