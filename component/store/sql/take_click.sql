-- Takes one click of the link with the slug ?1 and a limit, at the time ?2. A row means that a click was left and has been
-- taken. The row has the URL because another link may have got the slug since it was looked up. It is one statement, so no two
-- requests take the same click.
UPDATE links SET clicks_left = clicks_left - 1
WHERE slug = ?1 AND clicks_left > 0 AND (limited_until IS NULL OR limited_until > ?2)
RETURNING url
