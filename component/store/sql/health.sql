-- Reads a page of the table. SQLite would answer `SELECT 1` without touching the file.
SELECT count(*) FROM (SELECT 1 FROM links LIMIT 1)
