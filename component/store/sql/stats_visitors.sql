-- The sketch of link ?1's visitors for each day from ?2 up to but not including ?3. The words of a day are one JSON array,
-- because a row for each word would make many rows.
WITH RECURSIVE span (day) AS (SELECT ?2 WHERE ?2 < ?3 UNION ALL SELECT day + 1 FROM span WHERE day + 1 < ?3)
SELECT day, json_group_array(json_array(word, bits)) FROM span CROSS JOIN click_visitors USING (day)
WHERE link_id = ?1 GROUP BY day ORDER BY day
