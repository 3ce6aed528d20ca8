-- ?2 is the new URL, or NULL; if ?3, ?4 is the new end, or NULL for none. No row: there is no such link. Where the end of
-- a link with a limit is, see 0004_click_limits.sql.
UPDATE links SET
    url = ifnull(?2, url),
    expires_at = iif(?3 AND max_clicks IS NULL, ?4, expires_at),
    limited_until = iif(?3 AND max_clicks IS NOT NULL, ?4, limited_until)
WHERE slug = ?1
RETURNING url, iif(max_clicks IS NULL, expires_at, limited_until), max_clicks, clicks_left, created_at
