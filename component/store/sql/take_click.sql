-- One click of a link with a limit, at the time ?2. A row: it was there to be taken, and is taken, and leads to this URL:
-- another link may have the slug since it was looked up. One statement, so that no two requests take the same click.
UPDATE links SET clicks_left = clicks_left - 1
WHERE slug = ?1 AND clicks_left > 0 AND (limited_until IS NULL OR limited_until > ?2)
RETURNING url
