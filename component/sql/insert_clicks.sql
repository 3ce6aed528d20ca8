-- Takes a batch: journal, start, stop, time, body. No row: it does not begin where the latest one of its journal stopped,
-- because it, or another one with some of the same clicks, was taken before. What is asked and what is done is one
-- statement, so of two that come at once one is taken.
INSERT INTO click_batches (journal, start, stop, accepted_at, body)
SELECT ?1, ?2, ?3, ?4, ?5 WHERE ?2 = ifnull((SELECT max(stop) FROM click_batches WHERE journal = ?1), 0)
RETURNING stop
