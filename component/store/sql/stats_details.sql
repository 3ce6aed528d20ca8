-- The details of link ?1's clicks from day ?2 up to but not including ?3, the most frequent of each kind first.
WITH RECURSIVE span (day) AS (SELECT ?2 WHERE ?2 < ?3 UNION ALL SELECT day + 1 FROM span WHERE day + 1 < ?3)
SELECT kind, name, sum(clicks) FROM span CROSS JOIN click_details USING (day)
WHERE link_id = ?1 GROUP BY kind, name ORDER BY kind, sum(clicks) DESC, name
