-- The ?3 links with the most clicks from day ?1 up to but not including ?2.
SELECT links.slug, top.clicks, top.bots FROM (
    SELECT link_id, sum(clicks) AS clicks, sum(bots) AS bots FROM click_days
    WHERE day >= ?1 AND day < ?2 AND link_id > 0 GROUP BY link_id ORDER BY sum(clicks) DESC, link_id LIMIT ?3
) AS top JOIN links ON links.id = top.link_id ORDER BY top.clicks DESC, top.link_id
