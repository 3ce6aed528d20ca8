-- Returns the link of this request, created now or by the same request before. No row means that another link has the slug.
-- Checking before the insert would leave a gap in which another process takes the slug or serves the same request. The conflict
-- clause for the id of the request comes first because the clauses are tried in order, and a repeated request conflicts with
-- the slug of its own link as well. Its update changes nothing; without it no row would be returned. A request without an id
-- has NULL, which matches no other request.
INSERT INTO links ({{columns}}) VALUES ({{parameters}})
ON CONFLICT (request_id) WHERE request_id IS NOT NULL DO UPDATE SET request_id = request_id
ON CONFLICT (slug) DO NOTHING
RETURNING {{columns, blobs as hex}}
