-- The links with the slugs in the JSON array ?1.
SELECT {{columns, blobs as hex}} FROM links WHERE slug IN (SELECT value FROM json_each(?1))
