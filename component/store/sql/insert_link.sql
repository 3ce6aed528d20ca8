-- Returns the link of this request, created now or by the same request before. ?5 is the id of the request, or NULL, which
-- matches no other request. No row means that another link has the slug. Checking before the insert would leave a gap in which
-- another process takes the slug or serves the same request. The conflict clause for the id comes first because the clauses are
-- tried in order, and a repeated request conflicts with the slug of its own link as well. Its update changes nothing; without
-- it no row would be returned. ?4 is the expiry and ?6 the click limit; 0004_click_limits.sql explains where they are stored.
INSERT INTO links (slug, url, created_at, expires_at, request_id, max_clicks, clicks_left, limited_until)
VALUES (?1, ?2, ?3, iif(?6 IS NULL, ?4, 0), ?5, ?6, ?6, iif(?6 IS NULL, NULL, ?4))
ON CONFLICT (request_id) WHERE request_id IS NOT NULL DO UPDATE SET request_id = request_id
ON CONFLICT (slug) DO NOTHING
RETURNING slug, url, iif(max_clicks IS NULL, expires_at, limited_until), max_clicks, clicks_left
