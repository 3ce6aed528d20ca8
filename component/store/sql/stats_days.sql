-- The clicks of link ?1 on each day that has any, from day ?2 up to but not including ?3.
WITH RECURSIVE span (day) AS (SELECT ?2 WHERE ?2 < ?3 UNION ALL SELECT day + 1 FROM span WHERE day + 1 < ?3)
SELECT day, clicks, bots FROM span CROSS JOIN click_days USING (day) WHERE link_id = ?1 ORDER BY day
