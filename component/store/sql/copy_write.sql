-- Inserts links from a JSON array of objects in one statement: all of them, or none if it fails. Existing links stay as they
-- are. Every new link gets an id of this database: the clicks, which refer to ids, are not copied. Returns a row for each new
-- link.
INSERT INTO links ({{columns}})
SELECT {{columns of value, blobs from hex}}
FROM json_each(?1) WHERE true ORDER BY key
ON CONFLICT DO NOTHING
RETURNING 1
