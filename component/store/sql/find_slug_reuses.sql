-- The slugs that were given to new links after the reuse with the number ?1 (0005_deleted_links.sql), the earliest first.
SELECT number, slug, at FROM slug_reuses WHERE number > ?1 ORDER BY number LIMIT ?2
