-- Reads the table's own pages: `SELECT 1` would be answered without the file.
SELECT count(*) FROM (SELECT 1 FROM links LIMIT 1)
