-- Changes the link with the slug ?1: ?2 is the new URL, or NULL to keep the old one. If ?3 is true, ?4 is the new expiry, or
-- NULL for none. No row means that there is no such link. 0004_click_limits.sql explains where the expiry of a link with a
-- limit is stored.
UPDATE links SET
    url = ifnull(?2, url),
    expires_at = iif(?3 AND max_clicks IS NULL, ?4, expires_at),
    limited_until = iif(?3 AND max_clicks IS NOT NULL, ?4, limited_until)
WHERE slug = ?1
RETURNING {{columns, blobs as hex}}
