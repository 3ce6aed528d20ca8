-- How far the journals have been counted of which clicks arrived last; see click_batches. A batch of which only a part has been
-- added is not counted yet.
SELECT journal, iif(through = '~', stop, start) FROM click_batches ORDER BY accepted_at DESC, journal LIMIT 20
