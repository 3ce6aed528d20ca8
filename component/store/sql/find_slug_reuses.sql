-- The slugs that were given to new links after reuse number ?1 (0005_deleted_links.sql), earliest first, at most ?2 of them.
SELECT number, slug, at FROM slug_reuses WHERE number > ?1 ORDER BY number LIMIT ?2
