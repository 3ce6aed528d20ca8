-- The row that comes back is this request's link: made now, or by the same request before (?5 is its id, or NULL, which
-- is nobody's). No row: another link has the slug. One statement, no check before: between a check and an insert
-- another process may take the slug, or serve the same request. The id's clause stands first and is judged first: a
-- repeat conflicts with its own link's slug as well. What it sets is what is there: only an update gives back a row.
-- ?4 is when it ends, ?6 how often it leads on; where that is, see 0004_click_limits.sql.
INSERT INTO links (slug, url, created_at, expires_at, request_id, max_clicks, clicks_left, limited_until)
VALUES (?1, ?2, ?3, iif(?6 IS NULL, ?4, 0), ?5, ?6, ?6, iif(?6 IS NULL, NULL, ?4))
ON CONFLICT (request_id) WHERE request_id IS NOT NULL DO UPDATE SET request_id = request_id
ON CONFLICT (slug) DO NOTHING
RETURNING slug, url, iif(max_clicks IS NULL, expires_at, limited_until), max_clicks, clicks_left
