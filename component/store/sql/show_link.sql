SELECT {{columns, blobs as hex}} FROM links WHERE slug = ?1
