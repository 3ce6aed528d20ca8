-- The clicks of link ?1 in each hour that has any, from hour ?2 up to but not including ?3.
WITH RECURSIVE span (hour) AS (SELECT ?2 WHERE ?2 < ?3 UNION ALL SELECT hour + 1 FROM span WHERE hour + 1 < ?3)
SELECT hour, clicks, bots FROM span CROSS JOIN click_hours USING (hour) WHERE link_id = ?1 ORDER BY hour
