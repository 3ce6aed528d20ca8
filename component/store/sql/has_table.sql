-- Whether the table ?1 exists: 0 or 1.
SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?1
