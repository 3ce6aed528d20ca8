-- The words of link ?1's visitors on each day, as JSON, from day ?2 to before ?3: a row per word would be many.
WITH RECURSIVE span (day) AS (SELECT ?2 WHERE ?2 < ?3 UNION ALL SELECT day + 1 FROM span WHERE day + 1 < ?3)
SELECT day, json_group_array(json_array(word, bits)) FROM span CROSS JOIN click_visitors USING (day)
WHERE link_id = ?1 GROUP BY day ORDER BY day
